from hypothesis import given
from hypothesis import strategies as st

from igniterd.decide.steps import granted, ordered
from igniterd.decisions import StepKind
from igniterd.records import Allocation

NAMES = "abcdef"


def test_shrinks_come_first_by_hand() -> None:
    current = {
        "a": Allocation(0.3, 8),
        "b": Allocation(0.4, 8),
        "c": Allocation(0.3, 8),
        "d": Allocation(None, 4),
    }
    target = {
        "a": Allocation(0.5, 8),
        "b": Allocation(0.2, 8),
        "c": Allocation(0.3, 16),
        "d": Allocation(None, 4),
    }
    steps = list(ordered(current, target, {"b": "its traffic fell"}))
    assert [(step.model, step.kind) for step in steps] == [
        ("b", StepKind.SHRINK),
        ("c", StepKind.BATCHING),
        ("a", StepKind.GROW),
    ]
    assert steps[0].why == "its traffic fell"


def test_a_share_given_for_the_first_time_is_a_shrink() -> None:
    (step,) = ordered({"a": Allocation(None, 8)}, {"a": Allocation(1.0, 8)})
    assert step.kind is StepKind.SHRINK


def test_nobody_is_confined_before_everybody_shares() -> None:
    bare = Allocation(None, 8)
    target = {"a": Allocation(0.15, 32), "b": Allocation(0.35, 16), "c": Allocation(0.5, 4)}
    steps = list(ordered(dict.fromkeys(target, bare), target))
    assert [(s.model, s.after.share) for s in steps] == [
        ("a", 1.0),
        ("b", 1.0),
        ("c", 0.5),
        ("a", 0.15),
        ("b", 0.35),
    ]
    assert steps[0].after.max_batch_size == 32
    assert [
        (s.model, s.after.share)
        for s in ordered({"a": bare, "b": target["b"], "c": target["c"]}, target)
    ] == [("a", 0.15)]


def test_models_only_one_side_knows_are_left_alone() -> None:
    assert not list(ordered({"a": Allocation(0.5, 1)}, {"b": Allocation(0.5, 1)}))


shares = st.lists(st.integers(1, 40), min_size=len(NAMES), max_size=len(NAMES))


def within_one_gpu(units: list[int]) -> dict[str, float]:
    """Shares in units of 2.5 %, scaled down to whole units until they fit on one GPU."""
    while sum(units) > 40:
        units = [max(1, u - 1) for u in units]
    return {name: u / 40 for name, u in zip(NAMES, units, strict=True)}


allocations = st.builds(
    lambda units, batches: {
        m: Allocation(s, b)
        for (m, s), b in zip(within_one_gpu(units).items(), batches, strict=True)
    },
    shares,
    st.lists(st.integers(1, 32), min_size=len(NAMES), max_size=len(NAMES)),
)
started = st.tuples(allocations, st.sets(st.sampled_from(NAMES))).map(
    lambda pair: {
        m: Allocation(None, a.max_batch_size) if m in pair[1] else a for m, a in pair[0].items()
    }
)


@given(started, allocations)
def test_no_prefix_grants_more_than_before_or_all_of_the_gpu(
    current: dict[str, Allocation], target: dict[str, Allocation]
) -> None:
    """Whichever step the daemon dies after, no GPU is granted more than 100 % (or than it already
    was)."""
    live = dict(current)
    limit = max(1.0, sum(granted(a) for a in current.values())) + 1e-9
    for step in ordered(current, target):
        live[step.model] = step.after
        assert sum(granted(a) for a in live.values()) <= limit
    assert live == target


@given(started, allocations)
def test_replayed_from_any_interruption_it_ends_at_the_target(
    current: dict[str, Allocation], target: dict[str, Allocation]
) -> None:
    steps = list(ordered(current, target))
    for stop in range(len(steps) + 1):
        live = dict(current)
        for step in steps[:stop]:
            live[step.model] = step.after
        for step in ordered(live, target):
            live[step.model] = step.after
        assert live == target
