"""What a model's Python does first when igniterd has given it a share.

It is copied into each share's folder as ``lib/share.py``, with one call of ``begin`` at its end,
and runs while the interpreter of a stub process starts: in any Python from 3.8 on, before
``model.py`` and before CUDA. The variables come first. All else makes the model's Python what it is
without a share: the launcher made the share's folder its environment only so that this could run.

What goes wrong here makes the load be refused (see the ``.pth`` file), and the old copy of the
model goes on serving. A model is never served without its share or in half an environment.
"""

from __future__ import annotations

import os
import site
import sys

# bin/activate was run by a shell, which kept the model's own variables
_SOURCED = "IGNITERD_SOURCED"
_KEPT = "IGNITERD_OWN_"
_VENV = ("VIRTUAL_ENV", "VIRTUAL_ENV_PROMPT")


def begin(variables: dict[bytes, bytes], receipt: str, base: str | None) -> None:
    """Set ``variables``, leave ``receipt`` as the name of the process, and be the Python of
    ``base``."""
    os.environb.update(variables)
    try:
        with open("/proc/self/comm", "w") as file:
            file.write(receipt)
    # the share is there all the same; igniterd will say that it is not proven
    except OSError as error:
        sys.stderr.write(f"igniterd: share: no receipt can be left in /proc/self/comm: {error}\n")
    share, sourced = sys.prefix, os.environ.pop(_SOURCED, None) is not None
    _restore_paths(share, base, sourced)
    _restore_python(share, sourced)


def _restore_paths(share: str, base: str | None, sourced: bool) -> None:
    """PATH, LD_LIBRARY_PATH and the environment's names as the launcher leaves them without a
    share.

    A shell that sourced ``bin/activate`` has been through the one of ``base`` and kept its names;
    the newer launcher has overwritten the server's.
    """
    for name, part in (("PATH", "/bin"), ("LD_LIBRARY_PATH", "/lib")):
        folders = [f for f in os.environ.get(name, "").split(":") if not _same(f, share + part)]
        if base is not None and not sourced:
            folders.insert(0, base + part)
        if any(folders):
            os.environ[name] = ":".join(folders)
        else:
            os.environ.pop(name, None)
    for name in _VENV:
        own = os.environ.pop(_KEPT + name, None)
        os.environ.pop(name, None)
        if own is not None:
            os.environ[name] = own
    if base is not None and not sourced:
        os.environ["VIRTUAL_ENV"], os.environ["VIRTUAL_ENV_PROMPT"] = base, f"({base})"


def _same(one: str, other: str) -> bool:
    try:
        return one == other or (one != "" and os.path.samefile(one, other))
    except OSError:
        return False


def _restore_python(share: str, sourced: bool) -> None:
    """``sys`` as it is when the first ``python3`` on PATH is the program, perhaps of a virtual
    environment."""
    sys.prefix, sys.exec_prefix = sys.base_prefix, sys.base_exec_prefix
    sys.path[:] = [folder for folder in sys.path if not folder.startswith(share + "/")]
    sys.executable = sys._base_executable = _python_on_path()  # type: ignore[attr-defined]
    venv = _venv_of(sys.executable) if sys.executable else None
    if venv is None:
        return
    if not sourced:
        os.environ["VIRTUAL_ENV"] = venv[0]
    _enter(sys.executable, *venv)


def _python_on_path() -> str:
    for folder in os.environ.get("PATH", "").split(":"):
        python = folder + "/python3"
        if folder and os.path.isfile(python) and os.access(python, os.X_OK):
            return python
    return ""


def _venv_of(python: str) -> tuple[str, dict[str, str]] | None:
    """The prefix of the virtual environment that ``python`` is of, and what its ``pyvenv.cfg``
    says."""
    folder = os.path.dirname(python)
    prefix = os.path.dirname(folder)
    for cfg in (folder + "/pyvenv.cfg", prefix + "/pyvenv.cfg"):
        if os.path.isfile(cfg):
            with open(cfg, encoding="utf-8") as file:
                pairs = [line.partition("=") for line in file]
            return prefix, {key.strip().lower(): value.strip() for key, _, value in pairs}
    return None


def _enter(python: str, prefix: str, cfg: dict[str, str]) -> None:
    """What ``site`` does for a virtual environment, now that it is over with the share's folder."""
    home = cfg.get("home", "") + "/python3"
    if sys.version_info >= (3, 11) and (os.path.islink(python) or os.path.isfile(home)):
        sys._base_executable = os.path.realpath(python) if os.path.islink(python) else home  # type: ignore[attr-defined]
    sys.prefix = sys.exec_prefix = prefix
    site.addsitepackages(_paths_known_to_site(), [prefix])  # type: ignore[arg-type]  # None: those on sys.path
    if cfg.get("include-system-site-packages", "true").lower() != "true":
        site.PREFIXES[:] = [prefix]
        site.ENABLE_USER_SITE = False


def _paths_known_to_site() -> object:
    """Where ``site``, which is running this, notes the folders it has added: else some would be
    added twice."""
    frame = sys._getframe()
    while frame is not None and "known_paths" not in frame.f_locals:
        frame = frame.f_back  # type: ignore[assignment]
    return None if frame is None else frame.f_locals["known_paths"]
