from structlog.testing import capture_logs

from igniterd.clients.once import Once


def test_a_failure_is_told_once_and_its_recovery_once() -> None:
    with capture_logs() as logs:
        once = Once("nvml")
        once.worked("read")
        for _ in range(3):
            once.failed("read", "no answer in 0.3 s")
        assert once.failing("read")
        once.worked("read")
        once.worked("read")
        once.failed("read", "again")
    assert [(entry["log_level"], entry["event"]) for entry in logs] == [
        ("warning", "failing"),
        ("info", "recovered"),
        ("warning", "failing"),
    ]
    assert (logs[0]["source"], logs[0]["what"], logs[0]["reason"], logs[1]["failures"]) == ("nvml", "read", "no answer in 0.3 s", 3)


def test_keys_are_apart() -> None:
    with capture_logs() as logs:
        once = Once("triton:main")
        once.failed("a", "x")
        once.failed("b", "y")
        once.worked("a")
    assert [entry["what"] for entry in logs] == ["a", "b", "a"]
