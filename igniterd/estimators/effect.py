"""Whether a share has an effect, told from service times alone. Pure.

Two hypotheses. The share is real: measured over predicted service time is what it was before the
share came, or 1 where nothing was measured. It is not: the process has the whole GPU, and measured
over predicted is smaller by the gain that the whole GPU brings, which the profile tells. Who has
the whole GPU contends with its neighbours for their SMs, and how much that costs is known less
well: a share is shown against the gain with contention, refuted against the greater one without.

The mean log ratio over all executions since the share came is compared with both. Its error has a
part that executions average out (the dispersion of one execution) and a part that they do not (the
profile's own error at another share). A hypothesis is given up where the mean is more than
``SIGMAS`` errors away from it and nearer to the other, and both are as far from each other.

A new copy with the same share, or another version, may be faster by itself: that is ``weak``, and
refutes nothing that the processes show.

What is left out: a process that takes turns with others, because there is no MPS at all, is slower
than one with the whole GPU, and may look like one with a share. Process table and MPS control tell.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from igniterd.arrays import F64
from igniterd.estimators.bias import Measured
from igniterd.loads import ShareTest
from igniterd.records import Effect

SIGMAS = 3.0
EXECUTION_SD = 0.15  # of the log of one execution, dispersion and neighbours' mix together
MOVED_SD = 0.06  # of the profile's error when only the share changes
PROFILE_SD = 0.12  # of the profile's error itself, where nothing was measured before
LEAST_EXECUTIONS = 10
MEMORY = 400.0  # executions that the mean looks back over
# a trial without an answer by then has none: what changes later is the model, not the share
OPEN_S = 60.0


@dataclass(frozen=True, slots=True)
class ShareTrial:
    """The trial of one share, begun at ``since_s``.

    ``level`` is the mean log of measured over predicted service time, ``gain`` that of predicted
    over what the whole GPU would take, ``freely`` without contention, all over ``executions``, the
    latter two until there is an ``answer``, which is final.
    """

    share: float
    since_s: float
    reference: float | None = None
    level: float = 0.0
    gain: float = 0.0
    freely: float = 0.0
    executions: float = 0.0
    answer: ShareTest | None = None
    weak: bool = False

    def again(self, share: float, now_s: float) -> ShareTrial:
        """The trial of another share, or of another copy. What this one measured is its reference,
        unless this share had no effect; where it measured next to nothing, what it was compared
        with."""
        known = self.executions >= LEAST_EXECUTIONS
        refuted = self.answer is not None and self.answer.verdict is Effect.REFUTED
        reference = None if refuted else self.level if known else self.reference
        same = share == self.share and (known or self.weak)
        return ShareTrial(share, now_s, reference, weak=same or (reference is None and self.weak))

    def measured(
        self,
        measured: Sequence[Measured],
        share_ms: F64,
        whole_ms: F64,
        now_s: float,
        free_ms: F64 | None = None,
    ) -> ShareTrial:
        """With the executions of a window. ``share_ms``, ``whole_ms`` and ``free_ms``: predicted
        service times (ms) of batches 1, 2, ... at the share, with the whole GPU, and there without
        contention, shape (largest batch,)."""
        free_ms = whole_ms if free_ms is None else free_ms
        level, gain, executions = self.level, self.gain, self.executions
        freely = self.freely
        for each in measured:
            if each.ratio <= 0 or each.batch > len(share_ms):
                continue
            executions += each.executions
            weight = each.executions / min(executions, MEMORY)
            level += min(1.0, weight) * (math.log(each.ratio) - level)
            gained = math.log(share_ms[each.batch - 1] / whole_ms[each.batch - 1])
            gain += min(1.0, weight) * (gained - gain)
            most = math.log(share_ms[each.batch - 1] / free_ms[each.batch - 1])
            freely += min(1.0, weight) * (most - freely)
        now = replace(self, level=level, gain=gain, freely=freely, executions=executions)
        return now if self.answer is not None else replace(now, answer=now._answer(now_s))

    def result(self) -> ShareTest | None:
        """What it says by now; ``None`` before there is anything to say."""
        if self.answer is not None or self.executions < LEAST_EXECUTIONS:
            return self.answer
        return self._test(None)

    def _test(self, verdict: Effect | None) -> ShareTest:
        return ShareTest(self.share, verdict, self._said(), self.weak)

    def _answer(self, now_s: float) -> ShareTest | None:
        if self.executions < LEAST_EXECUTIONS:
            return None
        sd, off = self._sd(), self._off()
        if self.gain < SIGMAS * sd:  # the whole GPU would be hardly faster: times cannot tell
            return self._test(None) if now_s - self.since_s > OPEN_S else None
        if off < -max(self.freely / 2, SIGMAS * sd):
            return self._test(Effect.REFUTED)
        if off > -self.gain / 2 and off + self.gain > SIGMAS * sd:
            return self._test(Effect.PROVEN)
        return self._test(None) if now_s - self.since_s > OPEN_S else None

    def _off(self) -> float:
        return self.level - (self.reference or 0.0)

    def _sd(self) -> float:
        model = PROFILE_SD if self.reference is None else MOVED_SD
        return math.hypot(model, EXECUTION_SD / math.sqrt(min(self.executions, MEMORY)))

    def _said(self) -> str:
        least, most = math.exp(-self.freely), math.exp(-self.gain)
        whole = f"{most:.2f}" if most - least < 0.02 else f"{least:.2f} to {most:.2f}"
        return (
            f"its executions take {math.exp(self._off()):.2f} times what {self.share:.1%} of the "
            f"GPU predicts, where the whole GPU predicts {whole} times"
        )
