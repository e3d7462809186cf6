"""From presets, files and ``key=value`` to one checked Config, knowing where each value came from.

Layers, the later one winning: schema defaults, recipe, variant (and what the recipe fits to it),
size (and what it fits to that), the run that is built upon, user file, overrides.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cache, reduce
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import TypeAdapter, ValidationError
from pydantic.config import JsonDict
from pydantic.fields import FieldInfo

from percmae.config.check import check
from percmae.config.naming import Features
from percmae.config.presets import preset_names, read_preset
from percmae.config.schema import Config, Stage, Variant
from percmae.errors import ConfigError
from percmae.plain import read_yaml

VARIANTS: tuple[str, ...] = get_args(Variant)
TRAININGS: tuple[str, ...] = get_args(Stage)
"""The stages that are a training, and have a configuration."""


@dataclasses.dataclass
class Layers:
    """An effective configuration and the layer each value was set by.

    ``origin`` maps a dotted key to ``default``, ``recipe mae``, ``variant ssim``, a file's path or
    ``command line``.
    """

    config: Config
    origin: dict[str, str]


def load_config(
    variant: str = "mae",
    recipe: str = "mae",
    stage: str = "pretrain",
    file: str | Path | None = None,
    overrides: Iterable[str] = (),
    tag: str | None = None,
    size: str | None = None,
    base: Mapping[str, Any] | None = None,
) -> Config:
    """The configuration of one run.

    variant, recipe, size: names of presets; base: values of the run that is built upon; file:
    YAML in the shape of ``percmae config show``; overrides: ``key=value`` strings with dotted keys
    (the value is read as YAML). Raises ConfigError naming the key (and the nearest valid one) for
    an unknown key, a setting of other stages, a wrong type, a value out of range or a combination
    that cannot work.
    """
    return load_layers(variant, recipe, stage, file, overrides, tag, size, base).config


def load_layers(
    variant: str = "mae",
    recipe: str = "mae",
    stage: str = "pretrain",
    file: str | Path | None = None,
    overrides: Iterable[str] = (),
    tag: str | None = None,
    size: str | None = None,
    base: Mapping[str, Any] | None = None,
    open_keys: Collection[str] = (),
    features: Features = "pretrained",
) -> Layers:
    """Like :func:`load_config`, with the origin of each value.

    open_keys: settings of other stages that are this one's for once, since ``base`` lacks them;
    features: what a classifier builds upon, for which a recipe may have settings of its own.
    """
    _known("variant", variant, VARIANTS)
    _known("recipe", recipe, preset_names("recipes"))
    _known("stage", stage, TRAININGS)
    merged: dict[str, Any] = {"stage": stage, "variant": variant, "recipe": recipe}
    origin = dict.fromkeys(merged, "command line")
    sections = read_preset("recipes", recipe)
    for section in ("all", stage):
        _merge(merged, origin, sections.get(section) or {}, f"recipe {recipe}")
    # A variant is about pretraining (its loss, its networks), not about the classifier.
    if stage == "pretrain":
        _merge(merged, origin, read_preset("variants", variant), f"variant {variant}")
    fitted = (sections.get("variants") or {}).get(variant) or {}
    _merge(merged, origin, fitted.get(stage) or {}, f"recipe {recipe}, variant {variant}")
    upon = (sections.get("features") or {}).get(features) or {}
    _merge(merged, origin, upon.get(stage) or {}, f"recipe {recipe}, features {features}")
    if size is not None:
        _known("size", size, preset_names("sizes"))
        _merge(merged, origin, read_preset("sizes", size), f"size {size}")
        tuned = (sections.get("sizes") or {}).get(size) or {}
        _merge(merged, origin, tuned.get(stage) or {}, f"recipe {recipe}, size {size}")
    if base is not None:
        _merge(merged, origin, base, "the run built upon")
    if file is not None:
        values = _read_file(Path(file))
        _refuse_foreign(_changes(values, merged), stage, open_keys, f"config file {file}: ")
        _merge(merged, origin, values, str(file))
    for override in overrides:
        values = parse_override(override)
        _refuse_foreign(dict(_leaves(values)), stage, open_keys, "")
        _merge(merged, origin, values, "command line")
    if tag is not None:
        _merge(merged, origin, {"tag": tag}, "command line")
    config = config_from_dict(merged)
    return Layers(config, {key: origin.get(key, "default") for key, _ in _leaves(to_dict(config))})


def _changes(values: Mapping[str, Any], merged: Mapping[str, Any]) -> dict[str, Any]:
    """The settings in a file that are not as they would be without it.

    A saved config.yaml holds those of all stages, for the reader.
    """
    before = {**leaves(Config()), **dict(_leaves(merged))}
    return {k: v for k, v in _leaves(values) if k not in before or before[k] != v}


def _refuse_foreign(
    given: Mapping[str, Any], stage: str, open_keys: Collection[str], where: str
) -> None:
    """Raise ConfigError for a setting that would have no effect in this stage."""
    for key, value in given.items():
        if isinstance(value, Mapping) and not value:  # an empty section
            continue
        stages = stages_of(key)
        if stage in stages or key in open_keys:
            continue
        if stage == "pretrain":
            advice = "give it to " + " or ".join(f"`percmae {name}`" for name in stages)
        elif key == "model.init_from":
            advice = "other weights to build upon are given as --run"
        elif "pretrain" in stages:
            advice = "what is built upon has decided it"
        else:
            advice = f"give it to `percmae {stages[0]}`"
        raise ConfigError(
            f"{where}{key}={json.dumps(value, default=str)} has no effect in stage {stage}: "
            f"it is a setting of {', '.join(stages)}; {advice}"
        )


def config_from_dict(values: Mapping[str, Any]) -> Config:
    """A checked Config from plain nested values (YAML or JSON types).

    Raises ConfigError with one line for the first fault found.
    """
    _check_keys(values, Config, "")
    for key, value in _leaves(values):
        if isinstance(value, str) and not value.isascii():
            _check_text(key, value)
    try:
        # Strict JSON rules: 3 is a float where one is wanted, but "3" or true is not an int.
        config = _adapter().validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        raise ConfigError(explain(error)) from None
    except TypeError as error:
        raise ConfigError(f"config: {error}; use numbers, strings, lists and mappings") from None
    check(config)
    return config


def to_dict(config: Config) -> dict[str, Any]:
    """The configuration as nested plain values."""
    return dataclasses.asdict(config)


def to_yaml(config: Config) -> str:
    """The configuration as YAML that ``load_config(file=…)`` reads back."""
    return yaml.safe_dump(to_dict(config), sort_keys=False)


def digest(config: Config) -> str:
    """``sha256:…`` of everything that changes what the run computes.

    Stable over processes, key order, operational settings (workers, log rhythm, tag …) and later
    ones at their default.
    """
    values = what_counts(config)
    del values["recipe"]  # a name; what it stands for is in the other keys
    canonical = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return "sha256:" + hashlib.sha256(canonical.encode()).hexdigest()


def docs() -> Iterator[tuple[str, str, str]]:
    """``(dotted key, type, docstring)`` of every field, in the schema's order."""
    for key, field in _fields(Config):
        of = field.annotation
        kind = None if get_args(of) else getattr(of, "__name__", None)
        yield key, kind or str(of).replace("typing.", ""), field.description or ""


def stages_of(key: str) -> tuple[str, ...]:
    """The stages whose setting a dotted key is.

    Elsewhere it has no effect, or the run that is built upon decides. Raises ConfigError for an
    unknown key, with the nearest one, and for a section.
    """
    fields, stages = _sections(Config), TRAININGS
    for part in key.split("."):
        field = fields.get(part)
        if field is None:
            raise ConfigError(f"unknown config key {key!r}{_nearest_key(key)}")
        marked = _marks(field).get("stages")
        stages = tuple(map(str, marked)) if isinstance(marked, list) else stages
        fields = _sections(field.annotation) if _is_section(field) else {}
    if fields:
        raise ConfigError(_section_message(key, fields))
    return stages


def leaves(config: Config) -> dict[str, Any]:
    """Dotted key to value, in the schema's order; lists are values."""
    return dict(_leaves(to_dict(config)))


@cache
def _all_fields() -> dict[str, FieldInfo]:
    return dict(_fields(Config))


@cache
def _adapter() -> TypeAdapter[Config]:
    return TypeAdapter(Config)


def what_counts(config: Config) -> dict[str, Any]:
    """Dotted keys and values of all that changes what the run computes; the recipe's name too."""
    return {k: v for k, v in _leaves(to_dict(config)) if _counts(k, v)}


def _counts(key: str, value: Any) -> bool:
    """Whether a setting's value changes what is computed."""
    field = _all_fields()[key]
    mark = _marks(field).get("digest", True)
    return mark is True or (bool(mark) and value != field.default)


def _marks(field: FieldInfo) -> JsonDict:
    """What the schema marks a field with, such as ``OPERATIONAL``."""
    return field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}


def _sections(cls: Any) -> dict[str, FieldInfo]:
    return dict(cls.__pydantic_fields__)


def _is_section(field: FieldInfo) -> bool:
    return isinstance(field.annotation, type) and dataclasses.is_dataclass(field.annotation)


def _fields(cls: Any, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in _sections(cls).items():
        if _is_section(field):
            yield from _fields(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name, field


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _read_file(path: Path) -> dict[str, Any]:
    try:
        values = read_yaml(path.read_bytes(), f"config file {path}")
    except OSError as error:
        raise ConfigError(f"config file {path}: {error.strerror}; check the path") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"config file {path}: expected a mapping of keys to values at the top")
    # These three are chosen by arguments; a saved config.yaml carries them for the reader.
    return {k: v for k, v in values.items() if k not in ("stage", "variant", "recipe")}


def parse_override(override: str) -> dict[str, Any]:
    """``a.b=value`` as nested values; the value is read as YAML. Raises ConfigError."""
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not key:
        raise ConfigError(f"override {override!r}: expected key=value, such as optim.epochs=3")
    if key in ("variant", "recipe", "stage"):
        raise ConfigError(f"override {override!r}: choose it with --{key} instead")
    try:
        value = read_yaml(text, key) if text.strip() else None
    except ConfigError:
        value = text
    nested: Any = reduce(lambda inner, part: {part: inner}, reversed(key.split(".")), value)
    return dict(nested)


def override_leaves(override: str) -> list[tuple[str, str]]:
    """The dotted key, and ``key=value``, of each setting in an override: several in ``a={b: 1}``.

    Raises ConfigError.
    """
    return [
        (key, f"{key}={json.dumps(value, default=str, ensure_ascii=False)}")
        for key, value in _leaves(parse_override(override))
    ]


def _merge(
    into: dict[str, Any],
    origin: dict[str, str],
    layer: Mapping[str, Any],
    name: str,
    prefix: str = "",
) -> None:
    for key, value in layer.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, Mapping) and isinstance(into.get(key, {}), dict):
            _merge(into.setdefault(key, {}), origin, value, name, f"{dotted}.")
        else:
            into[key] = value
            origin[dotted] = name


def _known(what: str, name: str, names: Iterable[str]) -> None:
    if name not in names:
        raise ConfigError(
            f"unknown {what} {name!r}{nearest(name, names)}; one of: " + ", ".join(names)
        )


def nearest(name: str, names: Iterable[str]) -> str:
    """The end of a message about an unknown name: which one may have been meant, or nothing."""
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def _check_keys(values: Mapping[str, Any], cls: Any, prefix: str) -> None:
    """Unknown keys first, over the whole tree: with a name to offer, unlike pydantic's message."""
    fields = _sections(cls)
    for key, value in values.items():
        dotted = f"{prefix}{key}"
        if key not in fields:
            raise ConfigError(f"unknown config key {dotted!r}{_nearest_key(dotted)}")
        if _is_section(fields[key]):
            inner = fields[key].annotation
            if not isinstance(value, Mapping):
                raise ConfigError(_section_message(dotted, _sections(inner)))
            _check_keys(value, inner, f"{dotted}.")


def _section_message(dotted: str, fields: Mapping[str, FieldInfo]) -> str:
    return (
        f"config key {dotted!r} is a section; set one of its keys, such as "
        f"{dotted}.{next(iter(fields))}"
    )


def _check_text(key: str, value: str) -> None:
    """Bytes of the command line that are no text cannot be kept in a run's record."""
    try:
        # In pairs, as JSON has it, surrogates are text.
        value.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        raise ConfigError(f"config key {key}={value!r}: not UTF-8 text") from None


def _nearest_key(dotted: str) -> str:
    keys = list(_all_fields())
    same_leaf = [k for k in keys if k.rsplit(".", 1)[-1] == dotted.rsplit(".", 1)[-1]]
    if same_leaf:
        return f"; did you mean {same_leaf[0]!r}?"
    return nearest(dotted, keys) or "; `percmae config show` lists all keys"


def explain(error: ValidationError, what: str = "config key") -> str:
    """The first fault that pydantic found, in one line."""
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"] if not str(part).startswith("constrained"))
    given = json.dumps(first["input"], default=str)
    message = first["msg"][0].lower() + first["msg"][1:].replace("valid dictionary", "mapping")
    return f"{what} {key}={given}: {message}"
