"""docker/compose.yaml: the store and TensorBoard of a laptop.

``docker compose config`` judges the file where it is installed; what the file must hold is checked
everywhere. That the services do their work is shown elsewhere: the modules they run have tests of
their own, and ``test_images`` runs them in the image.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from dockerfile import DOCKER

from percmae.jobs.schema import TRAIN_IMAGE

FILE = DOCKER / "compose.yaml"
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(FILE.read_text())["services"]
PINNED = re.compile(r"(\$\{\w+:-)?[\w./-]+:(RELEASE\.[\w-]+|\d+\.\d+\.\d+)(@sha256:\w{64})?}?")


def validator() -> list[str] | None:
    """The command that judges a compose file; None where there is none."""
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]):
            asked = subprocess.run(
                [*command, "version"], capture_output=True, check=False, timeout=60
            )
            if asked.returncode == 0:
                return command
    return None


def test_the_file_is_valid() -> None:
    command = validator()
    if command is None:
        pytest.skip("docker compose is not installed")
    done = subprocess.run(
        [*command, "-f", str(FILE), "config"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(done.stdout)["services"].keys() == SERVICES.keys()


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_pinned_and_reachable_from_here_only(name: str) -> None:
    service = SERVICES[name]
    assert PINNED.fullmatch(service["image"]), service["image"]
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    assert not service.get("privileged")


def test_what_is_ours_uses_our_image_confined() -> None:
    ours = {name: s for name, s in SERVICES.items() if "percmae" in s["image"]}
    assert ours.keys() == {"bucket", "follow", "tensorboard"}
    for service in ours.values():
        assert service["image"] == f"${{PERCMAE_TRAIN_IMAGE:-{TRAIN_IMAGE}}}"
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["tmpfs"] == ["/tmp"]
    # Only what speaks to the store has its keys.
    keyed = {
        name for name, s in ours.items() if "AWS_SECRET_ACCESS_KEY" in s.get("environment", {})
    }
    assert keyed == {"bucket", "follow"}


def test_modules_that_services_run_are_there() -> None:
    modules = [s["command"][2] for s in SERVICES.values() if s["command"][:2] == ["python", "-m"]]
    assert modules
    assert all(importlib.util.find_spec(module) for module in modules), modules


def test_services_wait_for_what_they_need_and_volumes_are_declared() -> None:
    declared = set(yaml.safe_load(FILE.read_text())["volumes"])
    used = {v.partition(":")[0] for s in SERVICES.values() for v in s.get("volumes", [])}
    assert used == declared
    for service in SERVICES.values():
        assert set(service.get("depends_on", ())) <= SERVICES.keys()


def test_the_store_is_the_one_of_the_cluster() -> None:
    manifests = sorted((DOCKER.parent / "k8s").rglob("*.yaml"))
    if not manifests:
        pytest.skip("no manifests here")
    found = {
        line.split("image:")[1].strip().partition("@")[0]
        for file in map(Path, manifests)
        for line in file.read_text().splitlines()
        if "image:" in line and "minio/minio" in line
    }
    assert found == {SERVICES["minio"]["image"].partition("@")[0]}
