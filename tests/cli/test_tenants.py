"""What verbs mean by the name of a model that several Tritons serve."""

from __future__ import annotations

import pytest

from igniterd.cli.adopt import _on, tenants_of
from igniterd.cli.release import _tenants
from igniterd.config import Config, parse_config


def settings() -> Config:
    return parse_config(
        '[[triton]]\nname = "a"\n[[triton]]\nname = "b"\nurl = "127.0.0.1:9001"\n'
        + "".join(
            f'[[model]]\nname = "{name}"\ntriton = "{server}"\nslo_p99_ms = 10\n'
            for name, server in (("both", "a"), ("both", "b"), ("one", "b"))
        ),
        source="test",
    )


@pytest.mark.parametrize(
    ("named", "meant"),
    [
        ("a/both", {"a": ["both"], "b": []}),
        ("both", {"a": ["both"], "b": ["both"]}),
        ("one", {"a": [], "b": ["one"]}),
        ("unknown", {"a": ["unknown"], "b": []}),
    ],
)
def test_a_name_is_one_tenant_s_or_all_of_that_name(
    named: str, meant: dict[str, list[str]]
) -> None:
    told = settings()
    assert {server.name: _on(named, server, told) for server in told.triton} == meant
    assert _on(named, None, None) == [named]


def test_the_daemon_is_told_what_it_calls_them() -> None:
    told = settings()
    assert _tenants(["both", "one", "unknown"], told) == ["a/both", "b/both", "one", "unknown"]
    assert _tenants(["both"], told, told.triton[1]) == ["b/both"]
    assert [model.tenant for model in tenants_of("b/both", told)] == ["b/both"]
