"""The order of changes: every shrink before any growth, so that stopping after any step is safe.
Pure.

Invariant, checked after every step in the tests: a GPU is never granted more than it was granted
before the first step, or all of it, whichever is more. A model without a share of its own (``share
is None``) may use the whole GPU and counts as 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from igniterd.decisions import Step, StepKind
from igniterd.records import Allocation


def granted(allocation: Allocation) -> float:
    """The part of the GPU an allocation allows its model to use."""
    return 1.0 if allocation.granted is None else allocation.granted


def kind_of(before: Allocation, after: Allocation) -> StepKind:
    """What a change does to the share; a change that leaves it alone is about batching."""
    if granted(after) < granted(before) or (before.share is None and after.share is not None):
        return StepKind.SHRINK
    return StepKind.GROW if granted(after) > granted(before) else StepKind.BATCHING


def ordered(
    current: Mapping[str, Allocation],
    target: Mapping[str, Allocation],
    why: Mapping[str, str] | None = None,
) -> Iterator[Step]:
    """Yield the changes that lead from ``current`` to ``target``: the largest shrink first, the
    largest growth last.

    Models that run without a share come first, and all but the last of them pass through the whole
    GPU. Processes without a share take turns with all that share as one: a small share of such a
    turn would be far less than was planned, so nobody is confined before everybody is. A model that
    only one of the two names is left alone. ``why`` gives each step its sentence.
    """
    live, whys = dict(current), why or {}
    changed = [model for model in target if model in current and target[model] != current[model]]
    bare = sorted(
        (m for m in changed if current[m].share is None and target[m].share is not None),
        key=lambda m: (granted(target[m]), m),
    )
    for model in bare[:-1]:
        through = replace(target[model], share=1.0)
        yield Step(
            model,
            StepKind.SHRINK,
            live[model],
            through,
            "whole GPU, but shared, until every model has a share",
        )
        live[model] = through
    rest = [model for model in changed if model not in bare[-1:] and live[model] != target[model]]
    rest.sort(key=lambda m: (granted(target[m]) - granted(live[m]), m))
    for model in (*bare[-1:], *rest):
        yield Step(
            model,
            kind_of(live[model], target[model]),
            live[model],
            target[model],
            whys.get(model, ""),
        )
