"""Where Triton has a model's files: said in the configuration, or read from the server's command
line where its process can be seen."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path, PurePosixPath

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from igniterd.clients.environments import ModelConfig
from igniterd.clients.triton.json_config import config_to_dict
from igniterd.errors import CannotRun

_PROC = Path("/proc")
_CONFIG = "config.pbtxt"
_OPTIONS = ("--model-repository", "--model-store")
_GRPC_PORT = "8001"  # Triton's own default


def model_folder(model: str, url: str, given: Sequence[str] = (), proc: Path = _PROC) -> str:
    """The model's folder as Triton sees it.

    ``given``: folders of models from the configuration; without them the command line of the
    tritonserver that listens at ``url`` is read. Raises :class:`CannotRun` saying what to give.
    """
    pid, repositories = None, [PurePosixPath(each) for each in given]
    if not repositories:
        pid, repositories = _of_server(url, proc)
    for repository in repositories:
        if _remote(repository):
            raise CannotRun(
                f"model {model}: its repository {repository} is not a folder of the server's "
                "machine, and an engine in a process of its own reads the model's file from there"
            )
    here = [r for r in repositories if _seen(r / model, pid, proc)]
    if here or len(repositories) == 1:  # one that we cannot look into may be there for Triton
        return str((here or repositories)[0] / model)
    if repositories:
        raise CannotRun(
            f"model {model}: it is in none of {', '.join(map(str, repositories))} as seen from "
            "here: give [[triton]] repository only the folder that has it, as the server sees it"
        )
    raise CannotRun(
        f"model {model}: where Triton at {url} has its files is not known, for its process cannot "
        'be seen from here: give [[triton]] repository = ["/models"], the folder as it sees it'
    )


def own_config(
    model: str, url: str, given: Sequence[str] = (), proc: Path = _PROC
) -> ModelConfig | None:
    """What its owner's ``config.pbtxt`` says, with the model's name; ``None`` where it cannot be
    read and kept whole. For a server of this machine."""
    try:
        folder = model_folder(model, url, given, proc)
    except (CannotRun, OSError):
        return None
    pid, _ = _of_server(url, proc)
    inside = [] if pid is None else [proc / str(pid) / "root" / folder.lstrip("/")]
    if pid is not None and _chosen_by_name(pid, proc):
        return None
    for place in (*inside, Path(folder)):
        try:
            message = text_format.Parse(
                (place / _CONFIG).read_text(encoding="utf-8"), model_config_pb2.ModelConfig()
            )
        # a field this tritonclient does not know, too
        except (OSError, UnicodeDecodeError, text_format.ParseError):
            continue
        message.name = message.name or model
        return config_to_dict(message)
    return None


def _chosen_by_name(pid: int, proc: Path) -> bool:
    """Whether the server takes its models' configurations from other files
    (``--model-config-name``)."""
    try:
        words = (proc / str(pid) / "cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return True
    return bool(_values(words, "--model-config-name"))


def _seen(folder: PurePosixPath, pid: int | None, proc: Path) -> bool:
    try:
        if pid is not None and (proc / str(pid) / "root" / str(folder).lstrip("/")).is_dir():
            return True
        return Path(folder).is_dir()
    except OSError:
        return False


def _of_server(url: str, proc: Path) -> tuple[int | None, list[PurePosixPath]]:
    """The tritonserver with this gRPC port, and the repositories of its command line."""
    port = url.rpartition(":")[2]
    for entry in proc.iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if PurePosixPath(words[0]).name != "tritonserver":
                continue
            if (_values(words, "--grpc-port") or [_GRPC_PORT])[-1] != port:
                continue
            start = PurePosixPath(str((entry / "cwd").readlink()))
        except OSError:  # gone meanwhile, or another user's
            continue
        found = [value for option in _OPTIONS for value in _values(words, option)]
        return int(entry.name), [
            value if _remote(value) else start / value for value in map(PurePosixPath, found)
        ]
    return None, []


def _remote(value: PurePosixPath) -> bool:
    return bool(re.match(r"[A-Za-z0-9]+:/", str(value)))


def _values(words: Sequence[str], option: str) -> list[str]:
    """Values of an option, as ``--a=b`` or ``--a b``."""
    found = [word.partition("=")[2] for word in words if word.startswith(f"{option}=")]
    return found + [after for word, after in pairwise(words) if word == option]


def stub_memory_bytes(model: str, proc: Path = _PROC) -> int | None:
    """Resident memory of the processes of a model, all instances; ``None`` where none is seen."""
    total, found = 0, False
    for entry in proc.iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if PurePosixPath(words[0]).name != "triton_python_backend_stub" or len(words) < 9:
                continue
            if not re.fullmatch(re.escape(model) + r"(_\d+)*", words[8]):
                continue
            total += int((entry / "statm").read_text().split()[1]) * 4096
            found = True
        except OSError:
            continue
    return total if found else None
