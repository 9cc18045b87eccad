from igniterd.errors import CannotRun, ConfigError


def test_config_error_carries_every_problem() -> None:
    error = ConfigError(
        "igniterd.toml", ["loop.interval_s: -1 is not above 0", "host.name: missing"]
    )
    assert isinstance(error, CannotRun)
    assert error.problems == ("loop.interval_s: -1 is not above 0", "host.name: missing")
    assert str(error) == "igniterd.toml: loop.interval_s: -1 is not above 0; host.name: missing"
