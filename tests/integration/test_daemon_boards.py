"""The daemon on hosts with several boards: one Triton over two, one a GPU, boards of two kinds.

What is said of a share is read back from the boards: each copy there tells what it was started
with. No latency is judged here (see test_daemon.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from igniterd.lab.gpu.boardfile import BoardFile
from igniterd.lab.gpu.boards import EmulatedBoard, boards_of
from igniterd.lab.gpu.kinds import truth_of
from igniterd.lab.host import EmulatedHost, EmulatedModel, HostSpec, TritonHost, emulated_host
from igniterd.lab.load.load import LoadSpec, Phase, RequestLog
from igniterd.lab.load.load import load as loading
from igniterd.lab.programs import programs
from igniterd.lab.programs.process import free_ports
from igniterd.perf import Profile, builtin_profile
from tests.integration.test_daemon import SLOS, SLOW, answered, daemon
from tests.waiting import until

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="session")]

TWO = boards_of("v100", "v100")
MIXED = T4, V100 = boards_of("t4", "v100")
UNITS = 40


def profile_of(kind: str) -> Profile:
    """Of the second kind: the V100's, slower by what its board is, as a rough measurement would
    be."""
    whole = builtin_profile("v100").time_scaled(SLOW)
    if kind == "v100":
        return whole
    board = whole.board.model_copy(update={"name": "Tesla T4", "sm_count": 40})
    return whole.time_scaled(2.5).model_copy(update={"board": board})


def write_config(
    folder: Path,
    host: EmulatedHost,
    port: int,
    models: Sequence[str],
    tritons: Mapping[str, tuple[TritonHost, str]],
    more: str = "",
) -> Path:
    for kind in ("v100", "t4"):
        profile_of(kind).save(folder / f"{kind}.json")
    assert host.mps
    servers = "".join(
        f'[[triton]]\nname = "{name}"\nurl = "{t.url}"\nmetrics_url = "{t.metrics_url}"\n{said}'
        for name, (t, said) in tritons.items()
    )
    control = programs.required(programs.mps_control(), "nvidia-cuda-mps-control").path
    path = folder / "igniterd.toml"
    path.write_text(
        f'{servers}[gpu]\nsource = "emulated:{host.triton.board_path}"\n'
        f'[mps]\ncontrol = "{control}"\n'
        f'pipe_directory = "{host.mps.environment["CUDA_MPS_PIPE_DIRECTORY"]}"\n'
        f'[metrics]\nlisten = "127.0.0.1:{port}"\n[state]\ndirectory = "{folder}/state"\n'
        f"{more}{''.join(models)}"
    )
    return path


def model(name: str, profiles: str = '"v100.json"', triton: str = "main") -> str:
    return (
        f'[[model]]\nname = "{name}"\ntriton = "{triton}"\nslo_p99_ms = {SLOS[name]}\n'
        f"profile = {profiles}\n"
    )


def units_on(host: TritonHost, board: EmulatedBoard) -> dict[str, int]:
    """By measured model: units of share of its copies on a board, as they were started."""
    names = truth_of(board.kind).models
    found: dict[str, int] = {}
    for copy in BoardFile(host.board_path / f"{board.uuid}.board").copies():
        found[names[copy.model]] = found.get(names[copy.model], 0) + copy.units
    return found


def shares_of(state: Mapping[str, Any]) -> dict[str, float | None]:
    return {m["name"]: m["applied"]["share"] for m in state["models"] if m["seen"]}


def settled(names: Sequence[str], state: Mapping[str, Any]) -> bool:
    shares = shares_of(state)
    return state["decision"]["outcome"] == "hold" and all(
        shares.get(n) is not None and shares[n] != 1.0 for n in names
    )


def gpus_of(state: Mapping[str, Any]) -> dict[str, list[str]]:
    return {m["name"]: m["gpus"] for m in state["models"] if m["seen"]}


async def test_one_triton_over_two_boards_is_steered_and_a_shift_is_answered_by_a_move(
    tmp_path: Path,
) -> None:
    (port,) = free_ports(1)
    spec = HostSpec(
        (
            EmulatedModel("alexnet", max_batch_size=32, gpus=(0,)),
            EmulatedModel("resnet50", max_batch_size=32, gpus=(0,)),
            EmulatedModel("vgg19", max_batch_size=32),  # Triton's default: an instance on each
        ),
        slow_factor=SLOW,
        seed=4,
        boards=TWO,
    )
    phases = (
        Phase("steady", None, {"alexnet": 80.0, "resnet50": 60.0, "vgg19": 10.0}),
        Phase("shifted", None, {"alexnet": 230.0, "resnet50": 190.0, "vgg19": 10.0}),
    )
    async with emulated_host(spec, tmp_path, broker=False) as host:
        triton, names = host.triton, list(SLOS)
        config = write_config(
            tmp_path, host, port, [model(n) for n in names], {"main": (triton, "")}
        )
        log_path = tmp_path / "requests.csv"
        async with (
            loading(LoadSpec(triton.url, phases[:1], seed=1), log_path) as traffic,
            daemon(tmp_path, config, port) as igniterd,
        ):
            state = await igniterd.until(partial(settled, names), 90.0)
            zero, one = (gpus_of(state)[n] for n in ("alexnet", "vgg19"))
            assert len(zero) == 1
            assert sorted(one) == sorted(board.uuid for board in TWO)
            shares = shares_of(state)
            for board in TWO:
                there = units_on(triton, board)
                assert sum(there.values()) <= UNITS
                assert there["vgg19"] == round((shares["vgg19"] or 0) * UNITS)
            await traffic.change(phases[1])
            moved = await igniterd.until(lambda s: gpus_of(s) != gpus_of(state), 120.0)
            (name,) = (n for n in names if gpus_of(moved)[n] != gpus_of(state)[n])
            assert name in ("alexnet", "resnet50")
            assert len(gpus_of(moved)[name]) == 1
            await until(lambda: all(name not in units_on(triton, b) for b in TWO if b.uuid in zero))
            await igniterd.until(partial(settled, names), 90.0)
            before = len(RequestLog.read(log_path))
            await until(partial(answered, log_path, before + 500), 60.0)
        log = RequestLog.read(log_path)
        assert log.ok.all(), set(log.error[~log.ok])


async def test_one_triton_a_gpu_with_the_same_models_is_one_host(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    models = (
        EmulatedModel("alexnet", max_batch_size=32),
        EmulatedModel("vgg19", max_batch_size=32),
    )
    first, second = (
        HostSpec(models, slow_factor=SLOW, seed=n, boards=TWO, visible_devices=visible)
        for n, visible in enumerate(("0", TWO[1].uuid))
    )
    names = ["a/alexnet", "a/vgg19", "b/alexnet", "b/vgg19"]
    async with emulated_host(first, tmp_path, broker=False, beside=(second,)) as host:
        a, b = host.tritons
        config = write_config(
            tmp_path,
            host,
            port,
            [model(n, triton=t) for t in ("a", "b") for n in ("alexnet", "vgg19")],
            {"a": (a, ""), "b": (b, "")},
        )
        rates = {"alexnet": 60.0, "vgg19": 10.0}
        async with (
            loading(
                LoadSpec(a.url, (Phase("steady", None, rates),), seed=1),
                tmp_path / "a.csv",
            ),
            loading(
                LoadSpec(b.url, (Phase("steady", None, rates),), seed=2),
                tmp_path / "b.csv",
            ),
            daemon(tmp_path, config, port) as igniterd,
        ):
            state = await igniterd.until(partial(settled, names), 120.0)
            gpus, shares = gpus_of(state), shares_of(state)
            assert gpus["a/alexnet"] == gpus["a/vgg19"] != gpus["b/alexnet"] == gpus["b/vgg19"]
            assert gpus["b/alexnet"] == [TWO[1].uuid]
            for server in ("a", "b"):
                (board,) = (each for each in TWO if [each.uuid] == gpus[f"{server}/alexnet"])
                assert units_on(a, board) == {
                    n: round((shares[f"{server}/{n}"] or 0) * UNITS) for n in ("alexnet", "vgg19")
                }
            status, page = await igniterd.text("/metrics")
            assert status == 200
            assert 'model="a/alexnet"' in page


async def test_boards_of_two_kinds_have_profiles_of_their_own(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    spec = HostSpec(
        (
            EmulatedModel("alexnet", max_batch_size=32, gpus=(0,)),  # CUDA's first: the faster
            EmulatedModel("resnet50", max_batch_size=32, gpus=(1,)),
            EmulatedModel("vgg19", max_batch_size=32, gpus=(1,)),
        ),
        slow_factor=SLOW,
        seed=6,
        boards=MIXED,
    )
    both = '["v100.json", "t4.json"]'
    async with emulated_host(spec, tmp_path, broker=False) as host:
        told = f'gpus = ["{V100.uuid}", "{T4.uuid}"]\n'
        models = [model("alexnet", both), model("resnet50", both), model("vgg19")]
        without = write_config(tmp_path, host, port, models, {"main": (host.triton, "")})
        async with daemon(tmp_path, without, port) as igniterd:
            state = await igniterd.until(
                lambda s: any("gpus = [" in m["why"] for m in s["models"]), 60.0
            )
            assert all(share is None for share in shares_of(state).values()), "not guessed"
        config = write_config(tmp_path, host, port, models, {"main": (host.triton, told)})
        rates = {"alexnet": 60.0, "resnet50": 10.0, "vgg19": 3.0}
        spec_of_load = LoadSpec(host.triton.url, (Phase("steady", None, rates),), seed=1)
        async with (
            loading(spec_of_load, tmp_path / "requests.csv"),
            daemon(tmp_path, config, port) as igniterd,
        ):
            state = await igniterd.until(
                lambda s: all(shares_of(s).get(n) is not None for n in ("alexnet", "resnet50")),
                90.0,
            )
            assert gpus_of(state) == {
                "alexnet": [V100.uuid],
                "resnet50": [T4.uuid],
                "vgg19": [T4.uuid],
            }
            (watched,) = (m for m in state["models"] if m["name"] == "vgg19")
            assert "no profile of the Tesla T4" in watched["why"]
            assert "vgg19" in units_on(host.triton, T4)
            assert units_on(host.triton, T4)["vgg19"] == 0, "left as it is"


async def test_a_uuid_that_is_not_there_is_said_and_nothing_is_changed(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    spec = HostSpec(
        (EmulatedModel("alexnet", max_batch_size=32, gpus=(1,)),), slow_factor=SLOW, boards=TWO
    )
    async with emulated_host(spec, tmp_path, broker=False) as host:
        told = f'gpus = ["{TWO[0].uuid}", "GPU-00000000-0000-0000-0000-00000000dead"]\n'
        config = write_config(
            tmp_path, host, port, [model("alexnet")], {"main": (host.triton, told)}
        )
        async with daemon(tmp_path, config, port) as igniterd:
            state = await igniterd.until(
                lambda s: any(gap["source"] == "gpus:main" for gap in s["gaps"]), 60.0
            )
            (gap,) = (gap for gap in state["gaps"] if gap["source"] == "gpus:main")
            assert "dead" in gap["reason"]
            assert shares_of(state) == {"alexnet": None}
