"""Pictures of matplotlib as files: it would write through a link that somebody put in the way."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from igniterd.files import replace_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save(figure: Figure, path: Path, dpi: int) -> None:
    """In the format of the file's suffix. Raises as :func:`igniterd.files.replace_file`."""
    picture = io.BytesIO()
    figure.savefig(picture, dpi=dpi, format=path.suffix.removeprefix(".").lower())
    replace_file(path, picture.getvalue())
