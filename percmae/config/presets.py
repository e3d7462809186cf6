"""The presets that ship with percmae: recipes, variants and sizes, each a YAML file."""

from __future__ import annotations

import copy
from functools import cache
from importlib import resources
from typing import Any

from percmae.config.schema import Encoder
from percmae.plain import read_yaml


def preset_names(kind: str) -> list[str]:
    """Names of the presets of a kind (recipes, variants, sizes)."""
    return sorted(p.name[:-5] for p in _presets(kind).iterdir() if p.name.endswith(".yaml"))


def read_preset(kind: str, name: str) -> dict[str, Any]:
    """What is in a preset, as nested values of one's own."""
    return copy.deepcopy(_read(kind, name))


def heads_of_width(width: int) -> int | None:
    """Attention heads of the size whose encoder has this width; None where there is none."""
    return {encoder["width"]: encoder["heads"] for encoder in _encoders().values()}.get(width)


def size_of(encoder: Encoder) -> str | None:
    """Name of the size with this width, depth and heads, whatever the patches; None for none."""
    for name, values in _encoders().items():
        if values == {key: getattr(encoder, key) for key in values}:
            return name
    return None


@cache  # reading YAML is most of what loading a config takes
def _read(kind: str, name: str) -> dict[str, Any]:
    return read_yaml((_presets(kind) / f"{name}.yaml").read_bytes(), f"preset {name}") or {}


@cache
def _encoders() -> dict[str, dict[str, int]]:
    return {name: read_preset("sizes", name)["model"]["encoder"] for name in preset_names("sizes")}


def _presets(kind: str) -> Any:
    return resources.files("percmae") / "configs" / kind
