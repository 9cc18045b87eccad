"""The command line; one module a verb, heavy parts imported late."""

from __future__ import annotations

import io
import os
import sys


def main() -> None:
    """Entry point of ``igniterd``. Whatever becomes of standard output, there is a sentence or
    silence, never a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # a name that the terminal's encoding lacks is no reason to fail
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            from igniterd.cli.app import app

            app()
        finally:
            if sys.stdout is not None:
                # here, where a reader that has gone and a full disk can still be told apart
                sys.stdout.flush()
    except BrokenPipeError:  # the reader has seen enough, as head(1) does
        _let_go_of_output()
        raise SystemExit(1) from None
    except OSError as error:
        _let_go_of_output()
        sys.stderr.write(f"igniterd: standard output: {error.strerror or error}\n")
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def _let_go_of_output() -> None:
    """What is still in the buffer goes nowhere: Python would try it once more at its end, and
    complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
