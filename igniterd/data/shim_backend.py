"""igniterd's shim backend, ``<backends>/igniterd_python/model.py``: a Python model with variables
of its own in its environment.

For models to whose environment nothing can be put in front: an archive, a path relative to the
repository. The variables are the model's parameters ``IGNITERD_ENV_<name>``. They are set, and the
receipt of the share is left as the name of the process, before the model's own file is imported;
all else is the model's own.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from typing import Any

_PREFIX = "IGNITERD_ENV_"
_SHARE = _PREFIX + "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"
_own: Any = None


def _own_module(parameters: dict[str, Any]) -> Any:
    """The model's own file as a module, imported once the variables are set."""
    global _own  # noqa: PLW0603  a process runs one model
    if _own is None:
        settings = {
            name: value["string_value"]
            for name, value in parameters.items()
            if name.startswith(_PREFIX)
        }
        if not settings:
            raise RuntimeError(
                "this backend is for models that igniterd gives a share: name backend python in "
                "the configuration"
            )
        os.environ.update({name[len(_PREFIX) :]: value for name, value in settings.items()})
        if _SHARE in settings:
            _leave_receipt(settings[_SHARE])
        _own = _imported(_own_file())
    return _own


def _leave_receipt(percent: str) -> None:
    receipt = f"tritonpy@{percent}"
    try:
        with open("/proc/self/comm", "w") as file:
            file.write(f"{receipt}%" if len(receipt) < 15 else receipt)
    # the share is there all the same; igniterd will say that it is not proven
    except OSError as error:
        sys.stderr.write(f"igniterd: share: no receipt can be left in /proc/self/comm: {error}\n")


def _own_file() -> str:
    """The stub is started with the model's own file as its first argument."""
    with open("/proc/self/cmdline", "rb") as file:
        return os.fsdecode(file.read().split(b"\0")[1])


def _imported(path: str) -> Any:
    version = os.path.dirname(path)
    # as the Python backend does for a model of its own
    for folder in (version, os.path.dirname(version)):
        if folder not in sys.path:
            sys.path.append(folder)
    name = os.path.splitext(os.path.basename(path))[0]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"igniterd: {path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # in place of this one: what the model pickles is found by its name
    spec.loader.exec_module(module)
    return module


class TritonPythonModel:
    """Hands everything on to the model's own class."""

    @staticmethod
    def auto_complete_config(auto_complete_model_config: Any) -> Any:
        """The model's own, where it has one."""
        own = _own_module(
            auto_complete_model_config.as_dict().get("parameters", {})
        ).TritonPythonModel
        complete = getattr(own, "auto_complete_config", None)
        return (
            auto_complete_model_config if complete is None else complete(auto_complete_model_config)
        )

    def initialize(self, args: dict[str, str]) -> None:
        """Makes the model's own object."""
        import json

        self._model = _own_module(
            json.loads(args["model_config"])["parameters"]
        ).TritonPythonModel()
        # also one that is a coroutine, or answers through senders
        self.execute = self._model.execute  # type: ignore[method-assign]
        if hasattr(self._model, "initialize"):
            self._model.initialize(args)

    def execute(self, requests: Any) -> Any:
        """In place until the model's own is there: the backend looks for it."""
        raise RuntimeError("executed before it was initialized")

    def finalize(self) -> None:
        """The model's own, where it has one."""
        if hasattr(self, "_model") and hasattr(self._model, "finalize"):
            self._model.finalize()

    def __getattr__(self, name: str) -> Any:
        if name == "_model":
            raise AttributeError(name)
        return getattr(self._model, name)
