"""What the JSON files of a run's folder have in common, as writers write and readers check it."""

from __future__ import annotations

import math
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from percmae.errors import DataError


class Part(BaseModel):
    """A file or a part of one: types as JSON has them (no "3" for 3), unknown keys left out."""

    model_config = ConfigDict(strict=True, frozen=True)


class DatasetIdentity(Part):
    """A dataset: where its manifest lies, and the digest of what it holds."""

    uri: str
    digest: str

    @property
    def last_resort(self) -> bool:
        """Whether it was taken because the default images could not be had."""
        return self.uri.rpartition("/")[0].endswith(LAST_RESORT)


LAST_RESORT = "-last-resort"
"""What the name of a dataset ends with that a run took because its own could not be had."""


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value


Figure = Annotated[float | None, AfterValidator(_finite)]
"""A measured value; None where it is not finite, which JSON cannot say."""

P = TypeVar("P", bound=Part)


def parse(part: type[P], data: str | bytes, where: str, advice: str) -> P:
    """Read one JSON text. Raises DataError in one line: ``where``, what is wrong, ``advice``."""
    try:
        return part.model_validate_json(data)
    except ValidationError as error:
        raise DataError(f"{where}{_fault(error)}; {advice}") from None


_TYPES = {
    "string_type": "str",
    "int_type": "int",
    "float_type": "float",
    "bool_type": "bool",
    "list_type": "list",
    "dict_type": "dict",
    "model_type": "dict",
}


def _fault(error: ValidationError) -> str:
    """What is wrong first, as the rest of a sentence that begins with the file's name."""
    first = error.errors(include_url=False)[0]
    key, kind, given = ".".join(map(str, first["loc"])), first["type"], first["input"]
    if kind == "json_invalid":
        return f" is not JSON ({first['ctx']['error']})"
    if not key and kind == "model_type":
        return " is not a JSON object"
    if kind == "value_error":
        return f": {first['ctx']['error']}"
    if kind == "missing":
        return f": {key} is missing"
    if kind == "literal_error":
        return f": {key} is {given!r}, must be {first['ctx']['expected']}"
    if kind in _TYPES:
        return f": {key} must be {_TYPES[kind]}, not {given!r}"
    return f": {key}={given!r}: {first['msg']}"
