"""Errors igniterd raises on purpose.

    IgniterdError
    ├── NotNow              it may answer at the next tick: keep what is applied, count it, go on
    │   ├── Unreachable     no connection, or no answer before the deadline
    │   │   └── Unanswered  no answer in time: what was asked for may still be done
    │   ├── Refused         the other side answered no (a load that failed, an unknown command)
    │   │   ├── NotServed   a model of the repository that is neither served nor being loaded
    │   │   └── ChangedByHand  somebody else has changed the model since it was planned with
    │   └── DeviceLost      the board stopped answering
    ├── ReadingUnsupported  this board never gives that reading: a gap, not a fault
    └── CannotRun           waiting will not help: say why and exit
        ├── ConfigError     the configuration is wrong; carries every problem found
        └── ProfileError    a profile is unreadable, out of date, implausible or for another GPU

Whether to try again is a matter of type, never of message text.
"""

from __future__ import annotations

from collections.abc import Sequence

from igniterd.plain import plain


class IgniterdError(Exception):
    """Base of every error igniterd raises on purpose.

    Its words may be those of a server or a model, and end up on terminals and in logs: what is not
    plain text is escaped here, where all of them pass.
    """

    def __init__(self, said: str = "") -> None:
        super().__init__(plain(said))


class NotNow(IgniterdError):
    """The other side may answer next tick: keep what is applied, count it, go on."""


class Unreachable(NotNow):
    """No connection, or no answer before the deadline."""


class Unanswered(Unreachable):
    """No answer before the deadline: what was asked for may still be done."""


class Refused(NotNow):
    """The other side answered, and the answer was no."""


class NotServed(Refused):
    """The model is in the repository but not served, nor being loaded: the others need not wait for
    it."""


class ChangedByHand(Refused):
    """Somebody else has changed the model since it was planned with."""


class DeviceLost(NotNow):
    """The board stopped answering."""


class ReadingUnsupported(IgniterdError):
    """This board never gives that reading: a gap, not a fault."""


class CannotRun(IgniterdError):
    """Waiting will not help: say why and exit."""


class ConfigError(CannotRun):
    """The configuration is wrong; ``problems`` holds one line for each thing to mend."""

    def __init__(self, source: str, problems: Sequence[str]) -> None:
        self.source = plain(source)
        self.problems = tuple(plain(problem) for problem in problems)
        super().__init__(f"{source}: " + "; ".join(problems))


class ProfileError(CannotRun):
    """A profile is unreadable, out of date, implausible or for another GPU."""
