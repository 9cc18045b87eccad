"""Text of others (Triton, a model, a file) as it may be put on a terminal or into a log."""

from __future__ import annotations


def plain(text: str) -> str:
    """``text`` on one line, with nothing in it that a terminal obeys or that hides other letters.

    Line breaks, escape sequences, marks that turn the direction of writing: each is shown as the
    escape that Python would write.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    return " " if character == "\t" else ascii(character)[1:-1]
