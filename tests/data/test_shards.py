"""A dataset's indexes."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from percmae.data.shards import Dataset


def test_indexes_are_parsed_by_one_thread(
    sample_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many fetch them: CPython 3.11 cannot parse in two at a time."""
    parsed, load = [], np.load

    def watched(*args: Any, **options: Any) -> Any:
        parsed.append(threading.get_ident())
        return load(*args, **options)

    monkeypatch.setattr(np, "load", watched)
    assert len(Dataset.open(sample_dataset.uri).split("train")) > 0
    assert len(parsed) > 1
    assert set(parsed) == {threading.get_ident()}
