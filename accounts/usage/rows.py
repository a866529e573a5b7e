"""The columns of the usage log, and a row of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple
from uuid import UUID

import orjson

COLUMNS = (
    "request_id",
    "api_key_id",
    "workspace_id",
    "endpoint",
    "http_status",
    "error_code",
    "request_size",
    "response_time_ms",
    "upstream_ms",
    "status",
    "source",
    "decision",
    "is_malicious",
    "confidence",
    "cached",
    "created_at",
)
Row = Sequence[Any]
NOTHING: Mapping[UUID, Mapping[str, Any]] = MappingProxyType({})


class Batch(NamedTuple):
    """Rows as `COLUMNS` say, and the address each key was last used from.

    `extras` has, by request id, what the events of its rows tell and the log does not keep.
    """

    id: UUID
    rows: list[Row]
    addresses: Mapping[Any, str]
    extras: Mapping[Any, Mapping[str, Any]] = NOTHING

    def packed(self) -> bytes:
        parts: list[Any] = [self.rows, {str(k): v for k, v in self.addresses.items()}]
        if self.extras:
            parts.append({str(k): v for k, v in self.extras.items()})
        return orjson.dumps(parts)

    @classmethod
    def unpacked(cls, batch_id: UUID, content: bytes) -> Batch:
        """With ids and times as text: most of them go on into the database just so.

        What its rows hold is not looked at: `log.write` parks those that do not fit. Raises
        `ValueError` or the like when `content` is not a batch.
        """
        rows, addresses, *more = orjson.loads(content)
        if not all(isinstance(row, list) and len(row) == len(COLUMNS) for row in rows):
            raise ValueError("not rows of the log")
        return cls(batch_id, rows, dict(addresses), dict(*more))

    def plain(self) -> Batch:
        """As it would come out of the stream, which is what `write` takes."""
        return self.unpacked(self.id, self.packed())
