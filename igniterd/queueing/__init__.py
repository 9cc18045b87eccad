"""Queueing: the P99 of a batcher under load. Theory in :mod:`igniterd.queueing.tail`."""
