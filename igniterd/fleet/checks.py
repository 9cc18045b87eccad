"""What a state may not say of its own host: what is surely wrong, in words. Pure.

Only contradictions are here, as a plan that rests on one would be wrong. What may be true of a host
in trouble is left to the planner.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice

from igniterd.messages.state import BoardState, HostState, ModelState, TritonState
from igniterd.perf.api import UNCAPPED

MOST_SAID = 3
"""Contradictions that are named; more of them change nothing."""
MOST_PROFILES = 1024
"""Profiles that the models of one host may name."""
MOST_LEVEL = math.log(10)
"""Corrections of more than ten times are none: the profile is of something else."""
_ROUNDED = 1e-3  # figures of a state are rounded


def contradictions(state: HostState) -> str:
    """What is wrong with the state of a host, all its parts joined; empty where nothing is."""
    return "; ".join(islice(_found(state), MOST_SAID))


def _found(state: HostState) -> Iterator[str]:
    if not state.boards:
        yield "it names no GPU"
        return
    tritons = {triton.name: triton for triton in state.tritons}
    boards = {board.uuid: board for board in state.boards}
    yield from _twice("GPU", (board.uuid for board in state.boards))
    yield from _twice("Triton", (triton.name for triton in state.tritons))
    yield from _twice("model", (model.name for model in state.models))
    yield from _twice(
        "model of a Triton", (f"{m.triton}/{m.model or m.name}" for m in state.models)
    )
    for triton in state.tritons:
        yield from _twice(f"in Triton {triton.name} GPU", triton.gpus)
    for board in state.boards:
        yield from _of_board(board)
    for model in state.models:
        for fault in _of_model(model, boards, tritons):
            yield f"model {model.name} {fault}"
    yield from _granted(state, tritons)
    if state.decision is not None:
        for gpu, least in state.decision.least_by_gpu.items():
            if least > 1 + _ROUNDED:
                yield f"the least that {gpu} needs is {100 * least:.0f} % of it; at most is 100"
    if len({digest for model in state.models for digest in model.profiles}) > MOST_PROFILES:
        yield f"its models name more than {MOST_PROFILES} profiles"


def _twice(what: str, names: Iterable[str]) -> Iterator[str]:
    names = tuple(names)
    if len(set(names)) != len(names):
        often = (name for name, times in Counter(names).items() if times > 1)
        yield f"{what} {', '.join(islice(often, MOST_SAID))} is named twice"


def _of_board(board: BoardState) -> Iterator[str]:
    used, total = board.memory_used_bytes, board.memory_total_bytes
    if used is not None and total is not None and used > total:
        yield f"{board.uuid} uses {used} bytes of memory and has {total}"


def _of_model(
    model: ModelState, boards: dict[str, BoardState], tritons: dict[str, TritonState]
) -> Iterator[str]:
    gone = [gpu for gpu in model.gpus if gpu not in boards]
    if gone:
        yield f"is on {gone[0]}, which the host does not have"
    triton = tritons.get(model.triton)
    if triton is None and tritons:
        yield f"is of Triton {model.triton}, which the host does not have"
    if model.min_share > model.max_share:
        yield f"has min_share {model.min_share:g} above max_share {model.max_share:g}"
    if model.batches is not None and model.batches[0] > model.batches[1]:
        yield f"may be planned with batches from {model.batches[0]} to {model.batches[1]}"
    rate, upper = model.rate_per_s, model.rate_upper_per_s
    if rate is not None and upper is not None and upper < rate * (1 - _ROUNDED) - _ROUNDED:
        yield f"has rate_upper_per_s {upper:g} below rate_per_s {rate:g}"
    if model.learnt is not None and abs(model.learnt.level) > MOST_LEVEL:
        times = math.exp(model.learnt.level)
        yield f"has a learnt correction of {times:.3g} times; should be 0.1 to 10"
    if triton is not None:
        yield from _of_devices(model, triton)


def _of_devices(model: ModelState, triton: TritonState) -> Iterator[str]:
    """Whether its devices are the GPUs that it is on, where all of them are known."""
    if model.applied is None or not (model.applied.devices and triton.gpus and model.gpus):
        return
    devices = set(model.applied.devices)
    if max(devices) >= len(triton.gpus):
        yield f"is on device {max(devices)} of Triton {triton.name}, which has {len(triton.gpus)}"
    elif {triton.gpus[device] for device in devices} != set(model.gpus):
        named = ", ".join(str(device) for device in sorted(devices))
        yield f"is on {', '.join(model.gpus)}, and on device {named} of Triton {triton.name}"


def _granted(state: HostState, tritons: dict[str, TritonState]) -> Iterator[str]:
    """GPUs of which more is granted by shares than there is. A share of 1 caps nobody."""
    granted: dict[str, float] = {}
    for model in state.models:
        applied = model.applied
        if applied is None or applied.share is None or model.absent or not model.seen:
            continue
        if applied.share < UNCAPPED:
            for gpu in model.gpus:
                part = applied.share * instances_on(model, gpu, tritons.get(model.triton))
                granted[gpu] = granted.get(gpu, 0.0) + part
    for gpu, part in granted.items():
        if part > 1 + _ROUNDED:
            yield f"shares on {gpu} add up to {100 * part:.0f} %; at most 100 % can be granted"


def instances_on(model: ModelState, gpu: str, triton: TritonState | None) -> int:
    """Instances of a model on one of its GPUs; the fewest that may be there where that is not
    said."""
    if model.applied is None:
        return 0
    if len(model.gpus) == 1:
        return model.applied.instances
    if triton is not None and model.applied.devices and gpu in triton.gpus:
        return model.applied.devices.count(triton.gpus.index(gpu))
    return model.applied.instances // len(model.gpus)
