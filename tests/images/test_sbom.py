"""docker/sbom.py: what it lists, and in which form."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import pytest
from dockerfile import DOCKER


@pytest.fixture(scope="module")
def sbom() -> ModuleType:
    """docker/sbom.py."""
    spec = importlib.util.spec_from_file_location("sbom", DOCKER / "sbom.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


DPKG = """#!/bin/sh
printf 'ii \\tlibstdc++6\\t12.2.0-14+deb12u1\\tamd64\\n'
printf 'rc \\tgone\\t1\\tamd64\\n'
printf 'ii \\tpasswd\\t1:4.13+dfsg1-1\\tamd64\\n'
"""


def test_the_document_names_every_package_once(tmp_path: Path) -> None:
    dpkg = tmp_path / "dpkg-query"
    dpkg.write_text(DPKG)
    dpkg.chmod(0o755)

    def made() -> str:
        command = [sys.executable, str(DOCKER / "sbom.py"), "percmae-train", "7"]
        environment = {"PATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True
        ).stdout

    text = made()
    assert made() == text, "nothing of the moment is in it"
    document = json.loads(text)
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.6")
    about = document["metadata"]["component"]
    assert about == {"type": "container", "name": "percmae-train", "version": "7"}
    found = {each["purl"]: each for each in document["components"]}
    assert len(found) == len(document["components"])
    assert list(found) == sorted(found) == [each["bom-ref"] for each in found.values()]
    pydantic = found[f"pkg:pypi/pydantic@{version('pydantic')}"]
    assert pydantic["licenses"] == [{"expression": "MIT"}]
    assert pydantic["version"] == version("pydantic")
    debian = {purl for purl in found if purl.startswith("pkg:deb/")}
    assert debian == {
        "pkg:deb/debian/libstdc%2B%2B6@12.2.0-14%2Bdeb12u1?arch=amd64",
        "pkg:deb/debian/passwd@1%3A4.13%2Bdfsg1-1?arch=amd64",
    }


def test_licences_are_those_that_packages_state(sbom: ModuleType) -> None:
    from email.message import Message

    def licences(**fields: str) -> object:
        message = Message()
        for name, value in fields.items():
            message[name.replace("_", "-")] = value
        return sbom._licences(message).get("licenses")

    assert licences(License_Expression="MIT OR Apache-2.0") == [{"expression": "MIT OR Apache-2.0"}]
    assert licences(License="BSD") == [{"license": {"name": "BSD"}}]
    assert licences(License="The whole text " * 20) is None
    assert licences() is None
