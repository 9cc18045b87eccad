"""What older Tritons know of a ModelConfig, as facts: ``python -m tests.clients.protocol WHEEL…``
writes them from tritonclient wheels.

A wheel has the protocol of the Triton it was released with. ``protocol.json`` says of every field
the first of the wheels that had it.
"""

from __future__ import annotations

import ast
import json
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from tritonclient.grpc import model_config_pb2

FACTS = Path(__file__).with_name("protocol.json")
FILE = "tritonclient/grpc/model_config_pb2.py"


def facts() -> dict[str, Any]:
    """``{"releases": [versions, oldest first], "fields": {message: {field: first release}}}``."""
    told: dict[str, Any] = json.loads(FACTS.read_text())
    return told


def order(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def model_config(release: str | None, newer: int | None = None) -> Any:
    """The message as ``release`` knows it (``None``: as the installed tritonclient does), with a
    field ``newer`` that nobody knows."""
    file = descriptor_pb2.FileDescriptorProto()
    model_config_pb2.DESCRIPTOR.CopyToProto(file)
    fields = facts()["fields"]
    for message, path in messages(file.message_type):
        kept = [f for f in message.field if release is None or known(fields, path, f.name, release)]
        del message.field[:]
        message.field.extend(kept)
        if not kept:
            del message.oneof_decl[:]
        if newer and path in ("ModelConfig", "ModelInstanceGroup"):
            message.field.add(
                name="newest",
                number=newer,
                type=descriptor_pb2.FieldDescriptorProto.TYPE_INT64,
                label=1,
            )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("inference.ModelConfig"))


def known(fields: dict[str, dict[str, str]], message: str, field: str, release: str) -> bool:
    """Whether ``release`` had it; a field of a tritonclient newer than the facts is known to
    none."""
    since = fields.get(message, {}).get(field)
    return since is not None and order(since) <= order(release)


def messages(found: Any, outer: str = "") -> Iterator[tuple[Any, str]]:
    for message in found:
        yield message, f"{outer}{message.name}"
        yield from messages(message.nested_type, f"{outer}{message.name}.")


def _of_wheel(wheel: Path) -> tuple[str, Any]:
    """Its version, cut to major.minor, and its protocol."""
    with zipfile.ZipFile(wheel) as archive:
        source = ast.parse(
            archive.read(next(name for name in archive.namelist() if name.endswith(FILE)))
        )
    blobs = [
        node.value
        for node in ast.walk(source)
        if isinstance(node, ast.Constant) and isinstance(node.value, bytes)
    ]
    release = ".".join(wheel.name.split("-")[1].split(".")[:2])
    return release, descriptor_pb2.FileDescriptorProto.FromString(max(blobs, key=len))


def main(wheels: list[str]) -> None:
    protocols = sorted(
        (_of_wheel(Path(wheel)) for wheel in wheels), key=lambda found: order(found[0])
    )
    fields: dict[str, dict[str, str]] = {}
    for release, protocol in protocols:
        for message, path in messages(protocol.message_type):
            for field in message.field:
                fields.setdefault(path, {}).setdefault(field.name, release)
    FACTS.write_text(
        json.dumps({"releases": [release for release, _ in protocols], "fields": fields}, indent=1)
        + "\n"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
