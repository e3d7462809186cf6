"""All tests of this folder are of faults, but those of its file for every day."""

from __future__ import annotations

from pathlib import Path

import pytest

EVERY_DAY = "test_every_day.py"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == Path(__file__).parent and item.path.name != EVERY_DAY:
            item.add_marker(pytest.mark.faults)
