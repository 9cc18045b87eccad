"""The configuration and the files that give an in-process model a process of its own. Pure.

The owner's configuration is kept but for the backend. One parameter, ``IGNITERD_HOSTED`` (JSON),
remembers the rest: the engine, the model's folder as Triton sees it, the versions served, what was
the owner's, and a digest of the files. Triton takes a load with the same configuration and other
files for no change, so the digest makes it one. The configuration alone tells everything: which
files must go with the next load, and what the owner had.
"""

from __future__ import annotations

import copy
import hashlib
import json
import posixpath
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from igniterd.engines.carried import carry_settings
from igniterd.errors import Refused

ModelConfig = dict[str, Any]

PARAMETER = "IGNITERD_HOSTED"
ENV_PATH = "EXECUTION_ENV_PATH"
CPU_ONLY = "FORCE_CPU_ONLY_INPUT_TENSORS"
RUNTIME = "model.py"
SHADOW = "igniterd.shadow."
"""Names of copies that are loaded to be compared, for some seconds, begin so."""

FILENAMES = {"onnxruntime": "model.onnx", "pytorch": "model.pt", "tensorrt": "model.plan"}
"""The engines that can host, with the name of a model's file where its configuration gives none."""

_PLATFORMS = {
    "onnxruntime_onnx": "onnxruntime",
    "pytorch_libtorch": "pytorch",
    "tensorrt_plan": "tensorrt",
}
_SHIM, _SHIM_VARIABLE = "IGNITERD_OWN_BACKEND", "IGNITERD_ENV_"
_OURS = (PARAMETER, ENV_PATH, "IGNITERD_BASE_ENV", "IGNITERD_LOAD", _SHIM)
_OWNERS = ("backend", "platform", "default_model_filename", "cc_model_filenames", "runtime")
_UP = "../" * 12  # from any temporary folder to the root: there is nothing above it
_NOTHING = (
    b"class TritonPythonModel:\n    def execute(self, requests):\n        return [None "
    b"for _ in requests]\n"
)
_WARMUP_FOLDER = "warmup/igniterd"


@dataclass(frozen=True, slots=True)
class Hosting:
    """What a hosted model's configuration remembers. ``folder``: the model's, as Triton sees it."""

    engine: str
    folder: str
    versions: tuple[str, ...]
    owner: Mapping[str, Any]
    digest: str

    @property
    def backend(self) -> str:
        """The owner's backend, or the platform that stood for it."""
        return str(self.owner.get("backend") or self.owner.get("platform") or self.engine)


def engine_of(config: Mapping[str, Any]) -> str:
    """The engine that could host the model; empty when none can."""
    backend = str(config.get("backend") or "")
    if backend in FILENAMES:
        return backend
    return "" if backend else _PLATFORMS.get(str(config.get("platform") or ""), "")


def can_host(config: Mapping[str, Any]) -> str:
    """Why a model of this configuration cannot be hosted, or an empty string."""
    if "ensemble_scheduling" in config or config.get("platform") == "ensemble":
        return "it is an ensemble, which executes nothing itself: name the models it is made of"
    if hosting_of(config) is not None or _is_python(config) or _by_server(config):
        return "it runs in a process of its own already"
    if not engine_of(config):
        backend = config.get("backend") or config.get("platform") or ""
        return f"its backend is {backend!r}; {', '.join(FILENAMES)} can be hosted"
    if "sequence_batching" in config:
        return "it has sequence_batching, and a sequence's state would be lost"
    if config.get("model_transaction_policy", {}).get("decoupled"):
        return "it is decoupled: one request may have any number of answers"
    return _odd_tensors(config) or _odd_groups(config)


def _is_python(config: Mapping[str, Any]) -> bool:
    """Whether the Python backend runs it; where a share came by igniterd's shim backend, a
    parameter names the backend behind that."""
    behind = config.get("parameters", {}).get(_SHIM, {}).get("string_value")
    return (behind or config.get("backend")) == "python"


def _by_server(config: Mapping[str, Any]) -> bool:
    """PyTorch's backend has a ``model.py`` beside its library; ``runtime`` chooses."""
    return engine_of(config) == "pytorch" and str(config.get("runtime") or "") == RUNTIME


def _odd_tensors(config: Mapping[str, Any]) -> str:
    for section in ("batch_input", "batch_output"):
        if config.get(section):
            return f"it has {section}, which the Python backend does not fill in"
    for section in ("input", "output"):
        for each in config.get(section, []):
            name = each.get("name", "?")
            if each.get("allow_ragged_batch"):
                return f"its input {name} has allow_ragged_batch"
            if each.get("is_shape_tensor"):
                return f"its {section} {name} is a shape tensor"
            if each.get("is_non_linear_format_io"):
                return f"its {section} {name} has a format that only its own backend knows"
    if not config.get("input") or not config.get("output"):
        return "its configuration names no inputs or no outputs, and Triton has not filled them in"
    return ""


def _odd_groups(config: Mapping[str, Any]) -> str:
    if any(group.get("secondary_devices") for group in config.get("instance_group", [])):
        return "it has secondary_devices, which only its own backend can use"
    return ""


def unhosted_settings(config: Mapping[str, Any]) -> tuple[str, ...]:
    """What of the owner's settings has no effect once hosted, a line each."""
    engine = engine_of(config)
    return tuple(carry_settings(engine, config).notes) if engine else ()


def host_model(
    config: Mapping[str, Any],
    versions: Iterable[str],
    model_folder: str,
    *,
    environment: str | None = None,
) -> tuple[ModelConfig, dict[str, bytes]]:
    """The configuration to load in place of the owner's, and the files that go with it.

    ``versions``: those that are served. ``model_folder``: the model's folder as Triton sees it.
    ``environment``: a Python environment with the engine in it, as EXECUTION_ENV_PATH takes it.
    Raises :class:`Refused` where the model cannot be hosted.
    """
    name = config.get("name", "?")
    if why := can_host(config):
        raise Refused(f"{name}: {why}")
    served = tuple(sorted({str(v) for v in versions}, key=int))
    if not served:
        raise Refused(f"{name}: Triton serves no version of it, so there is nothing to host")
    if not model_folder.startswith("/"):
        raise Refused(f"{name}: its folder {model_folder!r} should be a path from the root")
    engine, made = engine_of(config), copy.deepcopy(dict(config))
    owner = {key: made.pop(key) for key in _OWNERS if made.get(key)}
    for key in _OWNERS:
        made.pop(key, None)
    made["backend"] = "python"
    told: dict[str, Any] = {
        "engine": engine,
        "filename": FILENAMES[engine],
        "folder": posixpath.normpath(model_folder),
        "versions": list(served),
        "owner": owner | _move_files(made, model_folder),
        "options": carry_settings(engine, config).options,
        "digest": digest_of(engine),
    }
    parameters = made.setdefault("parameters", {})
    parameters[PARAMETER] = {"string_value": json.dumps(told, sort_keys=True)}
    if environment:
        parameters[ENV_PATH] = {"string_value": environment}
    if CPU_ONLY not in parameters and _on_gpu(made):
        parameters[CPU_ONLY] = {"string_value": "no"}
        told["owner"]["added"] = [CPU_ONLY]
        parameters[PARAMETER] = {"string_value": json.dumps(told, sort_keys=True)}
    return made, files_of(made)


def host_by_server(
    config: Mapping[str, Any],
    versions: Iterable[str],
    model_folder: str,
    *,
    environment: str | None = None,
) -> ModelConfig:
    """As :func:`host_model`, by the server's own ``model.py`` for TorchScript; no files go with it.

    Raises :class:`Refused` where that implementation cannot run such a model.
    """
    name = config.get("name", "?")
    if why := can_host(config) or _beyond_server(config):
        raise Refused(f"{name}: {why}")
    made = copy.deepcopy(dict(config))
    told: dict[str, Any] = {
        "engine": "pytorch",
        "folder": posixpath.normpath(model_folder),
        "versions": [str(v) for v in versions],
        "owner": {key: made[key] for key in _OWNERS if made.get(key)},
        "digest": "",
    }
    parameters = made.setdefault("parameters", {})
    added = []
    for ours, theirs in (
        ("NUM_THREADS", "INTRA_OP_THREAD_COUNT"),
        ("NUM_INTEROP_THREADS", "INTER_OP_THREAD_COUNT"),
    ):
        if theirs in parameters and ours not in parameters:
            parameters[ours] = copy.deepcopy(parameters[theirs])
            added.append(ours)
    told["owner"] |= {"added": added} if added else {}
    if environment:
        parameters[ENV_PATH] = {"string_value": environment}
    parameters[PARAMETER] = {"string_value": json.dumps(told, sort_keys=True)}
    made.pop("platform", None)
    return made | {"backend": "pytorch", "runtime": RUNTIME}


def _beyond_server(config: Mapping[str, Any]) -> str:
    """Why the server's own ``model.py`` cannot run the model, or an empty string."""
    if engine_of(config) != "pytorch":
        return "only PyTorch's backend has a model.py of its own"
    for section in ("input", "output"):
        for each in config.get(section, []):
            if each.get("data_type") == "TYPE_STRING" or each.get("optional"):
                return f"its {section} {each.get('name')} is text or optional"
    return ""


def _on_gpu(config: Mapping[str, Any]) -> bool:
    return any(group.get("kind") == "KIND_GPU" for group in config.get("instance_group", []))


def _move_files(made: ModelConfig, folder: str) -> dict[str, Any]:
    """Files beside the versions are named by their place: the folder Triton makes has none of them.

    Changes ``made``; returns what the owner had.
    """
    there, labels, warmups = f"{_UP}{folder.strip('/')}", dict[str, str](), dict[str, str]()
    for output in made.get("output", []):
        if name := output.get("label_filename"):
            labels[output["name"]] = name
            output["label_filename"] = f"{there}/{name}"
    for sample in made.get("model_warmup", []):
        for key, data in sample.get("inputs", {}).items():
            if name := data.get("input_data_file"):
                warmups[f"{sample.get('name', '')}/{key}"] = name
                data["input_data_file"] = f"{_UP}{folder.strip('/')}/warmup/{name}"
    found: dict[str, Any] = {}
    return (
        found | ({"labels": labels} if labels else {}) | ({"warmups": warmups} if warmups else {})
    )


def shadow_of(override: ModelConfig, name: str) -> tuple[ModelConfig, dict[str, bytes]]:
    """``override`` for a copy to measure: one instance, requests executed as they come, no
    cache."""
    config = {**override, "name": name}
    config.pop("response_cache", None)
    config.pop("dynamic_batching", None)
    groups = [{**group, "count": 1} for group in config.get("instance_group", [])[:1]]
    for group in groups:
        group["name"] = name
        group["gpus"] = list(group.get("gpus", []))[:1]
    config["instance_group"] = groups
    hosting = hosting_of(override)
    if hosting is None or override.get("backend") == "python":
        return config, files_of(config)
    newest = hosting.versions[-1]  # the server's model.py looks into the folder of the copy
    file = config.get("default_model_filename") or "model.pt"
    config["default_model_filename"] = f"{hosting.folder}/{newest}/{file}"
    return config, {f"{newest}/igniterd": b"\n"}


def placeholder_of(
    override: ModelConfig, name: str, *, in_environment: bool
) -> tuple[ModelConfig, dict[str, bytes]]:
    """A model that answers nothing, of the versions of the copy ``name``: loaded before it, it is
    what a refused copy leaves."""
    hosting = hosting_of(override)
    tensor = {"name": "x", "data_type": "TYPE_FP32", "dims": [1]}
    config: ModelConfig = {
        "name": name,
        "backend": "python",
        "input": [tensor],
        "output": [tensor | {"name": "y"}],
    }
    config["instance_group"] = [{"name": f"{name}.first", "kind": "KIND_CPU", "count": 1}]
    if "version_policy" in override:
        config["version_policy"] = override["version_policy"]
    environment = override.get("parameters", {}).get(ENV_PATH)
    if in_environment and environment:
        config["parameters"] = {ENV_PATH: environment}
    return config, {
        f"{version}/model.py": _NOTHING for version in (hosting.versions if hosting else ("1",))
    }


def hosting_of(config: Mapping[str, Any]) -> Hosting | None:
    """What a hosted model's configuration says; ``None`` for a model that is not hosted."""
    text = config.get("parameters", {}).get(PARAMETER, {}).get("string_value")
    if not text or not (_is_python(config) or _by_server(config)):
        return None
    try:
        told = json.loads(text)
        return Hosting(
            str(told["engine"]),
            str(told["folder"]),
            tuple(str(v) for v in told["versions"]),
            dict(told["owner"]),
            str(told["digest"]),
        )
    except (ValueError, KeyError, TypeError):  # somebody else's parameter of that name
        return None


def files_of(config: Mapping[str, Any]) -> dict[str, bytes]:
    """The files that must go with every load of a hosted model; none for any other.

    A load without them brings back the folder of the repository under a configuration that does
    not fit it.
    """
    hosting = hosting_of(config)
    if hosting is None or not _is_python(config):
        return {}
    files = {
        f"{version}/{name}": content
        for version in hosting.versions
        for name, content in _sources(hosting.engine).items()
    }
    if hosting.owner.get("warmups"):
        files[_WARMUP_FOLDER] = b"\n"  # the folder must be there for a path through it
    return files


def owner_of(config: Mapping[str, Any]) -> ModelConfig:
    """The owner's configuration, as far as it can be rebuilt: batching and instances as they are
    now. A plain load brings back the owner's own."""
    made = copy.deepcopy(dict(config))
    hosting = hosting_of(config)
    if hosting is None:
        return made
    owner = dict(hosting.owner)
    labels, warmups = owner.pop("labels", {}), owner.pop("warmups", {})
    parameters = made["parameters"]
    for key in (
        *_OURS,
        *owner.pop("added", []),
        *(key for key in parameters if key.startswith(_SHIM_VARIABLE)),
    ):
        parameters.pop(key, None)
    if not parameters:
        del made["parameters"]
    for output in made.get("output", []):
        if output.get("name") in labels:
            output["label_filename"] = labels[output["name"]]
    for sample in made.get("model_warmup", []):
        for key, data in sample.get("inputs", {}).items():
            if name := warmups.get(f"{sample.get('name', '')}/{key}"):
                data["input_data_file"] = name
    for key in _OWNERS:
        made.pop(key, None)
    return made | owner


def digest_of(engine: str) -> str:
    """A short digest of the files sent for an engine."""
    mixed = hashlib.sha256()
    for name, content in sorted(_sources(engine).items()):
        mixed.update(name.encode() + b"\0" + content + b"\0")
    return mixed.hexdigest()[:16]


@cache
def _sources(engine: str) -> Mapping[str, bytes]:
    folder = resources.files("igniterd.engines.stub")
    return {
        "model.py": (folder / "model.py").read_bytes(),
        "engine.py": (folder / f"{engine}_engine.py").read_bytes(),
    }
