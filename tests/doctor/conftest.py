"""A cluster in good order, as an HTTP server, for ``percmae doctor --cluster``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from percmae.doctor import tries

from .kube_server import KubeServer, healthy


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubeServer]:
    monkeypatch.setattr(tries, "_POLL_SECONDS", 0.01)
    with healthy().running() as server:
        monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(tmp_path / "kubeconfig")))
        yield server
