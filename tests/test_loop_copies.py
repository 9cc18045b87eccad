"""Two copies of a model while it is reloaded, and one that stays, in virtual time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from igniterd.records import Stub
from igniterd.states import State
from tests.hosts import Bench, config

pytestmark = pytest.mark.looptime

RATES = {"alexnet": 400.0, "resnet50": 300.0, "vgg19": 150.0}
LATER = {"alexnet": 400.0, "resnet50": 450.0, "vgg19": 75.0}


class Copies:
    """The host's processes with the old copy of a model beside the new one: while it is loaded, or
    for good."""

    def __init__(self, bench: Bench) -> None:
        self.loading = set[str]()
        self.stays = set[str]()
        self.elsewhere = set[str]()  # another Triton of the host has a model of this name
        host = bench.host
        read, load = host.processes.read, host.load

        async def both() -> tuple[Stub, ...]:
            stubs = await read()
            twice = self.loading | self.stays
            old = [
                replace(s, pid=s.pid + 50, pids=(s.pid + 50,), started=s.started - 1)
                for s in stubs
                if any(s.instance == f"{name}_0_0" for name in twice)
            ]
            other = [
                replace(s, pid=s.pid + 70, pids=(s.pid + 70,), server_pid=7, started=s.started - 1)
                for s in stubs
                if any(s.instance == f"{name}_0_0" for name in self.elsewhere)
            ]
            return (*stubs, *old, *other)

        async def slowly(model: str, wanted: dict[str, Any], *, exact: bool = False) -> None:
            self.loading.add(model)
            try:
                await load(model, wanted, exact=exact)
            finally:
                self.loading.discard(model)

        host.processes.read, host.load = both, slowly  # type: ignore[method-assign]


def bench(tmp_path: Path) -> tuple[Bench, Copies]:
    rates = {name: (lambda t, n=name: (RATES if t < 60 else LATER)[n]) for name in RATES}
    made = Bench(config(tmp_path), rates, proves=True)
    made.host.reload_s = 3.0
    return made, Copies(made)


def states(made: Bench, model: str) -> set[State]:
    return {tick.standings[model].state for tick in made.ticks}


async def test_the_two_copies_of_a_reload_of_our_own_are_no_old_copy(tmp_path: Path) -> None:
    made, _ = bench(tmp_path)
    await made.run(150)
    assert [model for at_s, model, _ in made.host.loads if at_s > 60], "nothing was loaded again"
    for name in RATES:
        assert State.OLD_COPY not in states(made, name)


async def test_a_copy_that_stays_is_told_and_its_model_not_reloaded(tmp_path: Path) -> None:
    made, copies = bench(tmp_path)
    await made.run(30)
    before = sum(model == "vgg19" for _, model, _ in made.host.loads)
    copies.stays.add("vgg19")
    await made.run(60)
    standing = made.ticks[-1].standings["vgg19"]
    assert standing.state is State.OLD_COPY
    assert "old copy" in standing.why
    assert sum(model == "vgg19" for _, model, _ in made.host.loads) <= before + 1


async def test_a_model_of_the_same_name_in_another_triton_is_no_old_copy(tmp_path: Path) -> None:
    made, copies = bench(tmp_path)
    copies.elsewhere.add("vgg19")
    await made.run(60)
    assert any(model == "vgg19" for _, model, _ in made.host.loads)
    assert State.OLD_COPY not in states(made, "vgg19")
