"""Programs that hear Ctrl-C although these tests may run in the background."""

HEARS = ("env", "--default-signal=INT")
"""Before a command line. A shell makes what it starts in the background ignore SIGINT. It cannot be
undone by ``preexec_fn``: with one, Python forks, and the threads that gRPC starts anew in the child
now and then abort it before it becomes the program."""
