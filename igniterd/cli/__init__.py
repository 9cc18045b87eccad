"""The command line; one module a verb, heavy parts imported late."""


def main() -> None:
    """Entry point of ``igniterd``."""
    from igniterd.cli.app import app

    app()
