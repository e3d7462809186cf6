"""The commands of the texts, carried out as they stand there, text by text and in their order.

Each text has a folder, a store and photographs of its own. Trainings are cut short, and what a text
takes for granted is made before; nothing else differs from what a reader does.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from s3_server import running
from small_pipeline import write_images
from texts import ROOT, RUN, TEXTS, Block, blocks, name

from percmae.storage import StorePath

pytestmark = pytest.mark.documents

BINARIES = Path(sys.executable).parent
SHORT = f"""#!/bin/sh
case $1 in pretrain|probe|finetune|retrain) set -- "$@" optim.max_steps=2 data.batch_size=32 ;; esac
exec {BINARIES / "percmae"} "$@"
"""
DATA = "--data s3://percmae/datasets/photos/manifest.json"
TO = "--to s3://percmae/runs"
TRAINED = f"""
percmae ingest --images photos --to s3://percmae/datasets/photos
percmae pretrain {DATA} {TO} --recipe demo --tag first
"""
BEFORE = {
    "docs/data.md": "percmae ingest --images photos --to s3://percmae/datasets/more",
    "docs/models.md": f"""{TRAINED}
for kind in probe finetune; do
  percmae $kind --run s3://percmae/runs/first_mae {DATA} {TO} --recipe demo
  percmae evaluate --run s3://percmae/runs/first_mae_$kind {DATA}
done
percmae models add s3://percmae/models/clothes --run s3://percmae/runs/first_mae_probe
percmae models promote s3://percmae/models/clothes@1
""",
    "docs/python.md": TRAINED.replace("s3://percmae/", ""),
}


TRIED = [path for path in TEXTS if any(block.how == RUN for block in blocks(path))]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    """A folder with photographs, and an environment with a store that has them as well."""
    folder, programs = tmp_path / "here", tmp_path / "bin"
    folder.mkdir()
    programs.mkdir()
    (programs / "percmae").write_text(SHORT)
    (programs / "percmae").chmod(0o755)
    (folder / "photos").mkdir()
    write_images(folder / "photos", "cats", "dogs", each=100)
    (tmp_path / "store").mkdir()
    with running("seaweedfs", tmp_path / "store", bucket="percmae") as store:
        for prefix in ("photos", "images"):
            to = StorePath(f"{store.uri}/{prefix}", store.settings)
            for file in (folder / "photos").rglob("*.png"):
                (to / str(file.relative_to(folder / "photos"))).write_bytes(file.read_bytes())
        path = os.pathsep.join([str(programs), str(BINARIES), os.environ.get("PATH", os.defpath)])
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "PERCMAE_"))}
        yield folder, kept | store.environ | {"PATH": path, "PYTHONPATH": str(ROOT)}


@pytest.mark.parametrize("path", TRIED, ids=name)
def test_what_a_text_says_can_be_done(path: Path, place: tuple[Path, dict[str, str]]) -> None:
    folder, environment = place
    before = Block(path, 0, "bash", RUN, BEFORE.get(name(path), ""))
    for block in [before, *(block for block in blocks(path) if block.how == RUN)]:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block.text],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{block}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
