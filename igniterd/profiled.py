"""The profiles of the configured models, as predictors. They stay while the daemon runs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from igniterd.decide.judge import PredictorPair
from igniterd.predict import LatencyPredictor
from igniterd.records import BoardReading, ModelReading, Observation


@dataclass(frozen=True, slots=True)
class Predictors:
    """What is known of the models on one kind of board, and of ``others``. It does not change while
    the daemon runs."""

    # configured name -> name in the profile
    profiled: Mapping[str, str] = field(default_factory=dict)
    predictors: PredictorPair | None = None
    # configured name -> what its profiles are, in short, of all kinds of boards
    identities: Mapping[str, str] = field(default_factory=dict)
    board: str = ""  # the board the profiles are of
    sm_count: int | None = None
    # configured name -> device memory of one instance, where profiled
    copy_bytes: Mapping[str, int] = field(default_factory=dict)
    memory_bytes: int | None = None  # of the board
    # configured name -> smallest share at which it was measured
    least_shares: Mapping[str, float] = field(default_factory=dict)
    others: tuple[Predictors, ...] = ()
    # configured name -> hashes of the contents of its profiles, in the order given
    digests: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    # hash -> the profile in parts, as it is sent; empty where nobody is told
    packed: Mapping[str, tuple[Mapping[str, Any], ...]] = field(default_factory=dict)

    @property
    def kinds(self) -> tuple[Predictors, ...]:
        return (self, *self.others)

    @property
    def all_profiled(self) -> Mapping[str, str]:
        """The models that have a profile of any kind of board."""
        return {name: of for kind in reversed(self.kinds) for name, of in kind.profiled.items()}

    def steerable(self, seen: Observation) -> Mapping[str, str]:
        """``all_profiled``, less the models that are of a kind that can only be watched."""
        return {
            name: of
            for name, of in self.all_profiled.items()
            if name not in seen.models or not seen.models[name].left_alone
        }

    def why_not(self, board: BoardReading) -> str:
        """Why the profiles are not of ``board``, or an empty string. What a board does not tell is
        taken to be so."""
        return why_unlike(self.board, self.sm_count, self.memory_bytes, board)


class BoardLike(Protocol):
    """What a board tells of its kind, as far as it does."""

    @property
    def name(self) -> str: ...

    @property
    def sm_count(self) -> int | None: ...

    @property
    def memory_total_bytes(self) -> int | None: ...


def why_unlike(
    profiled: str, sm_count: int | None, memory_bytes: int | None, board: BoardLike
) -> str:
    """Why ``board`` is not of the kind that profiles are of: the name, number of SMs and memory of
    theirs. Empty where it may be."""
    here = f"{board.name} with {board.sm_count} SMs"
    if sm_count is not None and board.sm_count is not None and board.sm_count != sm_count:
        return f"the profiles are of {profiled} with {sm_count} SMs, and it is {here}"
    if profiled and not _alike(profiled, board.name):
        return f"the profiles are of {profiled}, and it is {board.name}"
    if _differ(memory_bytes, board.memory_total_bytes):
        mine, its = (memory_bytes or 0) / 2**30, (board.memory_total_bytes or 0) / 2**30
        return f"the profiles are of {profiled} with {mine:.0f} GiB, and it has {its:.0f} GiB"
    return ""


@dataclass(frozen=True, slots=True)
class BoardKind:
    """What is known of the models on one board; ``why``: that its kind has no profiles."""

    known: Predictors
    why: str = ""


NOTHING = Predictors()
UNKNOWN_KIND = BoardKind(NOTHING)


def kinds_of_boards(
    knowledge: Predictors, boards: Mapping[str, BoardReading]
) -> dict[str, BoardKind]:
    """By GPU: the profiles that are of its kind of board. What was measured on another board must
    not be planned with."""
    found = {}
    for gpu, board in boards.items():
        reasons = [kind.why_not(board) for kind in knowledge.kinds]
        if "" in reasons:
            found[gpu] = BoardKind(knowledge.kinds[reasons.index("")])
        else:
            why = f"{'; '.join(reasons)}: profile the models on this board"
            found[gpu] = BoardKind(NOTHING, why)
    return found


class Bases:
    """What predictions on each GPU rest on, in one tick."""

    def __init__(self, knowledge: Predictors, kinds: Mapping[str, BoardKind]) -> None:
        self._knowledge, self._kinds = knowledge, kinds

    def of(self, gpu: str) -> BoardKind:
        """A GPU of which no board is known is of the only kind there is a profile of."""
        alone = BoardKind(self._knowledge) if not self._knowledge.others else UNKNOWN_KIND
        return self._kinds.get(gpu, alone)

    def on(self, gpus: Sequence[str]) -> Predictors:
        """Of GPUs of one kind; on others nothing can be predicted."""
        kinds = [self.of(gpu).known for gpu in gpus]
        same = bool(kinds) and all(kind is kinds[0] for kind in kinds)
        return kinds[0] if same else NOTHING

    def pair(self, gpus: Sequence[str]) -> tuple[Mapping[str, str], PredictorPair | None]:
        """For the decision."""
        known = self.on(gpus)
        return known.profiled, known.predictors

    def mean(self, gpus: Sequence[str]) -> tuple[Mapping[str, str], LatencyPredictor | None]:
        """For the estimate."""
        profiled, pair = self.pair(gpus)
        return profiled, pair.mean if pair else None

    def other_kind(self, before: Observation | None, seen: Observation) -> set[str]:
        """The models that are on another kind of board than before."""
        if before is None:
            return set()
        return {
            name
            for name, now in seen.models.items()
            if (was := before.models.get(name)) is not None
            and was.gpus != now.gpus
            and self.on(was.gpus) is not self.on(now.gpus)
        }

    def of_one_kind(self, seen: Observation) -> Observation:
        """``seen``, in which a model on boards of several kinds, or on one of a kind that it has no
        profile of, is only watched."""
        watched = {}
        for name, reading in seen.models.items():
            why = "" if reading.left_alone else self._why_watched(name, reading)
            if why:
                watched[name] = replace(
                    reading, left_alone=why, share_fixed=why, batching_fixed=why
                )
        return replace(seen, models={**seen.models, **watched}) if watched else seen

    def _why_watched(self, name: str, reading: ModelReading) -> str:
        if name not in self._knowledge.all_profiled:
            return ""
        kinds = [self.of(gpu) for gpu in dict.fromkeys(reading.gpus)]
        if any(kind.known is not kinds[0].known for kind in kinds):
            return "it is on boards of several kinds, whose service times differ"
        if not kinds or kinds[0].why or name in kinds[0].known.profiled:
            return ""
        return f"it has no profile of the {kinds[0].known.board} that it is on"


def _alike(one: str, other: str) -> bool:
    """Whether two names may be of one kind of board: ``v100`` is ``Tesla V100-SXM2-16GB``, and
    ``NVIDIA H100 80GB HBM3`` is not ``NVIDIA H200``."""
    mine, theirs = _words(one), _words(other)
    return mine <= theirs or theirs <= mine


def _words(name: str) -> set[str]:
    """Of a board's name, less what every board's has."""
    words = re.split(r"[\s()_-]+", name.lower())
    return {word for word in words if word} - {"nvidia", "tesla", "emulated"}


def _differ(profiled: int | None, here: int | None) -> bool:
    """Whether two sizes of memory are of different boards: drivers keep some of it back."""
    if not profiled or not here:
        return False
    return not 0.85 <= here / profiled <= 1.15
