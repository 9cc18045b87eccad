"""The cluster's view: the states of all hosts in, the few moves that make every SLO hold out."""
