"""Requests for a model, made from what its configuration says of its inputs.

Values are random of the right type: the time on a GPU hardly depends on them. Where it does (token
ids that index a table, data the model checks), ``--input`` gives items to send instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2

from igniterd.engines.compare import TYPES
from igniterd.errors import CannotRun

_TEXT = b"igniterd"

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Tensor:
    """One input: Triton's type name (``FP32``), the dimensions of one item, and the bytes of
    ``counts`` items.

    ``ends[b]`` is where the bytes of the first ``b`` items end.
    """

    name: str
    datatype: str
    dims: tuple[int, ...]
    blob: bytes
    ends: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Feed:
    """Inputs for batches of up to ``largest`` items. ``batched`` is false for a model without a
    batch dimension."""

    model: str
    batched: bool
    largest: int
    tensors: tuple[Tensor, ...]

    @property
    def item_bytes(self) -> int:
        """Bytes of one item, all inputs together."""
        return sum(t.ends[1] for t in self.tensors)

    @property
    def size(self) -> int:
        """Bytes of the largest batch."""
        return sum(t.ends[self.largest] for t in self.tensors)

    def request(self, batch: int, region: str = "") -> bytes:
        """A serialised request for ``batch`` items, their bytes inside it, or in the shared memory
        registered as ``region``."""
        message = service_pb2.ModelInferRequest(model_name=self.model)
        offset = 0
        for tensor in self.tensors:
            dims = [batch, *tensor.dims] if self.batched else list(tensor.dims)
            item = message.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=dims)
            if region:
                item.parameters["shared_memory_region"].string_param = region
                item.parameters["shared_memory_byte_size"].int64_param = tensor.ends[batch]
                item.parameters["shared_memory_offset"].int64_param = offset
            else:
                message.raw_input_contents.append(tensor.blob[: tensor.ends[batch]])
            offset += len(tensor.blob)
        return bytes(message.SerializeToString())


def feed_of(
    config: Mapping[str, Any],
    largest: int,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    items: Mapping[str, Array] | None = None,
    seed: int = 0,
) -> Feed:
    """The feed of a model with this Triton configuration.

    ``shapes`` gives the dimensions of one item by input name, for those with variable ones;
    ``items`` gives values: an array of one item, or of several along a first axis, sent in turn.
    Optional inputs are sent only when ``items`` has them. Raises
    :class:`CannotRun` naming the input and what is missing.
    """
    model, batched = str(config.get("name", "?")), int(config.get("max_batch_size", 0)) > 0
    shapes, items = shapes or {}, items or {}
    wanted = [i for i in config.get("input", ()) if not i.get("optional") or i["name"] in items]
    names = {i["name"] for i in config.get("input", ())}
    if strange := sorted((shapes.keys() | items.keys()) - names):
        raise CannotRun(
            f"model {model}: has no input {', '.join(strange)}; its inputs are "
            f"{', '.join(sorted(names)) or 'none'}"
        )
    random = np.random.default_rng(seed)
    tensors = tuple(
        _tensor(
            model, i, largest if batched else 1, shapes.get(i["name"]), items.get(i["name"]), random
        )
        for i in wanted
    )
    if not tensors:
        raise CannotRun(
            f"model {model}: its configuration names no inputs, so no request can be made for it"
        )
    return Feed(model, batched, largest if batched else 1, tensors)


def output_bytes_of(config: Mapping[str, Any]) -> int:
    """Bytes of one item's outputs; 0 for those of variable size."""
    total = 0
    for told in config.get("output", ()):
        kind, dims = (
            str(told["data_type"]).removeprefix("TYPE_"),
            [int(d) for d in told.get("dims", ())],
        )
        if -1 not in dims and (kind in TYPES or kind == "BF16"):
            total += int(np.prod(dims)) * np.dtype(TYPES.get(kind, np.float16)).itemsize
    return total


def read_items(path: Path) -> dict[str, Array]:
    """Arrays by input name from an ``.npz`` file. Raises :class:`CannotRun` when it is none."""
    try:
        with np.load(path, allow_pickle=False) as kept:
            return {name: kept[name] for name in kept.files}
    except (OSError, ValueError, AttributeError, TypeError, EOFError, BadZipFile) as error:
        raise CannotRun(
            f"--input {path}: not an .npz file with one array for each input: {error}"
        ) from error


def _tensor(
    model: str,
    told: Mapping[str, Any],
    largest: int,
    shape: Sequence[int] | None,
    given: Array | None,
    random: np.random.Generator,
) -> Tensor:
    name = str(told["name"])
    where = f"model {model}: input {name}"
    if told.get("is_shape_tensor"):
        raise CannotRun(f"{where} is a shape tensor; igniterd cannot make requests for it")
    kind = str(told["data_type"]).removeprefix("TYPE_")
    datatype = "BYTES" if kind == "STRING" else kind
    if datatype not in (*TYPES, "BYTES", "BF16"):
        raise CannotRun(
            f"{where}: its type {told['data_type']} is not one igniterd can make values of"
        )
    dims = _dims(where, [int(d) for d in told.get("dims", ())], shape, given)
    values = (
        _random(datatype, dims, random)
        if given is None
        else _check_items(where, datatype, dims, given)
    )
    parts = [_bytes(datatype, values[i % values.shape[0]]) for i in range(largest)]
    ends = np.concatenate([[0], np.cumsum([len(p) for p in parts])])
    return Tensor(name, datatype, dims, b"".join(parts), tuple(int(e) for e in ends))


def _dims(
    where: str, told: list[int], shape: Sequence[int] | None, given: Array | None
) -> tuple[int, ...]:
    if shape is None and given is not None:
        shape = given.shape[-len(told) :] if told else ()
    if shape is None:
        if -1 in told:
            raise CannotRun(
                f"{where}: its dimensions {told} are variable: give them with --shape "
                f"{where.rsplit(' ', 1)[-1]}=d1,d2,…"
            )
        return tuple(told)
    if (
        len(shape) != len(told)
        or any(t not in (-1, s) for t, s in zip(told, shape, strict=True))
        or any(s < 1 for s in shape)
    ):
        raise CannotRun(
            f"{where}: dimensions {list(shape)} do not fit {told} (-1 may be anything; the batch "
            "is not among them)"
        )
    return tuple(int(s) for s in shape)


def _random(datatype: str, dims: tuple[int, ...], random: np.random.Generator) -> Array:
    """One item, shape (1, *dims)."""
    size = (1, *dims)
    if datatype == "BYTES":
        return np.full(size, _TEXT, dtype=object)
    if datatype in ("FP16", "FP32", "FP64", "BF16"):
        return random.standard_normal(size).astype(TYPES.get(datatype, np.float32))
    # 0 and 1 are right for a mask, a token id and a flag; pictures of bytes take the whole range
    return random.integers(0, 256 if datatype == "UINT8" else 2, size).astype(TYPES[datatype])


def _check_items(where: str, datatype: str, dims: tuple[int, ...], given: Array) -> Array:
    """The items of ``--input``, shape (items, *dims)."""
    values = given[None] if given.ndim == len(dims) else given
    if values.shape[1:] != dims or values.shape[0] < 1:
        raise CannotRun(
            f"{where}: --input has shape {list(given.shape)}; one item is {list(dims)}, several "
            "have one axis more in front"
        )
    if datatype == "BYTES":
        return np.array(
            [v if isinstance(v, bytes) else str(v).encode() for v in values.ravel()], dtype=object
        ).reshape(values.shape)
    return values.astype(TYPES.get(datatype, np.float32))


def _bytes(datatype: str, item: Array) -> bytes:
    if datatype == "BYTES":  # each with its length in front, as Triton wants it
        return b"".join(len(v).to_bytes(4, "little") + v for v in np.atleast_1d(item).ravel())
    if datatype == "BF16":  # the upper half of a float
        return (
            (np.ascontiguousarray(item, np.float32).view(np.uint32) >> 16)
            .astype(np.uint16)
            .tobytes()
        )
    return np.ascontiguousarray(item).tobytes()
