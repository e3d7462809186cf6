"""What pretraining is held against: controls, neighbours, shares of the labels, and the goals."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from folders import write_rows

from percmae.config.naming import Kind
from percmae.report import report, summary_table
from percmae.report.kinds import label, ordered

ROWS = [
    "random_guess",
    "probe_pixels",
    "probe_untrained",
    "knn_untrained",
    "knn",
    "probe",
    "finetune_labels-1pct_untrained",
    "finetune_labels-1pct",
    "finetune_labels-10pct_untrained",
    "finetune_labels-10pct",
    "finetune_untrained",
    "finetune",
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, str]:
    root = tmp_path_factory.mktemp("rows")
    document = report(write_rows(root), str(root / "out"))
    return document, (root / "out" / "report.html").read_text()


def test_rows_stand_from_the_floors_up(whole: tuple[dict, str]) -> None:
    document, _ = whole
    assert [row["row"] for row in document["table"]] == ROWS
    knn = next(row for row in document["table"] if row["row"] == "knn")
    assert knn["top1"]["values"] == [0.7, 0.71]
    assert knn["top1"]["sd"] == pytest.approx(0.00707, abs=1e-5)
    few = next(row for row in document["table"] if row["row"] == "finetune_labels-1pct")
    assert (few["label_fraction"], few["features"]) == (0.01, "pretrained")
    assert document["missing"] == []


def test_the_terminal_shows_them_all(whole: tuple[dict, str]) -> None:
    lines = summary_table(whole[0]).splitlines()
    shown = [re.split(r"  +", line)[0] for line in lines if re.search(r"\d\d?\.\d", line)]
    assert shown[:12] == [row["label"] for row in whole[0]["table"]]
    neighbours = next(line for line in lines if line.startswith("k-NN, pret"))
    assert "–" in neighbours
    assert "From scratch, 1 % of the labels" in shown
    assert max(map(len, lines)) <= 100


def test_goals_are_judged_by_the_figures(whole: tuple[dict, str], tmp_path: Path) -> None:
    goals = {goal["goal"]: goal for goal in whole[0]["goals"]}
    assert [goal["holds"] for goal in goals.values()] == [True, True, True, True, False]
    beaten = goals["fine-tuned ≥ from scratch, all labels"]
    assert beaten["text"].startswith("Not reached: fine-tuned ≥ from scratch, all labels (−")
    worse = report(write_rows(tmp_path, 1, probe=0.72, pixels=0.75), str(tmp_path / "out"))
    goals = {goal["goal"]: goal for goal in worse["goals"]}
    assert not goals["probe ≥ raw pixels"]["holds"]
    assert not goals["probe ≥ 15 points above the untrained encoder"]["holds"]
    text = summary_table(worse)
    assert "Not reached: probe ≥ raw pixels (−" in text


def test_the_page_has_the_curve_and_the_picture(whole: tuple[dict, str]) -> None:
    page = whole[1]
    labels = re.findall(r'<svg[^>]*aria-label="([^"]*)"', page)
    assert labels[0].startswith("Test top-1 over the share of the labels. fine-tuned, seed 0")
    assert labels[1] == "40 test images by t-SNE, coloured by class"
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    for text in ("1 %", "10 %", "100 %"):
        assert f">{text}</text>" in page
    for text in ("Reached: probe ≥ raw", "Not reached: fine-tuned"):
        assert text in page
    classes = page[page.index('id="classes"') :]
    heads = re.findall(r'<th scope="col">(.*?)</th>', classes[: classes.index("</thead>")])
    assert [head for head in heads if "% of the labels" in head] == []
    assert "percmae finetune --run" in page
    assert re.search(r"percmae finetune [^<]* --untrained data.label_fraction=0.01 ", page)


def test_kinds_in_words() -> None:
    assert label(Kind("finetune", 0.001)) == "Fine-tuned, 0.1 % of the labels"
    mixed = [Kind("finetune"), Kind("probe", features="pixels"), Kind("pretrain"), Kind("probe")]
    assert [str(kind) for kind in ordered(mixed)] == [
        "pretrain",
        "probe_pixels",
        "probe",
        "finetune",
    ]
