"""The pipeline, compiled once for all tests of what came out."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from compiled_pipeline import PINNED

from pipelines.__main__ import main


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The text of the pipeline, compiled by the command with an image of its own."""
    output = tmp_path_factory.mktemp("compiled") / "train.yaml"
    assert main(["compile", "--output", str(output), "--image", PINNED]) == 0
    return output.read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def spec(compiled: str) -> dict[str, Any]:
    return next(iter(yaml.safe_load_all(compiled)))


@pytest.fixture(scope="session")
def platform(compiled: str) -> dict[str, Any]:
    """What Kubernetes is told about each step: the second document."""
    _, platform = yaml.safe_load_all(compiled)
    return platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
