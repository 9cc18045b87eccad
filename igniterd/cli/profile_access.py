"""How ``igniterd profile`` reaches Triton: by options, or as the daemon's configuration says.

Header values may be secrets: they are never written to the partial file. Going on or restoring
reads them from the configuration again, or is given them again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import typer

from igniterd.errors import CannotRun, IgniterdError

if TYPE_CHECKING:
    from igniterd.clients.triton.client import TritonClient
    from igniterd.config import Config, Triton
    from igniterd.profiler.partial import Settings

_TIMEOUT_S = 10.0
_RELOAD_TIMEOUT_S = 180.0
_MPS_TIMEOUT_S = 5.0
_TLS = ("ca_file", "cert_file", "key_file")


@dataclass(frozen=True, slots=True)
class Access:
    """The options that say how Triton is reached; ``None`` where one was not given."""

    triton: str | None
    config: Path | None
    ca_file: Path | None
    cert_file: Path | None
    key_file: Path | None

    def settings(self) -> dict[str, Any]:
        """Fields of :class:`Settings` for a new profile. Raises :class:`typer.BadParameter` and
        :class:`igniterd.errors.ConfigError`."""
        given = {
            name: path.absolute() for name in _TLS if (path := getattr(self, name)) is not None
        }
        if self.config is None:
            return {"triton": _address(self.triton or "127.0.0.1:8001")} | given
        told = _server(_load(self.config), self.triton, self.config)
        return {"triton": told.url, "server": told.name, "config": self.config.absolute()} | given

    def over(self, settings: Settings) -> Settings:
        """``settings`` of an earlier profile with what was given now in the place of what was given
        then."""
        if self.config is not None:
            return settings.model_copy(update=self.settings())
        given = {
            name: path.absolute() for name in _TLS if (path := getattr(self, name)) is not None
        }
        if self.triton is None:
            return settings.model_copy(update=given)
        # its headers are not for another server
        if settings.config is not None and self.triton != settings.triton:
            given |= {"config": None}
        return settings.model_copy(update={"triton": _address(self.triton)} | given)


def headers_of(given: Sequence[str]) -> dict[str, str]:
    """``NAME=VALUE`` of each ``--header``. Raises :class:`typer.BadParameter`; the value is not
    repeated."""
    from igniterd.addresses import is_header

    found = {}
    for text in given:
        name, separator, value = text.partition("=")
        if not separator or not name.strip() or not value:
            raise typer.BadParameter(
                "should be NAME=VALUE, with a = between the two", param_hint="--header"
            )
        if not is_header(name.strip(), value):
            raise typer.BadParameter(
                "a name has letters, digits and - _ . only, its value no line break and plain "
                "letters",
                param_hint="--header",
            )
        found[name.strip().lower()] = value
    return found


def client_of(settings: Settings, headers: Mapping[str, str]) -> TritonClient:
    """The client for a profile. Raises :class:`igniterd.errors.IgniterdError` with the file that
    cannot be read."""
    from igniterd.clients.environments import PLAIN
    from igniterd.clients.shares import reach_of
    from igniterd.clients.triton.channel import TlsFiles
    from igniterd.clients.triton.client import TritonClient

    told = (
        None
        if settings.config is None
        else _server(_load(settings.config), settings.server, settings.config)
    )
    ca, cert, key = (
        getattr(settings, name) or (None if told is None else getattr(told, name)) for name in _TLS
    )
    if (cert or key) and not (ca and cert and key):
        raise CannotRun("a client's certificate wants all of --ca-file, --cert-file and --key-file")
    return TritonClient(
        settings.server,
        settings.triton,
        http_url=None if told is None else told.http_url,
        timeout_s=_TIMEOUT_S,
        reload_timeout_s=max(_RELOAD_TIMEOUT_S, told.reload_timeout_s if told else 0.0),
        headers=({} if told is None else told.header) | dict(headers),
        tls=TlsFiles(ca, key, cert) if ca else None,
        config_max_age_s=3600.0,
        shares_dir=str(settings.shares),
        reach=reach_of(told) if told else PLAIN,
    )


def host_of(config: Path | None) -> dict[str, Any]:
    """What the configuration says of the host: where the board is read, the folder of shares, and
    whether MPS is used."""
    from igniterd.clients.environments import DEFAULT_SHARES

    if config is None:
        return {"gpu": "nvml", "shares": Path(DEFAULT_SHARES), "mps": True}
    told = _load(config)
    return {"gpu": told.gpu.source, "shares": told.shares, "mps": told.mps.enabled}


@contextmanager
def to_itself(settings: Settings, *, beside: bool) -> Iterator[None]:
    """Hold the Triton as the daemon does, so that none acts on it meanwhile.

    Raises :class:`CannotRun` where one does already, unless ``beside`` it or it was told to leave
    these models alone.
    """
    from igniterd.state.lock import HostLock
    from igniterd.state.released import FILE, Released

    directory = None if settings.config is None else _load(settings.config).state.directory
    released = frozenset() if directory is None else Released(directory / FILE).now()
    if beside or released.issuperset(settings.models):
        yield
        return
    with TemporaryDirectory(prefix="igniterd-profile-") as own:  # only the Triton is held, no state
        lock = HostLock(Path(own), [settings.triton])
        try:
            lock.take()
        except CannotRun as error:
            names = " ".join(settings.models)
            raise CannotRun(
                f"Triton {settings.triton} is acted on by a daemon, which would undo what is "
                f"measured ({error}): stop it, or give it "
                f"these models back with igniterd release {names} --config FILE and profile with "
                "--config FILE; --beside profiles anyway"
            ) from error
        try:
            yield
        finally:
            lock.release()


async def mps_warning(settings: Settings) -> str:
    """Why shares may have no effect on this host, or an empty string; the board must be one of this
    host's."""
    from igniterd.clients.mps import DEFAULT_PIPE_DIRECTORY, MpsControl

    if not settings.mps or settings.gpu != "nvml":
        return ""
    if settings.config is not None:
        told = _load(settings.config).mps
        control = MpsControl(told.control, told.pipe_directory, _MPS_TIMEOUT_S)
    else:
        pipe = Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY") or DEFAULT_PIPE_DIRECTORY)
        control = MpsControl(pipe_directory=pipe, timeout_s=_MPS_TIMEOUT_S)
    try:
        reading = await control.read()
    except IgniterdError as error:
        return f"shares may have no effect: {error} (--no-mps measures with the whole GPU only)"
    if reading.default_share is not None and reading.default_share < 1:
        return (
            f"no share above {reading.default_share:.0%} has an effect: that is MPS control's "
            "default active thread percentage"
        )
    return ""


def _server(config: Config, wanted: str | None, path: Path) -> Triton:
    """The ``[[triton]]`` named ``wanted`` (or with that address); the only one where none is
    named."""
    names = ", ".join(server.name for server in config.triton)
    if wanted is None and len(config.triton) > 1:
        raise typer.BadParameter(f"{path} has several: name one of {names}", param_hint="--triton")
    for server in config.triton:
        if wanted is None or wanted in (server.name, server.url):
            return server
    raise typer.BadParameter(
        f"{wanted!r} is no [[triton]] of {path}, which has {names}", param_hint="--triton"
    )


def _address(text: str) -> str:
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise typer.BadParameter(
            f"{text!r} should be host:port of Triton's gRPC endpoint", param_hint="--triton"
        )
    return text


def _load(path: Path) -> Config:
    from igniterd.config import load_config

    return load_config(path)
