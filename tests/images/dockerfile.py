"""A Dockerfile as a list of stages, read closely enough to check how it is made."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

DOCKER = Path(__file__).parents[2] / "docker"


@dataclass
class Stage:
    """base: what FROM names; steps: (instruction, rest of it) in order."""

    name: str
    base: str
    steps: list[tuple[str, str]] = field(default_factory=list)

    def all(self, instruction: str) -> list[str]:
        return [rest for found, rest in self.steps if found == instruction]

    def args(self) -> set[str]:
        """Names of the build arguments the stage sees."""
        return {rest.partition("=")[0] for rest in self.all("ARG")}


@dataclass
class Dockerfile:
    """args: name → default of the arguments before the first stage."""

    args: dict[str, str]
    stages: dict[str, Stage]

    def line(self, name: str) -> list[Stage]:
        """A stage and those it stands upon, from below; their layers are the image."""
        stage = self.stages[name]
        below = self.line(stage.base) if stage.base in self.stages else []
        return [*below, stage]


def read_dockerfile(file: Path = DOCKER / "Dockerfile") -> Dockerfile:
    lines = [line for line in file.read_text().splitlines() if not line.lstrip().startswith("#")]
    text = re.sub(r"\\\n", " ", "\n".join(lines))
    found = Dockerfile({}, {})
    stage: Stage | None = None
    for line in filter(None, map(str.strip, text.splitlines())):
        instruction, _, rest = line.partition(" ")
        instruction, rest = instruction.upper(), " ".join(rest.split())
        if instruction == "FROM":
            base, _, name = rest.partition(" AS ")
            stage = found.stages[name] = Stage(name, base)
        elif stage is None:
            assert instruction == "ARG", line
            name, _, default = rest.partition("=")
            found.args[name] = default
        else:
            stage.steps.append((instruction, rest))
    return found
