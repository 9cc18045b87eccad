"""Measured data that ships with igniterd, and the tools that write it."""
