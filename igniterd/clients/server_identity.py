"""Which Triton an address means, however it is spelled.

``[::1]``, ``127.0.0.1``, ``localhost`` and this host's own name may all lead to one server. An
address of this machine stands for what listens there (``/proc/net/tcp``), or for the whole machine
and the port where nothing does yet. What cannot be told from here is a server that two daemons
reach through different machines or network namespaces.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
import socket
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

LOOK_UP_S = 2.0
"""Longest wait for a host's name."""
_LISTENING = "0A"
_TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
_LOCAL = "this-host"

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


def identities(url: str) -> frozenset[str]:
    """Names of the server at ``url`` (host:port). Addresses of one server share at least one."""
    host, port = _host_and_port(url)
    addresses = _resolve(host)
    if not addresses:
        return frozenset({f"{host}:{port}"})
    local = {address for address in addresses if _is_local(address)}
    names = {f"{address}:{port}" for address in addresses - local}
    return frozenset(names | _local_names(local, port)) if local else frozenset(names)


def is_here(url: str) -> bool:
    """Whether the server at ``url`` (host:port) is on this machine. Looks its name up."""
    return any(map(_is_local, _resolve(_host_and_port(url)[0])))


def _local_names(local: set[IpAddress], port: int) -> set[str]:
    """Servers of one port may listen at addresses of their own: then these tell them apart."""
    listening = set(_listening(port))
    exact = {each for each in local if each in listening}
    if exact and exact == local & listening and not any(each.is_unspecified for each in listening):
        return {f"{each}:{port}" for each in exact}
    return {f"{_LOCAL}:{port}", *(f"{each}:{port}" for each in local)}


def _host_and_port(url: str) -> tuple[str, int]:
    host, _, port = url.rpartition(":")
    host = re.sub(r"^(dns|ipv4|ipv6):/*(?:.*/)?", "", host)  # as gRPC may be told
    return host.strip("[]").lower().rstrip("."), int(port)


def _resolve(host: str) -> set[IpAddress]:
    """No longer than ``LOOK_UP_S``: a resolver that does not answer must not hold up the start."""
    with contextlib.suppress(ValueError):
        return {_as_reached(_plain(ipaddress.ip_address(host)))}
    found: list[str] = []

    def look_up() -> None:
        with contextlib.suppress(OSError, UnicodeError):
            found.extend(str(each[4][0]) for each in socket.getaddrinfo(host, None))

    asking = threading.Thread(target=look_up, name="look-up", daemon=True)
    asking.start()
    asking.join(LOOK_UP_S)
    return {_as_reached(_plain(ipaddress.ip_address(each.partition("%")[0]))) for each in found}


def _plain(address: IpAddress) -> IpAddress:
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _as_reached(address: IpAddress) -> IpAddress:
    """Who connects to no address in particular reaches this machine's loopback."""
    if address.is_unspecified:
        return ipaddress.ip_address("127.0.0.1" if address.version == 4 else "::1")
    return address


def _is_local(address: IpAddress) -> bool:
    """The kernel answers from an address itself where that is this machine's. Nothing is sent."""
    if address.is_loopback:
        return True
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as asked:
            asked.connect((str(address), 9))
            return ipaddress.ip_address(asked.getsockname()[0].partition("%")[0]) == address
    except OSError:
        return False


def _listening(port: int) -> Iterator[IpAddress]:
    """Addresses of this network namespace at which something listens on ``port``."""
    for table in _TABLES:
        try:
            lines = table.read_text(encoding="utf-8").splitlines()[1:]
        except OSError:
            continue
        yield from _of_port(lines, port)


def _of_port(lines: Iterable[str], port: int) -> Iterator[IpAddress]:
    for line in lines:
        _, local, _, state, *_ = line.split()
        raw, _, number = local.partition(":")
        if state == _LISTENING and int(number, 16) == port:
            yield _plain(_of_kernel(raw))


def _of_kernel(raw: str) -> IpAddress:
    """Words of 32 bits, each in this machine's order of bytes."""
    words = [int(raw[at : at + 8], 16) for at in range(0, len(raw), 8)]
    packed = b"".join(socket.htonl(word).to_bytes(4, "big") for word in words)
    return ipaddress.ip_address(packed)
