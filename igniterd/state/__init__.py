"""What outlives a tick, a restart or a model's release: carry, checkpoint, history, lock."""
