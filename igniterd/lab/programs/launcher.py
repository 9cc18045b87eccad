"""How Triton starts the process of a Python model in an environment, the newer way, on the older
server at hand.

Up to 25.07 the server runs ``bash -c "source ENV/bin/activate && exec env LD_LIBRARY_PATH=… STUB
…"``, with the ``bash`` that it finds on its PATH. Since 25.08 nothing in ENV is run: ``activate``
only has to be there (which the older server checks too), and the stub gets the server's environment
with VIRTUAL_ENV, VIRTUAL_ENV_PROMPT, PATH and LD_LIBRARY_PATH set and PYTHONHOME removed.

A ``bash`` in a folder in front of the server's PATH does that in place of the first half of the
command. It takes its own folder off PATH again, and hands anything else to the real one, so models
and what they start see nothing of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

Launcher = Literal["24.10", "25.08"]

_BASH = """\
#!/bin/sh
# Written by igniterd's test host: starts Triton's stubs as 25.08 does. See igniterd/lab/programs/launcher.py.
PATH=${PATH#"$IGNITERD_LAUNCHER:"}
case "$1 $2" in
"-c source "*"/bin/activate && exec "*)
  env=${2#"source "}
  env=${env%%"/bin/activate && exec "*}
  export VIRTUAL_ENV="$env" VIRTUAL_ENV_PROMPT="($env)" PATH="$env/bin:$PATH"
  export LD_LIBRARY_PATH="$env/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
  unset PYTHONHOME IGNITERD_LAUNCHER
  eval "${2#*"/bin/activate && "}" ;;
*)
  unset IGNITERD_LAUNCHER
  exec bash "$@" ;;
esac
"""  # noqa: E501


def launcher_environment(launcher: Launcher, folder: Path, path: str) -> dict[str, str]:
    """What a server with the PATH ``path`` needs in its environment to start stubs so; ``folder``
    is made for it."""
    if launcher == "24.10":
        return {}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bash").write_text(_BASH)
    (folder / "bash").chmod(0o755)
    return {"PATH": f"{folder}:{path}", "IGNITERD_LAUNCHER": str(folder)}
