"""What is in an image, as CycloneDX JSON (a software bill of materials).

    python sbom.py percmae-train 0.1.0 > sbom.json

Lists the Python packages of the interpreter that runs it and the Debian packages beside it, all
with versions, licences where they state one, and package URLs, by which scanners know them. Only
the standard library: it runs in the image while that is built. The same image gives the same text.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageMetadata, distributions
from typing import Any
from urllib.parse import quote

Component = dict[str, Any]
_LONGEST_NAME = 80  # of a licence; some packages have its whole text there


def bill(name: str, version: str, components: Iterable[Component]) -> dict[str, Any]:
    """The document for an image, by https://cyclonedx.org/docs/1.6/json/."""
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": {"type": "container", "name": name, "version": version}},
        "components": sorted(components, key=lambda component: component["bom-ref"]),
    }


def python_packages() -> Iterator[Component]:
    """Those on the path of this interpreter; one that is there twice counts as it is imported."""
    seen = set()
    for found in distributions():
        name = re.sub(r"[-_.]+", "-", found.metadata["Name"]).lower()
        if name not in seen:
            seen.add(name)
            purl = f"pkg:pypi/{name}@{quote(found.version, safe='')}"
            yield _component(name, found.version, purl) | _licences(found.metadata)


def debian_packages() -> Iterator[Component]:
    """Those that dpkg has installed."""
    form = "${db:Status-Abbrev}\t${Package}\t${Version}\t${Architecture}\n"
    done = subprocess.run(
        ["dpkg-query", "--show", f"--showformat={form}"], capture_output=True, text=True, check=True
    )
    for line in done.stdout.splitlines():
        status, name, version, architecture = line.split("\t")
        if status.startswith("ii"):
            place = f"{quote(name, safe='')}@{quote(version, safe='')}?arch={architecture}"
            yield _component(name, version, f"pkg:deb/debian/{place}")


def _component(name: str, version: str, purl: str) -> Component:
    return {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}


def _licences(metadata: PackageMetadata) -> Component:
    expression = metadata.get("License-Expression")
    if expression:
        return {"licenses": [{"expression": expression}]}
    name = (metadata.get("License") or "").strip()
    if name and "\n" not in name and len(name) <= _LONGEST_NAME:
        return {"licenses": [{"license": {"name": name}}]}
    return {}


def main(name: str, version: str) -> None:
    """The command."""
    document = bill(name, version, [*python_packages(), *debian_packages()])
    print(json.dumps(document, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main(*sys.argv[1:])
