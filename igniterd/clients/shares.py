"""The folders that give a model its MPS share: each is an environment for the model's stub process.

Triton starts the process of a Python model in the environment that ``EXECUTION_ENV_PATH`` names.
How depends on its version, and a folder serves all of them:

- up to 25.07 a shell sources ``bin/activate``, which exports the variables;
- from 25.08 on nothing in it is run, but the folder is made the process's Python environment:
  ``bin/python3``, ``pyvenv.cfg`` and a ``.pth`` file, by which the interpreter runs
  ``lib/share.py`` as it starts (:mod:`igniterd.data.stub_share`).

``activate`` ends by doing what the newer launcher does, so ``share.py`` runs nearly everywhere and
leaves the receipt of a share (:mod:`igniterd.clients.receipt`). A model's own environment goes on
being its environment.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from igniterd.clients.environments import (
    OWN_BACKEND,
    PLAIN,
    VARIABLE,
    ModelConfig,
    Own,
    Reach,
    base_env_of,
    environment_obstacle,
    parameter,
    percent_name,
    share_path,
)
from igniterd.clients.folders import File, Link, Tree, check_above, is_whole, make_whole, owners_of
from igniterd.clients.receipt import receipt_of
from igniterd.clients.triton.config_change import with_allocation
from igniterd.config import Triton
from igniterd.errors import Refused
from igniterd.records import Allocation

PYTHONS = tuple(f"3.{minor}" for minor in range(8, 21))
_MEND = "let root make the shares once with igniterd shares --install"
_MARK = "# Written by igniterd:"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

_NEXT_PYTHON = """\
#!/bin/sh
# Written by igniterd: this marks the folder as a Python environment; whoever runs it means the next python3 on PATH.
IFS=:
for folder in $PATH; do
  if [ -x "$folder/python3" ] && [ ! -e "$folder/../lib/share.py" ]; then exec "$folder/python3" "$@"; fi
done
echo "igniterd: no python3 on PATH beside $0" >&2
exit 127
"""  # noqa: E501
_PTH_CODE = """\
import os
try:
    with open(os.path.join(sys.prefix, "lib", "share.py"), encoding="utf-8") as file:
        exec(compile(file.read(), file.name, "exec"), {"__name__": "igniterd_share"})
except BaseException as error:
    import traceback
    said = f"igniterd: the share of this model cannot be set up, so it is not served: {error!r}"
    sys.stderr.write(f"{said}\\n{traceback.format_exc()}")
    class Refusal:
        def find_spec(self, name, path=None, target=None):
            if name in ("triton_python_backend_utils", "model"):
                raise ImportError(said)
    sys.meta_path.insert(0, Refusal())
"""
# An error in a .pth file is passed over, so the model would be served without its share; and ending
# the process there makes Triton up to 24.10 wait for it for ever. The first import that the stub
# makes of its own is where it can say no, with these words.
_AS_THE_NEWER_LAUNCHER = """\
# From here on as the launcher does from 25.08 on, so that lib/share.py runs, which puts back what is kept here. Not where a server's
# PYTHONHOME would be lost by that, nor where a Python that was moved is found only by its place on PATH: such a stub would end at once.
if [ -z "${PYTHONHOME-}" ] && (
  python=$(command -v python3) || exit 0
  exec -a "${BASH_SOURCE[0]%/bin/activate}/bin/python3" "$python" -I -S -c ""
) </dev/null >/dev/null 2>&1; then
  if [ -n "${VIRTUAL_ENV+set}" ]; then export IGNITERD_OWN_VIRTUAL_ENV="$VIRTUAL_ENV"; fi
  if [ -n "${VIRTUAL_ENV_PROMPT+set}" ]; then export IGNITERD_OWN_VIRTUAL_ENV_PROMPT="$VIRTUAL_ENV_PROMPT"; fi
  export IGNITERD_SOURCED=yes VIRTUAL_ENV="${BASH_SOURCE[0]%/bin/activate}"
  export VIRTUAL_ENV_PROMPT="($VIRTUAL_ENV)" PATH="$VIRTUAL_ENV/bin:$PATH"
  export LD_LIBRARY_PATH="$VIRTUAL_ENV/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
fi
"""  # noqa: E501


def prepare_share(
    shares_dir: Path,
    share: float,
    base_env: str | None = None,
    *,
    python: str | None = None,
    variables: Mapping[str, str] | None = None,
    install: bool = False,
) -> Path:
    """Make the folder for `share` (a fraction in (0, 1]) and return it.

    It is put in front of the environment at `base_env` when there is one; `python` is the server's
    own ``python3`` where it is not at the place it was built for; `variables` are set beside the
    share. Left alone when it is already right. One that this user may not write is used when it is
    whole and as this version makes it. What root makes in the folder of the daemon's user is that
    user's, who goes on there; what it makes to `install` stays root's. Raises
    :class:`~igniterd.errors.Refused` where it cannot be made or used, or where the own environment
    cannot be one that others are put in front of.
    """
    if obstacle := environment_obstacle(base_env, look_at(base_env)):
        raise Refused(f"share {percent_name(share)}: {obstacle}")
    folder = Path(share_path(str(shares_dir), share, base_env, python=python, variables=variables))
    below = folder.relative_to(shares_dir).parts
    try:
        tree = _tree(share, base_env, python, variables or {})
        if not _is_there(shares_dir, below, tree):
            make_whole(shares_dir, below, tree, give=not install)
    except (OSError, UnicodeError) as error:
        why = (error.strerror if isinstance(error, OSError) else None) or error
        mend = "" if install else f"; {_MEND} {shares_dir}"
        raise Refused(f"{folder}: cannot write the environment of a share: {why}{mend}") from error
    return folder


def making_obstacle(shares_dir: Path) -> str:
    """Why this user can neither make the folders of shares nor use what was installed, or an empty
    string. Writes nothing."""
    folder = Path(share_path(str(shares_dir), 1.0))
    try:
        if _is_there(shares_dir, folder.relative_to(shares_dir).parts, _tree(1.0, None, None, {})):
            return ""
        check_above(shares_dir, trusted=owners_of(shares_dir))
        above = next(p for p in (folder.parent, *folder.parent.parents) if p.exists())
        writable = os.access(above, os.W_OK | os.X_OK, effective_ids=True)
    except Refused as error:
        return str(error)
    except OSError as error:
        return f"{shares_dir} cannot be reached by this user: {error.strerror or error}"
    return "" if writable else f"{above} cannot be written by this user: {_MEND} {shares_dir}"


def prepare_config(
    config: ModelConfig, target: Allocation, shares_dir: Path, reach: Reach = PLAIN
) -> ModelConfig:
    """:func:`with_allocation`, with the folder that the result names made. Raises :class:`Refused`
    as both do."""
    there = str(shares_dir)
    base = base_env_of(config, there)
    changed = with_allocation(config, target, there, reach=reach, own=look_at(base))
    if target.share is not None and parameter(changed, OWN_BACKEND) is None:
        prepare_share(
            shares_dir, target.share, base, python=reach.python, variables=reach.variables
        )
    return changed


def reach_of(server: Triton) -> Reach:
    """How shares reach the models of a configured Triton."""
    return Reach(None if server.python is None else str(server.python), server.shim_backend)


def _is_there(shares_dir: Path, below: tuple[str, ...], tree: Tree) -> bool:
    try:
        return is_whole(shares_dir, below, tree)
    except OSError:
        return False


def look_at(base_env: str | None) -> Own:
    """What is at a model's own environment, as far as this host can see it."""
    if base_env is None:
        return Own.UNSEEN
    path = Path(base_env)
    try:
        if path.is_file():
            return Own.ARCHIVE
        with (path / "bin" / "activate").open("rb") as file:
            ours = file.read(len(_MARK)) == _MARK.encode()
    except (OSError, ValueError):  # ValueError: a NUL in it
        return Own.UNSEEN
    return Own.SHARE if ours else Own.FOLDER


def _tree(share: float, base: str | None, python: str | None, more: Mapping[str, str]) -> Tree:
    variables = {**more, VARIABLE: percent_name(share)}
    for name, value in variables.items():
        if not _NAME.fullmatch(name) or "\0" in value:
            raise Refused(
                f"variable {name!r} = {value!r}: a name has letters, digits and _, a value no NUL"
            )
    base = None if base is None else base.rstrip("/") or "/"
    return {
        "bin": {"activate": File(_activate(base, variables)), "python3": _python3(base, python)},
        "pyvenv.cfg": File("include-system-site-packages = true\n"),
        "lib": {
            **_libraries(base),
            **{f"python{version}": Link("python") for version in PYTHONS},
            "python": {
                "site-packages": {
                    "igniterd_share.pth": File(f"import sys; exec({_PTH_CODE!r}, {{'sys': sys}})\n")
                }
            },
            "share.py": File(_share_py(variables, receipt_of(share), base)),
        },
    }


def _activate(base: str | None, variables: Mapping[str, str]) -> str:
    lines = [f"{_MARK} up to 25.07 Triton sources this before it starts a model's stub process."]
    if base is not None:
        lines.append(f". {shlex.quote(base + '/bin/activate')}")
    lines += [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    return "\n".join(lines) + "\n" + _AS_THE_NEWER_LAUNCHER


def _share_py(variables: Mapping[str, str], receipt: str, base: str | None) -> str:
    code = resources.files("igniterd.data").joinpath("stub_share.py").read_text(encoding="utf-8")
    settings = {name.encode(): value.encode() for name, value in variables.items()}
    return f"{code}\n\nbegin({settings!r}, {receipt!r}, {None if base is None else ascii(base)})\n"


def _python3(base: str | None, python: str | None) -> File | Link:
    """The folder counts as an environment only with a program of this name."""
    if base is not None and not _lacks_python(base):
        return Link(f"{base}/bin/python3")
    return File(_NEXT_PYTHON, executable=True) if python is None else Link(python)


def _lacks_python(base: str) -> bool:
    """Whether the environment is seen and has no Python of its own (it may be seen by Triton
    only)."""
    return Path(base, "bin").is_dir() and not Path(base, "bin", "python3").exists()


def _libraries(base: str | None) -> dict[str, Link]:
    """The libraries of the model's own environment, which Triton looks for in the folder's ``lib``:
    its libpython above all."""
    if base is None:
        return {}
    try:
        names = sorted(
            path.name for path in Path(base, "lib").iterdir() if not path.name.startswith("python")
        )
    except OSError:  # seen by Triton only
        names = [f"libpython{version}.so.1.0" for version in PYTHONS]
    return {name: Link(f"{base}/lib/{name}") for name in names if name != "share.py"}
