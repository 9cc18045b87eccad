"""What the daemon knows before its first tick: the profiles, as predictors, with their kernels
compiled."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import structlog

from igniterd.config import Config, Model
from igniterd.decide.judge import PredictorPair
from igniterd.decide.search import find
from igniterd.errors import CannotRun, IgniterdError, ProfileError, Refused
from igniterd.estimators.arrivals import Rate, update_rate
from igniterd.messages.profile import canonical, digest_of, packed
from igniterd.perf import PerformanceModel, Profile, load_model
from igniterd.predict import Demand, LatencyPredictor
from igniterd.profiled import Predictors
from igniterd.queueing.tail import compiled_before, response_time
from igniterd.records import Allocation
from igniterd.state.checkpoint import identity

T = TypeVar("T")

FIT_TIMEOUT_S = 60.0
COMPILE_TIMEOUT_S = 150.0
SLOW_COMPILE_S = 3.0
KILLED_S = 5.0


def _answer(answer: Connection, function: Callable[..., object], *arguments: object) -> None:
    """In the process of its own: what comes of ``function``, or the error that igniterd raises on
    purpose."""
    try:
        answer.send(function(*arguments))
    except IgniterdError as error:
        answer.send(error)


def _apart(
    name: str, what: str, timeout_s: float, function: Callable[..., T], *arguments: object
) -> T:
    """``function(*arguments)`` in a process of its own, which takes the memory it needed with it.

    Raises what igniterd raises there on purpose, and :class:`CannotRun` when it takes longer than
    ``timeout_s`` (it is then killed) or its process dies; ``what`` could not be done then.
    """
    context = get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(
        target=_answer, args=(sender, function, *arguments), name=name, daemon=True
    )
    child.start()
    # the child's end is then the only one: when it dies, that is the end of the pipe
    sender.close()
    try:
        if not receiver.poll(timeout_s):
            raise CannotRun(f"{what} within {timeout_s:g} s")
        answer: T | IgniterdError = receiver.recv()
    except EOFError as error:
        raise CannotRun(f"{what}: the process that does it died") from error
    finally:
        child.kill()
        child.join(KILLED_S)
        receiver.close()
    if isinstance(answer, IgniterdError):
        raise answer
    return answer


def fitted(profile: Profile, *, timeout_s: float = FIT_TIMEOUT_S) -> PerformanceModel:
    """igniterd's model of ``profile``, fitted in a process of its own: the solvers take 80 MB that
    this one would never give back.

    Raises :class:`ProfileError` as the fit does, :class:`CannotRun` when it takes longer than
    ``timeout_s`` (it is then killed) or its process dies.
    """
    return _apart(
        "fit", "the model could not be fitted to the profile", timeout_s, load_model, profile
    )


def load_knowledge(config: Config) -> Predictors:
    """Read the profiles the configuration names and fit the model to them.

    A model may have a profile of each kind of board. Raises :class:`ProfileError` naming the model
    and the file for one that is unreadable, lacks the model, or is the second of one kind.
    """
    kinds: list[tuple[Profile, dict[str, str]]] = []
    files: dict[Path, Profile] = {}  # each is read once
    for model in config.model:
        for path in model.profiles:
            files[path] = files[path] if path in files else Profile.load(path)
            _take(kinds, model, path, files[path])
    if not kinds:
        _compiled(None, config.decide.level, "")
        return Predictors()
    found = [_kind(profile, profiled, config.decide.level) for profile, profiled in kinds]
    _check_slos(config, found)
    for kind in found:
        if kind.predictors is not None:
            _compiled(
                kind.predictors.upper.model,
                config.decide.level,
                next(iter(kind.profiled.values())),
            )
    identities = {
        name: "+".join(kind.identities[name] for kind in found if name in kind.identities)
        for kind in found
        for name in kind.identities
    }
    texts = {path: canonical(_fields(profile)) for path, profile in files.items()}
    digests = {path: digest_of(text) for path, text in texts.items()}
    return replace(
        found[0],
        identities=identities,
        others=tuple(found[1:]),
        digests={model.tenant: tuple(digests[p] for p in model.profiles) for model in config.model},
        packed={} if config.mqtt is None else _packed(texts),
    )


def _fields(profile: Profile) -> dict[str, Any]:
    return profile.model_dump(mode="json", exclude_none=True)


def _packed(texts: Mapping[Path, str]) -> dict[str, tuple[Mapping[str, Any], ...]]:
    """Profiles (by file) in parts, by their hashes; without those that are too large to be sent."""
    out = dict[str, tuple[Mapping[str, Any], ...]]()
    files = dict[str, Path]()
    for path, text in texts.items():
        files.setdefault(text, path)
    for text, path in files.items():
        try:
            out[digest_of(text)] = packed(text)
        except Refused as error:
            structlog.get_logger("igniterd").warning(
                "the cluster is not told of a profile", file=str(path), reason=str(error)
            )
    return out


def _take(
    kinds: list[tuple[Profile, dict[str, str]]], model: Model, path: Path, profile: Profile
) -> None:
    """Add one profile of one model to those of its kind of board."""
    name = model.profile_model or model.name
    if name not in profile.models:
        raise ProfileError(
            f"model {model.tenant}: {path} profiles {', '.join(profile.models)}, not {name}; "
            "set profile_model, or profile this model"
        )
    for at, (merged, profiled) in enumerate(kinds):
        if merged.board == profile.board:
            if model.tenant in profiled:
                raise ProfileError(
                    f"model {model.tenant}: two of its profiles are of {profile.board.name}: keep "
                    f"one; {path} is the second"
                )
            kinds[at] = (merged.merge(profile), {**profiled, model.tenant: name})
            return
    kinds.append((profile, {model.tenant: name}))


def _kind(merged: Profile, profiled: dict[str, str], level: float) -> Predictors:
    """What the profiles of one kind of board say."""
    board = merged.board
    return Predictors(
        profiled,
        _predictors(fitted(merged), level),
        {name: identity(merged, of) for name, of in profiled.items()},
        board.name,
        board.sm_count,
        {
            name: size
            for name, of in profiled.items()
            if (size := merged.models[of].memory_bytes) is not None
        },
        board.memory_bytes,
        {name: min(p.share for p in merged.models[of].solo) for name, of in profiled.items()},
    )


def _predictors(predictor: PerformanceModel, level: float) -> PredictorPair:
    return PredictorPair(
        upper=LatencyPredictor(predictor, level=level),
        mean=LatencyPredictor(predictor, level=level, upper=False),
    )


def _compiled(predictor: PerformanceModel | None, level: float, model: str) -> None:
    """Have everything compiled that a tick asks for: where numba has cached nothing yet this takes
    a minute, and must not happen inside a tick. It takes 200 MB too, that LLVM never gives back: a
    process of its own fills the cache."""
    began_s = time.monotonic()
    if not compiled_before():
        with contextlib.suppress(CannotRun):  # then it is compiled here
            _apart(
                "compile",
                "the kernels could not be compiled",
                COMPILE_TIMEOUT_S,
                _compile,
                predictor,
                level,
                model,
            )
    _compile(predictor, level, model)
    if time.monotonic() - began_s > SLOW_COMPILE_S:
        took_s = round(time.monotonic() - began_s, 1)
        structlog.get_logger("igniterd").info(
            "compiled the model's kernels; later starts take them from numba's cache", took_s=took_s
        )


def _compile(predictor: PerformanceModel | None, level: float, model: str) -> None:
    """Ask once for what a tick asks for. Without profiles that is only the tails of live
    traffic."""
    update_rate(Rate(), 1.0, 1.0, 1)
    for instances in (1, 2):  # several are evaluated by other kernels than one
        response_time(
            1.0,
            np.full(2, 10.0),
            max_queue_delay_ms=0.0,
            instances=instances,
            arrival_scv=1.0,
        )
    if predictor is not None:
        predictors = _predictors(predictor, level)
        demand = Demand("compile", model, 10.0, 100.0, max_batch=2)
        allocations = {"compile": Allocation(1.0, 2, 1000)}
        predictors.upper.together([demand], allocations)
        find(predictors.mean, [demand, replace(demand, model="beside")])


def _check_slos(config: Config, kinds: Sequence[Predictors]) -> None:
    """Refuse an SLO below the fastest possible latency: no share on any of its boards could ever
    hold it."""
    problems = []
    for model in config.model:
        fastest = {
            kind.board: _fastest_ms(kind.predictors.mean, kind.profiled[model.tenant], model)
            for kind in kinds
            if kind.predictors is not None and model.tenant in kind.profiled
        }
        if fastest and min(fastest.values()) > model.slo_p99_ms:
            least = min(fastest.values())
            problems.append(
                f"model {model.tenant}: slo_p99_ms = {model.slo_p99_ms:g}, but one request alone "
                f"takes {least:.3g} ms with max_share = {model.max_share:g} on this board"
            )
    if problems:
        raise CannotRun("; ".join(problems))


def _fastest_ms(predictor: LatencyPredictor, profiled_as: str, model: Model) -> float:
    mean_ms, _ = predictor.model.service_curve_ms(
        profiled_as, model.max_share, (), 1, level=predictor.level
    )
    return float(mean_ms[0])
