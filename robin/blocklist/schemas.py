"""Bodies and answers of the blocklist, in the names of Robin UI."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    ValidationInfo,
    field_validator,
)

from gateway_project.core.api.endpoint import Body
from gateway_project.core.api.fields import Time
from robin.models import BlocklistEntry
from robin.schemas import Query, When, one_line

Type = Literal["IP", "CIDR", "DOMAIN"]
Reason = Annotated[
    str,
    BeforeValidator(lambda text: " ".join(text.split()) if isinstance(text, str) else text),
    Field(min_length=1, max_length=500),
    AfterValidator(one_line),
]
"""What people paste has line breaks."""
DOMAIN = re.compile(
    r"(?=.{3,253}\Z)(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z0-9-]{1,62}[a-z0-9]\Z"
)


def normal(kind: str, value: str) -> str:
    """One spelling of each address, network and domain; `ValueError` for what is none."""
    value = value.strip()
    if kind == "IP":
        return str(ipaddress.ip_address(value))
    if kind == "CIDR":
        return str(ipaddress.ip_network(value, strict=False))
    name = value.rstrip(".").lower()
    if not name.isascii():
        name = name.encode("idna").decode()
    if DOMAIN.match(name) is None:
        raise ValueError("is no domain")
    return name


class EntryRequest(Body):
    type: Type
    value: Annotated[str, Field(min_length=1, max_length=253)]
    reason: Reason
    expiresAt: Annotated[When | None, Field(strict=False)] = None
    active: bool = True

    @field_validator("value")
    @classmethod
    def _check(cls, value: str, info: ValidationInfo) -> str:
        try:
            return normal(str(info.data.get("type", "")), value)
        except ValueError:
            raise ValueError(f"is no {info.data.get('type', 'address')}") from None


class EntryPatch(Body):
    """What is left out, or null, stays as it is; `expiresAt: null` takes the expiry away."""

    reason: Reason | None = None
    expiresAt: Annotated[When | None, Field(strict=False)] = None
    active: bool | None = None


class EntryView(BaseModel):
    id: str
    type: Type
    value: str
    reason: str
    createdAt: Time
    createdBy: str
    expiresAt: Time | None
    active: bool

    @classmethod
    def of(cls, row: BlocklistEntry) -> EntryView:
        kind: Any = row.type
        return cls(
            id=str(row.pk),
            type=kind,
            value=row.value,
            reason=row.reason,
            createdAt=row.created_at,
            createdBy=row.created_by,
            expiresAt=row.expires_at,
            active=row.active,
        )


class EntryList(BaseModel):
    items: list[EntryView]
    totalCount: int


class EntryQuery(Query):
    page: int = Field(0, ge=0, le=1_000_000, description="From 0.")
    limit: int = Field(25, ge=1, le=500)
    type: Type | None = None
    active: bool | None = None


class ExportQuery(Query):
    format: Literal["csv", "json"] = "csv"


class ImportRequest(BaseModel):
    """A form, of which the view reads the file by itself."""

    file: bytes


class ImportedView(BaseModel):
    imported: int
    failed: int
    errors: list[str]
