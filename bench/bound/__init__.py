"""Proof of a lower bound on GPUs that counts what neighbours cost; bench/plan.py prints it."""
