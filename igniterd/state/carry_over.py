"""What a daemon that begins anew with a changed configuration takes over from the one before it.
Pure.

Traffic does not change with the configuration: arrival rates, and what was learnt of service times
under the same profile, stay. So do the memory of what was done (reloads of the last hour, refusals,
somebody else's changes). Everything that was decided for the old SLOs, priorities and limits goes:
the plan in flight, who is let go, what was judged to be roomy.
"""

from __future__ import annotations

from dataclasses import replace

from igniterd.belief import ModelState, on_another_board
from igniterd.config import Config
from igniterd.decide.state import DecisionState, GpuHold, only
from igniterd.profiled import Predictors
from igniterd.records import Observation
from igniterd.standing import Known
from igniterd.state.carry import Carry


def resumed(carry: Carry, old: Config, then: Predictors, new: Config, now: Predictors) -> Carry:
    """The part of ``carry`` that is still true under ``new``; a model stays when it is the same
    model of the same Triton and GPU."""
    before, after = old.by_name(), new.by_name()
    address = {server.name: server.url for server in old.triton}
    stay = {
        name
        for name, model in after.items()
        if (was := before.get(name)) is not None
        and model.gpu == was.gpu
        and address.get(was.triton)
        == next(server.url for server in new.triton if server.name == model.triton)
    }
    same_profile = {name for name in stay if now.identities.get(name) == then.identities.get(name)}
    belief = {
        name: _of_service(known, name in same_profile)
        for name, known in carry.belief.items()
        if name in stay
    }
    held = _held(carry.held, stay)
    known = _known(carry.known, stay)
    if after.keys() - stay:  # those that are new are waited for, as at the first start
        known = replace(known, began_s=None)
    return Carry(
        _seen(carry.seen, stay),
        belief,
        held,
        carry.number,
        carry.proofs,
        only(carry.loads, stay),
        known,
        boards=carry.boards,
    )


def _of_service(known: ModelState, same_profile: bool) -> ModelState:
    """Predictions are made anew; a bias is measured over predicted, and says nothing of another
    profile."""
    return replace(known, expected=None) if same_profile else on_another_board(known)


def _seen(seen: Observation | None, stay: set[str]) -> Observation | None:
    return None if seen is None else replace(seen, models=only(seen.models, stay))


def _held(held: DecisionState, stay: set[str]) -> DecisionState:
    """Reloads and failures are kept; plans and judgements are made anew, and so is who is shed."""
    models = {
        model: replace(held.of(model), shed_why=None, shed=None, needs_share=None, left_out=None)
        for model in held.models
        if model in stay
    }
    gpus = {
        gpu: GpuHold(moved_at_s=hold.moved_at_s, foreign=hold.foreign)
        for gpu, hold in held.gpus.items()
    }
    return replace(
        held,
        models=models,
        gpus=gpus,
        under_way=0,
        relocation=None,
        tried_moves={},
        took_over_s={key: at_s for key, at_s in held.took_over_s.items() if key[0] in stay},
    )


def _known(known: Known, stay: set[str]) -> Known:
    return replace(
        known,
        last=only(known.last, stay),
        read_at_s=only(known.read_at_s, stay),
        expected=only(known.expected, stay),
        hands=only(known.hands, stay),
        loaded_s=only(known.loaded_s, stay),
        marked_s=only(known.marked_s, stay),
        standings=only(known.standings, stay),
    )
