"""Of several processes one speaks: message orders, sleep and partitions in virtual time."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from igniterd.fleet.speaker import Claim, Speakership

LEASE_S = 10.0
STEP_S = 0.25


@dataclass
class Topic:
    """What the broker has passed on, in its order; the last one is retained."""

    passed: list[Claim] = field(default_factory=list)


@dataclass
class Process:
    """A process and its connection. What it says waits in ``out``, what it is told from ``read``
    on."""

    topic: Topic
    at: int
    part: Speakership = field(init=False)
    connections: int = 0
    read: int = 0
    out: deque[Claim] = field(default_factory=deque)
    will: Claim | None = None
    spoke: int = 0

    def __post_init__(self) -> None:
        self.part = Speakership(lease_s=LEASE_S, patience_s=0.3 * self.at)

    def connect(self, now_s: float) -> None:
        self.cut()
        self.connections += 1
        self.part.connected(f"p{self.at}.{self.connections}")
        self.will = self.part.lost(self.part.name)
        self.read = max(0, len(self.topic.passed) - 1)
        self.part.listening(now_s)

    def cut(self) -> None:
        """The connection is lost; of what was on its way nothing arrives any more."""
        self.out.clear()
        if self.will is not None:
            self.topic.passed.append(self.will)
            self.will = None
        self.part.disconnected()

    def work(self, now_s: float) -> None:
        if (claim := self.part.due(now_s)) is not None:
            self.out.append(claim)

    def deliver(self, now_s: float, most: int = 1000) -> None:
        """To the broker, and from it."""
        for _ in range(min(most, len(self.out))):
            self.topic.passed.append(self.out.popleft())
        if self.part.name:
            for claim in self.topic.passed[self.read : self.read + most]:
                self.read += 1
                self.part.heard(claim, now_s)


class World:
    def __init__(self, processes: int) -> None:
        self.topic, self.now_s = Topic(), 1000.0
        self.all = [Process(self.topic, at) for at in range(processes)]

    def speaking(self) -> list[int]:
        return [p.at for p in self.all if p.part.speaks(self.now_s)]

    def run(self, for_s: float, asleep: frozenset[int] = frozenset()) -> None:
        """Everything is delivered at once; never do two of those awake speak."""
        end_s = self.now_s + for_s
        while self.now_s < end_s:
            self.now_s += STEP_S
            for process in self.all:
                if process.at not in asleep:
                    process.work(self.now_s)
            for _ in self.all:
                for process in self.all:
                    if process.at not in asleep:
                        process.deliver(self.now_s)

    def started(self) -> World:
        for process in self.all:
            process.connect(self.now_s)
        self.run(LEASE_S)
        return self


def test_both_started_at_once_one_speaks_and_goes_on() -> None:
    world = World(2).started()
    (speaker,) = world.speaking()
    term = world.all[speaker].part.term
    for _ in range(100):
        world.run(1.0)
        assert world.speaking() == [speaker]
    assert world.all[speaker].part.term == term == 1


def test_alone_it_speaks_after_listening_a_while() -> None:
    world = World(1)
    world.all[0].connect(world.now_s)
    world.run(LEASE_S / 5 - 2 * STEP_S)
    assert world.speaking() == []
    world.run(3 * STEP_S)
    assert world.speaking() == [0]


def test_what_is_retained_counts_though_it_comes_before_the_answer_to_the_subscription() -> None:
    part = Speakership(lease_s=LEASE_S)
    part.connected("new")
    part.heard(Claim("old", 3, "old-1"), 0.0)
    part.listening(1.0)
    said = next(at_s for at_s in range(100) if part.due(float(at_s)) is not None)
    assert said == LEASE_S


def test_of_one_term_the_claim_that_is_first_at_the_broker_counts() -> None:
    world = World(2)
    for process in world.all:
        process.part = Speakership(lease_s=LEASE_S)
        process.connect(world.now_s)
    world.now_s += LEASE_S / 5
    for process in world.all:
        process.work(world.now_s)
    second, first = world.all
    for process in (first, second, first):
        process.deliver(world.now_s)
    assert [claim.term for claim in world.topic.passed] == [1, 1]
    assert world.speaking() == [first.at]


def test_a_lost_speaker_is_followed_within_a_second() -> None:
    world = World(2).started()
    (speaker,) = world.speaking()
    world.all[speaker].cut()
    world.run(1.0)
    assert world.speaking() == [1 - speaker]
    assert world.all[1 - speaker].part.term == 2


def test_a_clean_stop_releases() -> None:
    world = World(2).started()
    (speaker,) = world.speaking()
    claim = world.all[speaker].part.release(world.now_s)
    assert claim is not None and claim.released and claim.term == 1
    assert world.speaking() == []
    world.topic.passed.append(claim)
    world.run(1.0)
    assert world.speaking() == [1 - speaker]


def test_who_has_slept_is_silent_when_it_wakes_and_the_other_goes_on() -> None:
    world = World(2).started()
    (sleeper,) = world.speaking()
    world.run(LEASE_S * 2, frozenset({sleeper}))
    assert world.speaking() == [1 - sleeper], "by its own clock, before it has heard a thing"
    world.run(LEASE_S * 3)
    assert world.speaking() == [1 - sleeper]


def test_of_a_broker_that_cannot_be_heard_it_does_not_hold_the_topic_for_ever() -> None:
    part = Speakership(lease_s=LEASE_S)
    part.connected("deaf")
    part.listening(0.0)
    said = [at_s for at_s in range(100) if part.due(float(at_s)) is not None]
    assert not part.speaks(99.0)
    assert max(b - a for a, b in pairwise(said)) <= 4
    assert len(said) < 45


def test_a_broker_that_has_forgotten_the_claim_hears_it_again() -> None:
    """The newcomer that was told nothing claims a lower term, and is put right."""
    world = World(2)
    old, new = world.all
    old.part.heard(Claim("x", 7, "x-1"), world.now_s - 100)
    old.connect(world.now_s)
    world.run(LEASE_S)
    assert old.part.term == 8
    world.topic.passed.append(Claim("nobody", 1, "n", released=True))
    new.connect(world.now_s)
    new.part._from_s = world.now_s  # it does not listen first
    world.run(LEASE_S)
    assert world.speaking() == [old.at]
    assert new.part.holder == old.part.name


def test_two_that_each_heard_their_own_claim_of_a_term_first_are_told_apart() -> None:
    """The first claim was no longer retained when the second began to listen."""
    world = World(2)
    first, second = world.all
    first.part.heard(Claim("x", 3, "x-1"), world.now_s - 100)
    first.connect(world.now_s)
    world.now_s += LEASE_S / 5
    first.work(world.now_s)
    first.deliver(world.now_s)
    world.topic.passed.append(Claim("x", 3, "x-lost", released=True))
    second.connect(world.now_s)
    world.now_s += LEASE_S / 5 + 0.3
    second.deliver(world.now_s)
    second.work(world.now_s)
    second.deliver(world.now_s)
    assert world.speaking() == [first.at, second.at], "for as long as the messages are on their way"
    world.run(1.0)
    assert world.speaking() == [first.at]
    world.run(LEASE_S)
    assert world.speaking() == [first.at]


Actions = list[tuple[str, int, float]]
actions = st.lists(
    st.tuples(
        st.sampled_from(["wait", "work", "deliver", "one", "cut", "connect", "sleep"]),
        st.integers(0, 2),
        st.floats(0.0, 1.0),
    ),
    max_size=80,
)


@settings(max_examples=400)
@given(actions)
def test_once_all_is_delivered_never_two_believe_to_speak(
    done: list[tuple[str, int, float]],
) -> None:
    world = World(3)
    for what, which, much in done:
        process = world.all[which]
        if what in ("wait", "sleep"):
            world.now_s += much * (3 * LEASE_S if what == "sleep" else 2.0)
        elif what == "work" and process.part.name:
            process.work(world.now_s)
        elif what == "deliver":
            process.deliver(world.now_s)
        elif what == "one":
            process.deliver(world.now_s, 1)
        elif what == "cut":
            process.cut()
        elif what == "connect":
            process.connect(world.now_s)
    world.run(2.0)
    for _ in range(40):
        assert len(world.speaking()) <= 1
        world.run(1.0)
    if any(process.part.name for process in world.all):
        (speaker,) = world.speaking()
        before = world.all[speaker].part.term
        world.run(5 * LEASE_S)
        assert (world.speaking(), world.all[speaker].part.term) == ([speaker], before), "it stays"
