"""The figures: means and spreads over seeds, the verdict, what is missing, what is refused."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from folders import DATA, DIGITS, write_experiment, write_run

from percmae.errors import DataError, UserError
from percmae.report import report, summary_table
from percmae.storage import StorePath


def row(document: dict, name: str) -> dict:
    return next(row for row in document["table"] if row["row"] == name)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> dict:
    root = tmp_path_factory.mktemp("three")
    document = report(write_experiment(root), str(root / "out"))
    assert json.loads((root / "out" / "report.json").read_text()) == document
    return document


def test_table_has_mean_and_sample_deviation_of_each_classifier(three: dict) -> None:
    names = ["random_guess", "probe_untrained", "probe", "finetune"]
    assert [item["row"] for item in three["table"]] == names
    for name in names[1:]:
        runs = [run for run in three["runs"] if run["kind"] == name]
        paths = sorted((Path(run["uri"]) / "evaluation.json" for run in runs), key=str)
        top1 = [json.loads(path.read_text())["top1"] for path in paths]
        stats = row(three, name)["top1"]
        assert (stats["seeds"], stats["values"], stats["n"]) == ([0, 1, 2], top1, 3)
        assert stats["mean"] == pytest.approx(sum(top1) / 3)
        assert stats["sd"] == pytest.approx(statistics.stdev(top1))
    assert row(three, "random_guess")["top1"]["mean"] == pytest.approx(0.1)
    assert row(three, "random_guess")["top5"]["mean"] == pytest.approx(0.5)


def test_identity_and_counts(three: dict) -> None:
    assert three["format"] == "percmae-report/1"
    assert (three["name"], three["variant"], three["tag"]) == ("try1_mae", "mae", "try1")
    assert three["seeds"] == [0, 1, 2]
    assert (three["data"]["uri"], three["data"]["digest"]) == (DATA["uri"], DATA["digest"])
    assert three["data"]["samples"]["test"] == 1000
    assert three["data"]["classes"] == 10
    assert three["versions"]["torch"] == "2.13.0"
    assert three["missing"] == []
    assert three["data"]["last_resort"] is False
    assert len(three["runs"]) == 12
    first = three["runs"][0]
    assert first["kind"] == "pretrain"
    assert first["config_digest"].startswith("sha256:")
    assert first["seconds"] == pytest.approx(83.4)
    assert first["images_per_second"] == pytest.approx(515)


def test_reconstruction_figures_over_seeds(three: dict) -> None:
    assert three["reconstruction"]["psnr"]["values"] == pytest.approx([18.2, 18.3, 18.4])
    assert three["reconstruction"]["psnr"]["sd"] == pytest.approx(0.1)
    assert three["reconstruction"]["seeds"][1]["mask_ratio"] == 0.75
    assert three["reconstruction"]["seeds"][1]["picture"].endswith("mae_recon_out/evaluation.png")


def test_confusion_is_summed_over_seeds(three: dict) -> None:
    confusion = three["confusion"]["probe"]
    assert sum(map(sum, confusion["counts"])) == 3000
    assert len(confusion["counts"]) == len(DIGITS)
    counts = [item["count"] for item in confusion["top"]]
    assert counts == sorted(counts, reverse=True)
    off_diagonal = [
        n for i, line in enumerate(confusion["counts"]) for j, n in enumerate(line) if i != j
    ]
    assert counts[0] == max(off_diagonal)


def test_a_clear_win_in_every_seed_is_a_yes(three: dict) -> None:
    verdict = three["verdict"]
    assert verdict["outcome"] == "better"
    assert verdict["answer"].startswith("Yes. ")
    assert "in each of 3 seeds" in verdict["answer"]
    probe, control = row(three, "probe")["top1"], row(three, "probe_untrained")["top1"]
    gaps = [a - b for a, b in zip(probe["values"], control["values"], strict=True)]
    assert verdict["gap"]["values"] == pytest.approx(gaps)
    assert (
        f"{100 * verdict['gap']['mean']:.1f} ± {100 * verdict['gap']['sd']:.1f} points"
        in (verdict["answer"])
    )


def test_summary_table_is_aligned_and_complete(three: dict) -> None:
    lines = summary_table(three).splitlines()
    head = next(line for line in lines if "top-1 %" in line)
    column = head.index("top-1 %")
    labels = ("Linear probe, pretrained", "Linear probe, untrained", "Fine-tuned", "Random guess")
    for label in labels:
        line = next(line for line in lines if line.startswith(label))
        assert line[column - 1] == " "
        assert line[column + 3] == ".", "decimal points stand under each other"
    assert any(line.startswith("Random guess") and " 10.0 " in line for line in lines)
    mean = 100 * row(three, "probe")["top1"]["mean"]
    assert any(line.startswith("Linear probe, pretrained") and f"{mean:.1f} ±" in line
               for line in lines)  # fmt: skip
    assert any(line.startswith("Yes. ") for line in lines)
    assert max(map(len, lines)) <= 100


def pair(root: Path, trained: list[float], untrained: list[float]) -> dict:
    runs = [write_run(root, "probe", s, accuracy=a) for s, a in enumerate(trained)]
    runs += [
        write_run(root, "probe", s, accuracy=a, baseline=True) for s, a in enumerate(untrained)
    ]
    return report(runs, str(root / "out"))


def test_a_loss_is_said(tmp_path: Path) -> None:
    verdict = pair(tmp_path, [0.5, 0.5, 0.52], [0.6, 0.62, 0.6])["verdict"]
    assert verdict["outcome"] == "not_better"
    assert "did not beat the same probe" in verdict["answer"]
    assert verdict["answer"].startswith("No. ")


def test_a_win_in_some_seeds_only_is_not_clear(tmp_path: Path) -> None:
    verdict = pair(tmp_path, [0.8, 0.8, 0.6], [0.6, 0.6, 0.65])["verdict"]
    assert verdict["outcome"] == "unclear"
    assert "won in only 2 of 3 seeds" in verdict["answer"]


def test_a_win_smaller_than_the_test_set_resolves_is_not_clear(tmp_path: Path) -> None:
    verdict = pair(tmp_path, [0.62, 0.62, 0.62], [0.6, 0.6, 0.6])["verdict"]
    assert verdict["outcome"] == "unclear"
    assert 0.02 < verdict["resolution"] < 0.06
    assert "less than a test set of this size can tell apart" in verdict["answer"]


def test_one_seed_has_no_spread_and_says_so(tmp_path: Path) -> None:
    document = pair(tmp_path, [0.8], [0.6])
    assert row(document, "probe")["top1"]["sd"] is None
    assert document["verdict"]["answer"].startswith("Yes, as far as one seed can tell.")
    assert any("spread over seeds is not known" in note for note in document["verdict"]["notes"])
    assert "±" not in summary_table(document)
    assert "±" not in (tmp_path / "out" / "report.html").read_text()


def test_no_better_than_a_guess_is_said(tmp_path: Path) -> None:
    notes = pair(tmp_path, [0.11], [0.1])["verdict"]["notes"]
    assert any("not clearly better than a random guess (10.0 %)" in note for note in notes)


def test_only_seeds_that_both_have_are_compared(tmp_path: Path) -> None:
    verdict = pair(tmp_path, [0.8, 0.8, 0.8], [0.6, 0.6])["verdict"]
    assert verdict["gap"]["seeds"] == [0, 1]
    assert any("the probe ran with 0, 1, 2, its control with 0, 1" in n for n in verdict["notes"])


def test_no_common_seed_is_not_known(tmp_path: Path) -> None:
    runs = [write_run(tmp_path, "probe", 0), write_run(tmp_path, "probe", 1, baseline=True)]
    verdict = report(runs, str(tmp_path / "out"))["verdict"]
    assert verdict["outcome"] == "unknown"
    assert "different seeds (0 against 1)" in verdict["answer"]


def test_the_last_resort_is_named(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path, data=DATA | {"uri": "s3://bucket/datasets/mnist-last-resort/m.json"})
    ]
    document = report(runs, str(tmp_path / "out"))
    assert document["data"]["last_resort"] is True
    said = "MNIST AS THE LAST RESORT"
    assert said in summary_table(document)
    assert said in (tmp_path / "out" / "report.html").read_text()


def test_missing_parts_are_named(tmp_path: Path) -> None:
    running = {"status": "running", "step": 120}
    runs = [write_run(tmp_path, accuracy=None, **running)]
    document = report(runs, str(tmp_path / "out"))
    assert document["verdict"]["outcome"] == "unknown"
    text = "\n".join(document["missing"])
    for expected in (
        "No linear probe was given",
        "No probe of an untrained encoder",
        "No fine-tuning run",
        "not finished: step 120 of 200",
        "has not been evaluated",
    ):
        assert expected in text
        assert expected in " ".join(summary_table(document).split())
    assert document["reconstruction"]["seeds"][0]["picture"].endswith("step-00000200.png")


def test_of_several_training_pictures_the_last_is_taken(tmp_path: Path) -> None:
    folder = Path(write_run(tmp_path, accuracy=None)) / "mae_recon_out"
    (folder / "step-00000040.png").write_bytes((folder / "step-00000200.png").read_bytes())
    document = report([str(folder.parent)], str(tmp_path / "out"))
    assert document["reconstruction"]["seeds"][0]["picture"].endswith("step-00000200.png")


def test_many_classes_list_confusions_instead_of_every_count(tmp_path: Path) -> None:
    names = [f"thing {i}" for i in range(120)]
    run = write_run(tmp_path, "finetune", names=names, accuracy=0.5)
    confusion = report([run], str(tmp_path / "out"))["confusion"]["finetune"]
    assert confusion["counts"] is None
    assert len(confusion["top"]) == 20


def test_figures_that_are_not_finite_become_null(tmp_path: Path) -> None:
    run = Path(write_run(tmp_path, "probe", metrics={"loss": float("nan")}))
    evaluation = json.loads((run / "evaluation.json").read_text())
    (run / "evaluation.json").write_text(json.dumps({**evaluation, "loss": float("inf")}))
    report([str(run)], str(tmp_path / "out"))
    text = (tmp_path / "out" / "report.json").read_text()
    document = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in the JSON"))
    assert document["runs"][0]["metrics"]["loss"] is None
    assert row(document, "probe")["loss"]["mean"] is None


def test_a_step_logged_twice_counts_once(tmp_path: Path) -> None:
    from percmae.report.read import read_run

    run = Path(write_run(tmp_path))
    again = {"step": 100, "epoch": 5.0, "split": "train", "loss": 9.0}
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(again) + "\n")
    curve = read_run(str(run)).curve("train", "loss")
    assert [y for x, y in curve if x == 100] == [9.0]
    assert [x for x, _ in curve] == sorted(x for x, _ in curve)


def test_reads_from_and_writes_to_any_store(tmp_path: Path, tmp_store: StorePath) -> None:
    runs = []
    for local in write_experiment(tmp_path, seeds=1):
        folder = tmp_store / "runs" / Path(local).name
        for file in sorted(p for p in Path(local).rglob("*") if p.is_file()):
            (folder / file.relative_to(local).as_posix()).write_bytes(file.read_bytes())
        runs.append(folder.uri)
    to = tmp_store / "reports" / "try1"
    document = report(runs, to.uri)
    assert (to / "report.json").read_json() == document
    assert document["files"]["html"] == (to / "report.html").uri
    assert runs[0] in (to / "report.html").read_text()


def refuse(runs: list[str], tmp_path: Path, kind: type[Exception]) -> str:
    with pytest.raises(kind) as caught:
        report(runs, str(tmp_path / "out"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists(), "nothing is written when the input is refused"
    return str(caught.value)


def test_refuses_no_runs(tmp_path: Path) -> None:
    assert "at least one run" in refuse([], tmp_path, UserError)


def test_refuses_a_folder_that_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    message = refuse([str(tmp_path / "empty")], tmp_path, DataError)
    assert f"{tmp_path / 'empty'} is not a run: it has no run.json" in message


ROW = '{"step": 1, "epoch": 0.1, "split": "train"}'


@pytest.mark.parametrize(
    ("file", "content", "expected"),
    [
        ("run.json", "{", "run.json is not JSON"),
        ("run.json", "[]", "run.json is not a JSON object"),
        ("run.json", '{"format": "percmae-run/9"}', "format is 'percmae-run/9'"),
        ("run.json", '{"format": "percmae-run/1", "name": 3}', "name must be str, not 3"),
        ("metrics.jsonl", ROW + '\n{"st', "metrics.jsonl, line 2 is not JSON"),
        ("metrics.jsonl", ROW.replace(": 1", ': "1"'), "line 1: step must be int, not '1'"),
        ("evaluation.json", '{"format": "x"}', "evaluation.json: format is 'x'"),
        ("mae_recon_out/evaluation.png", "GIF89a", "evaluation.png is not a PNG"),
    ],
)
def test_refuses_a_damaged_file(tmp_path: Path, file: str, content: str, expected: str) -> None:
    run = Path(write_run(tmp_path))
    (run / file).write_text(content)
    assert expected in refuse([str(run)], tmp_path, DataError)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"seed": 4}, "its seed is 4 but the run's is 0; evaluate the run again"),
        ({"key": "sha256:other"}, "its key is 'sha256:other'"),
        ({"top1": "high"}, "top1 must be float, not 'high'"),
        ({"confusion": [[1]]}, "confusion must have a row and a column for each of the 10"),
    ],
)
def test_refuses_an_evaluation_that_does_not_fit(
    tmp_path: Path, change: dict, expected: str
) -> None:
    run = Path(write_run(tmp_path, "probe"))
    evaluation = json.loads((run / "evaluation.json").read_text())
    (run / "evaluation.json").write_text(json.dumps({**evaluation, **change}))
    assert expected in refuse([str(run)], tmp_path, DataError)


def test_refuses_two_runs_of_one_seed(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "a"), write_run(tmp_path / "b")]
    assert "are both pretrain runs of seed 0" in refuse(runs, tmp_path, UserError)


def test_refuses_two_variants(tmp_path: Path) -> None:
    runs = [write_run(tmp_path), write_run(tmp_path, seed=1, variant="ssim")]
    assert "make one report for each variant" in refuse(runs, tmp_path, UserError)


def test_refuses_figures_of_different_test_sets(tmp_path: Path) -> None:
    runs = [write_run(tmp_path, "probe"), write_run(tmp_path, "finetune", names=DIGITS[:5])]
    assert "different test images" in refuse(runs, tmp_path, UserError)


def test_importing_it_loads_nothing_heavy() -> None:
    code = (
        "import sys, percmae.report; heavy = {'matplotlib', 'jinja2', 'torch', 'PIL', 'numpy', "
        "'minio'} & set(sys.modules); sys.exit(', '.join(sorted(heavy)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
