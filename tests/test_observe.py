"""What is made of the answers of one tick: what is left alone, and what is said of it, once."""

from collections.abc import Iterable
from dataclasses import replace

from structlog.testing import capture_logs

from igniterd.devices import ServerFacts
from igniterd.errors import NotNow, NotServed, Refused
from igniterd.observe import Sources
from igniterd.records import Allocation, BoardReading, Gap, ModelReading, MpsReading, Stub

PLAIN = ModelReading("m", "1", "main", True, "python", Allocation(None, 8))
CHOOSES = "KIND_MODEL"


def on(*devices: int) -> Allocation:
    return replace(PLAIN.allocation, instances=len(devices), devices=devices)


class Triton:
    """Answers with what it is given."""

    name = "main"
    metrics_gap: Gap | None = None

    def __init__(self, **answers: ModelReading | NotNow) -> None:
        self.answers = answers
        self.unmanaged_models: frozenset[str] = frozenset()
        self.foreign_shares: dict[int, float] = {}
        self.foreign_busy: dict[int, float] = {}
        self.gpu_labels: tuple[str, ...] = ()

    async def read_models(self, names: Iterable[str]) -> dict[str, ModelReading | NotNow]:
        return {name: self.answers[name] for name in names}

    def read_configs_again(self) -> None: ...

    async def refuses_loads(self) -> str:
        return ""


def sources(triton: Triton, **gpus: int) -> Sources:
    return Sources(tritons={"main": triton}, models={"main": tuple(triton.answers)}, gpus=gpus)


async def test_a_model_that_chooses_its_gpu_is_watched_until_it_is_told_which() -> None:
    triton = Triton(m=replace(PLAIN, chooses_gpu=CHOOSES))
    seen = (await sources(triton).observe(0.0)).models["m"]
    assert (seen.left_alone, seen.share_fixed, seen.batching_fixed, seen.gpus) == (
        CHOOSES,
        CHOOSES,
        CHOOSES,
        ("main:0",),
    )
    told = (await sources(triton, m=1).observe(0.0)).models["m"]
    assert (told.left_alone, told.share_fixed, told.gpus) == ("", "", ("main:1",))


async def test_the_same_name_on_two_tritons_is_two_tenants_on_the_gpus_of_the_host() -> None:
    one, other = Triton(m=replace(PLAIN, allocation=on(0, 1))), Triton(m=PLAIN)
    other.name = "other"
    there = Sources(
        tritons={"main": one, "other": other},
        models={"main": ("main/m",), "other": ("other/m",)},
        names={"main/m": "m", "other/m": "m"},
        devices={"main": ("GPU-b", "GPU-a"), "other": ("GPU-a",)},
    )
    seen = await there.observe(0.0)
    assert {name: r.gpus for name, r in seen.models.items()} == {
        "main/m": ("GPU-b", "GPU-a"),
        "other/m": ("GPU-a",),
    }
    assert seen.devices == {"main": ("GPU-b", "GPU-a"), "other": ("GPU-a",)}


async def test_where_no_gpu_is_read_two_tritons_are_watched_until_it_is_told_which_they_share() -> (
    None
):
    one, other = Triton(m=PLAIN), Triton(n=replace(PLAIN, model="n", triton="other"))
    other.name = "other"
    there = Sources(tritons={"main": one, "other": other}, models={"main": ("m",), "other": ("n",)})
    seen = await there.observe(0.0)
    assert "Give [[triton]] gpus for main" in seen.models["m"].left_alone
    assert seen.models["m"].gpus != seen.models["n"].gpus


async def test_a_model_that_is_not_served_is_told_from_one_that_is_on_its_way() -> None:
    triton = Triton(m=PLAIN, broken=NotServed("it is UNAVAILABLE"), coming=Refused("it is LOADING"))
    seen = await sources(triton).observe(0.0)
    assert seen.absent == {"broken"}
    assert [(gap.source, gap.reason) for gap in seen.gaps] == [
        ("model:broken", "it is UNAVAILABLE"),
        ("model:coming", "it is LOADING"),
    ]


async def test_what_is_left_as_it_is_is_said_once_and_when_it_changes() -> None:
    triton = Triton(
        m=replace(PLAIN, share_fixed="no process", batching_fixed="no batches"),
        n=replace(PLAIN, model="n"),
    )
    there = sources(triton)
    with capture_logs() as said:
        for at_s in range(3):
            await there.observe(float(at_s))
        triton.answers["m"] = replace(
            PLAIN, left_alone="an ensemble", share_fixed="an ensemble", batching_fixed="an ensemble"
        )
        for at_s in range(3, 6):
            await there.observe(float(at_s))
        triton.answers["m"] = PLAIN
        await there.observe(7.0)
    assert [(line["event"], line["model"], line.get("why")) for line in said] == [
        ("steered in part", "m", "no process; no batches"),
        ("watched, not steered", "m", "an ensemble"),
        ("steered now", "m", None),
    ]


async def test_models_that_the_configuration_does_not_name_are_said_once() -> None:
    triton = Triton(m=PLAIN)
    there = sources(triton)
    with capture_logs() as said:
        for unmanaged in ({"b", "a"}, {"b", "a"}, {"b"}, {"b", "c"}):
            triton.unmanaged_models = frozenset(unmanaged)
            await there.observe(0.0)
    assert [line["models"] for line in said] == ["a, b", "b, c"]


async def test_what_models_that_nobody_configured_take_is_told_by_gpu() -> None:
    triton = Triton(m=PLAIN)
    triton.foreign_shares, triton.foreign_busy = {0: 0.2}, {0: 0.4, 1: 0.7}
    seen = await sources(triton).observe(0.0)
    assert seen.foreign == {"main:0": 0.2}
    assert seen.foreign_busy == {"main:0": 0.4, "main:1": 0.7}
    other = Triton(n=PLAIN)
    other.foreign_busy = {0: 0.9}
    both = Sources(
        tritons={"main": triton, "other": other},
        models={"main": ("m",), "other": ("n",)},
        devices={"main": ("GPU-a", "GPU-b"), "other": ("GPU-b",)},
    )
    assert (await both.observe(0.0)).foreign_busy == {"GPU-a": 0.4, "GPU-b": 1.0}


STUB = Stub(10, (10,), 5, None, "/models/m/1/model.py", "m_0_0")


class Processes:
    def __init__(self, *stubs: Stub) -> None:
        self.stubs = stubs

    async def servers(self) -> dict[int, ServerFacts]:
        return {}

    async def read(self) -> tuple[Stub, ...]:
        return self.stubs


class Control:
    """MPS control, which counts how often it is asked."""

    asked = 0

    async def read(self) -> MpsReading:
        self.asked += 1
        return MpsReading()


class Watched(Triton):
    again = 0

    def read_configs_again(self) -> None:
        self.again += 1


async def test_configurations_are_read_again_when_processes_come_and_when_they_go() -> None:
    triton, processes = Watched(m=PLAIN), Processes(STUB)
    there = sources(triton)
    there.processes = processes
    counts = []
    for at_s, stubs in enumerate(
        [
            (STUB,),
            (STUB,),
            (STUB, replace(STUB, pid=11)),
            (replace(STUB, pid=11),),
            (replace(STUB, pid=11),),
        ]
    ):
        processes.stubs = stubs
        await there.observe(float(at_s))
        counts.append(triton.again)
    assert counts == [1, 1, 2, 3, 3]


async def test_mps_control_is_asked_again_once_a_model_has_executed() -> None:
    triton, control = Triton(m=PLAIN), Control()
    there = sources(triton)
    there.mps = control
    for at_s in range(10):
        if at_s == 5:
            triton.answers["m"] = replace(PLAIN, success_count=1)
        await there.observe(float(at_s))
    assert control.asked == 2


class Boards:
    async def read(self) -> tuple[BoardReading, ...]:
        fault = "GPU 1 (GPU-b): it has fallen off the bus: reset it or restart the host"
        return BoardReading(0, "GPU-a", "V100"), BoardReading(1, "GPU-b", "V100", fault=fault)


async def test_a_board_in_trouble_is_a_gap_of_its_own() -> None:
    observation = await Sources({}, {}, boards=Boards()).observe(0.0)
    assert [board.uuid for board in observation.boards] == ["GPU-a", "GPU-b"]
    (gap,) = observation.gaps
    assert gap.source == "nvml:GPU-b"
    assert gap.reason.startswith("GPU 1 (GPU-b): it has fallen off the bus")
