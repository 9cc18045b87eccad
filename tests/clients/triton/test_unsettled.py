from igniterd.clients.triton.unsettled import CHANGING_S, PATIENCE, Unsettled
from igniterd.records import Allocation

BEFORE, THEN = Allocation(None, 8), Allocation(0.25, 4)


def waiting() -> Unsettled:
    """A load that was not answered within 60 s, at 100 s."""
    made = Unsettled()
    made.unanswered("m", THEN, 100.0, 60.0)
    return made


def test_a_load_is_waited_for_as_long_again_and_looked_out_for_longer() -> None:
    made = waiting()
    assert made.loading("m", BEFORE, 1, 159.0)
    assert not made.loading("m", BEFORE, 1, 160.0)
    assert "m" in made
    assert not made.loading("m", BEFORE, 1, 100.0 + 60.0 * PATIENCE)
    assert "m" not in made
    assert not waiting().loading("other", BEFORE, 1, 110.0)


def test_it_is_over_when_what_was_asked_for_serves() -> None:
    made = waiting()
    assert not made.loading("m", Allocation(0.25000000001, 4), 1, 110.0), "as written down"
    assert "m" not in made


def test_another_load_and_a_server_that_is_gone_end_it() -> None:
    for end in (lambda made: made.forget("m"), Unsettled.forget_all):
        made = waiting()
        end(made)
        assert "m" not in made
        assert not made.loading("m", BEFORE, 1, 110.0)


def test_two_versions_are_a_change_for_a_moment_and_then_for_good() -> None:
    made = Unsettled()
    assert made.loading("m", BEFORE, 2, 5.0)
    assert not made.loading("m", BEFORE, 2, 5.0 + CHANGING_S)
    assert not made.loading("m", BEFORE, 1, 20.0)
    assert made.loading("m", BEFORE, 2, 21.0), "another change"
