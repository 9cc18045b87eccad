"""Triton over gRPC and HTTP: one careful client, and the parts that it is made of."""
