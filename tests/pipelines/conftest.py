"""The pipeline, compiled once for all tests of what came out."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from compiled_pipeline import PINNED
from kfp.dsl import pipeline_task

from percmae.plain import documents
from pipelines.__main__ import main


@pytest.fixture(scope="session", autouse=True)
def _callers_without_their_source() -> Iterator[None]:
    """KFP's SDK asks for its caller's name by the whole stack, with the source around each frame.

    Below pytest, with torch imported, that is 80 ms each of hundreds of times.
    """
    with pytest.MonkeyPatch.context() as patch:
        bare = SimpleNamespace(stack=partial(inspect.stack, context=0))
        patch.setattr(pipeline_task, "inspect", bare)
        yield


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The text of the pipeline, compiled by the command with an image of its own."""
    output = tmp_path_factory.mktemp("compiled") / "train.yaml"
    assert main(["compile", "--output", str(output), "--image", PINNED]) == 0
    return output.read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def spec(compiled: str) -> dict[str, Any]:
    return documents(compiled)[0]


@pytest.fixture(scope="session")
def platform(compiled: str) -> dict[str, Any]:
    """What Kubernetes is told about each step: the second document."""
    _, platform = documents(compiled)
    return platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
