"""The order of changes: every shrink before any growth, so that stopping after any step is safe. Pure.

Invariant, checked after every step in the tests: a GPU is never granted more than it was granted before the first step, or all of it,
whichever is more. A model without a share of its own (``share is None``) may use the whole GPU and counts as 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from igniterd.records import Allocation, Step, StepKind


def granted(allocation: Allocation) -> float:
    """The part of the GPU an allocation allows its model to use."""
    return 1.0 if allocation.share is None else allocation.share


def kind_of(before: Allocation, after: Allocation) -> StepKind:
    """What a change does to the share; a change that leaves it alone is about batching."""
    if granted(after) < granted(before) or (before.share is None and after.share is not None):
        return StepKind.SHRINK
    return StepKind.GROW if granted(after) > granted(before) else StepKind.BATCHING


def ordered(current: Mapping[str, Allocation], target: Mapping[str, Allocation], why: Mapping[str, str] | None = None) -> Iterator[Step]:
    """Yield the changes that lead from ``current`` to ``target``: the largest shrink first, the largest growth last.

    A model that only one of the two names is left alone. ``why`` gives each step its sentence.
    """
    changed = [model for model in target if model in current and target[model] != current[model]]
    for model in sorted(changed, key=lambda m: (granted(target[m]) - granted(current[m]), m)):
        before, after = current[model], target[model]
        yield Step(model, kind_of(before, after), before, after, (why or {}).get(model, ""))
