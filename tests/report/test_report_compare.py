"""Variants side by side: figures, budget, failures, the tables, the picture."""

from __future__ import annotations

import copy
import io
import json
import statistics
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from folders import DIGITS, write_experiment, write_run
from matplotlib.text import Text
from PIL import Image

from percmae.errors import DataError, UserError
from percmae.report.compare import Compared, compare
from percmae.report.compare_chart import compare_figure
from percmae.report.compare_text import compare_table
from percmae.storage import StorePath

REASON = "seed 0 pretrain: not finite | lower optim.lr"


def entry(root: Path, variant: str, seeds: int = 3, **options: Any) -> Compared:
    return Compared(variant, write_experiment(root / variant, seeds, variant=variant, **options))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compare")


@pytest.fixture(scope="module")
def three(root: Path) -> dict[str, Any]:
    """mae and ssim with three seeds each, and one that failed."""
    entries = [entry(root, "mae"), entry(root, "ssim"), Compared("ls_gan", error=REASON)]
    return compare(entries, str(root / "out"))


def test_figures_are_those_of_the_runs(three: dict[str, Any], root: Path) -> None:
    assert json.loads((root / "out" / "compare.json").read_text()) == three
    assert [row["variant"] for row in three["rows"]] == ["mae", "ssim", "ls_gan"]
    row = three["rows"][1]
    folders = {
        "probe": "try1_ssim_probe",
        "probe_untrained": "try1_ssim_probe_untrained",
        "finetune": "try1_ssim_finetune",
    }
    for key, name in folders.items():
        files = [root / f"ssim/seed-{seed}/{name}/evaluation.json" for seed in range(3)]
        values = [json.loads(file.read_text())["top1"] for file in files]
        assert row[key]["values"] == values
        assert row[key]["sd"] == pytest.approx(statistics.stdev(values))
    assert row["psnr"]["values"] == pytest.approx([18.2, 18.3, 18.4])
    assert row["ssim"]["mean"] == pytest.approx(0.71)
    assert row["steps"]["values"] == [200, 200, 200]
    # seconds are 83.4 + seed for 200 steps
    assert row["step_seconds"]["values"] == pytest.approx([0.417, 0.422, 0.427])
    metrics = (root / "ssim/seed-1/try1_ssim/metrics.jsonl").read_text().splitlines()
    last = [line["knn_top1"] for line in map(json.loads, metrics) if "knn_top1" in line][-1]
    assert row["knn"]["values"][1] == last
    assert three["random_guess"] == pytest.approx(0.1)
    assert three["rows"][2] == {"variant": "ls_gan", "error": REASON}


def test_the_budget_is_stated(three: dict[str, Any]) -> None:
    text = " ".join(compare_table(three).split())
    for expected in (
        "recipe demo · seeds 0, 1, 2 · pretraining epochs 10",
        "images a step 128",
        "image size 32 px in patches of 8 px",
        "encoder width 128, depth 2, heads 4",
        "3,600 training, 400 validation and 1,000 test images of 10 classes",
        "A random guess is right in 10.0 %",
    ):
        assert expected in text
    assert three["differences"] == []
    assert "Not on one budget" not in text


def test_table_of_the_terminal(three: dict[str, Any]) -> None:
    lines = compare_table(three).splitlines()
    head = next(line for line in lines if line.startswith("variant"))
    row = next(line for line in lines if line.startswith("ssim"))
    assert row.split() == ["ssim", "83.1", "±", "1.0", "61.4", "±", "1.0", "79.5", "±", "0.0",
                           "94.2", "±", "0.4", "18.3", "0.710", "0.432", "0.422",
                           "200"]  # fmt: skip
    for name, value in (("probe %", "83.1 ± 1.0"), ("fine-tuned %", "94.2 ± 0.4")):
        assert row.index(value) + len(value) == head.index(name) + len(name), "right-aligned"
    assert f"ls_gan   failed: {REASON}" in lines
    assert max(len(line) for line in lines) <= 100


def test_markdown(three: dict[str, Any], root: Path) -> None:
    text = (root / "out" / "compare.md").read_text()
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 5
    assert table[0].startswith("| variant | probe % | untrained % | k-NN % | fine-tuned % |")
    assert table[2].split(" | ")[4] == "94.2 ± 0.4"
    cells = [line.replace("\\|", "").count("|") for line in table]
    assert set(cells) == {11}
    assert "failed: seed 0 pretrain: not finite \\| lower optim.lr" in table[4]
    assert "](compare.png)" in text
    with Image.open(root / "out" / "compare.png") as image:
        assert image.format == "PNG"
        assert image.width > 1500


def test_figures_that_are_not_there(tmp_path: Path) -> None:
    run = Path(write_run(tmp_path))
    (run / "metrics.jsonl").unlink()
    document = compare([Compared("mae", [str(run)])], str(tmp_path / "out"))
    row = next(x for x in compare_table(document).splitlines() if x.startswith("mae"))
    assert row.split() == ["mae", "–", "–", "–", "–", "18.2", "0.710", "0.432", "0.417", "200"]
    assert document["random_guess"] is None
    assert (tmp_path / "out" / "compare.png").exists()


def test_budgets_that_differ_are_said(tmp_path: Path) -> None:
    entries = [entry(tmp_path, "mae", 2), entry(tmp_path, "ssim", 1, epochs=4)]
    document = compare(entries, str(tmp_path / "out"))
    text = " ".join(compare_table(document).split())
    assert "Not on one budget, so figures are not directly comparable" in text
    assert "seeds: mae 0, 1; ssim 0" in text
    assert "pretraining epochs: mae 10; ssim 4" in text
    assert "pretraining epochs 10" not in text


def test_when_all_have_failed_there_is_no_picture(tmp_path: Path) -> None:
    out = tmp_path / "out"
    compare([Compared("mae", [write_run(tmp_path)])], str(out))
    assert (out / "compare.png").exists()
    document = compare([Compared("mae", error="no"), Compared("ssim", error="neither")], str(out))
    assert sorted(path.name for path in out.iterdir()) == ["compare.json", "compare.md"]
    assert "picture" not in document["files"]
    assert "compare.png" not in (out / "compare.md").read_text()
    assert "ssim     failed: neither" in compare_table(document)


def test_reads_from_and_writes_to_any_store(tmp_path: Path, tmp_store: StorePath) -> None:
    local = Path(write_run(tmp_path))
    folder = tmp_store / "runs" / local.name
    for file in sorted(p for p in local.rglob("*") if p.is_file()):
        (folder / file.relative_to(local).as_posix()).write_bytes(file.read_bytes())
    to = tmp_store / "compared"
    document = compare([Compared("mae", [folder.uri])], to.uri)
    assert (to / "compare.json").read_json() == document
    assert document["files"]["picture"] == (to / "compare.png").uri
    assert Image.open(io.BytesIO((to / "compare.png").read_bytes())).format == "PNG"


def refuse(entries: list[Compared], tmp_path: Path, kind: type[Exception] = UserError) -> str:
    with pytest.raises(kind) as caught:
        compare(entries, str(tmp_path / "out"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    return str(caught.value)


def test_refuses_what_does_not_belong_together(tmp_path: Path) -> None:
    assert "at least one variant" in refuse([], tmp_path)
    run = write_run(tmp_path / "a")
    assert "is of variant mae, not ssim" in refuse([Compared("ssim", [run])], tmp_path)
    probe = write_run(tmp_path / "a", "probe")
    assert "mae has no pretraining run" in refuse([Compared("mae", [probe])], tmp_path)
    other = [
        write_run(tmp_path / "b", variant="ssim"),
        write_run(tmp_path / "b", "probe", variant="ssim", names=DIGITS[:5]),
    ]
    both = [Compared("mae", [run, probe]), Compared("ssim", other)]
    assert "different test images" in refuse(both, tmp_path)
    (Path(run) / "config.yaml").write_text("stage: pretrain\nmodle: {}\n")
    message = refuse([Compared("mae", [run])], tmp_path, DataError)
    assert "config.yaml cannot be read" in message
    assert "modle" in message


VARIANTS = ["mae", "ssim", "perceptual", "ls_gan", "msg_gan", "stylegan2_ada"]


def crowded(three: dict[str, Any], count: int) -> dict[str, Any]:
    """So many variants, the most awkward figures first: equal, wide, at both ends, failed."""
    rows = []
    for place, variant in enumerate(VARIANTS[:count]):
        row = copy.deepcopy(three["rows"][0]) | {"variant": variant}
        if place == 0:
            for key in ("probe", "probe_untrained", "finetune", "knn"):
                row[key] |= {"mean": 0.9, "sd": 0.1}
        elif place == 1:
            row["finetune"] |= {"mean": 1.0, "sd": 0.0}
            row["probe_untrained"] |= {"mean": 0.0, "sd": None}
            row["step_seconds"] |= {"mean": 1234.5, "sd": 100.0}
        elif place == 2:
            row = {"variant": variant, "error": REASON}
        elif place == 3:
            row["ssim"] |= {"mean": -0.01, "sd": 0.001}
        rows.append(row)
    return three | {"rows": rows}


@pytest.mark.parametrize("count", range(1, 7))
def test_labels_of_the_picture_stand_clear_of_each_other(three: dict[str, Any], count: int) -> None:
    figure = compare_figure(crowded(three, count))
    figure.canvas.draw()
    boxes = {
        text: text.get_window_extent()
        for text in figure.findobj(Text)
        if text.get_text() and text.get_visible()
    }
    shown = [text.get_text() for text in boxes]
    assert set(VARIANTS[:count]) <= set(shown)
    assert shown.count("90.0 ± 10.0") == 4
    assert "failed" in shown or count < 3
    for text, box in boxes.items():
        assert figure.bbox.x0 <= box.x0 <= box.x1 <= figure.bbox.x1, text
        assert figure.bbox.y0 <= box.y0 <= box.y1 <= figure.bbox.y1, text
    for (one, a), (two, b) in combinations(boxes.items(), 2):
        apart = a.x1 <= b.x0 or b.x1 <= a.x0 or a.y1 <= b.y0 or b.y1 <= a.y0
        assert apart, (one, two)
