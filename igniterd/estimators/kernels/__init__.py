"""Compiled arithmetic: bare arrays in documented units, NaN where there is no answer.

No error is raised here, and numba lives only in such folders.
"""

from igniterd import kernel_cache as kernel_cache  # before numba is imported
