"""``percmae datasets``: what there is, what is in it, what changed, and what nobody refers to."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import numpy as np

from percmae.data.shards import FORMER, MANIFEST, SPLITS, Dataset
from percmae.errors import DataError
from percmae.ingest.leftovers import leftovers, manifests
from percmae.progress import warn
from percmae.storage import StorePath
from percmae.storage.collect import collect, each
from percmae.tables import byte_size, columns

_NAMED = 10  # images that are named of each kind
_RECENT = 24 * 3600.0  # seconds in which an ingest may still be under way

Json = dict[str, Any]


def listing(uri: str, as_json: bool = False) -> str:
    """The datasets below a folder or prefix, a line each (or a list in JSON).

    Raises DataError where there is none, StoreError as the store has it.
    """
    found = [_row(dataset, path) for dataset, path in _datasets(StorePath(uri))]
    if not found:
        raise DataError(f"no dataset below {uri}: run percmae ingest first, or check the URI")
    if as_json:
        return json.dumps(found)
    head = ("name", *SPLITS, "labelled", "size", "digest", "when")
    rows = [
        (
            row["name"],
            *(f"{row['samples'][split]:,}" for split in SPLITS),
            "?" if row["labelled"] is None else f"{row['labelled']:.0%}",
            byte_size(row["bytes"]),
            row["digest"].removeprefix("sha256:")[:12],
            row["when"],
        )
        for row in found
    ]
    return columns([head, *rows])


def shown(manifest: str, as_json: bool = False) -> str:
    """What a dataset was made from, and what it holds. Raises as :meth:`Dataset.read` does."""
    dataset = Dataset.read(manifest)
    facts = _facts(dataset)
    if as_json:
        return json.dumps(facts)
    corrupt, alike = facts["corrupt"], facts["near_duplicates"]
    lines = [
        ("name", facts["name"]),
        ("digest", facts["digest"]),
        *(("source", " ".join(f"{k}={v}" for k, v in of.items())) for of in facts["sources"]),
        ("settings", " ".join(f"{k}={v}" for k, v in facts["settings"].items())),
        ("classes", f"{len(facts['classes']):,}: " + _first(facts["classes"])),
        *((split, _of_split(values)) for split, values in facts["splits"].items()),
        (
            "damaged",
            f"{len(corrupt):,}" + "".join(f"\n    {e['reason']}" for e in corrupt[:_NAMED]),
        ),
    ]
    if alike:
        pairs = [f"\n    {split}: {one} ~ {other}" for split, one, other in alike["first"]]
        counts = ", ".join(f"{alike[split]:,} of {split}" for split in ("val", "test"))
        what = f"{counts} have one in train (dHash within {alike['distance']} bits)"
        lines.append(("near-duplicates", what + "".join(pairs[:_NAMED])))
    return "\n".join(f"{name:16}{text}" for name, text in lines)


def difference(left: str, right: str, as_json: bool = False) -> str:
    """Images that two datasets do not share, and those that differ, by their keys.

    An image counts as changed where size, looks or label of it are others, as moved where its split
    is another. Raises as :meth:`Dataset.read` does.
    """
    one, other = (_images(Dataset.read(uri)) for uri in (left, right))
    _, ours, theirs = np.intersect1d(
        one["key"], other["key"], assume_unique=True, return_indices=True
    )
    a, b = one[ours], other[theirs]
    changed = (a["size"] != b["size"]) | (a["phash"] != b["phash"]) | (a["class"] != b["class"])
    kinds = {
        "added": np.delete(other["key"], theirs),
        "removed": np.delete(one["key"], ours),
        "changed": a["key"][changed],
        "moved": a["key"][a["split"] != b["split"]],
    }
    facts: Json = {
        kind: {"images": len(keys), "first": [_text(key) for key in keys[:_NAMED].tolist()]}
        for kind, keys in kinds.items()
    }
    if as_json:
        return json.dumps(facts)
    return "\n".join(
        f"{kind:9}{of['images']:>10,}" + "".join(f"\n    {key}" for key in of["first"])
        for kind, of in facts.items()
    )


def collected(folder: str, delete: bool = False, force: bool = False) -> str:
    """The files of a dataset that no manifest refers to, deleted if so asked.

    Raises DataError where there is no dataset, UserError for files of less than a day, which may be
    of an ingest that is under way, unless ``force``.
    """
    to = StorePath(folder)
    if not manifests(to):
        raise DataError(f"{to} is no dataset's folder: it has no {MANIFEST}")
    young = "less than a day old: an ingest may be under way; wait for it, or add --force"
    return collect(
        each(leftovers(to)),
        delete,
        "nothing refers to them",
        None if force else (_RECENT, young),
    )


def _datasets(prefix: StorePath) -> Iterator[tuple[Dataset, StorePath]]:
    if (prefix / MANIFEST).exists():
        yield Dataset.read((prefix / MANIFEST).uri), prefix / MANIFEST
        return
    for entry in prefix.iter():
        if entry.name.endswith(f"/{MANIFEST}"):
            try:
                yield Dataset.read(entry.path.uri), entry.path
            except DataError as error:
                warn(f"left out: {error}")


def _row(dataset: Dataset, path: StorePath) -> Json:
    splits = dataset.manifest["splits"]
    samples = {name: splits[name]["samples"] if name in splits else 0 for name in SPLITS}
    if not dataset.grows:
        samples = {name: len(dataset.split(name)) for name in SPLITS}
    total = sum(samples.values())
    labelled = [splits[name].get("labelled", splits[name]["samples"]) for name in splits]
    listed = (dataset.shards, dataset.held_back)
    when = datetime.fromtimestamp(path.stat().modified, UTC)
    return {
        "name": dataset.name,
        "uri": dataset.uri,
        "samples": samples,
        "labelled": sum(labelled) / total if total else None,
        "bytes": sum(info.bytes for of in listed for infos in of.values() for info in infos),
        "digest": dataset.digest,
        "when": when.strftime("%Y-%m-%d %H:%M"),
    }


def _facts(dataset: Dataset) -> Json:
    manifest = dataset.manifest
    names = ("shard_bytes", "formats", "short_side", "quality", "labels")
    splits: Json = {}
    for name, infos in dataset.shards.items():
        held = sum(info.samples - len(info.removed) for info in dataset.held_back[name])
        splits[name] = {
            "samples": manifest["splits"][name]["samples"],
            "labelled": manifest["splits"][name].get("labelled"),
            "shards": len(infos),
            "bytes": sum(info.bytes for info in infos),
            "removed": sum(len(info.removed) for info in infos),
            "held_back": held,
        }
    return {
        "name": dataset.name,
        "uri": dataset.uri,
        "format": manifest["format"],
        "digest": dataset.digest,
        "sources": manifest["sources"],
        "settings": {name: manifest[name] for name in names if name in manifest},
        "classes": [info.wnid for info in dataset.classes],
        "splits": splits,
        "corrupt": manifest["corrupt"],
        "near_duplicates": manifest.get("near_duplicates"),
    }


def _of_split(values: Json) -> str:
    labelled = values["labelled"]
    parts = [
        f"{values['samples']:,} images",
        "" if labelled is None else f"{labelled:,} with a label",
        f"{values['shards']:,} shards, {byte_size(values['bytes'])}",
        f"{values['removed']:,} removed" if values["removed"] else "",
        f"{values['held_back']:,} held back" if values["held_back"] else "",
    ]
    return ", ".join(part for part in parts if part)


def _images(dataset: Dataset) -> np.ndarray:
    """Key, size, phash, class and split of each image, sorted by key."""
    if not dataset.grows:
        raise DataError(f"{dataset.uri} is of format {FORMER}, which cannot be compared")
    wnids = np.array([info.wnid for info in dataset.classes] + [""])  # −1 is the last
    columns = [dataset.split(name) for name in SPLITS]
    keys = np.concatenate([split.keys for split in columns])
    fields = [("key", keys.dtype), ("size", "<i8"), ("phash", "<u8"), ("class", wnids.dtype)]
    table = np.empty(len(keys), dtype=[*fields, ("split", "i1")])
    table["key"] = keys
    table["size"] = np.concatenate([split.locate(np.arange(len(split)))[2] for split in columns])
    table["phash"] = np.concatenate([split.phashes for split in columns])
    table["class"] = wnids[np.concatenate([split.labels for split in columns])]
    table["split"] = np.repeat(np.arange(len(SPLITS)), [len(split) for split in columns])
    return table[np.argsort(keys, kind="stable")]


def _text(key: bytes) -> str:
    return key.decode("utf-8", "backslashreplace")


def _first(names: list[str]) -> str:
    return ", ".join(names[:_NAMED]) + (" …" if len(names) > _NAMED else "")
