"""The hosts of ``bench/view.py`` say what a daemon says."""

from __future__ import annotations

import json
import random

from bench.view import messages
from igniterd.fleet.view import ClusterView
from igniterd.messages.event import Event, read_event
from igniterd.messages.state import HostState
from igniterd.records import Effect, Mode
from igniterd.states import State


def test_every_word_of_a_state_is_one_of_the_daemon() -> None:
    ((topic, payload),) = messages(1, 16, 1, random.Random(1))
    said = read_event(payload, "state", Event[HostState]).data
    assert said.mode == Mode.ACT
    assert len(said.models) == 16
    for model in said.models:
        assert model.state == State.STEERED
        assert model.share
        assert model.share.state == Effect.PROVEN
    view = ClusterView("c")
    view.take(topic, payload, at_s=0.0, left_s=30.0, retained=False)
    assert list(view.cluster(0.0).hosts) == ["host-00000"]
    # nothing that the schema does not know
    given = json.loads(payload)["data"]
    assert given.keys() <= {f.alias or name for name, f in HostState.model_fields.items()}
