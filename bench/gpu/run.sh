#!/usr/bin/env bash
# igniterd on a real GPU, in one command of at most nine minutes; with --emulated on a machine without one.
#
#   bench/gpu/run.sh [--emulated] [--budget 480] [-o results.json] [--keep FOLDER]
#
# Starts MPS control (a pipe directory of its own; compute mode, clocks and MIG stay as they are) and Triton with PyTorch networks,
# profiles them with `igniterd profile`, measures co-locations that were not profiled, P99s under Poisson arrivals and the closed loop
# under shifting traffic, and writes one JSON and a picture. Whatever happens, everything started is stopped and what was measured written.
#
#   PYTHON=…   the Python that has torch (default: .venv/bin/python, else python3). Triton runs the models in a Python of the same version.
#   WHEELS=…   a folder of wheels, for a machine that reaches no package index: igniterd's dependencies that this Python lacks are
#              installed from it into out/site, and nvidia-pytriton (the tritonserver) is unpacked from it.
set -euo pipefail
cd "$(dirname "$0")/../.."

python=${PYTHON:-}
if [ -z "$python" ]; then
  python=python3
  if [ -x .venv/bin/python ]; then python=.venv/bin/python; fi
fi
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
export PATH="$PATH:/usr/local/nvidia/bin"  # where containers have the driver's programs

if [ -n "${WHEELS:-}" ]; then
  WHEELS=$(cd "$WHEELS" && pwd)
  export PIP_NO_INDEX=1 PIP_FIND_LINKS="$WHEELS" PYTHONPATH="$PYTHONPATH:$PWD/out/site"
  mapfile -t wanted < <(find "$WHEELS" -name '*.whl' ! -name 'nvidia_pytriton-*')
  if [ "${#wanted[@]}" -gt 0 ]; then
    "$python" -m pip install --quiet --disable-pip-version-check --no-deps --no-compile --upgrade --target out/site "${wanted[@]}"
  fi
fi

missing=$("$python" - <<'PY'
import importlib.util
import sys
if sys.version_info < (3, 11):
    print("Python 3.11 or later")
modules = "grpc tritonclient pynvml numpy numba prometheus_client structlog aiomqtt pydantic typer rich aiohttp scipy matplotlib jinja2"
print(*(m for m in modules.split() if importlib.util.find_spec(m) is None))
PY
)
if [ -n "${missing//[[:space:]]/}" ]; then
  echo "$python ($("$python" --version)) lacks: $missing. Install igniterd's dependencies, name another with PYTHON=, or give WHEELS=." >&2
  exit 1
fi

# tritonserver is fetched once; nothing is fetched when it is there.
"$python" - <<'PY' || "$python" -m igniterd.lab.programs.fetch
import sys
from igniterd.lab.programs import programs
sys.exit(0 if (programs.triton_root() / "pytriton").is_dir() else 1)
PY

# The harness keeps to its budget; should it hang all the same, it is told to stop, and then killed.
exec timeout --signal=TERM --kill-after=20 535 "$python" -m bench.gpu "$@"
