"""What was done of a rebalance: a file of JSON lines, on the disk before and after each step.

The first line has the whole rebalance, and each step that was begun has what served before it. So
the journal alone is enough to go on, or to take everything back, after any end of the process.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from igniterd.documents import Document, Whole, faults
from igniterd.errors import CannotRun, ConfigError
from igniterd.files import PRIVATE_MODE, opened_folder, replace_file
from igniterd.jsontext import dumps
from igniterd.messages.rebalance import Rebalance

FORMAT, VERSION = "igniterd-apply", 1
_MOST_BYTES = 64 << 20
_APPEND = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
Number = Annotated[Whole, Field(ge=1, description="the number of a step")]


class Begun(Document):
    """A step is about to be made. ``config``: what serves before it; null where nothing does."""

    entry: Literal["begun"] = "begun"
    step: Number
    config: dict[str, Any] | None = None


class Done(Document):
    """``said``: what came of it. ``nothing``: it was so already, and nothing was done."""

    entry: Literal["done"] = "done"
    step: Number
    said: str = ""
    nothing: bool = False


class Stopped(Document):
    """Nothing more was done. ``waits``: for the operator, who has to change a route."""

    entry: Literal["stopped"] = "stopped"
    step: Number
    reason: str
    waits: bool = False
    undo: bool = False


class Undoing(Document):
    entry: Literal["undoing"] = "undoing"
    step: Number


class Undone(Document):
    """``left``: somebody else changed it since, and it was left alone."""

    entry: Literal["undone"] = "undone"
    step: Number
    said: str = ""
    left: bool = False


class Ended(Document):
    """All steps are made, or taken back."""

    entry: Literal["ended"] = "ended"
    undo: bool = False


Entry = Begun | Done | Stopped | Undoing | Undone | Ended
_Entry = Annotated[Entry, Field(discriminator="entry")]


class _Started(Document):
    entry: Literal["started"]
    format: Annotated[str, Field(pattern=f"^{FORMAT}$", description=repr(FORMAT))]
    version: Annotated[Whole, Field(ge=VERSION, le=VERSION, description=str(VERSION))]
    rebalance: Rebalance


class _Line(Document):
    line: _Entry


@dataclass(slots=True)
class Journal:
    """An open journal; what is written is on the disk when :meth:`write` returns."""

    path: Path
    rebalance: Rebalance
    begun: dict[int, Begun] = field(default_factory=dict)
    done: dict[int, Done] = field(default_factory=dict)
    undone: dict[int, Undone] = field(default_factory=dict)
    undo_begun: bool = False
    waits_for: int | None = None
    """The step whose route the operator has to change."""

    @classmethod
    def start(cls, path: Path, rebalance: Rebalance) -> Journal:
        """A new one. Raises :class:`CannotRun` where the file is there, or cannot be made."""
        head = {
            "entry": "started",
            "at": _now(),
            "format": FORMAT,
            "version": VERSION,
            "rebalance": rebalance.model_dump(mode="json", by_alias=True, exclude_none=True),
        }
        if path.exists():
            raise CannotRun(f"journal {path} is there already: --continue or --undo it")
        try:
            replace_file(path, dumps(head) + "\n", mode=PRIVATE_MODE, sync=True)
            with opened_folder(path.absolute().parent) as folder:
                _sync_folder(folder)
        except OSError as error:
            raise CannotRun(f"journal {path} cannot be written: {error.strerror}") from error
        return cls(path, rebalance)

    @classmethod
    def read(cls, path: Path) -> Journal:
        """One that is there. A last line that a crash cut short is left out, and cut off.

        Raises :class:`ConfigError` for what is no journal.
        """
        try:
            if path.stat().st_size > _MOST_BYTES:
                raise ConfigError(str(path), ["is too large for a journal"])
            raw = path.read_bytes()
        except OSError as error:
            raise ConfigError(str(path), [f"cannot be read: {error.strerror}"]) from error
        whole, _, torn = raw.rpartition(b"\n")
        lines = whole.split(b"\n")
        head = _parsed(path, 1, lines[0], _Started)
        journal = cls(path, head.rebalance)
        for number, line in enumerate(lines[1:], start=2):
            journal._take(_parsed(path, number, b'{"line":' + line + b"}", _Line).line)
        if torn:
            os.truncate(path, len(whole) + 1)
        return journal

    def write(self, entry: Entry) -> None:
        """Raises :class:`CannotRun` where the disk does not take it: then nothing may be done."""
        line = dumps({"at": _now(), **entry.model_dump(mode="json", exclude_none=True)}) + "\n"
        try:
            file = os.open(self.path, _APPEND)
            try:
                _append(file, line.encode())
            finally:
                os.close(file)
        except OSError as error:
            raise CannotRun(f"journal {self.path} cannot be written: {error.strerror}") from error
        self._take(entry)

    def _take(self, entry: Entry) -> None:
        match entry:
            case Begun():
                # of a step begun twice: what served before igniterd touched it
                self.begun.setdefault(entry.step, entry)
            case Done():
                self.done[entry.step] = entry
            case Undoing():
                self.undo_begun = True
            case Undone():
                self.undone[entry.step] = entry
            case Stopped():
                self.waits_for = entry.step if entry.waits else None
            case Ended():
                self.waits_for = None


def _parsed(path: Path, number: int, line: bytes, schema: Any) -> Any:
    try:
        return schema.model_validate_json(line)
    except ValidationError as error:
        first = faults(error, schema)[0]
        raise ConfigError(str(path), [f"line {number} is none of a journal: {first}"]) from None


def _append(file: int, line: bytes) -> None:
    """All of ``line``, or nothing: half a line would spoil those that come after it."""
    before = os.fstat(file).st_size
    if os.write(file, line) != len(line):
        os.ftruncate(file, before)
        raise OSError(errno.ENOSPC, "the disk is full")
    os.fsync(file)


def _sync_folder(folder: int) -> None:
    file = os.open(f"/proc/self/fd/{folder}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
