"""Can the cost of a neighbour be foretold for a pair of models that was never measured together,
from the other pairs?

    python bench/unseen.py

The mean slowdown of each ordered pair over the V100's co-runs (latency beside the neighbour over
measured latency alone, minus 1), each pair of models left out in turn and foretold by ridge
regressions on the other five pairs: the plain mean, how sensitive the victim and how demanding the
neighbour was elsewhere, L2 and DRAM use, how long their batches take. ``chosen among the others``:
the method that did best when each of those five pairs was left out in turn, which is what could
honestly be shipped.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import accuracy
import numpy as np

from igniterd.arrays import F64

Pair = tuple[int, int]  # victim, neighbour
MODELS = accuracy.MODELS
UNORDERED = tuple(itertools.combinations(range(len(MODELS)), 2))
SOLO = {
    (name, p.batch, p.share): p for name, m in accuracy.EVERYTHING.models.items() for p in m.solo
}


def slowdowns() -> F64:
    """Mean slowdown of victim i beside neighbour j, shape (models, models); NaN on the diagonal."""
    seen: dict[Pair, list[float]] = {}
    for run in accuracy.RUNS:
        for me, other in itertools.permutations(run.tenants, 2):
            place = MODELS.index(me.model), MODELS.index(other.model)
            seen.setdefault(place, []).append(
                me.latency_ms / SOLO[me.model, me.batch, me.share].latency_ms - 1
            )
    out = np.full((len(MODELS), len(MODELS)), np.nan)
    for place, found in seen.items():
        out[place] = np.mean(found)
    return out


def traits() -> F64:
    """DRAM use (tens of percent), L2 use (tens of percent) and logarithm of a batch's time of each
    model, shape (models, 3)."""
    rows = []
    for name, model in accuracy.EVERYTHING.models.items():
        points = [p for p in model.solo if p.batch in accuracy.BATCHES]
        use = [
            np.mean([float(getattr(p, key) or 0.0) for p in points]) / 10
            for key in ("dram_pct", "l2_pct")
        ]
        rows.append([*use, float(np.log(SOLO[name, 8, 0.5].latency_ms))])
    return np.array(rows)


MEASURED, TRAITS = slowdowns(), traits()
Features = Callable[[Pair], list[float]]


def who(ridge_victim: bool, ridge_neighbour: bool) -> Features:
    def features(pair: Pair) -> list[float]:
        parts = [
            *(pair[0] == k for k in range(len(MODELS))),
            *(pair[1] == k for k in range(len(MODELS))),
        ]
        kept = [ridge_victim] * len(MODELS) + [ridge_neighbour] * len(MODELS)
        return [float(x) for x, keep in zip(parts, kept, strict=True) if keep]

    return features


METHODS: dict[str, tuple[Features, float]] = {
    "mean of the other pairs": (lambda _: [], 1.0),
    "victim's sensitivity, neighbour's pressure": (who(True, True), 2.0),
    "victim's sensitivity": (who(True, False), 2.0),
    "neighbour's pressure": (who(False, True), 2.0),
    "neighbour's DRAM use": (lambda p: [TRAITS[p[1], 0]], 1.0),
    "neighbour's L2 use": (lambda p: [TRAITS[p[1], 1]], 1.0),
    "both models' L2 and DRAM use": (lambda p: [*TRAITS[p[0], :2], *TRAITS[p[1], :2]], 1.0),
    "product of DRAM uses": (lambda p: [TRAITS[p[0], 0] * TRAITS[p[1], 0]], 1.0),
    "victim's time": (lambda p: [TRAITS[p[0], 2]], 1.0),
    "neighbour's time over victim's": (lambda p: [TRAITS[p[1], 2] - TRAITS[p[0], 2]], 1.0),
    "difference of times": (lambda p: [abs(TRAITS[p[1], 2] - TRAITS[p[0], 2])], 1.0),
}


def both_ways(pairs: Sequence[Pair]) -> list[Pair]:
    return [ordered for pair in pairs for ordered in (pair, pair[::-1])]


def foretold(method: str, fitted: Sequence[Pair], asked: Pair) -> float:
    """The slowdown of ``asked`` by ``method`` fitted to the ordered pairs ``fitted``."""
    features, ridge = METHODS[method]
    x = np.array([features(p) for p in fitted]).reshape(len(fitted), -1)
    y = np.array([MEASURED[p] for p in fitted])
    middle = x.mean(axis=0)
    weights = np.linalg.solve(
        (x - middle).T @ (x - middle) + ridge * np.eye(x.shape[1]), (x - middle).T @ (y - y.mean())
    )
    return float(y.mean() + weights @ (np.array(features(asked)) - middle))


def left_out(method: str, pairs: Sequence[Pair]) -> list[float]:
    """Errors of the slowdown, each of ``pairs`` foretold from the rest of them."""
    errors = []
    for out in pairs:
        rest = both_ways([p for p in pairs if p != out])
        errors += [
            foretold(method, rest, asked) - float(MEASURED[asked]) for asked in both_ways([out])
        ]
    return errors


def main() -> None:
    print("Mean slowdown (%) of the model of each row beside the model of each column, V100")
    print(" " * 12 + "".join(f"{name:>10}" for name in MODELS))
    for name, row in zip(MODELS, MEASURED, strict=True):
        print(
            f"  {name:<10}"
            + "".join(f"{'-':>10}" if np.isnan(x) else f"{100 * x:>10.1f}" for x in row)
        )
    print(
        f"\n{'pairs never co-run: error of the mean slowdown, points of percent':<68}"
        f"{'mean':>6}{'rms':>6}"
    )

    def show(name: str, errors: Sequence[float]) -> None:
        print(
            f"  {name:<66}{100 * np.mean(np.abs(errors)):>6.2f}"
            f"{100 * np.sqrt(np.mean(np.square(errors))):>6.2f}"
        )

    for method in METHODS:
        show(method, left_out(method, UNORDERED))
    errors, chosen = list[float](), list[str]()
    for out in UNORDERED:
        rest = [p for p in UNORDERED if p != out]
        chosen.append(
            min(METHODS, key=lambda method: float(np.mean(np.abs(left_out(method, rest)))))
        )
        errors += [
            foretold(chosen[-1], both_ways(rest), asked) - float(MEASURED[asked])
            for asked in both_ways([out])
        ]
    show("chosen among the others", errors)
    print(
        "  (chosen: "
        + "; ".join(f"{n} x {name}" for name in METHODS if (n := chosen.count(name)))
        + ")"
    )
    alike = np.array([[MEASURED[a, b], MEASURED[b, a]] for a, b in UNORDERED])
    print(
        f"\ncorrelation of the two directions of a pair: {np.corrcoef(alike.T)[0, 1]:+.2f} over "
        f"{len(alike)} pairs"
    )


if __name__ == "__main__":
    main()
