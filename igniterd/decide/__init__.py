"""Decisions: which share and batch every tenant of a GPU gets, and whether now. Pure."""
