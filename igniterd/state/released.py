"""Models that were given back to their owner: a small file that a command writes and the daemon
reads.

``released.json`` in the state directory is written whole or not at all, by one command at a time.
The daemon asks at every tick and reads it only when it is another one than before.
"""

from __future__ import annotations

import fcntl
import getpass
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from igniterd.errors import CannotRun
from igniterd.files import replace_file

FILE = "released.json"
MOST = 4096
_MOST_BYTES = 4 << 20


class Given(BaseModel):
    """One model: when it was given back, and by whom."""

    model_config = ConfigDict(extra="forbid")
    at: datetime
    by: str = Field(max_length=256)


class _List(BaseModel):
    model_config = ConfigDict(extra="forbid")
    format: Literal["igniterd-released"] = "igniterd-released"
    version: Literal[1] = 1
    models: dict[str, Given] = Field(default_factory=dict, max_length=MOST)


class Released:
    """The list as the daemon reads it. What cannot be read is said once, and the last list
    stands."""

    def __init__(self, path: Path) -> None:
        """``path``: the file; it need not be there."""
        self._path, self._said = path, ""
        self._stamp: tuple[int, ...] | None = None
        self._models: Mapping[str, Given] = {}

    def now(self) -> frozenset[str]:
        """The names of the models that are given back. Costs one ``stat`` while nothing changes."""
        return frozenset(self._read())

    def why(self) -> dict[str, str]:
        """For each of them the sentence that its state is explained with."""
        return {name: _why(name, given) for name, given in self._read().items()}

    def _read(self) -> Mapping[str, Given]:
        log = structlog.get_logger("igniterd")
        try:
            stamp = _stamp(self._path)
            if stamp != self._stamp:
                self._models = {} if stamp is None else _parsed(self._path).models
                self._stamp = stamp
        except CannotRun as error:
            if str(error) != self._said:
                log.warning(
                    "the list of released models cannot be read: the last one stands",
                    reason=str(error),
                )
            self._said = str(error)
            return self._models
        if self._said:
            log.info("the list of released models can be read again", path=str(self._path))
            self._said = ""
        return self._models


TRIES, TRY_EVERY_S = 50, 0.1


def given_back(directory: Path, models: Iterable[str]) -> None:
    """Add ``models`` to the list of the state ``directory``. Raises :class:`CannotRun` saying what
    to do."""
    now = Given(at=datetime.now(UTC).replace(microsecond=0), by=_user())
    with _changing(directory) as there:
        there.update(dict.fromkeys(models, now))
        if len(there) > MOST:
            raise CannotRun(
                f"{directory / FILE}: {len(there)} models, and at most {MOST} are kept: igniterd "
                "take those that are gone"
            )


def taken_again(directory: Path, models: Iterable[str] | None) -> list[str]:
    """Remove ``models`` (``None``: all) from the list; returns those that were on it."""
    with _changing(directory) as there:
        gone = [name for name in (list(there) if models is None else models) if name in there]
        for name in gone:
            del there[name]
    return gone


@contextmanager
def _changing(directory: Path) -> Iterator[dict[str, Given]]:
    """The list to be changed in place, written at the end. One command at a time: the directory is
    locked."""
    path = directory / FILE
    try:
        folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise CannotRun(f"{directory}: {error.strerror}: {_remedy(directory)}") from error
    try:
        _alone(folder, path)
        before = {} if _stamp(path) is None else dict(_parsed(path).models)
        after = dict(before)
        yield after
        if after != before:
            replace_file(
                path, _List(models=after).model_dump_json(indent=2) + "\n", mode=0o644, sync=True
            )
    except OSError as error:
        raise CannotRun(
            f"{path}: cannot be written: {error.strerror}: {_remedy(directory)}"
        ) from error
    finally:
        os.close(folder)


def _alone(folder: int, path: Path) -> None:
    """Lock the list: it is held for a moment only, by another of these commands."""
    for _ in range(TRIES):
        try:
            return fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(TRY_EVERY_S)
    raise CannotRun(
        f"{path}: another process has kept its folder locked for {TRIES * TRY_EVERY_S:g} s; try "
        "again"
    )


def _remedy(directory: Path) -> str:
    return (
        f"run this on the daemon's host as the user that owns {directory} (state.directory) or "
        "as root, or put the "
        "parameter IGNITERD_HANDS_OFF into the model's own config.pbtxt"
    )


def _stamp(path: Path) -> tuple[int, ...] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CannotRun(f"{path}: cannot be read: {error.strerror}") from error
    return (found.st_ino, found.st_mtime_ns, found.st_size)


def _parsed(path: Path) -> _List:
    try:
        # a pipe there would hold up the tick
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(file, "rb") as source:
            data = source.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise CannotRun(
                f"{path}: above {_MOST_BYTES} bytes: it is not what igniterd release writes; "
                "remove it"
            )
        return _List.model_validate_json(data)
    except OSError as error:
        raise CannotRun(f"{path}: cannot be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise CannotRun(
            f"{path}: {where}: {first['msg']}: it is not what igniterd release writes; remove it"
        ) from error


def _why(name: str, given: Given) -> str:
    return (
        f"released by igniterd release at {given.at:%Y-%m-%d %H:%M:%SZ} ({given.by}); "
        f"igniterd take {name} takes it again"
    )


def _user() -> str:
    try:
        return getpass.getuser()[:256]
    except (KeyError, OSError):  # a uid without a name, as in a container
        return f"uid {os.getuid()}"
