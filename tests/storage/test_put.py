"""Files of this machine into a store, and what is kept on this machine alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from s3_server import S3

from percmae.cli import verbs
from percmae.errors import UserError
from percmae.jobs import manifests
from percmae.storage import StorePath
from percmae.storage.put import put
from pipelines.__main__ import main


def files(folder: Path, **contents: str) -> list[str]:
    folder.mkdir(exist_ok=True)
    for name, text in contents.items():
        (folder / name).write_text(text)
    return [str(folder / name) for name in contents]


def test_files_are_put_once(s3: S3, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    uri, given = s3.uri("archives"), files(tmp_path, a="one", b="2" * (3 << 20))
    for _ in range(2):
        assert verbs.main(["put", *given, "--to", uri]) == 0
        out, err = capsys.readouterr()
        assert out.splitlines() == [f"{uri}/a", f"{uri}/b"]
    assert err.count("there already, with this size") == 2
    assert (StorePath(uri) / "b").read_text() == "2" * (3 << 20)


def test_another_file_of_that_name_is_not_replaced_unasked(s3: S3, tmp_path: Path) -> None:
    uri = s3.uri("archives")
    put(files(tmp_path, a="one"), uri)
    with pytest.raises(UserError, match=r"a is there with 3 bytes, .* has 4: --force replaces it"):
        put(files(tmp_path, z="z", a="four"), uri)
    assert [entry.name for entry in StorePath(uri).iter()] == ["a"], "nothing was begun"
    put(files(tmp_path, a="four"), uri, force=True)
    put(files(tmp_path, a="FOUR"), uri, force=True)
    assert (StorePath(uri) / "a").read_text() == "FOUR"


@pytest.mark.parametrize(
    ("given", "to", "message"),
    [
        (["none"], "s3://bucket/x", "none: there is no such file"),
        (["a"], "elsewhere", "--to elsewhere: give a folder in a store"),
        (["a", "more/a"], "s3://bucket/x", "two files are called a"),
        (["s3://bucket/a"], "s3://bucket/x", "FILE s3://bucket/a: is kept on this machine"),
    ],
)
def test_what_cannot_be_put(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: list[str], to: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    files(tmp_path, a="one")
    files(tmp_path / "more", a="one")
    with pytest.raises(UserError, match=message):
        put(given, to)


@pytest.mark.parametrize("command", ["run", "compare", "compile", "manifests"])
def test_no_folder_is_called_as_a_store(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
) -> None:
    """What is written on this machine alone is not written into a folder ``s3:``."""
    monkeypatch.chdir(tmp_path)
    if command == "manifests":
        monkeypatch.setattr("sys.argv", ["manifests", "--to", "s3://bucket/x"])
        with pytest.raises(SystemExit) as ended:
            manifests.main()
        code = ended.value.code
    elif command == "compile":
        code = main(["compile", "--output", "s3://bucket/x", "--image", "i@sha256:" + "0" * 64])
    else:
        code = main([command, "--to", "s3://bucket/x"])
    assert code == 2
    assert "s3://bucket/x: is kept on this machine; give a path" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
