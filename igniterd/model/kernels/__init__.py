"""Compiled arithmetic: bare arrays in documented units, NaN where there is no answer, no errors raised. numba lives only here."""
