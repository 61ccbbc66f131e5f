"""What every record is: frozen, and strict about its keys; and the types of their fields."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Dollars = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Day = Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}$")]  # YYYY-MM-DD


class Record(BaseModel):
    """A frozen value; unknown keys are errors; fields may be given by name or by alias."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", populate_by_name=True, serialize_by_alias=True, ser_json_inf_nan="strings"
    )


def none_for_no_text(value: Any) -> Any:
    """None for an empty text. Rows hold no null: readers take the type of a column from the first rows."""
    return None if value == "" else value
