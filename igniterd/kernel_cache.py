"""Where compiled kernels are kept. Every folder of kernels imports this before it imports numba.

numba keeps what it compiles in ``NUMBA_CACHE_DIR``, beside the package or in the home, and refuses
to load where none of them can be written: a package installed by root and a user without a home are
enough. What it finds there it unpickles, which is to run it: a place that others can write to is
passed over too. Instead a folder of this user's own is used, or, without a home, one for this
process and its children.

It takes a kernel for up to date while its own file is. But what a kernel calls, and every constant
that it imports, is compiled into it: after an upgrade that changed only those, it would go on with
what they were. So each version of the kernels has a folder of its own.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from igniterd.errors import CannotRun, Refused
from igniterd.files import make_folder, others_hand, user_name, writable_by_others

_WANTED = "set NUMBA_CACHE_DIR to a folder that this user can write"
_PACKAGE = Path(__file__).parent


def version_of(package: Path) -> str:
    """The name of the folder for the kernels of ``package``: by what is in their files."""
    digest = hashlib.sha256()
    for file in sorted(package.glob("**/kernels/*.py")):
        digest.update(file.relative_to(package).as_posix().encode() + b"\0" + file.read_bytes())
    return f"igniterd-{digest.hexdigest()[:12]}"


def _beside() -> Path:
    return _PACKAGE / "__pycache__"


def _home() -> Path | None:
    with contextlib.suppress(RuntimeError):  # a user without a home
        return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    return None


def _places() -> Iterator[Path]:
    """Where numba would keep its cache, in its own order."""
    if named := os.environ.get("NUMBA_CACHE_DIR"):
        yield Path(named)
    yield _beside()
    if home := _home():
        yield home / "numba"


def _writable(folder: Path) -> bool:
    try:
        make_folder(folder, mode=0o700)
        tempfile.TemporaryFile(dir=folder).close()
    except (OSError, Refused):
        return False
    return True


def _in_others_hands(place: Path) -> str:
    """Who else could have put something there, or an empty string."""
    beside = place.is_relative_to(_PACKAGE)
    trusted = frozenset[int]()
    if beside:  # whoever owns the package has other ways to run code in this process
        with contextlib.suppress(OSError):
            trusted |= {Path(__file__).stat().st_uid}
    if hand := others_hand(place, trusted=trusted):
        return hand
    mine = {0, os.geteuid(), *trusted}
    folders = [place, *place.glob("kernels_*")]
    for each in [*folders[1:], *(file for folder in folders for file in folder.glob("*.nb[ic]"))]:
        found = each.lstat()
        if found.st_uid not in mine:
            return f"{each} belongs to user {user_name(found.st_uid)}: remove it"
        if stat.S_ISLNK(found.st_mode) or writable_by_others(found):
            return f"{each} can be changed by others than {user_name(found.st_uid)}: remove it"
    return ""


def ensure_cache() -> None:
    """Have a folder for the kernels of this version that only this user, root and the package's
    owner write to, and name it in ``NUMBA_CACHE_DIR``.

    Raises :class:`CannotRun` where nothing at all can be written.
    """
    name = version_of(_PACKAGE)
    # a child is told of its parent's
    places = (place if place.name == name else place / name for place in _places())
    found = next((place for place in places if _writable(place)), None)
    hand = "" if found is None else _in_others_hands(found)
    if found is not None and not hand:
        os.environ["NUMBA_CACHE_DIR"] = str(found)
        return
    why = f"what others wrote there would be run: {hand}" if hand else _WANTED
    home = _home() if hand else None
    own = None if home is None else home / "igniterd" / "kernels" / name
    if own is not None and _writable(own) and not _in_others_hands(own):
        folder, until = str(own), f"they are kept in {own}"
    else:
        folder, until = (
            _passing(name),
            "until then every start compiles them again, for up to a minute",
        )
    os.environ["NUMBA_CACHE_DIR"] = folder  # numba has not been imported yet; children find it too
    sys.stderr.write(f"igniterd: compiled kernels cannot be kept: {why}; {until}\n")


def _passing(name: str) -> str:
    try:
        above = Path(tempfile.mkdtemp(prefix="igniterd-kernels-"))
        folder = above / name  # so that a child takes it for what it is
        folder.mkdir(mode=0o700)
    except OSError as error:
        raise CannotRun(
            f"compiled kernels cannot be kept: {_WANTED} ({error.strerror or error})"
        ) from error
    atexit.register(shutil.rmtree, above, ignore_errors=True)
    return str(folder)


ensure_cache()
