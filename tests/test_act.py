import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

from structlog.testing import capture_logs

from igniterd.act import SecondCopies, act
from igniterd.clients.triton.apply import Applier
from igniterd.decisions import DecisionKind, Plan, Step, StepKind
from igniterd.errors import Refused, Unreachable
from igniterd.records import Allocation, BoardReading, ModelReading, Observation, Stub
from tests.sim.host import config_of

BEFORE, THEN = Allocation(None, 8), Allocation(0.25, 4)


class Triton:
    """A Triton with one model; ``quirk`` is what it does wrong."""

    def __init__(self, quirk: str = "") -> None:
        self.now, self.quirk, self.loads = config_of("m"), quirk, 0

    async def config(self, model: str) -> dict[str, Any]:
        return copy.deepcopy(self.now)

    async def load(self, model: str, config: dict[str, Any], *, exact: bool = False) -> None:
        self.loads += 1
        if self.quirk == "refuses":
            raise Refused("unknown field")
        if self.quirk == "dies":
            raise Unreachable("no answer in 60 s")
        if self.quirk != "forgets":
            self.now = config


def plan(*steps: Step) -> Plan:
    return Plan(0.0, DecisionKind.MOVE, "why", steps=steps)


STEP = Step("m", StepKind.SHRINK, BEFORE, THEN)


async def carried(triton: Triton, shares: Path, step: Step = STEP) -> tuple[bool, str]:
    (done,) = (await act(plan(step, step), Applier(triton, shares))).actuations
    return done.ok, done.error


async def test_one_step_with_share_and_batching_together(tmp_path: Path) -> None:
    triton, shares = Triton(), tmp_path / "shares"
    assert await carried(triton, shares) == (True, "")
    assert triton.loads == 1
    assert triton.now["max_batch_size"] == 8, "what clients may bring is their owner's to say"
    assert triton.now["dynamic_batching"]["preferred_batch_size"] == [4]
    environment = Path(triton.now["parameters"]["EXECUTION_ENV_PATH"]["string_value"])
    assert environment == shares / "igniterd-v2" / "25"
    assert (
        "export CUDA_MPS_ACTIVE_THREAD_PERCENTAGE=25"
        in (environment / "bin" / "activate").read_text()
    )


async def test_what_is_already_there_is_not_loaded_again(tmp_path: Path) -> None:
    triton, shares = Triton(), tmp_path / "shares"
    await carried(triton, shares)
    assert await carried(triton, shares) == (True, "")
    assert triton.loads == 1


async def test_a_share_of_an_earlier_igniterd_is_given_anew(tmp_path: Path) -> None:
    """Its folder is a share only for servers that source it; the same path would be no reload."""
    triton, shares = Triton(), tmp_path / "shares"
    await carried(triton, shares)
    triton.now["parameters"]["EXECUTION_ENV_PATH"] = {"string_value": str(shares / "25")}
    assert await carried(triton, shares, Step("m", StepKind.SHRINK, THEN, THEN)) == (True, "")
    assert triton.loads == 2
    assert triton.now["parameters"]["EXECUTION_ENV_PATH"] == {
        "string_value": str(shares / "igniterd-v2" / "25")
    }


async def test_refusals_silence_and_lies_are_told_apart(tmp_path: Path) -> None:
    shares = tmp_path / "shares"
    assert await carried(Triton("refuses"), shares) == (False, "unknown field")
    assert await carried(Triton("dies"), shares) == (False, "no answer in 60 s")
    ok, error = await carried(Triton("forgets"), shares)
    assert not ok
    assert "Triton loaded" in error


async def test_a_change_by_somebody_else_is_not_overwritten(tmp_path: Path) -> None:
    triton = Triton()
    triton.now["max_batch_size"] = 16
    ok, error = await carried(triton, tmp_path / "shares")
    assert not ok
    assert "somebody else changed it" in error
    assert triton.loads == 0


async def test_nothing_to_do(tmp_path: Path) -> None:
    assert (await act(plan(), Applier(Triton(), tmp_path))).actuations == ()


class Odd(Triton):
    """Its configuration is none that anybody thought of; or it misses a deadline or two after the
    load."""

    def __init__(self, misses: int) -> None:
        super().__init__()
        self.misses = misses
        if not misses:
            self.now["parameters"] = ["a list"]

    async def config(self, model: str) -> dict[str, Any]:
        if self.loads and self.misses > 0:
            self.misses -= 1
            raise Unreachable("no answer in 0.4 s")
        return await super().config(model)


async def test_what_nobody_thought_of_is_a_change_that_failed(tmp_path: Path) -> None:
    ok, error = await carried(Odd(0), tmp_path / "shares")
    assert not ok
    assert error.startswith("unforeseen: ")


async def test_a_missed_deadline_after_a_load_is_no_failure_of_the_load(tmp_path: Path) -> None:
    assert await carried(Odd(2), tmp_path / "shares") == (True, "")
    ok, error = await carried(Odd(9), tmp_path / "shares")
    assert (ok, error) == (False, "no answer in 0.4 s")


def seen(free_mib: int | None, instances: int = 1) -> Observation:
    """A host whose GPU 1 has so much memory left, and ``m`` on it."""
    used = None if free_mib is None else 16384 * 2**20 - free_mib * 2**20
    other = BoardReading(0, "GPU-0", "V100", memory_used_bytes=0, memory_total_bytes=2**34)
    board = BoardReading(1, "GPU-1", "V100", memory_used_bytes=used, memory_total_bytes=2**34)
    reading = ModelReading(
        "m", "1", "main", True, "python", Allocation(0.5, 8, instances=instances), gpus=("GPU-1",)
    )
    return Observation(0.0, boards=(other, board), models={"m": reading})


def test_a_second_copy_that_does_not_fit_is_refused_before_triton_is_asked() -> None:
    copies = SecondCopies({"m": 1000 * 2**20})
    assert copies.refused("m", seen(1000)) == ""
    assert (
        copies.refused("m", seen(999))
        == "m: a second copy takes 1000 MiB while it is reloaded, and GPU-1 has 999 MiB free"
    )
    assert copies.refused("m", seen(1999, instances=2)).startswith(
        "m: a second copy takes 2000 MiB"
    )


def test_memory_that_is_not_known_is_said_once_and_not_in_the_way() -> None:
    copies = SecondCopies({"m": 1000 * 2**20})
    with capture_logs() as said:
        for _ in range(3):
            assert copies.refused("m", seen(None)) == ""
            assert copies.refused("m", replace(seen(1), boards=())) == ""
        assert SecondCopies({}).refused("m", seen(1)) == ""
    assert [line["why"] for line in said] == [
        "the memory of its GPU cannot be read: whether a second copy fits while it is reloaded "
        "is not known",
        "its profile tells no memory_bytes: whether a second copy fits while it is reloaded is "
        "not known",
    ]


async def test_what_is_refused_beforehand_is_a_change_that_failed(tmp_path: Path) -> None:
    triton = Triton()
    (done,) = (await act(plan(STEP), Applier(triton, tmp_path / "shares"), "no room")).actuations
    assert (done.ok, done.error, triton.loads) == (False, "no room", 0)


class Processes:
    """The host's process table around ``triton``: each load but one that is ``vain`` starts a new
    process."""

    def __init__(self, triton: Triton, *, vain: bool = False, fails_after: int = 99) -> None:
        self.triton, self.vain, self.fails_after, self.reads = triton, vain, fails_after, 0

    async def read(self) -> tuple[Stub, ...]:
        self.reads += 1
        if self.reads > self.fails_after:
            raise Unreachable("an earlier look at it has not ended yet")
        count = self.triton.now["instance_group"][0]["count"]
        first = 10 if self.vain else 10 * (1 + self.triton.loads)
        return tuple(
            Stub(first + n, (first + n,), 5, None, "/models/m/1/model.py", f"m_0_{n}")
            for n in range(count)
        )


async def with_processes(
    triton: Triton,
    processes: Processes,
    shares: Path,
    step: Step = STEP,
    claimed: float | None = None,
) -> str:
    outcome = await act(plan(step), Applier(triton, shares, processes=processes), claimed=claimed)
    return outcome.actuations[0].error


async def test_a_load_is_a_reload_only_if_the_processes_are_new(tmp_path: Path) -> None:
    triton = Triton()
    assert await with_processes(triton, Processes(triton), tmp_path / "shares") == ""
    triton = Triton()
    assert "the same as before" in await with_processes(
        triton, Processes(triton, vain=True), tmp_path / "shares"
    )


class Beside(Processes):
    """Another Triton of this host has a model of the same name, and goes on."""

    async def read(self) -> tuple[Stub, ...]:
        there = Stub(900, (900,), 6, None, "/models/m/1/model.py", "m_0_0")
        return (*await super().read(), there)


async def test_the_processes_of_another_triton_are_not_waited_for(tmp_path: Path) -> None:
    triton = Triton()
    processes = Beside(triton)
    assert await with_processes(triton, processes, tmp_path / "shares") == ""
    assert processes.reads <= 3, "before, after, and once for the old copy"
    vain = Beside(triton, vain=True)
    other = replace(STEP, before=THEN, after=Allocation(0.5, 4))
    assert "the same as before" in await with_processes(triton, vain, tmp_path / "shares", other)


async def test_a_look_at_the_processes_that_fails_refuses_nothing(tmp_path: Path) -> None:
    for reads in (0, 1):
        triton = Triton()
        assert (
            await with_processes(triton, Processes(triton, fails_after=reads), tmp_path / "shares")
            == ""
        )


async def test_fewer_instances_are_no_new_processes(tmp_path: Path) -> None:
    triton = Triton()
    triton.now["instance_group"][0]["count"] = 2
    fewer = Step("m", StepKind.BATCHING, replace(BEFORE, instances=2), BEFORE)
    assert (
        await with_processes(triton, Processes(triton, vain=True), tmp_path / "shares", fewer) == ""
    )


async def test_a_change_of_batching_leaves_a_share_that_is_not_proven_where_it_is(
    tmp_path: Path,
) -> None:
    triton, shares = Triton(), tmp_path / "shares"
    await carried(triton, shares)
    there = triton.now["parameters"]["EXECUTION_ENV_PATH"]
    batching = Step("m", StepKind.BATCHING, Allocation(None, 4), Allocation(None, 8))
    assert await with_processes(triton, Processes(triton), shares, batching, claimed=0.25) == ""
    assert (triton.now["max_batch_size"], triton.now["parameters"]["EXECUTION_ENV_PATH"]) == (
        8,
        there,
    )
