"""What bench/faults.py counts: faults are felt where they should be, and cost nothing where they
must not."""

from pathlib import Path

import pytest

from bench.faults import FAULTS, FITS, Cost, World, lived

pytestmark = pytest.mark.looptime


@pytest.mark.parametrize("fault", ["nothing", "reading", "odd_paths"])
async def test_what_must_cost_nothing_costs_nothing(tmp_path: Path, fault: str) -> None:
    cost = await lived(tmp_path, fault, 150)
    assert (cost.over, cost.refused, cost.failed) == (0, 0, 0)


async def test_what_it_takes_to_mend_is_counted_as_reloads(tmp_path: Path) -> None:
    cost = await lived(tmp_path, "leaves_and_returns", 330)
    assert cost.failed == 0
    assert cost.reloads > 0


async def test_too_much_that_is_granted_and_batches_that_are_refused_are_seen(
    tmp_path: Path,
) -> None:
    world = World(tmp_path, FITS)
    for name in FITS:
        config = {**world.host.models[name].config, "max_batch_size": 4}
        config["parameters"] = {
            "EXECUTION_ENV_PATH": {"string_value": "/var/lib/igniterd/shares/igniterd-v2/60"}
        }
        world.host.put(name, config)
    world._count(0)
    assert (world.cost.over, world.cost.refused) == (1, 3)
    await world.loop.close()


async def test_an_slo_that_is_missed_is_seen_and_whether_it_was_said(tmp_path: Path) -> None:
    world = World(tmp_path, FITS)
    for model in world.host.models.values():
        model.latencies.append((world.clock(), 10_000.0))
    world.unwell = True
    world._count(59)
    assert world.cost == Cost(missed=3)
    world._count(119)
    assert world.cost == Cost(missed=6, unsaid=3)
    await world.loop.close()


def test_every_fault_says_what_it_is() -> None:
    assert all(fault.__doc__ for fault, _ in FAULTS.values())
