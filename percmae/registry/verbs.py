"""``percmae models``: what there is, what is in it, what differs, and a copy of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from percmae.errors import DataError
from percmae.registry.files import require_empty
from percmae.registry.model import (
    LATEST,
    Model,
    Reference,
    Version,
    models,
    read_file,
    read_model,
    reference,
)
from percmae.storage import StorePath
from percmae.tables import byte_size, columns

Json = dict[str, Any]


def listing(uri: str, as_json: bool = False) -> str:
    """The models below a folder or prefix, a line each (or a list in JSON).

    Raises DataError where there is none and for a damaged one, StoreError as the store has it.
    """
    found = [(path, model) for path, model in models(StorePath(uri))]
    if not found:
        raise DataError(f"no model below {uri}: `percmae models add` makes one of a run")
    if as_json:
        rows = [{"uri": path.uri, **_facts(model)} for path, model in found]
        return json.dumps(rows)
    lines: list[tuple[str, ...]] = [("name", "versions", "aliases", "changed", "address")]
    for path, model in found:
        aliases = " ".join(f"{name}={number}" for name, number in sorted(model.aliases.items()))
        changed = model.history[-1].when if model.history else "–"
        lines.append((model.name, str(len(model.versions)), aliases or "–", changed, path.uri))
    return columns(lines)


def shown(text: str, as_json: bool = False) -> str:
    """A model with its versions and history; or, behind ``@``, one of its versions.

    Raises DataError where there is no such model, UserError where there is no such version.
    """
    asked = reference(text)
    model = read_model(asked.path)
    if asked.which is not None:
        return _version(model.named(asked.which), asked.path, as_json)
    if as_json:
        return json.dumps(_facts(model))
    names: dict[int, list[str]] = {version.version: [] for version in model.versions}
    for alias, number in sorted(model.aliases.items()):
        names.setdefault(number, []).append(alias)
    rows: list[tuple[str, ...]] = [("version", "aliases", "what", "figures", "created")]
    for version in reversed(model.versions):
        what = f"{version.stage} {version.variant} seed {version.seed}"
        aliases = " ".join(names[version.version]) or "–"
        row = (str(version.version), aliases, what, _figures(version.metrics), version.created)
        rows.append(row)
    history = [
        f"{move.when}  {move.kind:8} {move.alias}: {_number(move.before)} → {move.after}"
        f"  {move.who}{f'  {move.why}' if move.why else ''}"
        for move in reversed(model.history)
    ]
    return "\n".join([columns(rows), "", *history])


def difference(left: str, right: str, as_json: bool = False) -> str:
    """What two versions do not share: figures, settings and data, by their names.

    The second may be an alias or a version of the same model alone (``@2``). Raises as shown.
    """
    one = reference(left)
    other = one._replace(which=right[1:]) if right.startswith("@") else reference(right)
    a, b = (_described(_chosen(of)) for of in (one, other))
    facts = {
        key: [a.get(key), b.get(key)] for key in dict.fromkeys([*a, *b]) if a.get(key) != b.get(key)
    }
    if as_json:
        return json.dumps(facts)
    if not facts:
        return "no difference"
    rows = [("", str(one), str(other))]
    rows += [(key, _cell(before), _cell(after)) for key, (before, after) in facts.items()]
    return columns(rows)


def pulled(text: str, to: str, force: bool = False) -> list[str]:
    """Copy a version's files to a folder, each checked against its SHA-256; their addresses.

    text: without ``@`` the newest. Raises UserError where the folder has files in it and ``force``
    is not set, DataError for a file that is gone or is not what it was.
    """
    asked = reference(text)
    version = _chosen(asked)
    target = StorePath(to)
    require_empty(target, force)
    written = []
    for name in version.files:
        (target / name).write_bytes(read_file(asked.path, version, name))
        written.append((target / name).uri)
    return written


def _chosen(asked: Reference) -> Version:
    return read_model(asked.path).named(asked.which or LATEST)


def _facts(model: Model) -> Json:
    facts: Json = model.model_dump(mode="json", by_alias=True)
    return facts


def _version(version: Version, path: StorePath, as_json: bool) -> str:
    if as_json:
        return version.model_dump_json()
    lines = [(key, _cell(value)) for key, value in _described(version).items()]
    lines.append(("files", (path / version.folder).uri))
    lines += [("", f"{byte_size(file.size):>10}  {name}") for name, file in version.files.items()]
    width = max(len(key) for key, _ in lines) + 2
    return "\n".join(f"{key:{width}}{value}" for key, value in lines)


def _described(version: Version) -> Json:
    """What a person compares, by name."""
    return {
        "version": version.version,
        "created": version.created,
        "run": version.run,
        "stage": version.stage,
        "variant": version.variant,
        "seed": version.seed,
        "config": version.config_digest,
        "parent": version.parent,
        "data": f"{version.data.uri} {version.data.digest}",
        "tested on": f"{version.evaluated_on.uri} {version.evaluated_on.digest}",
        **version.metrics,
        **{f"{tool} (trained with)": number for tool, number in version.versions.items()},
    }


def _figures(metrics: Mapping[str, float | None]) -> str:
    return " ".join(f"{key}={_cell(value)}" for key, value in metrics.items())


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _number(version: int | None) -> str:
    return "–" if version is None else str(version)
