"""PEM files of a TLS client, read and tried before anything relies on them."""

from __future__ import annotations

import ssl
from pathlib import Path

from igniterd.errors import CannotRun


def client_context(
    whose: str, ca_file: Path | None, cert_file: Path | None, key_file: Path | None
) -> ssl.SSLContext:
    """What a TLS client offers and trusts; without `ca_file` the system's authorities.

    Raises :class:`CannotRun` naming the files that cannot be read, or are not what they should be.
    """
    try:
        context = ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))
        if cert_file is not None:
            # a key with a pass phrase would be asked for on the terminal, which a daemon has not
            context.load_cert_chain(cert_file, key_file, password="")
    except (OSError, ssl.SSLError, ValueError) as error:
        files = ", ".join(str(file) for file in (ca_file, cert_file, key_file) if file is not None)
        raise CannotRun(f"TLS for {whose} ({files}): {error}") from error
    return context
