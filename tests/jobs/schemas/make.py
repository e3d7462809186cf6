"""Makes definitions.json: what the kinds of Kubeflow that we create look like to the API server.

    python tests/jobs/schemas/make.py FOLDER

FOLDER holds the CustomResourceDefinitions as they were released, in files of any name:

- PyTorchJob: training-operator v1.9.4, manifests/base/crds/kubeflow.org_pytorchjobs.yaml
- TrainJob, ClusterTrainingRuntime: trainer v2.3.0,
  manifests/base/crds/trainer.kubeflow.org_{trainjobs,clustertrainingruntimes}.yaml

(both of github.com/kubeflow, Apache-2.0). To renew it for a later release: fetch those files at its
tag, change RELEASES, run this, and read what ``git diff`` and tests/jobs/test_schema.py say.

Nothing that decides about an object is lost: types, required fields, enums, patterns, bounds, keys
of lists, defaults and CEL rules stay. Descriptions go, which are nine tenths of it, and a piece
that occurs again (a container's probes, a volume, …) stands once, under ``shared``;
``{"$ref": name}`` is in its other places. ``load`` puts it together again, as a definition that a
server takes.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

from percmae.plain import documents

Schema = dict[str, Any]
Change = Callable[[str, Schema], Schema]
"""What to make of a schema, given the field it stands in."""

RELEASES = {
    "PyTorchJob": "Kubeflow training-operator v1.9.4",
    "TrainJob": "Kubeflow Trainer v2.3.0",
    "ClusterTrainingRuntime": "Kubeflow Trainer v2.3.0",
}
FILE = Path(__file__).with_name("definitions.json")
_PROSE = ("description", "title", "example", "externalDocs")
_SHORTEST = 120
"""Characters from which a piece that occurs twice is worth a name."""


def load(file: Path = FILE) -> dict[str, Schema]:
    """The definitions by kind, each a whole CustomResourceDefinition of its own."""
    held = json.loads(file.read_text(encoding="utf-8"))

    def whole(_: str, schema: Schema) -> Schema:
        return _inside(held["shared"][schema["$ref"]] if "$ref" in schema else schema, whole)

    return {kind: _schemas(each, whole) for kind, each in held["definitions"].items()}


def released(folder: Path) -> dict[str, Schema]:
    """The same from the files of a release: without prose, and nothing else changed."""
    found = {}
    for file in sorted(folder.glob("*.yaml")):
        for made in documents(file.read_text(encoding="utf-8")):
            kind = ((made or {}).get("spec") or {}).get("names", {}).get("kind")
            if kind in RELEASES and made["kind"] == "CustomResourceDefinition":
                made["metadata"] = {"name": made["metadata"]["name"]}
                found[kind] = _schemas(made, _bare)
    missing = RELEASES.keys() - found.keys()
    assert not missing, f"{folder}: no definition of {', '.join(sorted(missing))}"
    return {kind: found[kind] for kind in RELEASES}


def shared(definitions: dict[str, Schema]) -> Schema:
    """What is written: the definitions, and the pieces that they have in common."""
    counted: Counter[str] = Counter()
    names: dict[str, str] = {}

    def count(name: str, schema: Schema) -> Schema:
        text = _text(schema)
        counted[text] += 1
        names.setdefault(text, f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:6]}")
        # What is in a piece that occurs again is counted once: only the piece gets a name.
        return _inside(schema, count) if counted[text] == 1 else schema

    for definition in definitions.values():
        _schemas(definition, count)
    pieces: dict[str, Schema] = {}

    def share(name: str, schema: Schema) -> Schema:
        text = _text(schema)
        if counted[text] < 2 or len(text) < _SHORTEST:
            return _inside(schema, share)
        if names[text] not in pieces:
            pieces[names[text]] = _inside(schema, share)
        return {"$ref": names[text]}

    made = {kind: _schemas(each, share) for kind, each in definitions.items()}
    return {"releases": RELEASES, "definitions": made, "shared": dict(sorted(pieces.items()))}


def write(folder: Path, file: Path = FILE) -> None:
    """Write the file anew: a line for each definition and each piece, for readable diffs."""
    parts = []
    for part, entries in shared(released(folder)).items():
        lines = ",\n".join(f"{json.dumps(k)}:{_text(v)}" for k, v in entries.items())
        parts.append(f"{json.dumps(part)}:{{\n{lines}\n}}")
    file.write_text("{" + ",\n".join(parts) + "}\n", encoding="utf-8")


def _bare(_: str, schema: Schema) -> Schema:
    return _inside({key: value for key, value in schema.items() if key not in _PROSE}, _bare)


def _schemas(definition: Schema, change: Change) -> Schema:
    """The definition with what ``change`` makes of the schema of each version."""
    made = deepcopy(definition)
    for version in made["spec"]["versions"]:
        root = version["schema"]
        root["openAPIV3Schema"] = change(made["spec"]["names"]["kind"], root["openAPIV3Schema"])
    return made


def _inside(schema: Schema, change: Change) -> Schema:
    """The schema with what ``change`` makes of every schema directly in it."""
    made = dict(schema)
    if "properties" in made:
        made["properties"] = {k: change(k, inner) for k, inner in made["properties"].items()}
    for key in ("items", "additionalProperties"):
        if isinstance(made.get(key), dict):
            made[key] = change(key, made[key])
    return made


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


if __name__ == "__main__":
    write(Path(sys.argv[1]))
