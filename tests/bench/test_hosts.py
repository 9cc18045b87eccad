"""The bench of hosts of several GPUs: what it counts, and that it runs."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest

from bench import hosts
from bench.hosts_world import (
    GIVE_UP_S,
    LARGEST,
    MOST,
    NEEDS,
    PER_GPU,
    Asked,
    Fleet,
    World,
    rates_at,
    too_full,
    traffic,
)

SHARES = "/var/lib/igniterd/shares/igniterd-v2"
LIGHT = tuple(
    Asked(f"{like}-{n}", like, slo_ms, n % 2, np.array([5.0]))
    for n, (like, slo_ms) in enumerate((("alexnet", 300.0), ("resnet50", 800.0)))
)


def world(folder: Path, *, apart: bool = False, asked: tuple[Asked, ...] = LIGHT) -> World:
    return World(folder, list(asked), 2, apart=apart)


def the_fleet(made: World) -> Fleet:
    (fleet,) = made.fleets.values()
    return fleet


async def give(fleet: Fleet, model: str, percent: int, gpu: int) -> None:
    config = copy.deepcopy(fleet.models[model].config)
    config["parameters"] = {"EXECUTION_ENV_PATH": {"string_value": f"{SHARES}/{percent}"}}
    config["instance_group"] = [{"count": 1, "kind": "KIND_GPU", "gpus": [gpu]}]
    await fleet.load(model, config)


def test_the_same_seed_is_the_same_traffic_and_the_host_has_room_for_it() -> None:
    one, same, other = traffic(2, 1, 600.0), traffic(2, 1, 600.0), traffic(2, 2, 600.0)
    assert all(np.array_equal(a.rates, b.rates) for a, b in zip(one, same, strict=True))
    assert not all(np.array_equal(a.rates, b.rates) for a, b in zip(one, other, strict=True))
    needed = sum(np.interp(a.rates, rates_at(a.like, a.slo_ms), NEEDS) for a in one)
    assert isinstance(needed, np.ndarray)
    assert needed.max() <= 2 * MOST + 0.04 * len(one)
    assert [sum(a.gpu == gpu for a in one) for gpu in range(2)] == [PER_GPU, PER_GPU]


def test_traffic_that_is_too_much_for_one_gpu_is_seen() -> None:
    slo_ms = 150.0
    most = float(rates_at("alexnet", slo_ms)[-1])
    full = [Asked(f"alexnet-{n}", "alexnet", slo_ms, 0, np.array([most])) for n in range(3)]
    assert LARGEST * len(full) > 1
    assert too_full(full, 2, 300.0) == (2, 4)
    assert too_full(full[:1], 2, 300.0) == (0, 4)


@pytest.mark.looptime
async def test_a_move_onto_a_gpu_that_has_no_room_is_seen(tmp_path: Path) -> None:
    made = world(tmp_path)
    fleet = the_fleet(made)
    for name, percent in (("alexnet-0", 60), ("resnet50-1", 60)):
        await give(fleet, name, percent, fleet.models[name].gpu)
    assert (fleet.over, fleet.moved) == ([], [])
    await give(fleet, "alexnet-0", 60, 1)
    assert len(fleet.moved) == 1
    assert [said.split(": ")[1] for said in fleet.over] == [
        "1.200 of GPU 1 granted, 0.600 before, as alexnet-0 is loaded"
    ] * 2
    await made.loop.close()


@pytest.mark.looptime
async def test_a_copy_holds_its_part_while_it_is_made(tmp_path: Path) -> None:
    """The old copy shrinks only once the new one serves."""
    made = world(tmp_path)
    fleet = the_fleet(made)
    await give(fleet, "alexnet-0", 60, 0)
    await give(fleet, "resnet50-1", 30, 1)
    fleet.made["resnet50-1"] = fleet.models["alexnet-0"].applied
    assert fleet._granted() == pytest.approx([1.2, 0.3])
    await made.loop.close()


@pytest.mark.looptime
async def test_requests_that_wait_too_long_are_late_and_not_failed(tmp_path: Path) -> None:
    made = world(tmp_path)
    fleet = the_fleet(made)
    fleet.speed_up("alexnet-0", 1e-9)
    found = await made.run(330)
    assert len(fleet.lost["alexnet-0"]) > 0
    assert min(fleet.lost["alexnet-0"]) < made.clock() - GIVE_UP_S
    assert found.failed == 0
    assert (found.missed, found.minutes) == (3, 6)
    fleet.models["resnet50-1"].latencies.pop()
    assert fleet.failed() == 1
    await made.loop.close()


@pytest.mark.looptime
async def test_every_set_up_sees_the_same_requests(tmp_path: Path) -> None:
    offered = []
    for apart in (False, True):
        made = world(tmp_path, apart=apart)
        await made.live(60)
        offered.append({n: count for f in made.fleets.values() for n, count in f.offered.items()})
        await made.loop.close()
    assert offered[0] == offered[1]
    assert all(count == pytest.approx(300, rel=0.2) for count in offered[0].values())


def test_the_short_bench_runs_and_nothing_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert hosts.main(["--short", "--jobs", "2"]) == 0
    said = capsys.readouterr().out
    rows = [line for line in said.splitlines() if line.startswith(tuple(hosts.SET_UPS))]
    assert len(rows) == len(hosts.SET_UPS)
    assert "a decision as the loop takes it" in said
