"""A report and a comparison of runs on images without labels: by rank, fidelity and neighbours."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from folders import grid, write_rows, write_run

from percmae.report import report, summary_table
from percmae.report.compare import Compared, compare
from percmae.report.compare_text import compare_table, markdown
from percmae.report.page import render_reconstructions
from percmae.report.read import read_run


def unlabelled_run(root: Path, rank: float, seed: int = 0, variant: str = "mae") -> str:
    """A pretraining run as an evaluation without labels leaves it."""
    run = Path(write_run(root, seed=seed, variant=variant))
    file = run / "evaluation.json"
    told: dict[str, Any] = json.loads(file.read_text())
    told["labelled"] = False
    told["rank"] = {"value": rank, "untrained": 3.5, "images": 1000, "dimensions": 192}
    file.write_text(json.dumps(told))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if "knn_top1" in line:
            line["rankme"] = 30 * line.pop("knn_top1")
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    grid(seed).save(run / "mae_recon_out" / "neighbours.png")
    return str(run)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    root = tmp_path_factory.mktemp("unlabelled")
    runs = [unlabelled_run(root, rank, seed) for seed, rank in ((0, 40.0), (1, 44.0))]
    document = report(runs, str(root / "out"))
    return document, (root / "out" / "report.html").read_text()


def test_figures(found: tuple[dict[str, Any], str]) -> None:
    document, _ = found
    assert document["labelled"] is False
    assert document["features"]["rankme"]["values"] == [40.0, 44.0]
    assert document["features"]["untrained_rankme"]["mean"] == 3.5
    assert document["features"]["dimensions"] == 192
    assert [item["seed"] for item in document["features"]["galleries"]] == [0, 1]
    assert document["verdict"]["outcome"] == "unknown"
    assert document["verdict"]["answer"] == (
        "There are no labels to tell by. The effective rank (RankMe) of the features of 1,000 test "
        "images is 42.0 ± 2.8 of 192 dimensions, and was 3.5 ± 0.0 before pretraining."
    )
    # What needs labels is not missing.
    assert document["missing"] == []
    assert document["table"] == []
    table = summary_table(document)
    assert "1,000 test images without labels" in table
    assert "The images have no labels." in table
    assert "Effective rank (RankMe): 42.0 ± 2.8, before pretraining 3.5 ± 0.0, of 192" in table


class _Text(HTMLParser):
    """Text and pictures of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.pictures: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.pictures.append(" ".join((dict(attrs)["alt"] or "").split()))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_page(found: tuple[dict[str, Any], str]) -> None:
    page = _Text()
    page.feed(found[1])
    text = " ".join(page.text.split())
    assert "1,000 test images without labels" in text
    assert "Effective rank, pretrained 42.0 ± 2.8" in text
    assert "Effective rank of the features" in text  # the curve
    assert "What lies near what in its features?" in text
    for word in ("Linear probe", "Fine-tuned", "Random guess", "Which classes", "k-NN"):
        assert word not in text
    galleries = [alt for alt in page.pictures if "features are nearest to its own" in alt]
    assert len(galleries) == 2
    assert len(page.pictures) == 4


def test_with_labels_there_are_both(tmp_path: Path) -> None:
    runs = write_rows(tmp_path)
    for run in runs[:1]:
        file = Path(run) / "evaluation.json"
        rank = {"value": 40.0, "untrained": 3.5, "images": 1000, "dimensions": 192}
        file.write_text(json.dumps(json.loads(file.read_text()) | {"rank": rank}))
        grid(0).save(Path(run) / "mae_recon_out" / "neighbours.png")
    document = report(runs, str(tmp_path / "out"))
    assert document["labelled"] is True
    assert document["features"]["rankme"]["values"] == [40.0]
    assert document["verdict"]["outcome"] == "better"
    page = _Text()
    page.feed((tmp_path / "out" / "report.html").read_text())
    assert "Linear probe, pretrained" in page.text
    assert sum("features are nearest to its own" in alt for alt in page.pictures) == 1


def test_the_page_of_one_evaluation_has_the_gallery(tmp_path: Path) -> None:
    run = read_run(unlabelled_run(tmp_path, 40.0))
    assert run.told is not None
    assert run.picture is not None
    page = _Text()
    page.feed(render_reconstructions(run.told, run.picture, run.neighbours))
    assert "Nearest neighbours" in page.text
    assert "40.0" in page.text
    assert len(page.pictures) == 2
    page = _Text()
    page.feed(render_reconstructions(run.told, run.picture, None))
    assert "Nearest neighbours" not in page.text


def test_variants_are_ordered_by_rank(tmp_path: Path) -> None:
    low, high = (
        unlabelled_run(tmp_path, rank, variant=variant)
        for variant, rank in (("mae", 12.0), ("ssim", 40.0))
    )
    entries = [
        Compared("ls_gan", error="no luck"),
        Compared("mae", [low]),
        Compared("ssim", [high]),
    ]
    document = compare(entries, str(tmp_path / "out"))
    assert [row["variant"] for row in document["rows"]] == ["ssim", "mae", "ls_gan"]
    assert (document["labelled"], document["samples"]["test"]) == (False, 1000)
    for text in (compare_table(document), markdown(document)):
        assert "RankMe" in text
        assert "by which the variants are ordered" in " ".join(text.split())
        assert "k-NN" not in text
        assert "probe" not in text
    assert "40.0" in compare_table(document)
    assert (tmp_path / "out" / "compare.png").read_bytes().startswith(b"\x89PNG")
