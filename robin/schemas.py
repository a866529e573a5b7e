"""What the queries of Robin's API share.

Each package's `schemas.py` has its bodies and answers, in the names and forms that Robin UI checks;
its `translate.py` makes the answers, the models describe them in the API's document.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field

from gateway_project.core.api.endpoint import Asked
from gateway_project.core.api.fields import is_written_out

NUMBER_MAX = 1_000_000


def upper_words(value: Any) -> Any:
    if isinstance(value, str):
        return [part.strip().upper() for part in value.split(",") if part.strip()]
    return value


def one_line(text: str) -> str:
    if text and not text.isprintable():
        raise ValueError("must be one line of printable characters")
    return text


def _aware(at: datetime) -> datetime:
    return at if at.tzinfo is not None else at.replace(tzinfo=UTC)


Text = Annotated[str, Field(max_length=200), AfterValidator(one_line)]
When = Annotated[datetime, BeforeValidator(is_written_out), AfterValidator(_aware)]


class Query(Asked):
    """Of an address. Names that are not known are ignored, as Robin UI may send more."""

    model_config = ConfigDict(extra="ignore")
