"""A tritonserver whose own Python has the engines: the environment that ``fetch`` makes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from igniterd.errors import CannotRun
from igniterd.lab.host import HostSpec, TritonHost
from igniterd.lab.programs import programs


class HostingTriton(TritonHost):
    """It starts without models: hosted ones are loaded under names of no repository.

    ``complete``: whether it fills in configurations, for which it starts one more process a load.
    """

    def __init__(
        self,
        folder: Path,
        ports: Sequence[int],
        spec: HostSpec | None = None,
        *,
        complete: bool = True,
    ) -> None:
        if not programs.engines_ready():
            raise CannotRun(
                f"there is no environment with ONNX Runtime in {programs.engines_root()}: run "
                f"`{programs.FETCH}`"
            )
        super().__init__(spec or HostSpec(()), folder, ports)
        self._complete = complete

    def prepare(self) -> None:
        """An empty repository, and the boards that were given."""
        self.repository.mkdir(parents=True)
        if self.spec.boards:
            self.prepare_boards()

    def _command(self) -> list[str]:
        return [
            *super()._command(),
            *([] if self._complete else ["--disable-auto-complete-config"]),
        ]

    def _environment(self) -> dict[str, str]:
        usual, root = super()._environment(), programs.engines_root()
        return usual | {
            "VIRTUAL_ENV": str(root),
            "PATH": f"{root / 'bin'}:{usual['PATH']}",
            "LD_LIBRARY_PATH": f"{usual.get('LD_LIBRARY_PATH', '')}:{root / 'lib'}",
        }
