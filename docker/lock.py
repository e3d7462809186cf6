"""The versions of everything that the images install, and the hashes of their files (make lock).

    python docker/lock.py [--upgrade]

Resolves what pyproject.toml asks for (docker/requirements.py) once for both images and writes, for
Python 3.11 and newer on any processor:

build.lock       what makes the wheel of percmae, and the pip that does
torch.lock       what torch needs, the same whatever it is built for
torch-cuda.lock  torch itself and torchvision from the usual index, with their CUDA libraries
train.lock       everything else that training needs
data.lock        packages of which files are read alone
pipeline.lock    what the image of pipeline steps installs

Versions that are locked stay while pyproject.toml takes them, unless --upgrade is given. Needs uv.
Builds of torch for the CPU or one version of CUDA lie at addresses of their own and have other
hashes: no list here has them.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
from collections.abc import Iterable
from pathlib import Path

DOCKER = Path(__file__).parent
sys.path.insert(0, str(DOCKER))

from requirements import name_of, requirements  # noqa: E402 - it lies beside this file

LOCKS = ("build", "torch", "torch-cuda", "train", "data", "pipeline")
HEADER = "# Made by `make lock` from pyproject.toml; do not edit.\n"
_CUDA = re.compile(r"torch|torchvision|triton|(nvidia|cuda)-.*")


def blocks(lock: str) -> dict[str, str]:
    """The packages of a list: name → its lines, version and hashes. A name may come in several
    versions, each for other machines."""
    found: dict[str, str] = {}
    name = ""
    for line in lock.splitlines(keepends=True):
        if line[:1] not in ("#", " ", "\n"):
            name = name_of(line)
        if name:
            found[name] = found.get(name, "") + line
    return found


def torch_requirements(dockerfile: str) -> list[str]:
    """torch and torchvision in the versions that the Dockerfile takes from other addresses."""
    arguments = dict(
        re.findall(r"^ARG (TORCH_VERSION|TORCHVISION_VERSION)=(\S+)$", dockerfile, re.M)
    )
    return [
        f"torch=={arguments['TORCH_VERSION']}",
        f"torchvision=={arguments['TORCHVISION_VERSION']}",
    ]


def lock(upgrade: bool) -> dict[str, str]:
    """The text of each of LOCKS, by its name. Raises CalledProcessError where uv fails, which
    says why."""
    project = tomllib.loads((DOCKER.parent / "pyproject.toml").read_text(encoding="utf-8"))
    torch = torch_requirements((DOCKER / "Dockerfile").read_text(encoding="utf-8"))
    train = [*requirements(project, "train"), *torch]
    pipeline = requirements(project, "pipeline")
    before = "" if upgrade else _versions_of(DOCKER / f"{name}.lock" for name in LOCKS)
    # One version of each package for both images.
    both = _compile([*train, *pipeline], before, hashes=False)

    def part(wanted: list[str]) -> dict[str, str]:
        return blocks(_compile(wanted, both, constrained=True))

    all_of_train, of_torch = part(train), part(torch)
    cuda = {name for name in of_torch if _CUDA.fullmatch(name)}
    parts = {
        "build": blocks(_compile([*requirements(project, "build"), "pip"], before)),
        "torch": {n: text for n, text in of_torch.items() if n not in cuda},
        "torch-cuda": {n: text for n, text in of_torch.items() if n in cuda},
        "train": {n: text for n, text in all_of_train.items() if n not in of_torch},
        "data": blocks(_compile(requirements(project, "data"), before, needs=False)),
        "pipeline": part(pipeline),
    }
    return {name: HEADER + "".join(found.values()) for name, found in parts.items()}


def _versions_of(files: Iterable[Path]) -> str:
    """The versions in lists that are there, without their hashes."""
    lines = (line for file in files if file.exists() for line in file.read_text().splitlines())
    return "\n".join(line.removesuffix("\\") for line in lines if re.match(r"[\w.-]+==", line))


def _compile(
    wanted: list[str],
    known: str,
    *,
    constrained: bool = False,
    hashes: bool = True,
    needs: bool = True,
) -> str:
    """uv's list for ``wanted``: known versions are preferred, or with ``constrained`` a must."""
    with tempfile.TemporaryDirectory() as folder:
        versions = Path(folder, "constraints.txt" if constrained else "out.txt")
        versions.write_text(known, encoding="utf-8")
        command = [
            str(Path(sysconfig.get_path("scripts")) / "uv"),
            *("pip", "compile", "--quiet", "--universal", "--python-version", "3.11"),
            *("--no-header", "--no-annotate", "--output-file", str(Path(folder, "out.txt"))),
            *(("--constraint", str(versions)) if constrained else ()),
            *(("--generate-hashes",) if hashes else ()),
            *(() if needs else ("--no-deps",)),
            "-",
        ]
        subprocess.run(command, input="\n".join(wanted), text=True, check=True)
        return Path(folder, "out.txt").read_text(encoding="utf-8")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--upgrade", action="store_true", help="the newest versions")
    try:
        texts = lock(parser.parse_args().upgrade)
    except subprocess.CalledProcessError:
        sys.exit("docker/lock.py: uv found no versions that go together, see above")
    except FileNotFoundError as error:
        sys.exit(f"docker/lock.py: needs uv (make lock installs it): {error.filename} is absent")
    for name, text in texts.items():
        (DOCKER / f"{name}.lock").write_text(text, encoding="utf-8")
        print(f"docker/{name}.lock")


if __name__ == "__main__":
    main()
