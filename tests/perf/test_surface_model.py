"""igniterd's own model: its guarantees, its agreement with itself, and its accuracy on what it was
not fitted to."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igniterd.data.v100 import build
from igniterd.perf import load_model
from igniterd.perf.api import UNCAPPED, Tenant
from igniterd.perf.interference import estimate_prior
from igniterd.perf.kernels import bound
from igniterd.perf.kernels import mean as kernel
from igniterd.perf.profile import builtin_profile
from igniterd.perf.surface_model import SurfaceModel, observations, trusted_share

MODELS = ("alexnet", "resnet50", "vgg19", "ssd")
MODEL = SurfaceModel(builtin_profile("v100"))

tenants = st.builds(
    Tenant,
    st.sampled_from(MODELS),
    st.floats(1, 80),
    st.floats(0.02, 0.999) | st.just(UNCAPPED),
    st.floats(0, 1),
)
capped = tenants.filter(lambda t: t.share < UNCAPPED)
neighbourhoods = st.lists(tenants, max_size=5)


def latency(*case: Tenant) -> float:
    return MODEL.predict(case)[0].latency_ms


@settings(deadline=None)
@given(capped, neighbourhoods, st.floats(1, 2), st.floats(0.3, 1))
def test_latency_never_falls_when_there_is_more_work_or_less_gpu(
    me: Tenant, beside: list[Tenant], more: float, less: float
) -> None:
    now = latency(me, *beside) * (1 - 1e-9)
    assert latency(Tenant(me.model, me.batch * more, me.share), *beside) >= now
    assert latency(Tenant(me.model, me.batch, me.share * less), *beside) >= now


@settings(deadline=None)
@given(tenants, neighbourhoods, tenants)
def test_latency_never_falls_when_a_neighbour_appears_or_works_more(
    me: Tenant, beside: list[Tenant], new: Tenant
) -> None:
    now = latency(me, *beside) * (1 - 1e-9)
    then = latency(me, new, *beside)
    assert then >= now
    assert latency(me, Tenant(new.model, new.batch, new.share, 1.0), *beside) >= then * (1 - 1e-9)


@settings(deadline=None)
@given(tenants, neighbourhoods, st.floats(0.5, 0.999))
def test_the_bound_is_above_the_mean_and_rises_with_the_level(
    me: Tenant, beside: list[Tenant], level: float
) -> None:
    at, higher = (MODEL.predict([me, *beside], level=x)[0] for x in (level, (1 + level) / 2))
    assert at.latency_ms <= at.upper_ms <= higher.upper_ms < 1000 * at.latency_ms
    assert at.throughput_per_s >= 1000 * me.batch / at.latency_ms


@settings(deadline=None, max_examples=30)
@given(st.lists(tenants, min_size=1, max_size=5), st.integers(1, 40))
def test_curves_predictions_and_the_kernel_say_the_same(case: list[Tenant], largest: int) -> None:
    me, *beside = case
    shares = np.array([0.1, me.share])
    mean, upper = MODEL.share_curves_ms(me.model, shares, beside, largest, level=0.9)
    single, bound = MODEL.service_curve_ms(me.model, me.share, beside, largest, level=0.9)
    assert mean.shape == upper.shape == (2, largest)
    if me.share < UNCAPPED:
        assert mean[1] == pytest.approx(single) and upper[1] == pytest.approx(bound)
    last = MODEL.predict([Tenant(me.model, largest, me.share), *beside], level=0.9)[0]
    assert (last.latency_ms, last.upper_ms) == pytest.approx((single[-1], bound[-1]))
    out = np.empty((len(case), 2))
    who = np.array([MODELS.index(t.model) for t in case])
    MODEL.latencies_ms(
        who,
        *(np.array([getattr(t, f) for t in case]) for f in ("batch", "share", "utilisation")),
        out,
    )
    assert out[:, 0] == pytest.approx([p.latency_ms for p in MODEL.predict(case)])


def test_compiled_and_plain_kernels_agree() -> None:
    table, spread, knots = MODEL.gpus[3], MODEL.variances[3], MODEL.knots
    for batch, share in ((1.0, 1.0), (2.5, 0.33), (200.0, 0.01), (0.5, 0.025)):
        assert kernel.gpu_ms(table, knots, 0.025, batch, share) == pytest.approx(
            kernel.gpu_ms.py_func(table, knots, 0.025, batch, share)
        )
    terms = np.array(
        [
            [1.0, 0.1, 0.02, 1e-3, 1e-4, 1e-4, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0],
            [0.5, 0.2, 0.0, 2e-3, 0.0, 1e-4, 0.7, 2e-3, 1e-3, 0.01, 0.6, 1.0],
        ]
    )
    shapes = (np.array([1.0, 7.0]), np.array([0.2, 0.9]), 1.645)
    found = []
    for curves in (bound.curves, bound.curves.py_func):
        mean, upper = np.empty((2, 2)), np.empty((2, 2))
        curves(
            table,
            np.full_like(table, 5.0),
            spread,
            knots,
            0.025,
            np.array([0.1, 0.2]),
            4.0,
            np.array([0.3, 0.01]),
            terms,
            np.array([1e-5, 1e-4]),
            *shapes[:2],
            shapes[2],
            mean,
            upper,
        )
        found.append((mean, upper))
    assert found[0][0] == pytest.approx(found[1][0]) and found[0][1] == pytest.approx(found[1][1])


def test_a_table_is_read_by_hand() -> None:
    table = np.array([[10.0, 6.0], [18.0, 10.0], [40.0, 30.0]])
    knots = np.array([1.0, 2.0, 4.0])

    def read(batch: float, share: float) -> float:
        return float(kernel.gpu_ms(table, knots, 0.5, batch, share))

    assert [read(1, 0.5), read(2, 1.0), read(4, 0.5)] == [10, 10, 40]  # nodes
    assert [read(1.5, 0.5), read(3, 1.0), read(1, 0.75)] == [14, 20, 8]  # between
    assert [read(6, 1.0), read(1, 0.25), read(0.3, 1.0)] == [50, 20, 6]  # beyond


def row(
    d: float, e: tuple[float, float], v: tuple[float, float, float], queued: float = 0.0
) -> list[float]:
    """A neighbour's terms: contended for in full when ``queued``, known to a tenth."""
    return [d, *e, *v, queued, queued**2 / 100, d, 1.0 if queued else 0.0]


def slowdown(*rows: list[float]) -> tuple[float, float]:
    """At x = 0.5."""
    n = len(rows)
    slow, variance = bound.slowdown(np.array(rows), 0.5, np.empty(n), np.empty(n, np.int64))
    return float(slow), float(variance)


def test_two_neighbours_by_hand() -> None:
    slow, variance = slowdown(row(1, (0.08, 0), (1e-4, 0, 0)), row(1, (0.06, 0), (4e-4, 0, 0)))
    assert slow == pytest.approx(0.1)
    assert variance == pytest.approx(1e-4 + 4e-4 / 9 + 0.02**2)
    half = row(0.5, (0.08, 0.04), (1e-4, 1e-4, 4e-4))
    assert slowdown(half) == pytest.approx((0.05, 0.25 * 2.5e-4))


def test_one_uncapped_neighbour_costs_what_it_does_by_hand() -> None:
    """0.8 / 2, whatever a capped one would cost, and nothing is filled or added."""
    known = 0.04**2 + bound.MEETING_SD**2
    assert slowdown(row(1, (0.02, 0), (1, 0, 0), 0.8)) == pytest.approx((0.4, known))


def test_uncapped_neighbours_cost_more_than_their_sum_by_hand() -> None:
    """0.8 / 2 and, half of the time, 0.48 / 2, which is 0.12: their sum and three eighths of 2
    (0.4) (0.12) over it."""
    slow, variance = slowdown(row(1, (0, 0), (0, 0, 0), 0.8), row(0.5, (0, 0), (0, 0, 0), 0.48))
    assert kernel.COMPANY == 0.375
    assert slow == pytest.approx(0.52 + 0.375 * 2 * 0.4 * 0.12 / 0.52)
    # what the slowdown gains with each: 1 + 0.375 (1 + sum of squares / 0.52^2 - 2 part of it)
    even = (0.4**2 + 0.12**2) / 0.52**2
    of_each = [1 + 0.375 * (1 + even - 2 * one / 0.52) for one in (0.4, 0.12)]
    known = (of_each[0] * 0.08 / 2) ** 2 + (of_each[1] * 0.5 * 0.048 / 2) ** 2
    met = bound.MEETING_SD**2 * (1 + 0.5**2)
    assert variance == pytest.approx(known + met + (bound.ADDING_SD * 0.12) ** 2)


@settings(deadline=None)
@given(st.lists(st.floats(0.0, 5.0), min_size=1, max_size=6), st.floats(0.0, 3.0))
def test_many_uncapped_neighbours_cost_their_sum_to_three_eighths_more_and_none_helps(
    costs: list[float], more: float
) -> None:
    def slow(each: list[float]) -> float:
        return slowdown(*[row(1, (0, 0), (0, 0, 0), 2 * one) for one in each])[0]

    assert sum(costs) - 1e-6 <= slow(costs) <= 1.375 * sum(costs) + 1e-6
    assert slow([*costs, more]) >= slow(costs) - 1e-6
    assert slow([costs[0] + more, *costs[1:]]) >= slow(costs) - 1e-6


def test_who_is_contended_with_by_hand() -> None:
    """Another that is uncapped is everywhere; a capped one meets an uncapped victim on its part."""
    assert [kernel.contended(*shares) for shares in ((0.4, 1.0), (1.0, 1.0))] == [1, 1]
    assert [kernel.contended(*shares) for shares in ((1.0, 0.3), (0.7, 0.3))] == [0.3, 0]


@settings(deadline=None)
@given(st.floats(0, 100), st.floats(0.01, 100))
def test_a_batch_takes_the_greater_of_host_and_gpu(host: float, gpu: float) -> None:
    found = kernel.greater(host, gpu)
    assert max(host, gpu) * (1 - 1e-12) <= found <= 1.06 * max(host, gpu)
    assert kernel.sharp(gpu / 100) == pytest.approx((gpu / 100) ** kernel.SHARPNESS)


def test_an_unprofiled_model_and_nonsense_are_refused() -> None:
    with pytest.raises(KeyError, match="bert"):
        MODEL.service_curve_ms("bert", 0.5, [], 4)
    with pytest.raises(ValueError, match="above 0"):
        MODEL.predict([Tenant("ssd", 1, 0.0)])
    with pytest.raises(ValueError, match="above 0"):
        MODEL.service_curve_ms("ssd", 0.5, [Tenant("ssd", 0, 0.5)], 4)
    assert MODEL.predict([]) == ()


@pytest.mark.parametrize(
    ("case", "inside"),
    [
        ([("ssd", 32, 1.0)], True),
        ([("ssd", 33, 1.0)], False),
        ([("ssd", 4, 0.05)], False),
        ([("ssd", 4, 0.6), ("alexnet", 4, 0.4)], True),
        ([("ssd", 4, 0.6), ("alexnet", 4, 0.5)], False),
        ([("ssd", 4, 0.6), ("alexnet", 40, 0.4)], False),
        ([("ssd", 4, 0.6), ("alexnet", 4, UNCAPPED)], True),
    ],
)
def test_whether_it_was_profiled_is_said(
    case: list[tuple[str, float, float]], inside: bool
) -> None:
    assert all(p.inside is inside for p in MODEL.predict([Tenant(*t) for t in case]))


def test_a_slowed_board_is_slowed_and_nothing_else() -> None:
    slowed = load_model(builtin_profile("v100").time_scaled(20))
    case = [Tenant("ssd", 4, 0.3, 0.7), Tenant("vgg19", 8, 0.5)]
    for p, q in zip(MODEL.predict(case), slowed.predict(case), strict=True):
        assert (q.latency_ms, q.upper_ms, 20 * q.throughput_per_s) == pytest.approx(
            (20 * p.latency_ms, 20 * p.upper_ms, p.throughput_per_s)
        )


def test_the_fewest_measurements_make_a_model_with_wider_bounds() -> None:
    """Three solo points, no co-runs, nothing but latencies."""
    whole = builtin_profile("v100")
    few = {
        name: m.model_copy(update={"solo": tuple(m.solo[i] for i in (0, 4, -1)), "igniter": None})
        for name, m in whole.models.items()
    }
    model = SurfaceModel(whole.model_copy(update={"models": few, "co_runs": ()}))
    case = [Tenant("resnet50", 4, 0.4), Tenant("vgg19", 4, 0.6)]
    thin, full = model.predict(case)[0], MODEL.predict(case)[0]
    assert thin.latency_ms == pytest.approx(full.latency_ms, rel=0.25)
    assert thin.upper_ms / thin.latency_ms > 1.5 * (full.upper_ms / full.latency_ms - 1) + 1


# ---------------------------------------------------------------- accuracy


def test_the_targets_of_accuracy_are_met_on_co_runs_it_was_not_fitted_to() -> None:
    """Of each pair the model knows only the shipped co-runs; its prior is of the other pairs."""
    whole, shipped = build.profile(None, None), build.profile()
    seen = observations(whole, SurfaceModel(whole.model_copy(update={"co_runs": ()})))
    errors, held, width = [], [], []
    for pair in itertools.combinations(range(len(MODELS)), 2):
        model = SurfaceModel(
            shipped,
            estimate_prior([o for o in seen if {o.victim, o.neighbours[0].model} != set(pair)]),
        )
        for run in whole.co_runs:
            if {MODELS.index(t.model) for t in run.tenants} != set(pair) or run in shipped.co_runs:
                continue
            found = model.predict([Tenant(t.model, t.batch, t.share) for t in run.tenants])
            errors += [
                p.latency_ms / t.latency_ms - 1 for p, t in zip(found, run.tenants, strict=True)
            ]
            held += [t.latency_ms <= p.upper_ms for p, t in zip(found, run.tenants, strict=True)]
            width += [p.upper_ms / p.latency_ms - 1 for p in found]
    size = np.abs(errors)
    assert len(size) == 1476
    assert (
        size.mean() <= 0.023
        and np.quantile(size, 0.95) <= 0.06
        and np.mean(np.array(errors) < -0.05) <= 0.03
    )
    assert 0.93 <= np.mean(held) <= 0.97 and np.mean(width) <= 0.06


@pytest.mark.parametrize(
    ("model", "growth"), [("alexnet", 1.049), ("resnet50", 1.051), ("vgg19", 1.126), ("ssd", 1.093)]
)
def test_copies_of_a_model_slow_each_other_as_published(model: str, growth: float) -> None:
    """``activetime_2`` over ``activetime_1``; the bound takes it in."""
    copy = Tenant(model, 16, 0.5)
    together, alone = MODEL.predict([copy, copy])[0], MODEL.predict([copy])[0]
    assert together.latency_ms / alone.latency_ms == pytest.approx(growth, abs=0.03)
    assert together.upper_ms > growth * alone.latency_ms * 0.98


def test_a_share_is_trusted_where_more_than_one_batch_was_measured() -> None:
    for name, model in builtin_profile("v100").models.items():
        trusted = trusted_share(model)
        assert len({p.batch for p in model.solo if p.share == trusted}) > 1, name
        assert all(
            len({p.batch for p in model.solo if p.share == share}) == 1
            for share in {p.share for p in model.solo}
            if share > trusted
        )


@pytest.mark.parametrize("beside", [(), (Tenant("vgg19", 4, 0.2, 0.6),)])
def test_the_bound_does_not_stand_on_gains_that_no_batch_was_measured_to_have(
    beside: tuple[Tenant, ...],
) -> None:
    raised = {}
    for name, model in builtin_profile("v100").models.items():
        trusted = trusted_share(model)
        assert trusted < 1, "the shipped profile has larger batches at part of the GPU only"
        mean, upper = MODEL.share_curves_ms(name, np.array([trusted, 1.0]), beside, 16)
        gains = mean[1, 0] / mean[0, 0]  # of a single item
        doubted = MODEL.share_curves_ms(name, np.array([trusted]), beside, 16, level=0.9)[1][0]
        assert (upper[1] >= doubted * gains * (1 - 1e-9)).all(), "one chance in two times a tenth"
        half = MODEL.share_curves_ms(name, np.array([1.0]), beside, 16, level=0.5)[1][0]
        assert (half >= mean[0] * gains * (1 - 1e-9)).all()
        fitted = MODEL._fitted(name, np.array([1.0]), beside, np.arange(1.0, 17.0), 0.95)[1][0]
        raised[name] = float((upper[1] / fitted).max())
    assert max(raised.values()) > 1.03
