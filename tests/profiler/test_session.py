"""A whole profile on a simulated Triton in virtual time: what is measured, and what is left behind
whatever happens."""

from __future__ import annotations

import asyncio
import copy
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from igniterd.clients.owned import as_owned
from igniterd.clients.triton.config_change import marked, with_allocation
from igniterd.errors import CannotRun, NotNow, Refused, Unreachable
from igniterd.profiler.board import Probe
from igniterd.profiler.partial import Partial, Settings
from igniterd.profiler.server import Server, for_measuring, restore
from igniterd.profiler.session import Session
from igniterd.records import Allocation, Stub
from tests.profiler.fake import FakeBoard, FakeTriton, Heard, config_of, plain_ms
from tests.waiting import until

pytestmark = pytest.mark.looptime


def asked(folder: Path, *models: str, **more: object) -> Partial:
    return Partial(
        settings=Settings.model_validate(
            {"models": list(models), "triton": "fake", "shares": folder / "shares", **more}
        )
    )


def session(
    triton: FakeTriton, partial: Partial, folder: Path, heard: Heard | None = None, **more: float
) -> Session:
    return Session(
        triton, Probe(FakeBoard(triton)), partial, folder / "p.partial", heard or Heard(), **more
    )


async def test_profiles_two_models_and_leaves_the_server_as_it_was(tmp_path: Path) -> None:
    configs = [config_of("big"), config_of("small"), config_of("idle")]
    triton, partial, heard = FakeTriton(configs), asked(tmp_path, "big", "small"), Heard()
    await session(triton, partial, tmp_path, heard).run()
    profile = partial.profile(origin="test")
    profile.check()
    for name, model in profile.models.items():
        assert 3 <= len(model.solo) <= 11
        assert {p.batch for p in model.solo} >= {1, 32}
        assert {p.share for p in model.solo} >= {0.1, 1.0}
        for p in model.solo:
            assert p.latency_ms == pytest.approx(plain_ms(name, p.batch, p.share, 0), rel=1e-3)
            assert p.power_w == pytest.approx(150.0)
            assert p.clock_mhz == pytest.approx(1490.0)
    assert len(profile.co_runs) == 2
    for run in profile.co_runs:
        assert sum(t.share for t in run.tenants) == pytest.approx(1.0)
        for t in run.tenants:
            assert t.latency_ms == pytest.approx(plain_ms(t.model, t.batch, t.share, 1), rel=0.01)
    assert {name: m.config for name, m in triton.models.items()} == {
        str(c["name"]): c for c in configs
    }
    assert Partial.read(tmp_path / "p.partial").originals == {}
    assert profile.board.idle_power_w == pytest.approx(50.0)
    assert profile.board.share_unit == pytest.approx(0.025)
    assert heard.steps[-1][3] == "putting the server back as it was"
    assert all(left_s >= 0 and done <= total for done, total, left_s, _ in heard.steps)


HOST_MS, ITEM_MS = 5.0, 0.1


def hosted_ms(model: str, batch: int, share: float, neighbours: int) -> float:
    """The longer of what the host takes, a fifth more beside others, and of the GPU."""
    gpu_ms = (ITEM_MS * (batch + 1) / share + 0.2) * (1.0 + 0.1 * neighbours)
    return max(HOST_MS * (1.0 + 0.2 * neighbours), gpu_ms) * 1.01374


@pytest.mark.parametrize("reload_s", [1.0, 8.0])
async def test_floored_models_are_met_on_the_floor_and_well_above_the_knee(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reload_s: float
) -> None:
    monkeypatch.setattr("tests.profiler.fake.RELOAD_S", reload_s)
    configs = [config_of(name, max_batch=128) for name in ("a", "b")]
    triton, partial = FakeTriton(configs, hosted_ms), asked(tmp_path, "a", "b")
    await session(triton, partial, tmp_path).run()
    profile = partial.profile(origin="test")
    profile.check()
    assert len(profile.co_runs) == 2
    for name, model in profile.models.items():
        alone = {(p.batch, p.share): p.latency_ms for p in model.solo}
        assert max(b for b, s in alone if s == 0.1) == 128
        met = [
            (t.batch, t.share) for run in profile.co_runs for t in run.tenants if t.model == name
        ]
        on_floor, above = sorted(alone[p] for p in met)  # each was measured alone too
        assert on_floor < 1.05 * HOST_MS
        assert above > 2.3 * HOST_MS
        spent = [p for p in alone if p[0] / p[1] < 0.3 * HOST_MS / ITEM_MS]
        # both ends, the setting on the floor, one before it was known; where a reload is slow,
        # one batch more at the share that is applied costs little
        assert len(spent) <= (4 if reload_s < 5 else 6)


async def test_the_slowest_corner_is_a_smaller_batch_where_it_would_take_too_long(
    tmp_path: Path,
) -> None:
    def slow_ms(model: str, batch: int, share: float, neighbours: int) -> float:
        return 10.0 * plain_ms(model, batch, share, neighbours)

    triton, partial = FakeTriton([config_of("big")], slow_ms), asked(tmp_path, "big", points=4)
    await session(triton, partial, tmp_path).run()
    assert [(p.batch, p.share) for p in partial.models["big"].solo][3] == (2, 0.1)
    quick = asked(tmp_path, "big", points=4)
    await session(FakeTriton([config_of("big")]), quick, tmp_path).run()
    assert [(p.batch, p.share) for p in quick.models["big"].solo][3] == (32, 0.1)


async def test_one_reload_serves_several_batches(tmp_path: Path) -> None:
    triton, partial = FakeTriton([config_of("big")]), asked(tmp_path, "big", accuracy=0.001)
    await session(triton, partial, tmp_path).run()
    shares = Counter(p.share for p in partial.models["big"].solo)
    assert len(triton.loads) == len(shares) + 1  # a share is set once, and the original in the end
    assert len(partial.models["big"].solo) == 11
    assert max(shares.values()) > 1


async def test_stops_at_the_accuracy_asked_for(tmp_path: Path) -> None:
    triton, partial = FakeTriton([config_of("big")]), asked(tmp_path, "big", accuracy=0.3)
    await session(triton, partial, tmp_path).run()
    ends = {(1, 0.1), (1, 1.0), (32, 0.1), (32, 1.0)}
    assert {(p.batch, p.share) for p in partial.models["big"].solo} == ends


async def test_interrupted_it_restores_and_goes_on_from_the_file(tmp_path: Path) -> None:
    configs = [config_of("big"), config_of("small")]
    triton, partial = FakeTriton(configs), asked(tmp_path, "big", "small")
    task = asyncio.create_task(session(triton, partial, tmp_path).run())
    await until(lambda: "big" in partial.models and len(partial.models["big"].solo) >= 4, 3600.0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [m.config for m in triton.models.values()] == configs
    left = Partial.read(tmp_path / "p.partial")
    assert left.originals == {}
    before = {(p.batch, p.share): p.latency_ms for p in left.models["big"].solo}
    assert len(before) >= 4
    triton.loads.clear()
    heard = Heard()
    await session(triton, left, tmp_path, heard).run()
    after = {(p.batch, p.share): p.latency_ms for p in left.models["big"].solo}
    assert before.items() <= after.items()
    assert heard.steps[0][0] == len(before)  # the board is known too
    assert len(left.co_runs) == 2
    assert [m.config for m in triton.models.values()] == configs


async def test_the_file_says_how_the_server_was_before_anything_is_changed(tmp_path: Path) -> None:
    original = config_of("big")
    triton, partial = FakeTriton([original]), asked(tmp_path, "big")
    load, seen = triton.load, []

    async def watched(model: str, config: dict[str, object], *, exact: bool = False) -> None:
        seen.append(copy.deepcopy(Partial.read(tmp_path / "p.partial").originals))
        await load(model, config, exact=exact)

    triton.load = watched  # type: ignore[method-assign]
    await session(triton, partial, tmp_path).run()
    assert seen
    assert all(s == {"big": original} for s in seen)


async def put_back(triton: FakeTriton, left: Partial, heard: Heard) -> dict[str, str]:
    return await restore(
        triton,
        left.originals,
        run=left.run,
        shares=left.settings.shares,
        patience_s=5.0,
        say=heard.say,
    )


def by_another_daemon(config: dict[str, Any]) -> dict[str, Any]:
    return with_allocation(config, Allocation(0.35, 1, 0, 1), "/elsewhere/shares")


def by_an_operator(config: dict[str, Any]) -> dict[str, Any]:
    return {**config, "max_batch_size": 17}


def from_a_file(config: dict[str, Any]) -> dict[str, Any]:
    return config_of("big", max_batch=3)


def by_another_profiler(config: dict[str, Any]) -> dict[str, Any]:
    return marked(for_measuring(config_of("big"), None, 32, Path("/none"), run="another"), "ff")


@pytest.mark.parametrize(
    "changed", [by_another_daemon, by_an_operator, from_a_file, by_another_profiler]
)
async def test_somebody_elses_newer_configuration_is_not_overwritten(
    tmp_path: Path, changed: Any
) -> None:
    triton, partial, heard = FakeTriton([config_of("big")]), asked(tmp_path, "big"), Heard()

    def change(count: int) -> None:
        if count == 300:
            triton.models["big"].config = changed(triton.models["big"].config)
            triton.loads.clear()

    triton.after_infer = change
    with pytest.raises((CannotRun, Refused)):
        await session(triton, partial, tmp_path, heard).run()
    theirs = copy.deepcopy(triton.models["big"].config)
    assert triton.loads == []
    assert any("somebody else changed it meanwhile" in line for line in heard.said)
    assert Partial.read(tmp_path / "p.partial").originals == {}
    assert triton.models["big"].config == theirs


async def test_a_killed_profiler_s_model_is_put_back_from_its_file_or_without_it(
    tmp_path: Path,
) -> None:
    original = config_of("big")
    triton, partial = FakeTriton([original]), asked(tmp_path, "big")
    server = Server(triton, {"big": original}, partial.settings.shares, run=partial.run)
    partial.originals = {"big": original}
    await server.apply("big", 0.5, 4)
    left = copy.deepcopy(triton.models["big"].config)
    assert as_owned(left, str(partial.settings.shares)) == original
    assert await put_back(triton, partial, Heard()) == {}
    assert triton.models["big"].config == original


async def test_a_server_that_goes_away_is_put_back_later(tmp_path: Path) -> None:
    original = config_of("big")
    triton, partial = FakeTriton([original]), asked(tmp_path, "big")

    def die(count: int) -> None:
        triton.down = count >= 300

    triton.after_infer = die
    heard = Heard()
    with pytest.raises(Unreachable):
        await session(triton, partial, tmp_path, heard).run()
    left = Partial.read(tmp_path / "p.partial")
    assert left.originals == {"big": original}
    assert any("could not be put back" in line for line in heard.said)
    triton.down, triton.after_infer = False, lambda count: None
    assert triton.models["big"].config != original
    assert await put_back(triton, left, heard) == {}
    assert triton.models["big"].config == original


async def test_a_server_that_comes_back_in_time_is_put_back(tmp_path: Path) -> None:
    original = config_of("big")
    triton, partial = FakeTriton([original]), asked(tmp_path, "big")

    def die(count: int) -> None:
        if count == 300:
            triton.down = True
            asyncio.get_running_loop().call_later(20.0, setattr, triton, "down", False)

    triton.after_infer = die
    with pytest.raises(NotNow):
        await session(triton, partial, tmp_path).run()
    assert triton.models["big"].config == original
    assert Partial.read(tmp_path / "p.partial").originals == {}


async def test_batches_that_the_model_refuses_are_left_out(tmp_path: Path) -> None:
    triton, partial, heard = FakeTriton([config_of("big")]), asked(tmp_path, "big"), Heard()
    triton.refuses = lambda model, batch: "CUDA out of memory" if batch > 20 else ""
    await session(triton, partial, tmp_path, heard).run()
    assert max(p.batch for p in partial.models["big"].solo) == 16
    assert any("CUDA out of memory" in line for line in heard.said)
    partial.profile(origin="").check()


async def test_traffic_of_others_at_the_start_is_refused(tmp_path: Path) -> None:
    triton, partial = FakeTriton([config_of("big"), config_of("other")]), asked(tmp_path, "big")

    async def use() -> None:
        while True:
            await triton.execute("other", 1)

    using = asyncio.create_task(use())
    with pytest.raises(CannotRun, match="other: in use by others"):
        await session(triton, partial, tmp_path).run()
    using.cancel()
    assert triton.loads == []


async def test_traffic_of_others_meanwhile_voids_what_was_measured(tmp_path: Path) -> None:
    triton, partial, heard = (
        FakeTriton([config_of("big"), config_of("other")]),
        asked(tmp_path, "big"),
        Heard(),
    )
    used = []

    def once(count: int) -> None:
        if count == 200:
            used.append(asyncio.create_task(triton.execute("other", 1)))

    triton.after_infer = once
    await session(triton, partial, tmp_path, heard).run()
    assert len(used) == 1
    assert any(
        "other of the same server was used meanwhile; measuring this again" in line
        for line in heard.said
    )
    for p in partial.models["big"].solo:
        assert p.latency_ms == pytest.approx(plain_ms("big", p.batch, p.share, 0), rel=1e-3)


async def test_requests_counted_after_their_answer_are_not_taken_for_somebody_elses(
    tmp_path: Path,
) -> None:
    triton, heard = FakeTriton([config_of("big"), config_of("small")]), Heard()
    triton.counted_after_s = 0.3  # a busy host: longer than from one measurement to the next
    partial = asked(tmp_path, "big", "small")
    await session(triton, partial, tmp_path, heard).run()
    assert not [line for line in heard.said if "measuring this again" in line]
    for p in partial.models["big"].solo:
        assert p.latency_ms == pytest.approx(plain_ms("big", p.batch, p.share, 0), rel=1e-3)


async def test_a_budget_is_kept_and_shared_out(tmp_path: Path) -> None:
    triton, partial = (
        FakeTriton([config_of("big"), config_of("small")]),
        asked(tmp_path, "big", "small", accuracy=0.001),
    )
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    await session(triton, partial, tmp_path, budget_s=45.0).run()
    assert loop.time() - began_s <= 45.0 + 5.0
    assert all(3 <= len(partial.models[m].solo) < 11 for m in ("big", "small"))
    partial.profile(origin="").check()


async def test_a_point_that_contradicts_the_others_is_measured_again(tmp_path: Path) -> None:
    wrong = []

    def once_wrong(model: str, batch: int, share: float, neighbours: int) -> float:
        first = (batch, share) == (32, 1.0) and len(wrong) < 185
        wrong.extend([1] if first else [])
        return plain_ms(model, batch, share, neighbours) * (0.05 if first else 1.0)

    triton, partial, heard = (
        FakeTriton([config_of("big")], once_wrong),
        asked(tmp_path, "big"),
        Heard(),
    )
    await session(triton, partial, tmp_path, heard).run()
    assert any(
        "batch 32, share 1 contradicts other points; measuring it again" in line
        for line in heard.said
    )
    (point,) = [p for p in partial.models["big"].solo if (p.batch, p.share) == (32, 1.0)]
    assert point.latency_ms == pytest.approx(plain_ms("big", 32, 1.0, 0), rel=1e-3)


async def test_a_point_that_goes_on_contradicting_is_left_out(tmp_path: Path) -> None:
    def wrong(model: str, batch: int, share: float, neighbours: int) -> float:
        return plain_ms(model, batch, share, neighbours) * (
            0.05 if (batch, share) == (32, 1.0) else 1.0
        )

    triton, partial, heard = FakeTriton([config_of("big")], wrong), asked(tmp_path, "big"), Heard()
    await session(triton, partial, tmp_path, heard).run()
    assert any("leaving it out" in line for line in heard.said)
    partial.profile(origin="").check()


async def test_a_model_inside_tritonserver_is_profiled_at_the_whole_gpu(tmp_path: Path) -> None:
    triton = FakeTriton([config_of("net", backend="onnxruntime"), config_of("small")])
    partial, heard = asked(tmp_path, "net", "small"), Heard()
    await session(triton, partial, tmp_path, heard).run()
    assert {p.share for p in partial.models["net"].solo} == {1.0}
    assert partial.co_runs == []
    assert all(share is None for model, share in triton.loads if model == "net")


async def test_without_mps_every_model_is_profiled_at_the_whole_gpu(tmp_path: Path) -> None:
    triton = FakeTriton([config_of("big"), config_of("small")])
    partial, heard = asked(tmp_path, "big", "small", mps=False), Heard()
    await session(triton, partial, tmp_path, heard).run()
    assert all({p.share for p in partial.models[name].solo} == {1.0} for name in ("big", "small"))
    assert partial.co_runs == []
    assert any("no share without MPS" in line for line in heard.said)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (config_of("m", sequence_batching={}), "sequence_batching"),
        (config_of("m", model_transaction_policy={"decoupled": True}), "decoupled"),
        (config_of("m", dims=(3, -1)), "--shape INPUT=d1,d2"),
        (config_of("m", backend="onnxruntime", max_batch=2), "a profile needs 3"),
    ],
)
async def test_what_cannot_be_profiled_is_said_before_anything_is_changed(
    tmp_path: Path, config: dict[str, object], said: str
) -> None:
    triton, partial = FakeTriton([config]), asked(tmp_path, "m")
    with pytest.raises(CannotRun, match=said):
        await session(triton, partial, tmp_path).run()
    assert triton.loads == []


@pytest.mark.parametrize(
    ("shapes", "arrays", "said"),
    [
        (
            {"INPTU": [3]},
            (),
            "--shape INPTU: no model has an input of that name; the inputs are INPUT",
        ),
        ({"other:INPUT": [3]}, (), "--shape other:INPUT"),
        ({}, ("IMAGE",), "--input IMAGE"),
    ],
)
async def test_a_shape_or_array_for_no_input_is_not_left_out_in_silence(
    tmp_path: Path, shapes: dict[str, list[int]], arrays: tuple[str, ...], said: str
) -> None:
    np.savez(tmp_path / "items.npz", **{name: np.zeros(3) for name in arrays})
    triton = FakeTriton([config_of("m")])
    partial = asked(tmp_path, "m", shapes=shapes, input=tmp_path / "items.npz" if arrays else None)
    with pytest.raises(CannotRun, match=said):
        await session(triton, partial, tmp_path).run()
    assert triton.loads == []


async def test_a_daemon_that_acts_on_the_same_server_is_noticed(tmp_path: Path) -> None:
    triton, partial = FakeTriton([config_of("big")]), asked(tmp_path, "big")
    heard = Heard()

    def meddle(count: int) -> None:
        if count == 400:
            triton.models["big"].config["parameters"].pop("EXECUTION_ENV_PATH")

    triton.after_infer = meddle
    with pytest.raises(NotNow, match="somebody else changes it"):
        await session(triton, partial, tmp_path, heard).run()
    assert "EXECUTION_ENV_PATH" not in triton.models["big"].config["parameters"]
    assert any("igniterd release big gives it back to its owner" in line for line in heard.said)


def test_nobody_is_refused_while_a_model_is_measured(tmp_path: Path) -> None:
    config = config_of("big", max_batch=8, model_warmup=[{"name": "w", "batch_size": 6}])
    assert for_measuring(config, 0.5, 4, tmp_path / "shares")["max_batch_size"] == 8
    assert for_measuring(config, 0.5, 16, tmp_path / "shares")["max_batch_size"] == 16


class NoShares:
    """A host whose processes have no share, whatever their configurations say."""

    async def read(self) -> tuple[Stub, ...]:
        return (Stub(7, (7,), 1, None, "/models/big/1/model.py", "a_0", environment_read=True),)


async def test_nothing_is_measured_with_a_share_that_no_process_has(tmp_path: Path) -> None:
    triton = FakeTriton([config_of("big")])
    original = copy.deepcopy(triton.models["big"].config)
    server = Server(triton, {"big": original}, tmp_path / "shares", processes=NoShares())
    with pytest.raises(
        Refused, match=r"its share 50.0% has no effect: process 7 was started without"
    ):
        await server.apply("big", 0.5, 4)
    await server.apply("big", None, 4)
