"""A tick and a configuration to render, as full as they come."""

from igniterd.config import Config, parse_config
from igniterd.decisions import (
    ActResult,
    Actuation,
    DecisionKind,
    Plan,
    Step,
    StepKind,
    Tick,
    Verdict,
)
from igniterd.loads import Estimate, Load
from igniterd.records import (
    Allocation,
    BoardReading,
    Gap,
    ModelReading,
    ModelWindow,
    Observation,
    Window,
)
from igniterd.states import Standing, State

CONFIG = """
[host]
name = "gpu-a"
[[triton]]
name = "main"
[mqtt]
url = "mqtt://127.0.0.1"
[[model]]
name = "resnet50"
slo_p99_ms = 40.0
[[model]]
name = "vgg19"
slo_p99_ms = 60.0
priority = 2
"""


def a_config() -> Config:
    return parse_config(CONFIG, source="test")


def a_reading(name: str, share: float | None, **more: object) -> ModelReading:
    given: dict[str, object] = {
        "model": name,
        "version": "1",
        "triton": "main",
        "ready": True,
        "backend": "python",
        "allocation": Allocation(
            share=share, max_batch_size=8, max_queue_delay_us=1500, instances=1
        ),
        "gpus": ("GPU-a",),
    }
    return ModelReading(**(given | more))  # type: ignore[arg-type]


def a_tick(
    number: int = 0,
    *,
    outcome: DecisionKind = DecisionKind.MOVE,
    p99_ms: float | None = 50.0,
    gaps: tuple[str, ...] = (),
) -> Tick:
    """resnet50 with an SLO of 40 ms measured at `p99_ms`, vgg19 let go."""
    step = Step(
        "resnet50",
        StepKind.GROW,
        Allocation(0.3, 8),
        Allocation(0.4, 8),
        "its P99 is above its SLO",
    )
    refused = Step("vgg19", StepKind.BATCHING, Allocation(None, 8), Allocation(None, 4))
    return Tick(
        number=number,
        at_s=100.0 + number,
        wall_time_s=1_700_000_000.0 + number,
        observation=Observation(
            at_s=100.0 + number,
            boards=(
                BoardReading(
                    0,
                    "GPU-a",
                    "Tesla V100",
                    power_w=251.5,
                    sm_clock_mhz=1380.0,
                    memory_used_bytes=3 << 30,
                ),
            ),
            models={
                "resnet50": a_reading(
                    "resnet50", 0.3, latency_quantiles_s={0.5: 0.02, 0.99: 0.05}, pending_count=2
                ),
                "vgg19": a_reading("vgg19", None, latency_quantiles_s={}),
            },
            gaps=tuple(Gap(source, "silent", 100.0) for source in gaps),
        ),
        window=Window(
            100.0 + number,
            1.0,
            {
                "resnet50": ModelWindow("resnet50", 1.0, arrivals=300, completed=298, failed=2),
                "vgg19": ModelWindow(
                    "vgg19", 1.0, arrivals=-1, completed=0, failed=0, restarted=True
                ),
            },
        ),
        estimate=Estimate(
            100.0 + number,
            {
                "resnet50": Load(
                    "resnet50",
                    300.0,
                    330.0,
                    True,
                    utilisation=0.7,
                    bias=1.1,
                    measured_p50_ms=20.0,
                    measured_p99_ms=p99_ms,
                    predicted_p99_ms=44.0,
                    error_ratio=0.08,
                ),
                "vgg19": Load("vgg19", 150.0, 170.0, False),
            },
        ),
        plan=Plan(
            100.0 + number,
            outcome,
            "resnet50 needs 40 %",
            verdicts={
                "resnet50": Verdict("resnet50", Allocation(0.4, 8), True, 35.0, 40.0),
                "vgg19": Verdict(
                    "vgg19",
                    Allocation(None, 8),
                    False,
                    None,
                    60.0,
                    reason="does not fit",
                    needs_share=0.7,
                ),
            },
            steps=(step,),
            feasible=False,
            headroom=1.2,
            headroom_by_gpu={"GPU-a": 1.2, "GPU-b": 1.5},
            reserved={"GPU-a": 0.15},
            takes={"vgg19": 0.15},
            allocated_share=0.3,
        ),
        outcome=ActResult((Actuation(step, True, 1.5), Actuation(refused, False, 0.2, "no"))),
        stage_s={"observe": 0.004, "decide": 0.02},
        standings={
            "resnet50": Standing(State.STEERED),
            "vgg19": Standing(State.WATCHED, "it has no profile", 90.0),
        },
    )
