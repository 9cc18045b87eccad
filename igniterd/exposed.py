"""Secrets that others can read: sent in the clear to another machine, or in a file open to all."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from igniterd.addresses import Address, host_of, is_loopback
from igniterd.config import Config, Mqtt, Triton


def exposed(config: Config, path: Path | None = None) -> Iterator[str]:
    """A sentence for each; ``path``: the file of the configuration itself."""
    for server in config.triton:
        yield from _check_triton(server)
        yield from _open_file(f"triton {server.name!r}: key_file", server.key_file)
    if config.mqtt is not None:
        yield from _check_broker(config.mqtt)
        yield from _open_file("mqtt.password_file", config.mqtt.password_file)
        yield from _open_file("mqtt.key_file", config.mqtt.key_file)
    if path is not None and any(
        server.header or _pages_with_secrets(server) for server in config.triton
    ):
        yield from _open_file("the configuration has secrets in it and", path)


def _pages_with_secrets(server: Triton) -> list[tuple[str, str]]:
    pages = (("metrics_url", server.metrics_url), ("http_url", server.http_url))
    return [(name, url) for name, url in pages if url and Address.of(url).secrets]


def _check_triton(server: Triton) -> Iterator[str]:
    name = f"triton {server.name!r}"
    if server.header and server.ca_file is None and not is_loopback(host_of(server.url)):
        yield (
            f"{name}: header goes unencrypted to {host_of(server.url)}, and whoever is on the way "
            "reads it: give ca_file, for a server started with --grpc-use-ssl=1"
        )
    pages = dict(_pages_with_secrets(server))
    if server.header and server.http_url:
        pages["http_url"] = server.http_url
    for field, url in pages.items():
        if urlsplit(url).scheme == "http" and not is_loopback(host_of(url)):
            yield (
                f"{name}: what {field} sends to {host_of(url)} has a secret in it and is not "
                "encrypted: use https"
            )


def _check_broker(mqtt: Mqtt) -> Iterator[str]:
    host = host_of(mqtt.url)
    if mqtt.password_file and urlsplit(mqtt.url).scheme == "mqtt" and not is_loopback(host):
        yield f"mqtt: the password goes unencrypted to {host}: use mqtts"


def _open_file(what: str, path: Path | None) -> Iterator[str]:
    try:
        mode = None if path is None else path.stat().st_mode
    except OSError:  # said by whoever wants to read it
        return
    if mode is not None and mode & stat.S_IROTH:
        yield f"{what} ({path}) can be read by every user: chmod o-r it"
