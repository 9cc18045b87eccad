"""A ``ModelConfig`` message as the JSON that goes into a load: what is set, and nothing else. Pure.

Triton refuses a load whose JSON has a field that the server does not know, whatever its value. A
message says only what is set; written out with the defaults of a newer tritonclient it would have
fields that an older server has never heard of. So no default is written: to the server a field that
is not there has its default. A section that is there and empty stays (``"dynamic_batching": {}``),
as its presence alone means something.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.unknown_fields import UnknownFieldSet


def config_to_dict(message: Any) -> dict[str, Any]:
    """What is set of a ``ModelConfig`` message, with the protocol's field names and 64-bit numbers
    as numbers.

    ``ParseDict`` makes the same message of it. A value of an enum that this tritonclient does not
    know is its number, which the server that said it takes back. Fields that it does not know are
    missing: see :func:`unknown_fields`.
    """
    return _numbers(MessageToDict(message, preserving_proto_field_name=True), message.DESCRIPTOR)


def unknown_fields(message: Any) -> tuple[str, ...]:
    """Where the server set something that this tritonclient does not know, as
    ``instance_group[0].99``: fields have only numbers then."""
    known = type(message)()
    known.CopyFrom(message)
    known.DiscardUnknownFields()
    return () if known.ByteSize() == message.ByteSize() else tuple(_unknown(message, ""))


def why_not_kept(unknown: tuple[str, ...]) -> str:
    """Why a configuration with these unknown fields cannot be sent back."""
    fields = (
        "its configuration has fields that the installed tritonclient does not know "
        f"({', '.join(unknown)})"
    )
    return (
        f"{fields}, and a reload would drop them: install the tritonclient of Triton's "
        "version, or give [[triton]] http_url"
    )


def _unknown(message: Any, path: str) -> Iterator[str]:
    unknown: Any = UnknownFieldSet(message)
    yield from (f"{path}{number}" for number in sorted({field.field_number for field in unknown}))
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        if field.message_type.GetOptions().map_entry:
            if field.message_type.fields_by_name["value"].message_type is not None:
                for key, inner in value.items():
                    yield from _unknown(inner, f"{path}{field.name}[{key}].")
        elif field.is_repeated:
            for number, inner in enumerate(value):
                yield from _unknown(inner, f"{path}{field.name}[{number}].")
        else:
            yield from _unknown(value, f"{path}{field.name}.")


def _numbers(value: dict[str, Any], descriptor: Any) -> dict[str, Any]:
    """protobuf's JSON writes 64-bit integers as strings; Triton writes numbers. Done by field type,
    so that no text is taken for one."""
    for key, item in value.items():
        field = descriptor.fields_by_name[key]
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            inner = field.message_type.fields_by_name["value"]
            value[key] = {entry: _number(member, inner) for entry, member in item.items()}
        elif isinstance(item, list):
            value[key] = [_number(member, field) for member in item]
        else:
            value[key] = _number(item, field)
    return value


def _number(item: Any, field: Any) -> Any:
    if field.message_type is not None:
        return _numbers(item, field.message_type) if isinstance(item, dict) else item
    if isinstance(item, str) and field.cpp_type in (field.CPPTYPE_INT64, field.CPPTYPE_UINT64):
        return int(item)
    return item
