"""A plan replayed in virtual time."""
