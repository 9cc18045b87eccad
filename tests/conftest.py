"""What all tests share.

A change must pass or fail by what it is, not by luck: Hypothesis draws the same examples in every run. ``make fuzz`` looks for new ones.
"""

import os

from hypothesis import settings

settings.register_profile("same", derandomize=True, deadline=None, print_blob=True)
settings.register_profile("new", deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))
