"""One small dataset a session, made by the project's own verbs from the default sample."""

from __future__ import annotations

import pytest

from percmae.data.ingest import ingest
from percmae.data.sample import SampleArchives, make_sample_archives
from percmae.data.shards import Dataset


@pytest.fixture(scope="session")
def sample_archives(tmp_path_factory: pytest.TempPathFactory) -> SampleArchives:
    """ILSVRC archives of 4,000 + 1,000 handwritten digits."""
    return make_sample_archives(tmp_path_factory.mktemp("archives"), "mnist")


@pytest.fixture(scope="session")
def sample_dataset(
    sample_archives: SampleArchives, tmp_path_factory: pytest.TempPathFactory
) -> Dataset:
    """The sample archives, ingested to a local directory in shards of 1 MiB; read only."""
    a = sample_archives
    to = tmp_path_factory.mktemp("dataset")
    return ingest(str(a.train), str(a.val), str(a.devkit), str(to), shard_bytes=2**20).dataset
