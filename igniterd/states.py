"""What is known of a model at this moment, and so what may be done with it; why a change was not
made.

"Unknown" is a value here: a model that was not read is UNREAD, not gone. One place decides what
each state allows (:mod:`igniterd.standing`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """The one state of a model in one tick; the ``state`` label of ``igniterd_model_state``."""

    STEERED = "steered"  # read, and free to be changed
    WATCHED = "watched"  # of a kind that is only watched, or without a profile
    HANDS_OFF = "hands_off"  # its owner marked it so on the model itself
    BY_HAND = "by_hand"  # somebody else changed it: respected for a time
    REFUSED = "refused"  # its last change failed: left as it is for a time
    NOT_ANSWERING = "not_answering"  # requests wait, and nothing is executed
    UNPREDICTABLE = "unpredictable"  # a prediction of it failed: left out, and counted
    UNSTEERABLE = "unsteerable"  # its Triton takes no configurations
    OLD_COPY = "old_copy"  # an old copy of it does not go
    WARMING = "warming"  # not watched for long enough yet
    LOADING = "loading"  # a load may still be going on, or it is not ready
    UNREAD = "unread"  # served a moment ago, and not read in this tick
    UNSEEN = "unseen"  # configured, and not read since the daemon started
    ABSENT = "absent"  # Triton says that it does not serve it


@dataclass(frozen=True, slots=True)
class Standing:
    """A model's state, why it is in it (one sentence; empty when STEERED), and since when."""

    state: State
    why: str = ""
    since_s: float = 0.0

    @property
    def free(self) -> bool:
        """Whether igniterd may change it now."""
        return self.state is State.STEERED


class Cause(StrEnum):
    """Why a step was not carried out."""

    NONE = ""  # it was
    REFUSED = "refused"  # Triton or the model said no
    UNANSWERED = "unanswered"  # no answer in time: Triton may finish it yet
    LOST = "lost"  # the server went away, or could not be reached: says nothing of the model
    HELD = "held"  # the gate did not let it through: nothing was asked of Triton
    BY_HAND = "by_hand"  # somebody else had changed a model of this GPU meanwhile
