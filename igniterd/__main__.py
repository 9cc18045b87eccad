"""``python -m igniterd`` is ``igniterd``."""

from igniterd.cli import main

if __name__ == "__main__":
    main()
