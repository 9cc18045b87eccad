"""What the profiles of all hosts say together: one model of performance for each kind of board.
Pure, but for the ``fit`` that it is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from igniterd.decide.judge import PredictorPair
from igniterd.errors import CannotRun, ProfileError
from igniterd.fleet.merged import Merged, merged
from igniterd.messages.state import BoardState
from igniterd.perf import PerformanceModel, Profile
from igniterd.perf.profile import Board
from igniterd.predict import LatencyPredictor
from igniterd.profiled import why_unlike

Fit = Callable[[Profile], PerformanceModel]

MOST_FITS = 12
"""Fits of one kind of board in one :func:`build`: each may take a minute."""
_MOST_LEVELS = 8


@dataclass(frozen=True, slots=True, eq=False)
class BoardKind:
    """Boards that are alike. ``digests``: the profiles that the model is fitted to; ``bad``: why
    others are not among them. ``why``: what is wrong, empty where nothing is."""

    board: Board
    digests: frozenset[str] = frozenset()
    model: PerformanceModel | None = None
    merged: Merged | None = None
    bad: Mapping[str, str] = field(default_factory=dict)
    again: frozenset[str] = frozenset()  # of the bad ones, those that may fit at another time
    _pairs: dict[float, PredictorPair] = field(default_factory=dict)

    @property
    def why(self) -> str:
        return "; ".join(f"profile {digest}: {why}" for digest, why in sorted(self.bad.items()))

    def name_of(self, digests: Sequence[str], model: str) -> str | None:
        """The name of a model of one of these profiles in :meth:`pair`; None where the kind does
        not know it."""
        if self.merged is None:
            return None
        found = (self.merged.names.get((digest, model)) for digest in digests)
        return next((name for name in found if name is not None), None)

    def pair(self, level: float) -> PredictorPair:
        """The predictors whose bounds hold at ``level``; the same ones for the same level. Raises
        :class:`CannotRun` for a kind without a model."""
        if self.model is None:
            raise CannotRun(f"nothing is known of {self.board.name}: {self.why}")
        if level not in self._pairs:
            if len(self._pairs) >= _MOST_LEVELS:
                del self._pairs[next(iter(self._pairs))]
            self._pairs[level] = PredictorPair(
                upper=LatencyPredictor(self.model, level=level),
                mean=LatencyPredictor(self.model, level=level, upper=False),
            )
        return self._pairs[level]

    def copy_bytes(self, name: str) -> int | None:
        """Device memory of one instance, by the name of :meth:`name_of`; None where it was not
        measured."""
        return self._profile.models[name].memory_bytes

    def least_share(self, name: str) -> float:
        """The smallest share that it was measured at."""
        return min(point.share for point in self._profile.models[name].solo)

    def unlike(self, board: BoardState) -> str:
        """Why ``board`` is not of this kind; empty where it may be."""
        return why_unlike(self.board.name, self.board.sm_count, self.board.memory_bytes, board)

    @property
    def _profile(self) -> Profile:
        if self.merged is None:
            raise CannotRun(f"nothing is known of {self.board.name}: {self.why}")
        return self.merged.profile


@dataclass(frozen=True, slots=True, eq=False)
class Knowledge:
    """All kinds of boards that there are profiles of."""

    kinds: tuple[BoardKind, ...] = ()

    @property
    def problems(self) -> Mapping[str, str]:
        """By hash of a profile: why its models are unknown."""
        return {digest: why for kind in self.kinds for digest, why in kind.bad.items()}

    @property
    def unfinished(self) -> bool:
        """Whether another :func:`build` of the same profiles may know more."""
        return any(kind.again for kind in self.kinds)

    def kind_of(self, board: BoardState, digests: Sequence[str] = ()) -> BoardKind | None:
        """The kind that ``board`` is of; None where no profile is of such a board.

        Of several that it may be of, the one that most of ``digests`` are of: the profiles that
        the models of its host name. A board that tells no name is only of such a one.
        """
        named = frozenset(digests)
        found = [
            kind
            for kind in self.kinds
            if (board.name or named & kind.digests) and not kind.unlike(board)
        ]
        return max(found, key=lambda k: (len(named & k.digests), k.model is not None), default=None)


def build(profiles: Mapping[str, Profile], *, fit: Fit, previous: Knowledge | None) -> Knowledge:
    """What ``profiles`` (by hash) say together. Only what changed since ``previous`` is fitted.

    Profiles that ``fit`` raises :class:`ProfileError` or :class:`CannotRun` for are left out and
    named: those that were known before stay, of the new ones as few as possible go.
    """
    before = {kind.board: kind for kind in previous.kinds} if previous is not None else {}
    by_board: dict[Board, dict[str, Profile]] = {}
    for digest, profile in sorted(profiles.items()):
        by_board.setdefault(profile.board, {})[digest] = profile
    kinds = (
        _kind(board, found, fit, before.get(board, BoardKind(board)))
        for board, found in by_board.items()
    )
    return Knowledge(tuple(sorted(kinds, key=lambda k: (k.board.name, k.board.model_dump_json()))))


def _kind(board: Board, profiles: Mapping[str, Profile], fit: Fit, before: BoardKind) -> BoardKind:
    """One kind of board; ``before`` as it was."""
    # what did not fit as it is never will
    hopeless = {d: w for d, w in before.bad.items() if d in profiles and d not in before.again}
    hopeful = {d: p for d, p in profiles.items() if d not in hopeless}
    if hopeful.keys() == before.digests and hopeless == before.bad:
        return before
    fitting = _Fitting(hopeful, fit, before)
    fitting.search(
        tuple(d for d in hopeful if d in before.digests),
        tuple(d for d in hopeful if d not in before.digests),
    )
    return BoardKind(
        board,
        frozenset(fitting.kept),
        fitting.model,
        fitting.merged,
        {**hopeless, **fitting.bad},
        frozenset(fitting.again),
        before._pairs if fitting.model is before.model else {},
    )


class _Fitting:
    """The search for the profiles that can be fitted together."""

    def __init__(self, profiles: Mapping[str, Profile], fit: Fit, before: BoardKind) -> None:
        self._profiles, self._fit, self._before = profiles, fit, before
        self._left = MOST_FITS
        self._failed: dict[frozenset[str], CannotRun] = {}
        self.kept: tuple[str, ...] = ()
        self.model: PerformanceModel | None = None
        self.merged: Merged | None = None
        self.bad: dict[str, str] = {}
        self.again: set[str] = set()

    def search(self, known: tuple[str, ...], new: tuple[str, ...]) -> None:
        """All of them, or as many of ``known`` as fit and then of ``new``."""
        if known and new and self._try(known + new) is not None:
            known = self.grow((), known)
            self.grow(known, new)
        elif not (known and new):
            self.grow((), known + new)

    def grow(self, kept: tuple[str, ...], more: tuple[str, ...]) -> tuple[str, ...]:
        """``kept`` and as many of ``more`` as fit: all, or each half on its own."""
        if not more:
            return kept
        error = self._try(kept + more)
        if error is None:
            return kept + more
        if len(more) == 1 or self._left == 0:
            self.bad |= dict.fromkeys(more, str(error))
            # a profile that is wrong stays so; one whose fit took too long may have been unlucky
            if len(more) > 1 or not isinstance(error, ProfileError):
                self.again |= set(more)
            return kept
        half = len(more) // 2
        return self.grow(self.grow(kept, more[:half]), more[half:])

    def _try(self, digests: tuple[str, ...]) -> CannotRun | None:
        """Fit these together. Returns what was wrong."""
        asked = frozenset(digests)
        if asked in self._failed:
            return self._failed[asked]
        found = merged({digest: self._profiles[digest] for digest in digests})
        before = self._before.merged
        if before is not None and found.profile == before.profile:
            model = self._before.model
        elif self._left == 0:
            return CannotRun("not tried yet: others could not be fitted")
        else:
            self._left -= 1
            try:
                model = self._fit(found.profile)
            except CannotRun as error:
                self._failed[asked] = error
                return error
        self.kept, self.model, self.merged = digests, model, found
        return None
