"""A simulated host in virtual time, with the clients' methods."""
