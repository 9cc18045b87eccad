"""A made-up run of the demo: 10 s without the daemon, 20 s with it, one move; every request
answered."""

from __future__ import annotations

import numpy as np

from igniterd.demo.recording import Applied, Message, Move, PhaseResult, Recording, Sample
from igniterd.lab.load.load import RequestLog

BARE, GIVEN = (
    Applied(share=None, max_batch_size=8),
    Applied(share=0.25, max_batch_size=4, max_queue_delay_us=1500),
)
SLOS = {"alexnet": 60.0, "vgg19": 240.0}
RATES = {"alexnet": 20.0, "vgg19": 10.0}


def phase(
    key: str,
    begin_s: float,
    measured_s: float,
    end_s: float,
    *,
    judged: bool = False,
    mode: str | None = None,
) -> PhaseResult:
    return PhaseResult(
        key=key,
        title=f"phase {key}",
        said="it is <played>",
        mode=mode,
        judged=judged,
        rates_per_s=RATES,
        begin_s=begin_s,
        measured_s=measured_s,
        end_s=end_s,
    )


def recording(**other: object) -> Recording:
    samples = [
        Sample(
            at_s=float(t),
            outcome="move" if t == 1015 else "hold",
            why="because <b>" if t == 1015 else "every SLO holds",
            headroom=1.1,
            power_w=150.0,
            applied={"alexnet": GIVEN if t >= 1016 else BARE, "vgg19": BARE},
            predicted_p99_ms={"alexnet": 40.0, "vgg19": None},
            rate_per_s=RATES,
            bias={"alexnet": 1.0, "vgg19": 1.0},
        )
        for t in range(1012, 1030)
    ]
    move = Move(
        at_s=1016.0,
        model="alexnet",
        kind="shrink",
        before=BARE,
        after=GIVEN,
        ok=True,
        duration_s=1.5,
        why="no share -> 25%: at <20>/s",
    )
    made = Recording(
        began_s=990.0,
        machine="2 cores",
        slow_factor=4.0,
        slos_ms=SLOS,
        initial={"alexnet": BARE, "vgg19": BARE},
        phases=[
            phase("bare", 1000.0, 1002.0, 1010.0),
            phase("steered", 1010.0, 1020.0, 1030.0, judged=True, mode="act"),
        ],
        samples=samples,
        moves=[move],
        messages=[
            Message(at_s=1011.0, topic="status", retained=False, data={"status": "online"}),
            Message(
                at_s=1020.0,
                topic="hint",
                retained=False,
                data={"kind": "offer", "gpu": "V100", "share": 0.25},
            ),
            Message(
                at_s=1021.0,
                topic="hint",
                retained=False,
                data={"kind": "offer", "gpu": "V100", "share": 0.2},
            ),
            Message(
                at_s=1022.0,
                topic="hint",
                retained=False,
                data={"kind": "shed", "model": "vgg19", "reason": "does not fit"},
            ),
            Message(at_s=1025.0, topic="state", retained=False, data={}),
        ],
        forecast_p99_ms={"alexnet": 41.0, "vgg19": None},
    )
    return made.model_copy(update=other)


def log(
    *,
    slow: dict[str, float] | None = None,
    failed_at_s: tuple[float, ...] = (),
    latency_ms: float = 20.0,
) -> RequestLog:
    """Evenly spaced requests at ``RATES`` over the 30 s, all of ``latency_ms`` but those of
    ``slow`` (model -> latency from 1020 s on)."""
    rows = []
    for model, rate in RATES.items():
        for at_s in 1000.0 + np.arange(30 * rate) / rate:
            slowed = (slow or {}).get(model)
            rows.append(
                (model, float(at_s), slowed if slowed is not None and at_s >= 1020 else latency_ms)
            )
    rows.sort(key=lambda row: row[1])
    model, at, latency = zip(*rows, strict=True)
    scheduled = np.asarray(at)
    ok = ~np.isin(scheduled, failed_at_s)
    return RequestLog(
        model=np.asarray(model),
        phase=np.where(scheduled < 1010, "bare", "steered"),
        scheduled_s=scheduled,
        sent_s=scheduled + 0.001,
        latency_ms=np.asarray(latency),
        ok=ok,
        error=np.where(ok, "", "UNAVAILABLE: gone"),
    )


GPUS = ["GPU-aaaa", "GPU-bbbb"]
OLD, NEW = (
    Applied(share=0.5, max_batch_size=8, gpu=0),
    Applied(share=0.75, max_batch_size=6, gpu=1),
)
STAYS = Applied(share=0.375, max_batch_size=4, gpu=0)


def on_two(**other: object) -> Recording:
    """The same run on two GPUs: both models begin on GPU 0, and at 1025 s vgg19 goes to GPU 1."""
    run = recording()
    bare = Applied(share=None, max_batch_size=8, gpu=0)
    why = f"vgg19 to {GPUS[1]} relieves {GPUS[0]}"
    samples = [
        s.model_copy(
            update={
                "outcome": "move" if s.at_s in (1022, 1024) else "hold",
                "why": f"{why}: {1025 - s.at_s:.0f} to go; alexnet is being reloaded",
                "applied": {"alexnet": STAYS, "vgg19": NEW if s.at_s >= 1025 else OLD}
                if s.at_s >= 1016
                else {"alexnet": bare, "vgg19": bare},
            }
        )
        for s in run.samples
    ]
    change = run.moves[0].model_copy(update={"before": bare, "after": STAYS})
    move = Move(
        at_s=1025.0,
        model="vgg19",
        kind="relocate",
        before=OLD,
        after=NEW,
        ok=True,
        duration_s=2.5,
        why=f"to {GPUS[1]}: {why}",
    )
    offers = [
        Message(
            at_s=1026.0 + n,
            topic="hint",
            retained=False,
            data={"kind": "offer", "gpu": "V100", "gpu_uuid": GPUS[n % 2], "share": 0.25},
        )
        for n in range(4)
    ]
    made = run.model_copy(
        update={
            "initial": {"alexnet": bare, "vgg19": bare},
            "samples": samples,
            "moves": [change, move],
            "messages": offers,
            "gpus": GPUS,
        }
    )
    return made.model_copy(update=other)
