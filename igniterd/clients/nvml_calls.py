"""NVML's calls, one at a time: what its codes mean, and which answers can be believed.

NVML's codes are part of its binary interface, so they stand here as numbers. Bindings differ in
which names they have, and raise more than NVML's own errors.
"""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from igniterd.errors import (
    CannotRun,
    DeviceLost,
    IgniterdError,
    NotNow,
    ReadingUnsupported,
    Unreachable,
)
from igniterd.plain import plain

T = TypeVar("T")

MISSING = (
    "NVML is not there: {}. Install NVIDIA's driver (libnvidia-ml.so.1), or set [gpu] "
    'source = "none" to run without board readings'
)
MIG_HANDLE = "nvmlDeviceGetMigDeviceHandleByIndex"
_NOT_FOUND = 6
_ABSENT = frozenset({9, 12})  # DRIVER_NOT_LOADED, LIBRARY_NOT_FOUND
# NOT_SUPPORTED, NO_PERMISSION, FUNCTION_NOT_FOUND, ARGUMENT_VERSION_MISMATCH, DEPRECATED
_NOT_GIVEN = frozenset({3, 4, 13, 25, 26})
_LOST = {
    15: "it has fallen off the bus: reset it or restart the host",
    16: "it needs a reset: nvidia-smi --gpu-reset, or restart the host",
}
_REPLACED = 18  # LIB_RM_VERSION_MISMATCH: the loaded library and the kernel's module differ
_VERSION = re.compile(r"\d+(\.\d+)+")
_KERNEL_MODULE = re.compile(r"Kernel Module(?: for \S+)?\s+(\d+(?:\.\d+)+)")


class DriverReplaced(Unreachable):
    """The driver is no longer the one whose library this process has loaded."""


def kernel_driver_version(path: Path = Path("/proc/driver/nvidia/version")) -> str:
    """Version of the kernel's NVIDIA module, such as ``550.54.15``; empty where nothing tells."""
    try:
        found = _KERNEL_MODULE.search(path.read_text(errors="replace"))
    except OSError:
        return ""
    return found[1] if found else ""


class Calls:
    """The calls of a ``library`` with pynvml's names. Blocking: for one thread."""

    def __init__(self, library: Any, kernel_version: Callable[[], str]) -> None:
        self._library = library
        self._kernel_version = kernel_version
        self._loaded = ""  # the driver's version when it was initialised

    def begin(self) -> None:
        """Initialise NVML. Raises :class:`CannotRun` without it on this host,
        :class:`DriverReplaced`, or :class:`Unreachable`."""
        self.needed("nvmlInit")
        self._loaded = self._version("nvmlSystemGetDriverVersion")

    def end(self) -> None:
        self.call("nvmlShutdown")

    def call(self, name: str, *arguments: Any) -> Any:
        """One call. Raises :class:`ReadingUnsupported` where it is not given here,
        :class:`DeviceLost`, :class:`DriverReplaced`, :class:`CannotRun`, or :class:`Unreachable`
        for everything else that a binding raises."""
        function = getattr(self._library, name, None)
        if function is None:
            raise ReadingUnsupported(f"{name}: this binding of NVML does not have it")
        try:
            return function(*arguments)
        except self._library.NVMLError as error:
            raise self._meaning(name, error) from error
        except AttributeError as error:  # a symbol that the installed library lacks
            raise ReadingUnsupported(f"{name}: {_words(error)}") from error
        except Exception as error:
            raise Unreachable(f"{type(error).__name__}: {_words(error)}") from error

    def needed(self, name: str) -> Any:
        """A call without which no board is read. Raises :class:`CannotRun`,
        :class:`DriverReplaced` or :class:`Unreachable`, with its name."""
        try:
            return self.call(name)
        except DriverReplaced as error:
            raise DriverReplaced(f"NVML: {error}") from error
        except (NotNow, ReadingUnsupported) as error:
            raise Unreachable(f"NVML: {name}: {error}") from error

    def constant(self, name: str, otherwise: int) -> int:
        """A constant of the binding; ``otherwise`` is NVML's number for it."""
        value = getattr(self._library, name, otherwise)
        return value if isinstance(value, int) else otherwise

    def replaced(self) -> str:
        """In words, that the kernel's driver is another one than at :meth:`begin`; empty where it
        is the same, or where nothing tells."""
        now = self._kernel_version()
        if not (now and _VERSION.fullmatch(self._loaded)) or now == self._loaded:
            return ""
        return f"restart igniterd: the driver is now {now}, the library loaded is {self._loaded}"

    def _meaning(self, name: str, error: Any) -> IgniterdError:
        code, words = getattr(error, "value", None), _words(error)
        if code in _ABSENT:
            return CannotRun(MISSING.format(words))
        if code in _NOT_GIVEN or (code == _NOT_FOUND and name == MIG_HANDLE):
            return ReadingUnsupported(words)
        if code in _LOST:
            return DeviceLost(_LOST[code])
        if code == _REPLACED:
            return DriverReplaced(self._refused(words))
        return Unreachable(words)

    def _refused(self, words: str) -> str:
        """The kernel refuses the library: either may be the newer one."""
        now = self._kernel_version() or "another one"
        loaded = self._loaded or self._library_version() or "not of it"
        return (
            f"restart igniterd: the driver is now {now}, the library loaded is {loaded} ({words}). "
            "If igniterd has just been started, the driver was replaced on disk alone: restart the "
            "host"
        )

    def _library_version(self) -> str:
        """NVML names its version after CUDA's: 12.550.54.15 is of the driver 550.54.15."""
        return self._version("nvmlSystemGetNVMLVersion").partition(".")[2]

    def _version(self, name: str) -> str:
        function = getattr(self._library, name, None)
        try:
            return "" if function is None else text(function())
        except Exception:  # it is only said, or compared where it is known
            return ""


class Asking:
    """What one device is asked in one read: whatever fails is noted in words, nothing is raised.

    ``failed``: by reading, why it failed. ``gone``: why the device does not answer at all; it is
    not asked further. ``lost``: whether that is the device's own trouble. ``got``: answers.
    """

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self.failed = dict[str, str]()
        self.gone = ""
        self.lost = False
        self.got = 0

    def ask(
        self, what: str, name: str, *arguments: Any, check: Callable[[Any], T], quiet: bool = False
    ) -> T | None:
        """The answer as ``check`` gives it; ``None`` without one. ``what`` names the reading for
        people. ``quiet``: there is another way to know it, so a failure is not noted."""
        if self.gone:
            return None
        try:
            answer = self._calls.call(name, *arguments)
        except ReadingUnsupported:
            return None
        except (DeviceLost, DriverReplaced) as error:
            self.gone, self.lost = str(error), isinstance(error, DeviceLost)
            return None
        except IgniterdError as error:
            self._fail(what, str(error), quiet)
            return None
        try:
            checked = check(answer)
        except Exception:  # an answer may be of any type
            self._fail(what, f"NVML said {reprlib.repr(answer)}", quiet)
            return None
        self.got += 1
        return checked

    def once(
        self,
        facts: dict[str, Any],
        what: str,
        name: str,
        *arguments: Any,
        check: Callable[[Any], T],
    ) -> T | None:
        """What never changes, from ``facts``; asked until it is answered."""
        if what not in facts:
            found = self.ask(what, name, *arguments, check=check)
            if not self.answered(what):
                return None
            facts[what] = found
        kept: T | None = facts[what]
        return kept

    def answered(self, what: str) -> bool:
        """Whether it is known now, be it that there is no such reading."""
        return not self.gone and what not in self.failed

    def why(self) -> str:
        """What could not be read, in words; empty where all was."""
        if self.gone:
            return self.gone
        return unread(self.failed)

    def _fail(self, what: str, why: str, quiet: bool) -> None:
        if not quiet:
            self.failed[what] = plain(why)


def unread(failed: dict[str, str]) -> str:
    """The sentence for readings that failed, by reading; empty without any."""
    if not failed:
        return ""
    listed = ", ".join(f"{what} ({why})" for what, why in failed.items())
    return (
        f"cannot be read: {listed}. If it lasts, look for NVRM in the kernel's log, and reset the "
        "board or update its driver"
    )


def number(most: float, least: float = 0.0, scale: float = 1.0) -> Callable[[Any], float]:
    """A check: the number times ``scale``. Raises ``ValueError`` outside what a board can have, and
    for NaN."""

    def check(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(value)
        if not (math.isfinite(value) and least <= value <= most):
            raise ValueError(value)
        return value * scale

    return check


def whole(most: int, least: int = 0) -> Callable[[Any], int]:
    """A check: the integer. Raises ``ValueError`` for anything else."""

    def check(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ValueError(value)
        return value

    return check


def text(value: Any) -> str:
    """A check: the text, without what a terminal obeys. Raises ``ValueError`` without any."""
    found = value.decode(errors="replace") if isinstance(value, bytes) else value
    if not isinstance(found, str) or not found.strip():
        raise ValueError(value)
    return plain(found.strip())


def key(value: Any) -> str:
    """A check: a text without spaces, which can name a board."""
    found = text(value)
    if not re.fullmatch(r"[\w.:/-]{1,96}", found, re.ASCII):
        raise ValueError(value)
    return found


def present(handle: Any) -> Any:
    """A check: a handle that points to something. NVML crashes on one that does not."""
    if handle is None or (not handle and not isinstance(handle, int)):
        raise ValueError(handle)
    return handle


def _words(error: BaseException) -> str:
    try:
        return str(error) or type(error).__name__
    except Exception:
        return type(error).__name__
