"""Real programs that tests and the demo run: fetched, started, stopped."""
