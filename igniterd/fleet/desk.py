"""One cluster: what its hosts say in, what is advised out, by whichever process speaks."""

from __future__ import annotations

import asyncio
import itertools
import time
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from igniterd.clients.mqtt_broker import Broker
from igniterd.clients.mqtt_client import Message
from igniterd.clients.mqtt_listener import Heard, MqttListener
from igniterd.edgelog import EdgeLogger
from igniterd.errors import Refused
from igniterd.fleet.asking import Asking
from igniterd.fleet.cluster import Cluster
from igniterd.fleet.config import FleetConfig
from igniterd.fleet.fitting import in_one_message, same_advice
from igniterd.fleet.parts import Advice, Parts
from igniterd.fleet.speaker import Claim, Speakership
from igniterd.fleet.thinking import Thinking
from igniterd.messages.event import Event, event, read_event
from igniterd.messages.rebalance import Speaker
from igniterd.messages.topics import ROOT, VERSION, cluster_topic, profile_topic

PACE_S = 0.25
_LOOK_S = 5.0  # hosts fall silent without a message: so often it is looked who has
_AGAIN_S = 15.0  # beside the least interval, after a plan that did not come to be
_RENEWALS = 3  # of an advice, before it would expire
NOT_ALLOWED = "the broker lets nobody listen here"
_LOOKING = "looking at the cluster"
_OF_HOSTS = ("+/state", "+/state/+")


def topics_of(cluster: str, profiles: Iterable[str] = ()) -> dict[str, int]:
    """What is listened to of the hosts of a cluster, with its quality of service: they say again
    what is lost, but profiles, which are asked for by hash. That a host speaks another version is
    seen by its status alone: its states may be many."""
    hosts = {f"{ROOT}/{VERSION}/{cluster}/{rest}": 0 for rest in _OF_HOSTS}
    hosts[f"{ROOT}/+/{cluster}/+/status"] = 0
    return hosts | {profile_topic(cluster, digest, "+"): 1 for digest in profiles}


def read_claim(payload: bytes, cluster: str) -> Claim | None:
    """A message of a cluster's topic ``speaker``; None where the broker says that it is forgotten.
    Raises :class:`Refused` for what is no claim of it."""
    if not payload:
        return None
    found = read_event(payload, "speaker", Event[Speaker])
    said = found.data
    if said.cluster != cluster:
        raise Refused(f"speaks of cluster {said.cluster!r}")
    return Claim(said.speaker, said.term, found.id, said.until == "released")


@dataclass(slots=True)
class DeskStatistics:
    """Since the start."""

    rebalances: int = 0
    claims_refused: int = 0
    answered_s: float | None = None  # from the first change to the rebalance that follows it, last


class Desk:
    """A task of its own; whatever is asked of it is answered at once, in the loop's thread."""

    def __init__(
        self,
        cluster: str,
        config: FleetConfig,
        broker: Broker,
        parts: Parts,
        executor: Executor,
        *,
        patience_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        settings = config.fleet
        self.cluster, self._settings, self._clock = cluster, settings, clock
        self.statistics = DeskStatistics()
        self.view = parts.view(cluster)
        self.thinking = Thinking(
            cluster, parts, executor, timeout_s=settings.plan_timeout_s, clock=clock
        )
        self.speakership = Speakership(lease_s=settings.lease_s, patience_s=patience_s)
        self.said: dict[str, Any] | None = None
        """The last rebalance that was published here."""
        self.seen: Cluster = Cluster(cluster)
        """The cluster as it was looked at last."""
        self.ticked_s = clock()
        self._source = f"{ROOT}/{cluster}/fleet-{settings.name}"
        self._speaker_topic = cluster_topic(cluster, "speaker")
        self._asking = Asking()
        self._numbers, self._ids = itertools.count(1), itertools.count(1)
        self._changed_s: float | None = None  # the first change that no plan has seen
        self._taken = False
        self._planned_s = self._looked_s = self._said_s = float("-inf")
        self._spoke = False
        self._good = False  # whether the last plan was made: what it said may be said again
        self._plan: asyncio.Task[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._once = EdgeLogger("fleet")
        self._run = uuid.uuid4().hex[:12]
        self.listener = MqttListener(
            broker,
            f"igniterd-fleet-{cluster}-{settings.name}-{self._run}",
            self._take,
            changed=self._connection,
            will=self._will,
            clock=clock,
        )
        self.listener.want({self._speaker_topic: 1} | topics_of(cluster))

    async def start(self) -> None:
        """Begin; does not wait for the broker."""
        await self.listener.start()
        self._task = asyncio.create_task(self._work(), name=f"desk {self.cluster}")

    async def close(self) -> None:
        """Let others speak, and disconnect."""
        tasks = [task for task in (self._task, self._plan) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if (claim := self.speakership.release(self._clock())) is not None:
            self.listener.publish(self._claim_message(claim))
        await self.listener.close()

    @property
    def speaks(self) -> bool:
        return self.speakership.speaks(self._clock())

    @property
    def others(self) -> bool:
        """Whether somebody else speaks, as far as it is known."""
        return self.speakership.holder not in ("", self.speakership.name)

    def troubles(self) -> dict[str, str]:
        """Everything odd, by host or topic, in words."""
        found = dict(self.view.troubles(self._clock()))
        if self.thinking.trouble:
            found["plan"] = self.thinking.trouble
        for topic in self.listener.statistics.refused_topics:
            found[topic] = NOT_ALLOWED
        return found

    # ------------------------------------------------------------ heard

    def _take(self, heard: Heard) -> None:
        if heard.topic == self._speaker_topic:
            self._take_claim(heard)
            return
        self.view.take(
            heard.topic,
            heard.payload,
            at_s=heard.at_s,
            left_s=heard.left_s,
            retained=heard.retained,
        )
        self._taken = True

    def _take_claim(self, heard: Heard) -> None:
        try:
            claim = read_claim(heard.payload, self.cluster)
        except Refused as error:
            self.statistics.claims_refused += 1
            self._once.failed("speaker", f"{heard.topic}: {error}", says="is not understood")
            return
        self._once.worked("speaker", says="is understood again")
        if claim is not None:
            self.speakership.heard(claim, heard.at_s)

    def _connection(self, name: str, listens: bool) -> None:
        if not name:
            self.speakership.disconnected()
        elif listens:
            self.speakership.listening(self._clock())
        else:
            self.speakership.connected(name)

    # ------------------------------------------------------------ work

    async def _work(self) -> None:
        while True:
            self.ticked_s = at_s = self._clock()
            try:
                self._claim(at_s)
                self._look(at_s)
                self._renew(at_s)
                if self._is_time(at_s):
                    self._planned_s = at_s
                    self._plan = asyncio.create_task(self._think(), name=f"plan {self.cluster}")
            except Exception as error:  # whatever it is, the others and the next go on
                self.thinking.stumbled(_LOOKING, error)
            else:
                self.thinking.worked(_LOOKING)
            await asyncio.sleep(PACE_S)

    def _claim(self, at_s: float) -> None:
        if (claim := self.speakership.due(at_s)) is not None:
            self.listener.publish(self._claim_message(claim))
        speaks = self.speakership.speaks(at_s)
        if speaks and not self._spoke:
            self._changed_s, self.said = at_s, None  # all of it is news to this speaker
        self._spoke = speaks

    def _look(self, at_s: float) -> None:
        """What is known now, and which profiles are missing."""
        profiles = self._asking.now(self.view.wanted_profiles(), at_s)
        self.listener.want({self._speaker_topic: 1} | topics_of(self.cluster, profiles))
        if self._taken:
            self._taken = False
            if self.view.changed():
                self._changed_s = self._changed_s or at_s
        if at_s - self._looked_s >= _LOOK_S:
            self._looked_s = at_s
            now = self.view.cluster(at_s)
            if now.left_out != self.seen.left_out or now.hosts.keys() != self.seen.hosts.keys():
                self._changed_s = self._changed_s or at_s
            self.seen = now

    def _is_time(self, at_s: float) -> bool:
        return (
            self._changed_s is not None
            and self.speakership.speaks(at_s)
            and at_s - self._changed_s >= self._settings.settle_s
            and at_s - self._planned_s >= self._settings.least_interval_s
            and (self._plan is None or self._plan.done())
        )

    async def _think(self) -> None:
        """Plan, and say what came of it."""
        changed_s, self._changed_s = self._changed_s, None
        advice = fits = None
        try:
            self.seen = self.view.cluster(self._clock())
            advice = await self.thinking.advice(
                self.seen, dict(self.view.profiles()), consolidate=self._settings.consolidate
            )
            fits = None if advice is None else self._document(advice)
        except Exception as error:
            self.thinking.failed("failed", "plan", error)
        if advice is not None and advice.unfinished:
            self._changed_s = self._changed_s or self._clock()
        self._good = fits is not None
        if fits is None:
            self._changed_s = self._changed_s or self._clock()
            self._planned_s = self._clock() + _AGAIN_S  # not at once: it may well fail again
        elif same_advice(self.said, fits):
            self.said = fits  # of newer ticks: what is said when it is renewed
        elif self._say(fits) and changed_s is not None:
            self.statistics.answered_s = self._clock() - changed_s

    def _document(self, advice: Advice) -> dict[str, Any]:
        return in_one_message(
            advice.document(
                speaker=self.speakership.name,
                term=self.speakership.term,
                number=next(self._numbers),
                time_s=round(time.time(), 3),
            )
        )

    def _renew(self, at_s: float) -> None:
        due = at_s - self._said_s >= self._settings.expiry_s / _RENEWALS
        if due and self._good and self.said is not None:
            self._say(self.said)

    def _say(self, document: dict[str, Any]) -> bool:
        """Publish it, unless somebody else speaks by now."""
        at_s = self._clock()
        if not self.speakership.speaks(at_s):
            return False
        self.said, self._said_s = document, at_s
        self.statistics.rebalances += 1
        payload = self._event("rebalance", document, f"{self._run}-{next(self._ids)}")
        self._publish("rebalance", payload, self._settings.expiry_s)
        return True

    def _publish(self, kind: str, payload: bytes, expiry_s: int) -> None:
        topic = cluster_topic(self.cluster, kind)
        self.listener.publish(Message(topic, payload, 1, True, expiry_s))

    # ------------------------------------------------------------ claims

    def _will(self, name: str) -> Message:
        return self._claim_message(self.speakership.lost(name))

    def _claim_message(self, claim: Claim) -> Message:
        data = Speaker(
            cluster=self.cluster,
            speaker=claim.speaker,
            term=claim.term,
            until="released" if claim.released else "renewed",
        )
        payload = self._event("speaker", data.model_dump(), claim.id)
        return Message(self._speaker_topic, payload, 1, True, round(self._settings.lease_s) + 1)

    def _event(self, kind: str, data: dict[str, Any], name: str) -> bytes:
        return event(kind, data, source=self._source, id=name, at=datetime.now(UTC))
