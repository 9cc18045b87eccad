"""Open-loop load, phase by phase."""
