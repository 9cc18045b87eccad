"""What the daemon knows before its first tick: the profiles, as predictors, with their kernels compiled."""

from __future__ import annotations

import time
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.connection import Connection

import numpy as np
import structlog

from igniterd.config import Config
from igniterd.decide import Oracles
from igniterd.decide.search import find
from igniterd.errors import CannotRun, IgniterdError, ProfileError
from igniterd.loop import Knowledge
from igniterd.memory import identity
from igniterd.model import PerformanceModel, Profile, load_model
from igniterd.model.arrivals import Rate, updated
from igniterd.model.oracle import Demand, Oracle
from igniterd.model.tail import response_time
from igniterd.records import Allocation

FIT_TIMEOUT_S = 60.0
SLOW_COMPILE_S = 3.0
KILLED_S = 5.0


def _fit(answer: Connection, profile: Profile) -> None:
    """In the process of its own: the model, or the error that igniterd raises on purpose."""
    try:
        answer.send(load_model(profile))
    except IgniterdError as error:
        answer.send(error)


def fitted(profile: Profile, *, timeout_s: float = FIT_TIMEOUT_S) -> PerformanceModel:
    """igniterd's model of ``profile``, fitted in a process of its own: the solvers take 80 MB that this one would never give back.

    Raises :class:`ProfileError` as the fit does, :class:`CannotRun` when it takes longer than ``timeout_s`` (it is then killed) or its
    process dies.
    """
    context = get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_fit, args=(sender, profile), name="fit", daemon=True)
    child.start()
    sender.close()  # the child's end is then the only one: when it dies, that is the end of the pipe
    try:
        if not receiver.poll(timeout_s):
            raise CannotRun(f"the model could not be fitted to the profile within {timeout_s:g} s")
        answer: PerformanceModel | IgniterdError = receiver.recv()
    except EOFError as error:
        raise CannotRun("the model could not be fitted to the profile: the process that does it died") from error
    finally:
        child.kill()
        child.join(KILLED_S)
        receiver.close()
    if isinstance(answer, IgniterdError):
        raise answer
    return answer


def load_knowledge(config: Config) -> Knowledge:
    """Read the profiles the configuration names and fit the model to them.

    Raises :class:`ProfileError` naming the model and the file for one that is unreadable, lacks the model, or is for another board
    than the others.
    """
    profiled: dict[str, str] = {}
    merged: Profile | None = None
    for model in config.model:
        if model.profile is None:
            continue
        profile, name = Profile.load(model.profile), model.profile_model or model.name
        if name not in profile.models:
            raise ProfileError(
                f"model {model.name}: {model.profile} profiles {', '.join(profile.models)}, not {name}; "
                "set profile_model, or profile this model"
            )
        profiled[model.name] = name
        merged = profile if merged is None else merged.merge(profile)
    if merged is None:
        _compile(None, "")
        return Knowledge()
    predictor, level = fitted(merged), config.decide.level
    oracles = Oracles(promises=Oracle(predictor, level=level), expects=Oracle(predictor, level=level, upper=False))
    _check_slos(config, profiled, oracles.expects)
    _compile(oracles, next(iter(profiled.values())))
    identities = {name: identity(merged, model) for name, model in profiled.items()}
    sizes = {name: size for name, of in profiled.items() if (size := merged.models[of].memory_bytes) is not None}
    return Knowledge(profiled, oracles, identities, merged.board.name, merged.board.sm_count, sizes)


def _compile(oracles: Oracles | None, model: str) -> None:
    """Ask once for what a tick asks for: on a machine where numba has cached nothing yet this takes a minute, and must not happen
    inside a tick. Without profiles a tick asks only for the tails of live traffic."""
    began_s = time.monotonic()
    updated(Rate(), 1.0, 1.0, 1)
    for instances in (1, 2):  # several are evaluated by other kernels than one
        response_time(1.0, np.full(2, 10.0), service_cv=0.1, max_queue_delay_ms=0.0, instances=instances, burstiness=1.0)
    if oracles is not None:
        demand = Demand("compile", model, 10.0, 100.0, max_batch=2)
        allocations = {"compile": Allocation(1.0, 2, 1000)}
        oracles.promises.together([demand], allocations)
        find(oracles.expects, [demand, replace(demand, model="beside")])
    if time.monotonic() - began_s > SLOW_COMPILE_S:
        took_s = round(time.monotonic() - began_s, 1)
        structlog.get_logger("igniterd").info("compiled the model's kernels; later starts take them from numba's cache", took_s=took_s)


def _check_slos(config: Config, profiled: dict[str, str], oracle: Oracle) -> None:
    """Refuse an SLO below the fastest possible latency: no share on this board could ever hold it."""
    problems = []
    for model in config.model:
        if model.name not in profiled:
            continue
        mean_ms, _ = oracle.model.service_curve_ms(profiled[model.name], model.max_share, (), 1, level=oracle.level)
        fastest_ms = float(mean_ms[0])
        if fastest_ms > model.slo_p99_ms:
            problems.append(
                f"model {model.name}: slo_p99_ms = {model.slo_p99_ms:g}, but one request alone takes {fastest_ms:.3g} ms "
                f"with max_share = {model.max_share:g} on this board"
            )
    if problems:
        raise CannotRun("; ".join(problems))
