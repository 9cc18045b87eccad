"""Other users of the host, for tests that run as root: processes of their own."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

NOBODY = 65534
as_root = pytest.mark.root


@contextmanager
def another_user(work: Callable[[], object], uid: int = NOBODY) -> Iterator[None]:
    """A process of user ``uid`` that keeps what ``work`` returns until the end of the block."""
    told, tell = os.pipe()
    wait, go = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(told)
        os.close(go)
        try:
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)
            kept = work()
            os.write(tell, b"ok" if kept is not None else b"no")
            os.read(wait, 1)
        except BaseException as error:
            os.write(tell, repr(error).encode())
        finally:
            os._exit(0)
    os.close(tell)
    os.close(wait)
    try:
        said = os.read(told, 1000)
        assert said == b"ok", said
        yield
    finally:
        os.close(go)
        os.close(told)
        os.waitpid(pid, 0)
