"""A dataset's indexes."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from percmae.data.shards import Dataset, _labelled


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


def test_fewer_labels_are_among_more_and_of_each_class(sample_dataset: Dataset) -> None:
    train = sample_dataset.split("train")
    counts = np.bincount(train.labels)
    before: set[bytes] = set()
    for fraction in (0.0001, 0.01, 0.1, 0.5, 1.0):
        chosen = sample_dataset.labelled(fraction)
        assert np.bincount(chosen.labels).tolist() == [
            max(1, round(fraction * count)) for count in counts.tolist()
        ]
        keys = set(chosen.keys.tolist())
        assert before <= keys
        before = keys
    assert before == set(train.keys.tolist())
    again = Dataset.open(sample_dataset.uri).labelled(0.01)
    assert again.keys.tolist() == sample_dataset.labelled(0.01).keys.tolist()


def test_another_dataset_gives_other_labels() -> None:
    labels = np.repeat(np.arange(3), 50)
    one, other = (_labelled(labels, 0.2, f"sha256:{digit * 16}") for digit in "1a")
    assert len(one) == len(other) == 30
    assert one.tolist() != other.tolist()
    assert not np.array_equal(one, np.arange(30))
