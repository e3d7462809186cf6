"""The overlays as one file each: without drift, and what `make manifests` says without kubectl."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from percmae.errors import UserError
from percmae.jobs import manifests, overlays
from percmae.plain import documents

from .kustomized import K8S, KUBECTLS, OVERLAYS, build, unordered

NAMES = [overlay.removeprefix("overlays/") for overlay in OVERLAYS[1:]]


@pytest.mark.parametrize("name", NAMES)
def test_an_overlay_is_there_as_it_is_built(name: str) -> None:
    """Otherwise: make manifests, in the same commit as its reason."""
    text = (K8S / overlays.RENDERED / f"{name}.yaml").read_text()
    assert text.startswith(overlays.MARK)
    assert f"kubectl apply -f k8s/{overlays.RENDERED}/{name}.yaml\n" in text
    objects = documents(text)
    built = build(f"overlays/{name}", KUBECTLS[0])
    assert unordered(objects) == unordered(built), "out of date: make manifests"
    # Applied in its order, nothing comes before its namespace.
    assert "Namespace" not in [each["kind"] for each in objects[1:]]


def test_there_is_a_file_for_each_overlay_and_no_other() -> None:
    there = {path.stem for path in (K8S / overlays.RENDERED).iterdir()}
    assert there == set(NAMES)


def checkout(folder: Path) -> Path:
    """A k8s/ with one small overlay."""
    for part in ("base", "overlays/tiny"):
        (folder / "k8s" / part).mkdir(parents=True)
    text = (
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: [some.yaml]\n"
    )
    (folder / "k8s/overlays/tiny/kustomization.yaml").write_text(text)
    some = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: some}\n"
    (folder / "k8s/overlays/tiny/some.yaml").write_text(some)
    return folder / "k8s"


def test_files_of_overlays_that_are_gone_go(tmp_path: Path) -> None:
    if KUBECTLS[0] is None:
        pytest.skip("kubectl is not on PATH")
    k8s = checkout(tmp_path)
    (k8s / "rendered").mkdir()
    (k8s / "rendered/old.yaml").touch()
    assert overlays.write_overlays(k8s) == [k8s / "rendered/tiny.yaml"]
    assert [path.name for path in (k8s / "rendered").iterdir()] == ["tiny.yaml"]
    (k8s / "overlays/tiny/some.yaml").unlink()
    kept = (k8s / "rendered/tiny.yaml").read_text()
    with pytest.raises(UserError, match=r"kubectl does not build .*tiny: .*some\.yaml"):
        overlays.write_overlays(k8s)
    assert (k8s / "rendered/tiny.yaml").read_text() == kept


def test_without_kubectl_one_line_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checkout(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(manifests, "write", lambda root, given: [root / "job.yaml"])
    monkeypatch.setattr("sys.argv", ["manifests"])
    with pytest.raises(SystemExit) as ended:
        manifests.main()
    assert ended.value.code == 0
    said = capsys.readouterr()
    assert said.out == "k8s/job.yaml\n"
    assert "there is no kubectl here: k8s/rendered is left as it is\n" in said.err
    assert not (tmp_path / "k8s/rendered").exists()
