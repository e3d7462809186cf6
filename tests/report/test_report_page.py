"""The page as text: escaping, words for what is missing, charts, configuration, commands."""

from __future__ import annotations

import base64
import hashlib
import html
import re
import xml.etree.ElementTree as ET
from importlib import resources
from pathlib import Path

import pytest
from folders import grid, write_experiment, write_run

from percmae.report import report
from percmae.report.charts import Series, line_chart
from percmae.report.page import duration

NASTY = ["<script>alert(1)</script>", "tench & co", "\"quoted\" 'name' $x$ {{ 7 * 7 }}"]


def page(runs: list[str], root: Path) -> str:
    report(runs, str(root / "out"))
    return (root / "out" / "report.html").read_text()


def words(text: str) -> str:
    """What a reader sees, spaces made plain."""
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", text)).split())


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("page")
    return page(write_experiment(root), root)


def test_headline_figures(three: str) -> None:
    text = words(three)
    assert "Did it learn? Yes. The linear probe on the pretrained encoder beat" in text
    assert re.search(r"Linear probe, pretrained 8\d\.\d ± \d\.\d % each seed: 8\d\.\d, 8", text)
    assert re.search(r"Same probe, untrained 6\d\.\d ± \d\.\d %", text)
    assert "Random guess 10.0 %" in text
    assert re.search(r"Fine-tuned 9\d\.\d ± \d\.\d % .*? top-5: 100\.0", text)
    assert "PSNR 18.3 ± 0.1 dB , SSIM 0.710 ± 0.000 , perceptual distance" in text
    assert (
        "0.432 ± 0.000 (by EfficientNet-Lite2; less is better) on 64 fixed images, with 75 %"
        in text
    )


def test_questions_come_in_the_reader_s_order(three: str) -> None:
    assert re.findall(r"<h2 [^>]*>(.*?)</h2>", three) == [
        "Did it learn?",
        "What do its reconstructions look like?",
        "How did training go?",
        "Which classes does it confuse?",
        "Which classes does it know?",
        "What was run?",
        "Where are things?",
        "How do I run it again?",
    ]


def test_is_one_file_without_requests_and_with_one_script(three: str) -> None:
    assert three.count("<script") == 1
    (script,) = re.findall(r"<script>(.*?)</script>", three, re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'\"" in three
    three = three.replace(script, "")
    assert '<link rel="stylesheet"' not in three
    sources = re.findall(r'\b(?:src|href|srcset|data|action)="([^"#][^"]*)"', three)
    assert sources
    assert all(source.startswith("data:") for source in sources)
    assert re.findall(r"url\((?!#)", three) == []
    assert "default-src 'none'" in three


def test_images_have_alternative_texts_and_tables_have_headers(three: str) -> None:
    images = re.findall(r"<img\b[^>]*>", three)
    assert len(images) == 3
    assert all(re.search(r'alt="[^"]{20,}"', image) for image in images)
    assert all('class="crisp"' in image for image in images)
    for table in re.findall(r"<table.*?</table>", three, re.S):
        assert "<caption>" in table
        assert 'scope="col"' in table
        assert 'scope="row"' in table


def test_ids_are_unique(three: str) -> None:
    ids = re.findall(r'\bid="([^"]+)"', three)
    assert len(ids) > 50
    assert len(ids) == len(set(ids))


def test_charts_say_what_they_show(three: str) -> None:
    labels = re.findall(r'<svg[^>]*aria-label="([^"]*)"', three)
    assert [label.split(".")[0] for label in labels] == [
        "Pretraining loss",
        "k-NN accuracy of the encoder",
        "Linear probe, validation top-1",
        "Fine-tuning, validation top-1",
    ]
    assert "validation, seed 2: from" in labels[0]
    assert "k-NN, seed 1: from" in labels[1]
    assert "untrained, seed 0: from" in labels[2]


def test_a_run_without_knn_figures_has_no_such_chart(tmp_path: Path) -> None:
    run = Path(write_run(tmp_path))
    metrics = (run / "metrics.jsonl").read_text().replace("knn_top1", "other")
    (run / "metrics.jsonl").write_text(metrics)
    text = page([str(run)], tmp_path)
    assert "Pretraining loss" in text
    assert "k-NN" not in words(text)


def test_configuration_digests_and_addresses_are_there(three: str) -> None:
    text = words(three)
    assert "log_interval: 7" in text
    assert "Pretraining, seeds 0, 1, 2" in text
    assert "sha256:" + "5e" * 32 in text
    assert "seed-2/try1_mae_probe_untrained" in text
    assert "torch 2.13.0" in text
    assert "1 min 23 s" in text


def test_commands_set_what_differs_from_the_recipe(three: str) -> None:
    text = words(three)
    assert "make run VARIANT=mae TAG=try1" in text
    command = re.search(r"percmae pretrain [^<]*?seed=0", text)
    assert command
    assert "--variant mae --recipe demo --tag try1 trainer.log_interval=7 seed=0" in command[0]
    assert "--data s3://percmae/data/manifest.json --to /" in command[0]
    assert re.search(r"percmae probe --run \S+/try1_mae .*? --features untrained", text)


def test_command_of_a_config_of_another_version_is_explained(tmp_path: Path) -> None:
    run = Path(write_run(tmp_path))
    (run / "config.yaml").write_text("stage: pretrain\nmodle: {}\n")
    text = words(page([str(run)], tmp_path))
    assert "unknown config key 'modle'" in text
    assert "percmae pretrain --data" not in text


def test_names_from_outside_are_escaped(tmp_path: Path) -> None:
    tag, value = "<b>tag</b>", "</pre><script>alert(2)</script>"
    runs = [
        Path(write_run(tmp_path, stage, names=NASTY, accuracy=0.5, name=tag, versions={"x": value}))
        for stage in ("pretrain", "probe", "finetune")
    ]
    for run in runs:
        (run / "config.yaml").write_text(f"stage: pretrain\nname: {value}\n")
        metrics = (run / "metrics.jsonl").read_text()
        (run / "metrics.jsonl").write_text(
            metrics.replace("loss/pixels", "loss/<i>a</i>")
            + '{"step": 200, "split": "train", "loss/<u>b</u>": 1, "epoch": 10}\n'
        )
    text = page([str(run) for run in runs], tmp_path)
    text = text[: text.rindex("<script>")]  # our own
    for raw in ("<script", "<b>tag", "<i>a", "<u>b", "</pre><s"):
        assert raw not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "tench &amp; co" in text
    assert "$x$ {{ 7 * 7 }}" in words(text)
    assert words(text).count("<script>alert(2)</script>") >= 3


def test_what_is_missing_is_said_in_words(tmp_path: Path) -> None:
    run = Path(write_run(tmp_path, "probe", accuracy=None))
    (run / "metrics.jsonl").unlink()
    (run / "config.yaml").unlink()
    text = words(page([str(run)], tmp_path))
    for expected in (
        "Not known. There is no evaluated linear probe",
        "not run or not evaluated",
        "Not in this report No pretraining run was given",
        "There are no reconstructions to show.",
        "No training figures have been logged.",
        "No classifier has been evaluated",
        "The run folder has no config.yaml.",
        "it has no config.yaml, so its command is not known",
    ):
        assert expected in text


def test_many_classes_show_the_ends_of_the_list(tmp_path: Path) -> None:
    names = [f"thing {i}" for i in range(30)]
    text = page([write_run(tmp_path, "finetune", names=names, accuracy=0.5)], tmp_path)
    assert "the best and the worst of 30" in words(text)
    assert 'class="confusion"' not in text
    table = next(t for t in re.findall(r"<table.*?</table>", text, re.S) if "Synset" in t)
    assert len(re.findall('<th scope="row"', table)) == 20
    assert "Most frequent confusions" in text


def test_large_pictures_are_not_enlarged(tmp_path: Path) -> None:
    run = Path(write_run(tmp_path))
    grid(0, rows=1, side=224).save(run / "mae_recon_out" / "evaluation.png")
    text = page([str(run)], tmp_path)
    image = re.findall(r"<img\b[^>]*>", text)[0]
    assert 'width="896" height="224"' in image
    assert "crisp" not in image


def test_other_data_set_of_the_pretraining_is_pointed_out(tmp_path: Path) -> None:
    other = {"uri": "s3://elsewhere/manifest.json", "digest": "sha256:" + "77" * 32}
    runs = [write_run(tmp_path, data=other, accuracy=None), write_run(tmp_path, "probe")]
    assert "Also used sha256:" + "77" * 32 in words(page(runs, tmp_path))


def test_long_curves_are_thinned_but_keep_their_ends() -> None:
    curve = [(float(i), 1000.0 if i == 0 else 1.0) for i in range(100_000)]
    svg = line_chart("long", "alt", [Series("train", 0, curve, "blue")], "step", "loss")
    assert len(svg) < 40_000
    root = ET.fromstring(svg)
    assert root.get("role") == "img"
    assert "stroke: var(--blue)" in svg
    assert "#040404" not in svg


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (None, "–"),
        (4.24, "4.2 s"),
        (59.7, "1 min 00 s"),
        (83.4, "1 min 23 s"),
        (7512, "2 h 05 min"),
    ],
)
def test_duration(seconds: float | None, expected: str) -> None:
    assert duration(seconds) == expected


def schemes() -> dict[str, dict[str, str]]:
    css = (resources.files("percmae") / "templates" / "report.css").read_text()
    light, dark = re.findall(r":root \{(.*?)\}", css, re.S)
    read = [dict(re.findall(r"--([\w-]+): ([^;]+);", block)) for block in (light, dark)]
    return {"light": read[0], "dark": {**read[0], **read[1]}}


def luminance(rgb: tuple[float, ...]) -> float:
    """WCAG 2 relative luminance of 0..255 channels."""
    channels = [c / 255 for c in rgb]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def rgb(value: str) -> tuple[float, ...]:
    return tuple(int(value[i : i + 2], 16) for i in (1, 3, 5))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_enough_contrast(scheme: str) -> None:
    colours = schemes()[scheme]
    for ink in ("ink", "muted", "blue", "grey", "green", "orange", "red"):
        for ground in ("page", "surface"):
            assert contrast(rgb(colours[ink]), rgb(colours[ground])) >= 4.5, (ink, ground)
    # The darkest cells of the confusion matrix.
    for shade in ("blue-rgb", "orange-rgb"):
        deep = float(colours["deep"])
        tint = [float(c) for c in colours[shade].split()]
        base = rgb(colours["page"])
        cell = tuple(deep * t + (1 - deep) * b for t, b in zip(tint, base, strict=True))
        assert contrast(rgb(colours["ink"]), cell) >= 4.5, shade
