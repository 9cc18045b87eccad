"""The environment of a model's process, as its configuration on Triton names it. Pure: dictionaries
in, dictionaries out.

An MPS share is fixed when a process creates its CUDA context, so it is given to a model that runs
in processes of its own by the environment they start in: ``EXECUTION_ENV_PATH`` points at
``<shares_dir>/igniterd-v2/<pct>`` (:mod:`igniterd.clients.shares` makes it). A model that came with
an environment of its own keeps it: the path is then ``…/igniterd-v2/env-<digest>/<pct>``, and the
parameter ``IGNITERD_BASE_ENV`` remembers the model's own, so that the configuration alone tells
what was there before.

Nothing can be put in front of an archive, or of a path that only Triton can resolve. Where the
owner opted for it such a model is run by igniterd's shim backend instead: its environment stays,
``IGNITERD_ENV_<variable>`` are set before its code is imported, and ``IGNITERD_OWN_BACKEND``
remembers its backend.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Any

from igniterd.errors import Refused

ModelConfig = dict[str, Any]

DEFAULT_SHARES = "/var/lib/igniterd/shares"
VARIABLE = "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"
LAYOUT = "igniterd-v2"
"""The folder of shares as this version makes them: another name than before, so that giving one
anew is a change that Triton sees."""
ENV_PATH = "EXECUTION_ENV_PATH"
BASE_ENV = "IGNITERD_BASE_ENV"
OWN_BACKEND = "IGNITERD_OWN_BACKEND"
SHIM_VARIABLE = "IGNITERD_ENV_"
"""A variable of a model run by the shim backend is the parameter of this and its name."""
_PERCENT = r"(\d{1,3}(?:\.\d{1,3})?)"
_BELOW = re.compile(rf"(?:{LAYOUT}/)?(?:env-[0-9a-f]{{12}}/)?{_PERCENT}")
_ANYWHERE = re.compile(rf".*/{LAYOUT}/(?:env-[0-9a-f]{{12}}/)?{_PERCENT}")
_BEFORE = re.compile(rf".*/env-([0-9a-f]{{12}})/{_PERCENT}")
_ARCHIVE = re.compile(
    r".*\.(?:tar|tgz|tbz2?|txz|tzst|zip|gz|bz2|xz|zst|7z)", re.IGNORECASE | re.DOTALL
)


class Own(StrEnum):
    """What a look at a model's own environment found; ``UNSEEN`` where this host cannot see it, as
    Triton may in its container."""

    UNSEEN = "unseen"
    FOLDER = "folder"
    ARCHIVE = "archive"
    SHARE = "share"  # igniterd made it, in another directory


@dataclass(frozen=True, slots=True)
class Reach:
    """How shares reach the models of one Triton, beside the folder of shares."""

    python: str | None = None
    """The server's ``python3``, where it is not at the place it was built for."""
    shim_backend: str | None = None
    """Name of igniterd's shim backend, where it is installed and opted for."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """Set beside the share, as ``CUDA_MPS_PIPE_DIRECTORY``."""


PLAIN = Reach()


def backend_of(config: ModelConfig) -> str:
    """The backend's name, under igniterd's shim the owner's; for the few configurations that name
    only a platform, the platform."""
    return parameter(config, OWN_BACKEND) or str(
        config.get("backend") or config.get("platform") or ""
    )


def runs_in_stubs(config: ModelConfig) -> bool:
    """Whether the model's instances run in processes of their own: of the Python backend, or of one
    that is written in Python."""
    runtime = str(config.get("runtime") or "")
    return backend_of(config) == "python" or PurePosixPath(runtime).name == "model.py"


def share_of(config: ModelConfig, shares_dir: str = DEFAULT_SHARES) -> float | None:
    """The model's own MPS share as a fraction; ``None`` without one.

    A path is a share under ``shares_dir``, or where only igniterd can have written it: another
    state directory's share is a share.
    """
    if parameter(config, OWN_BACKEND) is not None:
        return _fraction(parameter(config, SHIM_VARIABLE + VARIABLE) or "")
    path = posixpath.normpath(parameter(config, ENV_PATH) or "")
    root = posixpath.normpath(shares_dir) + "/"
    if path.startswith(root) and (found := _BELOW.fullmatch(path.removeprefix(root))):
        return _fraction(found.group(1))
    if found := _ANYWHERE.fullmatch(path):
        return _fraction(found.group(1))
    base = parameter(config, BASE_ENV)
    if base is not None and (found := _BEFORE.fullmatch(path)) and found.group(1) == _sha(base):
        return _fraction(found.group(2))
    return None


def _fraction(percent: str) -> float | None:
    if not re.fullmatch(_PERCENT, percent):
        return None
    return float(percent) / 100.0 if 0.0 < float(percent) <= 100.0 else None


def base_env_of(config: ModelConfig, shares_dir: str = DEFAULT_SHARES) -> str | None:
    """The environment the model came with, under whatever igniterd put in front of it."""
    if parameter(config, OWN_BACKEND) is not None or share_of(config, shares_dir) is None:
        return parameter(config, ENV_PATH)
    return parameter(config, BASE_ENV)


def is_stale(config: ModelConfig, shares_dir: str = DEFAULT_SHARES, reach: Reach = PLAIN) -> bool:
    """Whether the model's share is named by a folder that an earlier igniterd made, or one with
    other settings or another place.

    Given anew, the same share is another path, and so a reload.
    """
    share = share_of(config, shares_dir)
    if share is None or parameter(config, OWN_BACKEND) is not None:
        return False
    base = base_env_of(config, shares_dir)
    wanted = share_path(shares_dir, share, base, python=reach.python, variables=reach.variables)
    return posixpath.normpath(parameter(config, ENV_PATH) or "") != posixpath.normpath(wanted)


def percent_name(share: float) -> str:
    """The folder name of a share: percent with at most three decimals, ``0.125`` -> ``"12.5"``."""
    return f"{share * 100.0:.3f}".rstrip("0").rstrip(".")


def share_path(
    shares_dir: str,
    share: float,
    base_env: str | None = None,
    *,
    python: str | None = None,
    variables: Mapping[str, str] | None = None,
) -> str:
    """Where the environment of a share lives: what is in it besides the share (see
    ``prepare_share``) is told by the folder above."""
    root = PurePosixPath(shares_dir) / LAYOUT
    if base_env is not None or python is not None or variables:
        root /= f"env-{_sha(json.dumps([base_env, python, variables or {}], sort_keys=True))}"
    return str(root / percent_name(share))


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]


def environment_obstacle(base: str | None, own: Own = Own.UNSEEN) -> str:
    """Why no share can be put in front of the environment at ``base``, in which ``own`` was seen;
    or an empty string."""
    if base is None:
        return ""
    archive = own is Own.ARCHIVE or (
        own is not Own.FOLDER and bool(_ARCHIVE.fullmatch(base.rstrip("/")))
    )
    to_give = "to give the model a share"
    obstacles = {
        "is a share that igniterd made in another directory; name that one with [state] shares, "
        "or load the model "
        "without a configuration": own is Own.SHARE,
        f"is relative to the repository; give the full path {to_give}": "$$" in base,
        f"is in a remote store; copy it to a folder and name that {to_give}": "://" in base,
        f"is an archive; unpack it and point {ENV_PATH} at the folder {to_give}": archive,
        f"is relative to Triton's folder; give the full path {to_give}": not base.startswith("/"),
    }
    return next((f"its environment {base} {why}" for why, true in obstacles.items() if true), "")


def way_obstacle(config: ModelConfig, shares_dir: str, reach: Reach, own: Own) -> str:
    """Why no environment that igniterd makes reaches the processes of the model, or an empty
    string."""
    if not runs_in_stubs(config):
        return (
            "an MPS share of its own needs a process of its own; backend "
            f"{backend_of(config)!r} runs inside tritonserver"
        )
    if _shimmed(config, shares_dir, reach, own):
        return ""
    return environment_obstacle(base_env_of(config, shares_dir), own)


def _shimmed(config: ModelConfig, shares_dir: str, reach: Reach, own: Own) -> bool:
    """Whether the shim backend is the way: a backend written in Python has code of its own, which
    the shim would replace."""
    if reach.shim_backend is None or own is Own.SHARE or backend_of(config) != "python":
        return False
    return bool(environment_obstacle(base_env_of(config, shares_dir), own))


def set_share(
    config: ModelConfig,
    share: float | None,
    shares_dir: str,
    reach: Reach = PLAIN,
    own: Own = Own.UNSEEN,
) -> None:
    """Give ``config`` the share, or take it away. Raises :class:`Refused` for one that is not in
    (0, 1]."""
    if share is not None and not 0.0 < share <= 1.0:
        raise Refused(f"{config.get('name', '?')}: share {share} is not in (0, 1]")
    shimmed, base = _shimmed(config, shares_dir, reach, own), base_env_of(config, shares_dir)
    parameters = config.setdefault("parameters", {})
    backend = _text(parameters.pop(OWN_BACKEND, None))
    if backend is not None:
        config["backend"] = backend
        config.pop("runtime", None)  # Triton fills it in for a backend written in Python
    for name in [n for n in parameters if n in (BASE_ENV, ENV_PATH) or n.startswith(SHIM_VARIABLE)]:
        del parameters[name]
    settings = {ENV_PATH: base}
    if share is not None and shimmed:
        variables = {**reach.variables, VARIABLE: percent_name(share)}
        settings |= {OWN_BACKEND: backend_of(config)} | {
            SHIM_VARIABLE + name: value for name, value in variables.items()
        }
        config["backend"] = reach.shim_backend
    elif share is not None:
        settings = {
            BASE_ENV: base,
            ENV_PATH: share_path(
                shares_dir, share, base, python=reach.python, variables=reach.variables
            ),
        }
    parameters.update(
        {name: {"string_value": text} for name, text in settings.items() if text is not None}
    )


def parameter(config: ModelConfig, key: str) -> str | None:
    """A parameter's text; ``None`` without one, whatever else stands there."""
    parameters = config.get("parameters")
    return _text(parameters.get(key)) if isinstance(parameters, dict) else None


def _text(value: Any) -> str | None:
    text = value.get("string_value") if isinstance(value, dict) else None
    return text if isinstance(text, str) and text else None
