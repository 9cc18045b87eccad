"""The configuration of ``igniterd fleet``: a file, options, or both; the options win.

Checked as the daemon's is: all problems at once, each with its path, the value found and what would
be right. Relative paths are taken from the folder of the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from igniterd.config import anchored, checked, parsed, text_of
from igniterd.config_sections import Section
from igniterd.errors import ConfigError
from igniterd.fleet.places import FleetTriton, Route
from igniterd.fleet.sections import Fleet, FleetBroker, FleetMetrics

OPTIONS = "the options"


class FleetConfig(Section):
    broker: FleetBroker
    fleet: Fleet
    metrics: FleetMetrics = Field(default_factory=FleetMetrics)
    triton: list[FleetTriton] = Field(default_factory=list)  # these two: of igniterd fleet apply
    route: Route | None = None


def load_fleet_config(
    path: Path | None, options: Mapping[str, Mapping[str, Any]] | None = None
) -> FleetConfig:
    """The file at ``path``, if there is one, with ``options`` (by section and key) in place of what
    it says. Paths of options are taken from the working directory.

    Raises :class:`ConfigError` naming every problem.
    """
    source = OPTIONS if path is None else str(path)
    data: dict[str, Any] = {} if path is None else parsed(text_of(path), source)
    for section, values in (options or {}).items():
        there = data.setdefault(section, {})
        if not isinstance(there, dict):
            raise ConfigError(source, [f"{section}: should be a table"])
        there.update({key: _here(value) for key, value in values.items()})
    if path is None and "broker" not in data:
        raise ConfigError(source, ["no broker: give --broker URL, or --config FILE"])
    if path is None and "fleet" not in data:
        raise ConfigError(source, ["no cluster: give --cluster NAME, or --config FILE"])
    config = checked(FleetConfig, data, source)
    if path is None:
        return config
    files = ("password_file", "ca_file", "cert_file", "key_file")
    broker = anchored(config.broker, path.resolve().parent, *files)
    return config.model_copy(update={"broker": broker})


def _here(value: Any) -> Any:
    return str(value.absolute()) if isinstance(value, Path) else value
