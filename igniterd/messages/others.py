"""A host's ``status`` and ``hint``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from igniterd.documents import Document
from igniterd.messages.state import AnyOf, Count, Gpu, ModelName, Ms, Rate, Share, Words


class Status(Document):
    """Whether the daemon of a host lives; the broker itself says ``offline`` when it dies."""

    status: Literal["online", "degraded", "offline"]
    reason: Words = ""


class Shed(Document):
    """A model whose SLO does not hold on its host."""

    kind: Literal["shed"]
    model: ModelName
    slo_p99_ms: Ms
    rate_per_s: Rate | None
    needs_share: AnyOf | None
    reason: Words


class ShareHint(Document):
    """A share without effect."""

    kind: Literal["share"]
    model: ModelName
    share: Share
    state: Words
    reason: Words


class NotAnswering(Document):
    """A model that executes nothing while requests wait."""

    kind: Literal["not_answering"]
    model: ModelName
    stuck_s: AnyOf | None
    reason: Words


class Offer(Document):
    """Room on a GPU."""

    kind: Literal["offer"]
    gpu_uuid: Gpu
    gpu: Words | None
    share: AnyOf
    memory_free_bytes: Count | None


Hint = Annotated[Shed | ShareHint | NotAnswering | Offer, Field(discriminator="kind")]
