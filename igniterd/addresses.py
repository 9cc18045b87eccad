"""Addresses and headers: whether they are right, and what of them is never shown."""

from __future__ import annotations

import ipaddress
import re
from base64 import b64encode
from dataclasses import dataclass, field
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit, urlunsplit

HIDDEN = "…"
_SECRET = ("header", "password")
_LEAST_SECRET = 4
"""A parameter of fewer letters is no secret, and its letters are everywhere."""


def is_header(name: str, text: str) -> bool:
    """Whether gRPC sends it: anything else makes every call fail with its own words."""
    known = bool(re.fullmatch(r"[A-Za-z0-9._-]+", name)) and not name.endswith("-bin")
    return known and bool(re.fullmatch(r"[ -~]*", text))


def check_url(value: str, *schemes: str) -> None:
    """Raises ``ValueError`` with what would be right."""
    try:
        parts = urlsplit(value)
        right = parts.scheme in schemes and bool(parts.hostname) and parts.port != 0
        right = right and ":" not in unquote(parts.username or "")
    except ValueError:  # a port that is none, half an IPv6 address
        right = False
    if not right:
        raise ValueError(f"should be {' or '.join(f'{s}://host[:port]' for s in schemes)}")


def is_secret(location: tuple[int | str, ...], value: object) -> bool:
    """Whether the ``value`` found at this place of the configuration must not be shown."""
    names = [part for part in location if isinstance(part, str)]
    if any(name.startswith(_SECRET) for name in names):
        return True
    return bool(names) and names[-1].endswith("url") and any(sign in str(value) for sign in "@?#")


@dataclass(frozen=True, slots=True)
class Address:
    """A URL taken apart: what is asked, what may be shown, and the secrets of both."""

    url: str = field(repr=False)
    """Without user and password; these are in ``login``."""
    shown: str
    """Without anything secret."""
    login: tuple[str, str] | None = field(default=None, repr=False)
    secrets: tuple[str, ...] = field(default=(), repr=False)

    @classmethod
    def of(cls, url: str) -> Address:
        parts = urlsplit(url)
        bare = parts._replace(netloc=parts.netloc.rpartition("@")[2])
        query = "&".join(f"{name}={HIDDEN}" if name else HIDDEN for name in _names(parts))
        shown = urlunsplit(bare._replace(query=query, fragment=""))
        if parts.username is None and parts.password is None:
            login = None
        else:
            login = unquote(parts.username or ""), unquote(parts.password or "")
        return cls(urlunsplit(bare), shown, login, _secrets(parts, login))

    @property
    def headers(self) -> dict[str, str]:
        """What the login is sent as."""
        if self.login is None:
            return {}
        return {"Authorization": f"Basic {b64encode(':'.join(self.login).encode()).decode()}"}

    def said(self, error: object) -> str:
        """The text of ``error`` without the secrets: libraries put whole addresses into theirs."""
        text = str(error)
        for secret in self.secrets:
            text = text.replace(secret, HIDDEN)
        return text


def _names(parts: SplitResult) -> list[str]:
    """Of the parameters. A query that is no ``name=value`` is a secret as a whole."""
    return [p.partition("=")[0] if "=" in p else "" for p in parts.query.split("&") if p]


def _secrets(parts: SplitResult, login: tuple[str, str] | None) -> tuple[str, ...]:
    whole = [parts.netloc.rpartition("@")[0], parts.password, parts.query, parts.fragment]
    values = [value for _, value in parse_qsl(parts.query)]
    values += [each.partition("=")[2] for each in parts.query.split("&")]
    long = [value for value in values if len(value) >= _LEAST_SECRET]
    found = {each for each in (*whole, *long, login[1] if login else "") if each}
    return tuple(sorted(found, key=len, reverse=True))


def host_of(address: str) -> str:
    """The host of a URL or of ``host:port``, in small letters and without brackets."""
    bare = address.split("://", 1)[-1].split("/", 1)[0].rpartition("@")[2]
    try:
        return (urlsplit(f"//{bare}").hostname or "").lower()
    except ValueError:
        return ""


def is_loopback(host: str) -> bool:
    """Whether what is sent to ``host`` stays on this machine."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
