"""The JSON Schemas of igniterd's messages, ``igniterd/data/schemas/<version>/<kind>.json``.

``python -m tests.tools.schemas`` (``make schemas``) writes them from the documents of
:mod:`igniterd.messages`. So nothing is written twice.
"""

from __future__ import annotations

import json
from pathlib import Path

from igniterd.messages.schemas import EVENTS, json_schema
from igniterd.messages.topics import VERSION

FOLDER = Path(__file__).resolve().parents[2] / "igniterd" / "data" / "schemas" / VERSION


def texts() -> dict[str, str]:
    """What each file should hold, by its name."""
    return {f"{kind}.json": json.dumps(json_schema(kind), indent=2) + "\n" for kind in EVENTS}


def main() -> None:
    """Write every file."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, text in texts().items():
        (FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
