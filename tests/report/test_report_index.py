"""The page of a store: what it lists, where it says what, what it does with what is damaged."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from folders import write_experiment, write_run

from percmae.cli.verbs import main
from percmae.registry.model import Model
from percmae.report import report
from percmae.storage import StorePath


def test_all_that_lies_in_a_store(
    tmp_store: StorePath, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = tmp_path / "made"
    write_experiment(made / "runs", seeds=1)
    write_run(made / "more", "pretrain", accuracy=None, tag="x", name="<b>x</b>", status="running")
    (priced,) = (made / "runs").glob("*/*_finetune/run.json")
    record = json.loads(priced.read_text())
    record["config"]["tracking"]["gpu_price"] = 2.5
    priced.write_text(json.dumps(record | {"gpu_seconds": 5400.0}))
    broken = made / "more" / "broken" / "run.json"
    broken.parent.mkdir(parents=True)
    broken.write_text("{")
    page = made / "reports" / "a b" / "report.html"
    page.parent.mkdir(parents=True)
    page.write_text("a report")
    decision = made / "models" / "clothes" / "decisions" / "2-against-1.html"
    decision.parent.mkdir(parents=True)
    decision.write_text("a decision")
    model = made / "models" / "clothes" / "model.json"
    model.write_text(Model(name="clothes").model_dump_json(by_alias=True))
    for file in made.rglob("*"):
        if file.is_file():
            (tmp_store / str(file.relative_to(made))).write_bytes(file.read_bytes())

    assert main(["report", "--index", tmp_store.uri]) == 0
    assert capsys.readouterr().out.strip() == f"{tmp_store.uri}/index.html"
    found = json.loads((tmp_store / "index.json").read_text())
    kinds = [run["kind"] for run in found["runs"]]
    assert sorted(kinds) == ["finetune", "pretrain", "pretrain", "probe", "probe_untrained"]
    assert {bool(run["figures"]) for run in found["runs"] if run["status"] == "running"} == {False}
    assert all(0 < run["figures"]["top1"] < 1 for run in found["runs"] if "probe" in run["kind"])
    costs = {run["kind"]: (run["gpu_hours"], run["cost"]) for run in found["runs"]}
    assert costs["finetune"] == (1.5, 3.75)
    assert costs["probe"] == (None, None)
    assert [row["name"] for row in found["models"]] == ["clothes"]
    assert {row["name"]: row["href"] for row in found["pages"]} == {
        "a b": "reports/a b/report.html",
        "clothes, version 2 against 1": "models/clothes/decisions/2-against-1.html",
    }
    (line,) = found["unreadable"]
    assert line.startswith(f"{tmp_store.uri}/more/broken/run.json is not JSON")
    report([str(path.parent) for path in made.glob("runs/*/*/run.json")], str(made / "page"))
    text = (made / "page" / "report.html").read_text()
    assert re.search(r"<tfoot>.*Together.*<td>1\.50</td>\s*<td>3\.75</td>", text)
    html = (tmp_store / "index.html").read_text()
    assert 'href="reports/a%20b/report.html"' in html
    assert "<b>x</b>" not in html
    assert "&lt;b&gt;x&lt;/b&gt;" in html

    # Elsewhere it links to nothing, and what it has found is the same.
    assert main(["report", "--index", tmp_store.uri, "--to", str(tmp_path / "index")]) == 0
    elsewhere = json.loads((tmp_path / "index" / "index.json").read_text())
    assert elsewhere["runs"] == found["runs"]
    assert {row["href"] for row in elsewhere["pages"]} == {None}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--index", "{}/nothing"], "no run, no model and no report lies below it"),
        (["--runs", "{}/a"], "say where with --to"),
        (["--runs", "{}/a", "--index", "{}"], "not allowed with"),
        ([], "required"),
    ],
)
def test_misuse(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word.format(tmp_path) for word in words]
    try:
        code = main(["report", *words])
    except SystemExit as ended:
        code = int(ended.code or 0)
    assert code == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
