"""What KFP's API server checks in what it is given, for kfp_server: packages, parameters, cron."""

from __future__ import annotations

import json
from typing import Any

from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2 as messages

from percmae.plain import documents

Json = dict[str, Any]


class Refused(Exception):
    """An answer that is an error: its HTTP status and message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def invalid(message: str) -> Refused:
    return Refused(400, f"Invalid input error: {message}")


def spec_of(text: bytes) -> Json:
    """A package as the API gives it back: parsed strictly, and written anew."""
    found: Json = {}
    for document in documents(text):
        platform = isinstance(document, dict) and "platforms" in document
        key = "platform_spec" if platform else "pipeline_spec"
        kind = messages.PlatformSpec() if platform else messages.PipelineSpec()
        if key in found:
            raise Refused(400, f"multiple {key}s provided")
        try:
            message = json_format.ParseDict(document, kind)
        except json_format.ParseError as error:
            raise Refused(400, f"invalid v2 pipeline spec: {error}") from None
        # As Go writes it: sorted, which no reader may rely upon.
        found[key] = json.loads(json_format.MessageToJson(message, sort_keys=True))
    if found.get("pipeline_spec", {}).get("schemaVersion") != "2.1.0":
        raise Refused(400, "KFP only supports schema version 2.1.0")
    return found if "platform_spec" in found else found["pipeline_spec"]


TYPES: dict[str, tuple[type, ...]] = {
    "STRING": (str,),
    "BOOLEAN": (bool,),
    "NUMBER_INTEGER": (int, float),
    "NUMBER_DOUBLE": (int, float),
    "LIST": (list,),
    "STRUCT": (dict,),
}


def check_parameters(body: Json, version: Json) -> None:
    spec = version["pipeline_spec"]
    root = spec.get("pipeline_spec", spec)["root"]
    inputs = root.get("inputDefinitions", {}).get("parameters", {})
    given = (body.get("runtime_config") or {}).get("parameters") or {}
    for name, value in given.items():
        if name not in inputs:
            raise invalid(f"parameter(s) provided are not required by pipeline: {name}")
        types = TYPES[inputs[name]["parameterType"]]
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            raise invalid(f"input parameter {name} requires another type")


BOUNDS = (("second", 0, 59), ("minute", 0, 59), ("hour", 0, 23), ("day", 1, 31), ("month", 1, 12))
BOUNDS = (*BOUNDS, ("weekday", 0, 6))
NAMES = {
    "month": ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"],
    "weekday": ["sun", "mon", "tue", "wed", "thu", "fri", "sat"],
}


def robfig(text: str) -> None:
    """github.com/robfig/cron 1.2, which KFP parses with: the last of its six fields may be left
    out, so that five fields mean something else than in a crontab."""
    if text.startswith("@"):
        return
    fields = text.split()
    if not 5 <= len(fields) <= 6:
        raise ValueError(f"Expected 5 to 6 fields, found {len(fields)}: {text}")
    for field, (kind, low, high) in zip(fields, BOUNDS, strict=False):
        for part in field.split(","):
            span, *steps = part.split("/")
            first, *last = span.split("-")
            if len(steps) > 1 or len(last) > 1:
                raise ValueError(f"Too many slashes or hyphens: {part}")
            start, end = (low, high) if first in ("*", "?") else (number(first, kind),) * 2
            end = number(last[0], kind) if last else end
            if steps and int(steps[0]) < 1:
                raise ValueError(f"Step of range should be a positive number: {part}")
            if start < low or end > high:
                raise ValueError(f"{part} is beyond the bounds of {kind} ({low} to {high})")
            if start > end:
                raise ValueError(f"Beginning of range ({start}) beyond end of range ({end})")


def number(text: str, kind: str) -> int:
    names = NAMES.get(kind, [])
    if text.lower() in names:
        return names.index(text.lower()) + (kind == "month")
    return int(text)
