"""The overlays under ``k8s/`` as one file each, for those who apply files and have no kustomize.

kubectl builds them, as it does for ``kubectl apply -k``; part of ``make manifests``.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from percmae.errors import UserError

RENDERED = "rendered"
MARK = "# Rendered by `make manifests`"


def render_overlays(k8s: Path, kubectl: str) -> Iterator[tuple[str, str]]:
    """``(file name, text)`` of each overlay, built by the program ``kubectl``.

    Raises UserError with kubectl's own words where it builds one not or with a complaint.
    """
    for file in sorted((k8s / "overlays").glob("*/kustomization.yaml")):
        name = file.parent.name
        done = subprocess.run(
            [kubectl, "kustomize", str(file.parent)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0 or done.stderr:
            said = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
            raise UserError(f"kubectl does not build {file.parent}: {said}")
        header = (
            f"{MARK}; do not edit.\n# k8s/overlays/{name} in one file.\n#\n"
            f"#   kubectl apply -f k8s/{RENDERED}/{name}.yaml\n"
        )
        yield f"{name}.yaml", header + done.stdout


def write_overlays(k8s: Path) -> list[Path] | None:
    """Write all of them to ``k8s/rendered`` and remove those of overlays that are gone; the paths.

    None, with nothing touched, where there is no kubectl.
    """
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        return None
    texts = dict(render_overlays(k8s, kubectl))  # all of them first: none is half-written
    folder = k8s / RENDERED
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.yaml"):
        if old.name not in texts:
            old.unlink()
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return [folder / name for name in texts]
