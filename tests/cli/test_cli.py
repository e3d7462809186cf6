"""The command line as scripts use it: last lines, exit codes, one-line errors."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch

from percmae.cli.verbs import main
from percmae.data.sample import SampleArchives
from percmae.data.shards import Dataset
from percmae.storage import StorePath

VERBS = ["run", "compare", "sample-data", "ingest", "pretrain", "finetune", "probe", "evaluate"]
VERBS += ["reconstruct", "predict", "embed", "report", "export", "import", "gc", "store"]
VERBS += ["config", "doctor"]
QUICK = [
    "optim.max_steps=2",
    "data.workers=0",
    "trainer.threads=1",
    "data.batch_size=32",
    "model.encoder.depth=1",
    "model.decoder.depth=1",
    "trainer.val_samples=32",
]


def call(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of one command, in this process."""
    try:
        code = main(list(args))
    except SystemExit as error:
        code = int(error.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def percmae(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "percmae", *args],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture
def threads() -> Any:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_help_names_every_verb_and_loads_nothing_heavy() -> None:
    shown = percmae("--help")
    assert shown.returncode == 0
    for verb in VERBS:
        assert re.search(rf"^ +{verb}  +[a-z]", shown.stdout, re.MULTILINE), verb
    code = (
        "import sys; from percmae.cli.verbs import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'kfp', 'minio', 'pydantic', 'yaml', 'matplotlib'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    probe = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert probe.stderr.strip() == "[]"


def test_every_verb_has_its_own_help(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in VERBS:
        if verb not in ("run", "compare"):  # the pipeline's own parser, tested there
            code, out, _ = call(capsys, verb, "--help")
            assert code == 0
            assert out.startswith(f"usage: percmae {verb}")


def test_the_whole_contract(
    capsys: pytest.CaptureFixture[str],
    sample_archives: SampleArchives,
    s3: Any,
    tmp_path: Path,
    threads: None,
) -> None:
    """Every verb in turn, results by s3:// URIs, each last line feeding the next call."""
    a, store = sample_archives, s3.uri("contract")

    def last(*args: str) -> str:
        code, out, err = call(capsys, *args)
        assert code == 0, err
        return out.splitlines()[-1]

    data = last(
        "ingest", "--train", str(a.train), "--val", str(a.val), "--devkit", str(a.devkit),
        "--to", f"{store}/dataset",
    )  # fmt: skip
    assert data == f"{store}/dataset/manifest.json"
    common = ["--data", data, "--to", f"{store}/runs"]
    run = last("pretrain", *common, "--recipe", "demo", "--tag", "t", "--variant", "ssim", *QUICK)
    assert run == f"{store}/runs/t_ssim"
    downstream = [q for q in QUICK if not q.startswith("model")]
    probe = last("probe", "--run", run, *common, *downstream)
    assert probe == f"{store}/runs/t_ssim_probe"
    # Settings may stand before the options as well.
    tuned = last("finetune", *downstream, "--run", run, *common)
    assert tuned == f"{store}/runs/t_ssim_finetune"
    figures = json.loads(last("evaluate", "--run", probe, "--data", data, "--json"))
    assert 0 <= figures["top1"] <= figures["top5"] <= 1
    assert figures["samples"] == {
        name: len(Dataset.open(data).split(name)) for name in ("train", "val", "test")
    }
    picture = tmp_path / "picture.png"
    from PIL import Image

    Image.new("L", (28, 28), 200).save(tmp_path / "image.png")
    assert last(
        "reconstruct", "--run", run, "--images", str(tmp_path / "image.png"), "--to", str(picture)
    ) == str(picture)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert last("report", "--runs", run, probe, tuned, "--to", str(tmp_path / "r")).endswith("html")
    assert (tmp_path / "r" / "report.html").exists()
    for form, file in (("mae", "mae.pth"), ("safetensors", "all.safetensors")):
        args = ["export", "--run", run, "--format", form, "--to", f"{store}/{file}"]
        assert last(*args) == f"{store}/{file}"
        code, out, err = call(capsys, *args)
        assert (code, out) == (2, "")
        assert err.count("--force") == len(err.splitlines()) == 1
        imported = str(tmp_path / f"{form}.safetensors")
        assert last("import", "--weights", f"{store}/{file}", "--to", imported) == (
            f"model.init_from={imported}"
        )
    code, out, _ = call(capsys, "config", "diff", run, probe)
    assert code == 0
    assert 'stage: "pretrain" → "probe"' in out


def test_config_show(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "config", "show", "--recipe", "demo", "--origin", "optim.epochs=3")
    assert code == 0
    line = next(text for text in out.splitlines() if text.startswith("optim.epochs="))
    assert line.split() == ["optim.epochs=3", "#", "command", "line"]
    assert out.splitlines()[-1].startswith("# digest: sha256:")
    code, out, _ = call(capsys, "config", "show", "--docs")
    assert "optim.layer_decay" in out


def truncated(archive: Path, to: Path) -> Path:
    to.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
    return to


def traversing(to: Path) -> Path:
    with tarfile.open(to, "w") as tar:
        member = tarfile.TarInfo("../../etc/n00000001.tar")
        tar.addfile(member)
    return to


@pytest.mark.parametrize(
    "fault", ["absent", "truncated", "traversal", "devkit", "bucket", "key", "server"]
)
def test_bad_archives_and_stores(
    capsys: pytest.CaptureFixture[str],
    sample_archives: SampleArchives,
    s3: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
) -> None:
    a = sample_archives
    train: Path | str = a.train
    devkit, to = a.devkit, str(tmp_path / "dataset")
    words = {
        "absent": "nowhere.tar",
        "truncated": "train.tar",
        "traversal": "..",
        "devkit": str(a.val),
        "bucket": "no-such-bucket",
        "key": "key",
        "server": "127.0.0.1:9",
    }[fault]
    if fault == "absent":
        train = tmp_path / "nowhere.tar"
    elif fault == "truncated":
        train = truncated(a.train, tmp_path / "train.tar")
    elif fault == "traversal":
        train = traversing(tmp_path / "evil.tar")
    elif fault == "devkit":
        devkit = a.val
    elif fault == "bucket":
        s3.uri("bad")  # a store that answers, but holds no such bucket
        train = "s3://no-such-bucket/train.tar"
    else:
        to = s3.uri("bad")
        if fault == "key":
            monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        else:
            monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
            monkeypatch.setenv("PERCMAE_STORE_RETRY_SECONDS", "1")
    code, out, err = call(
        capsys, "ingest", "--train", str(train), "--val", str(a.val), "--devkit", str(devkit),
        "--to", to,
    )  # fmt: skip
    assert code == (140 if fault == "server" else 2)
    assert out == ""
    error = [line for line in err.splitlines() if line.startswith("percmae: error:")]
    assert len(error) == 1
    assert words in error[0]
    assert "Traceback" not in err
    assert not (tmp_path / "dataset" / "manifest.json").exists()


def test_bad_settings(
    capsys: pytest.CaptureFixture[str], sample_dataset: Dataset, tmp_path: Path
) -> None:
    common = ["--data", sample_dataset.uri, "--to", str(tmp_path / "runs"), "--recipe", "demo"]
    for args, words in (
        (["optim.epoch=3"], "optim.epochs"),
        (["optim.epochs=three"], "optim.epochs"),
        (["data.batch_size=0"], "data.batch_size=0"),
        (["--variant", "maee"], "unknown variant 'maee'"),
        (["--data", str(tmp_path / "no.json")], "no.json"),
    ):
        code, out, err = call(capsys, "pretrain", *common, *args)
        assert (code, out) == (2, "")
        assert words in err
        assert len(err.splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_usage_errors_exit_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    for args in ([], ["pretrain"], ["dance"], ["evaluate", "--run", "a", "--data", "b", "x=1"]):
        code, out, err = call(capsys, *args)
        assert (code, out) == (2, "")
        assert "usage:" in err


def test_doctor_looks_at_this_machine(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    code, out, _ = call(capsys, "doctor")
    assert code == 0
    assert "ok      torch: " in out
    assert "absent  S3 settings: no object store is configured: set AWS_ENDPOINT_URL" in out


def test_doctor_says_which_keys_and_which_proxy(
    s3: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    StorePath("s3://percmae").prepare()
    _, out, _ = call(capsys, "doctor")
    named = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    assert f"ok      S3 keys: {s3.settings.who}, from {named}\n" in out
    assert f"ok      S3 store: {s3.endpoint} answers\n" in out
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://store.behind.test")
    monkeypatch.setenv("HTTP_PROXY", "http://me:s3cret@127.0.0.1:1")
    monkeypatch.setenv("PERCMAE_STORE_RETRY_SECONDS", "0.2")
    _, out, _ = call(capsys, "doctor")
    assert "through the proxy http://127.0.0.1:1 (HTTP_PROXY)" in out
    assert "s3cret" not in out
