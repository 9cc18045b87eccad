"""``python -m igniterd`` is ``igniterd``."""

from igniterd.cli import main

main()
