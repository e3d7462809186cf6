"""The images, built and run by docker or podman, whichever is here."""

from __future__ import annotations

import json
import os
import subprocess
from typing import Any

from dockerfile import DOCKER

# What a pod of ours may do (percmae.jobs.pod), under a user that no image knows.
CONFINED = [
    "--read-only",
    "--tmpfs=/tmp:mode=1777",
    "--user=54321:54321",
    "--cap-drop=all",
    "--security-opt=no-new-privileges",
    # Any machine can give these; podman's own are more than some may.
    "--ulimit=nofile=4096:4096",
    "--ulimit=nproc=4096:4096",
]


def find_engine() -> str | None:
    """docker or podman, if it answers."""
    for name in ("docker", "podman"):
        try:
            asked = subprocess.run([name, "info"], capture_output=True, check=False, timeout=60)
        except FileNotFoundError:
            continue
        if asked.returncode == 0:
            return name
    return None


class Image:
    """One of our images, kept by its id: another build may take the name meanwhile."""

    def __init__(self, engine: str, name: str) -> None:
        self.engine, self.name, self.id = engine, name, name
        self.id = self.inspect()["Id"]

    def run(
        self,
        *command: str,
        options: tuple[str, ...] = (),
        check: bool = True,
        network: str = "none",
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in a new container, confined as a pod is, by default without a network."""
        given = [*CONFINED, f"--network={network}", *options]
        done = subprocess.run(
            [self.engine, "run", "--rm", *given, self.id, *command],
            capture_output=True,
            text=True,
            check=False,
            timeout=900,
        )
        assert done.returncode == 0 or not check, f"{done.stdout}\n{done.stderr}"
        return done

    def shell(self, script: str, *arguments: str, **kw: Any) -> str:
        """Standard output of a shell script, which ends at the first failure."""
        return self.run("sh", "-euc", script, "sh", *arguments, **kw).stdout

    def python(self, code: str, **kw: Any) -> str:
        """Standard output of Python statements."""
        return self.run("python", "-c", code, **kw).stdout

    def inspect(self) -> dict[str, Any]:
        found = self._ask("image", "inspect", self.id)
        document: dict[str, Any] = json.loads(found)[0]
        return document

    def history(self) -> str:
        """How each layer was made."""
        return self._ask("history", "--no-trunc", "--format={{.CreatedBy}}", self.id)

    def _ask(self, *arguments: str) -> str:
        done = subprocess.run(
            [self.engine, *arguments], capture_output=True, text=True, check=True, timeout=60
        )
        return done.stdout


def build_images(engine: str) -> dict[str, Image]:
    """Build both with the script of ``make images``, which takes BUILDER and BUILD_ARGS from the
    environment, and find them by the names it prints."""
    builders = {"docker": "docker build", "podman": "podman build"}
    done = subprocess.run(
        [DOCKER / "build.sh"],
        env={"BUILDER": builders[engine], **os.environ},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=3600,
    )
    train, pipeline = done.stdout.split()
    return {"train": Image(engine, train), "pipeline": Image(engine, pipeline)}
