"""Cases of ``igniterd predict``: tenants that share a GPU, as JSON.

A tenant without ``share``, or with ``null`` or 1, is uncapped. The shares below 1 add up to at most
1 in a case.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated

from pydantic import Field, ValidationInfo, field_validator

from igniterd.documents import Document, check
from igniterd.errors import ConfigError
from igniterd.perf.api import UNCAPPED, Tenant, capped_total


class _Tenant(Document, extra="forbid"):
    model: Annotated[str, Field(description="the name of a model of the profile")]
    batch: Annotated[float, Field(ge=1, le=4096, description="a number from 1 to 4096")]
    share: (
        Annotated[
            float,
            Field(
                gt=0,
                le=1,
                description="above 0 and at most 1 (a fraction of the SMs), or left out",
            ),
        ]
        | None
    ) = None
    duty: Annotated[float, Field(ge=0, le=1, description="from 0 to 1")] = 1.0

    @property
    def effective_share(self) -> float:
        return UNCAPPED if self.share is None else self.share

    @field_validator("model")
    @classmethod
    def _profiled(cls, name: str, info: ValidationInfo) -> str:
        models: Collection[str] = info.context or ()
        if name not in models:
            raise ValueError(f"{name!r} is not in the profile ({', '.join(models)})")
        return name


class _Case(Document, extra="forbid"):
    tenants: Annotated[list[_Tenant], Field(min_length=1, description="a list of tenants")]

    @field_validator("tenants")
    @classmethod
    def _fit(cls, tenants: list[_Tenant]) -> list[_Tenant]:
        total = capped_total(tenant.effective_share for tenant in tenants)
        if total > 1 + 1e-6:
            raise ValueError(
                f"have shares that add up to {total:g}; those below 1 may add up to at most 1 "
                "(leave out the share of a model that has none)"
            )
        return tenants


def cases_of(data: object, models: Collection[str], source: str) -> list[list[Tenant]]:
    """The tenants of every case. Raises :class:`ConfigError` with all that is wrong in ``data``."""
    if not isinstance(data, list):
        raise ConfigError(source, ['must be a list of cases, each {"tenants": [...]}'])
    cases = check(list[_Case], data, source, context=models)
    return [
        [Tenant(t.model, t.batch, t.effective_share, t.duty) for t in case.tenants]
        for case in cases
    ]
