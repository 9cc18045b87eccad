"""What outlives the daemon: what it has learnt of every model, in one small file.

``learnt.json`` is written whole or not at all, on a thread of its own and at a slow pace; losing it
costs minutes of learning and no correctness. What it says of service times is only taken up again
for the same profile of the same version of a model.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import structlog
from pydantic import ValidationError

from igniterd import __version__
from igniterd.documents import faults
from igniterd.edgelog import EdgeLogger
from igniterd.errors import Refused
from igniterd.estimate import EstimatorState, ModelState
from igniterd.estimators import bias as calibrate
from igniterd.estimators import daily
from igniterd.estimators import live_curve as livecurve
from igniterd.files import make_folder, replace_file
from igniterd.perf import Profile

FORMAT, VERSION = "igniterd-learnt", 1
SAVE_EVERY_S = 60.0
STALE_S = 14 * 86_400.0
# whatever a foreign file may hold
_UNREADABLE = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)


def identity(profile: Profile, model: str) -> str:
    """What predictions of ``model`` rest on, in twelve characters: its figures, its board's, its
    co-runs, and igniterd's version."""
    runs = [
        run.model_dump(mode="json")
        for run in profile.co_runs
        if any(t.model == model for t in run.tenants)
    ]
    figures = [
        __version__,
        profile.board.model_dump(mode="json"),
        profile.models[model].model_dump(mode="json"),
        runs,
    ]
    return hashlib.sha256(json.dumps(figures, sort_keys=True).encode()).hexdigest()[:12]


def plain(
    belief: EstimatorState, identities: Mapping[str, str], at_s: float, wall_s: float
) -> dict[str, Any]:
    """``belief`` for JSON; ``at_s`` and ``wall_s`` are now, by the daemon's clock and by the
    calendar."""
    models = {}
    for name, known in belief.items():
        if known.copy is None:
            continue
        bias = calibrate.to_plain(known.bias.aged(max(0.0, at_s - (known.bias.at_s or at_s))))
        models[name] = {
            "version": known.copy[0],
            "backend": known.copy[1],
            "profile": identities.get(name, ""),
            "bias": bias,
            "curve": livecurve.to_plain(known.curve, at_s) if known.curve.sizes else None,
            "day": daily.to_plain(known.daily) if any(known.daily.bins) else None,
        }
    return {"format": FORMAT, "version": VERSION, "saved_s": round(wall_s, 3), "models": models}


def recalled(
    data: Any, identities: Mapping[str, str], at_s: float, wall_s: float
) -> tuple[dict[str, ModelState], list[str]]:
    """What :func:`plain` kept, as known now, and a sentence for everything that is not taken up
    again.

    ``identities`` are those of the present profiles, of every model that is to be recalled. Raises
    ``ValueError`` with a reason when ``data`` is nothing this version of igniterd wrote, or too
    old.
    """
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ValueError("it is not a file of igniterd's")
    if data.get("version") != VERSION:
        raise ValueError(
            f"it has version {data.get('version')!r}; this igniterd reads version {VERSION}"
        )
    age_s = wall_s - float(data.get("saved_s", 0.0))
    if age_s > STALE_S:
        raise ValueError(f"it is {age_s / 86_400:.0f} days old")
    out, words = {}, []
    for name, known in data.get("models", {}).items():
        if name not in identities:
            continue
        try:
            out[name] = _model(known, identities[name], at_s, max(0.0, age_s))
        except ValidationError as error:
            words.append(f"{name}: {'; '.join(faults(error, object))}")
            continue
        except _UNREADABLE as error:
            words.append(f"{name}: {error!r}")
            continue
        if known["bias"] and known["profile"] != identities[name]:
            words.append(f"{name}: its profile is another one now; its bias is learnt anew")
    return out, words


def _model(known: Mapping[str, Any], profile: str, at_s: float, age_s: float) -> ModelState:
    bias = calibrate.Bias()
    if known["bias"] and known["profile"] == profile:
        bias = calibrate.from_plain(known["bias"], age_s)
    curve = livecurve.from_plain(known["curve"], at_s) if known["curve"] else livecurve.LiveCurve()
    day = daily.from_plain(known["day"]) if known["day"] else daily.Daily()
    return ModelState(
        bias=bias,
        published_bias=bias.estimate,
        curve=curve,
        daily=day,
        copy=(str(known["version"]), str(known["backend"])),
    )


def service_times(path: Path, models: Iterable[str], wall_s: float) -> dict[str, str]:
    """What ``learnt.json`` says of the service times of ``models``, in words; those of which it
    says nothing are left out."""
    try:
        known, _ = recalled(
            json.loads(path.read_text(encoding="utf-8")), dict.fromkeys(models, ""), 0.0, wall_s
        )
    except (OSError, *_UNREADABLE):
        return {}
    out = {}
    for name, belief in known.items():
        points = livecurve.points(belief.curve, belief.curve.largest, 0.0)
        if points is not None:
            out[name] = livecurve.where(belief.curve.share) + ": " + livecurve.describe(points)
    return out


class Checkpoint:
    """``learnt.json`` of one host. :meth:`keep` never waits for the disk; a disk that fails is said
    once."""

    def __init__(self, path: Path, identities: Mapping[str, str]) -> None:
        self.path = path
        self.identities = identities
        self._log = structlog.get_logger("igniterd.state.checkpoint")
        self._kept_s: float | None = None
        self._writing: threading.Thread | None = None
        self._once, self._where = EdgeLogger("checkpoint"), {"path": str(path)}

    def recall(self, at_s: float, wall_s: float) -> dict[str, ModelState]:
        """What was learnt before; nothing, and a word in the log, where that cannot be read or is
        too old."""
        try:
            out, words = recalled(
                json.loads(self.path.read_text(encoding="utf-8")), self.identities, at_s, wall_s
            )
        except FileNotFoundError:
            return {}
        except (OSError, *_UNREADABLE) as error:
            self._log.warning(
                "what was learnt before is not taken up", path=str(self.path), reason=str(error)
            )
            return {}
        for word in words:
            self._log.warning(
                "not taken up from what was learnt before", path=str(self.path), reason=word
            )
        if out:
            self._log.info("took up what was learnt before", models=len(out))
        return out

    def keep(self, belief: EstimatorState, at_s: float, wall_s: float) -> None:
        """Write ``belief`` if the last time is long enough ago and that writing is over."""
        if self._kept_s is None:
            self._kept_s = at_s
        if at_s - self._kept_s < SAVE_EVERY_S or (
            self._writing is not None and self._writing.is_alive()
        ):
            return
        self._kept_s = at_s
        self._start(plain(belief, self.identities, at_s, wall_s))

    def close(
        self, belief: EstimatorState, at_s: float, wall_s: float, timeout_s: float = 2.0
    ) -> None:
        """Write ``belief`` for the last time; at most ``timeout_s`` are waited."""
        if self._writing is not None:
            self._writing.join(timeout_s / 2)
            if self._writing.is_alive():
                return
        if belief:
            self._start(plain(belief, self.identities, at_s, wall_s)).join(timeout_s / 2)

    def _start(self, data: dict[str, Any]) -> threading.Thread:
        self._writing = threading.Thread(
            target=self._write, args=(data,), name="memory", daemon=True
        )
        self._writing.start()
        return self._writing

    def _write(self, data: dict[str, Any]) -> None:
        try:
            make_folder(self.path.parent)
            replace_file(self.path, json.dumps(data, separators=(",", ":")))
        except (OSError, Refused) as error:
            self._once.failed(
                "write", str(error), says="what is learnt is not kept", more=self._where
            )
        else:
            self._once.worked("write", says="what is learnt is kept again", more=self._where)
