"""Tables of images as sources."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from source_forms import contents, opened, put, refused, rows, told

from percmae.ingest.sources import table as table_module
from percmae.storage import StorePath

IMAGES = contents("in/1.jpg", "in/2.png", "in/deep/3.jpg")


def csv_of(columns: Sequence[str], *lines: Sequence[Any]) -> bytes:
    return b"".join(
        ",".join("" if value is None else str(value) for value in line).encode() + b"\n"
        for line in (columns, *lines)
    )


def tsv_of(columns: Sequence[str], *lines: Sequence[Any]) -> bytes:
    return csv_of(columns, *lines).replace(b",", b"\t")


def json_of(columns: Sequence[str], *lines: Sequence[Any]) -> bytes:
    return b"".join(
        json.dumps({k: v for k, v in zip(columns, line, strict=True) if v is not None}).encode()
        + b"\n"
        for line in lines
    )


def parquet_of(columns: Sequence[str], *lines: Sequence[Any]) -> bytes:
    sink = pa.BufferOutputStream()
    table = {name: [line[k] for line in lines] for k, name in enumerate(columns)}
    pq.write_table(pa.table(table), sink)
    return sink.getvalue().to_pybytes()


FORMATS: dict[str, Callable[..., bytes]] = {
    "csv": csv_of,
    "tsv": tsv_of,
    "jsonl": json_of,
    "ndjson": json_of,
    "parquet": parquet_of,
}


@pytest.mark.parametrize("ending", FORMATS)
def test_a_table_of_each_kind(tmp_store: StorePath, ending: str) -> None:
    put(tmp_store, IMAGES)
    whole = tmp_store / "in/deep/3.jpg"
    data = FORMATS[ending](
        ("label", "uri", "split"),
        ("dog", "in/1.jpg", "train"),
        (None, "./in//2.png", "validation"),
        ("cat", whole.uri, None),
    )
    (tmp_store / f"t.{ending}").write_bytes(data)
    catalogue = opened(tmp_store / f"t.{ending}")
    assert [c.name for c in catalogue.classes] == ["cat", "dog"]
    assert rows(catalogue) == {
        "in/1_jpg": ("dog", "hash", IMAGES["in/1.jpg"]),
        "in/2_png": ("", "val", IMAGES["in/2.png"]),
        "in/deep/3_jpg": ("cat", "hash", IMAGES["in/deep/3.jpg"]),
    }
    assert catalogue.notes == ["1 of 3 images have no label"]
    assert catalogue.name(1) == "in/2.png"
    (source,) = catalogue.sources
    assert (source["kind"], source["name"], source["images"]) == ("table", f"t.{ending}", 3)


def test_its_stamps_are_those_of_the_folder(tmp_store: StorePath) -> None:
    put(tmp_store / "x", IMAGES)
    (tmp_store / "t.csv").write_bytes(csv_of(["uri"], *([f"x/{name}"] for name in IMAGES)))
    table, folder = opened(tmp_store / "t.csv"), opened(tmp_store / "x", labels="none")
    assert table.columns.stamps.tolist() == folder.columns.stamps.tolist()
    assert table.columns.sizes.tolist() == folder.columns.sizes.tolist()


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("column", ["uri", "image", "path", "file", "file_name", "URL"])
def test_names_of_columns(tmp_path: Path, ending: str, column: str) -> None:
    put(StorePath(tmp_path), IMAGES)
    data = FORMATS[ending](("x", column, "Category"), (1, "in/1.jpg", "a"), (2, "in/2.png", "b"))
    (tmp_path / f"t.{ending}").write_bytes(data)
    found = told(opened(tmp_path / f"t.{ending}"))
    assert {label for label, _ in found.values()} == {"a", "b"}


@pytest.mark.parametrize("ending", FORMATS)
def test_labels_that_are_numbers(tmp_path: Path, ending: str) -> None:
    put(StorePath(tmp_path), IMAGES)
    lines = [(name, label) for name, label in zip(IMAGES, (10, 2, 10), strict=True)]
    (tmp_path / f"t.{ending}").write_bytes(FORMATS[ending](("path", "label"), *lines))
    catalogue = opened(tmp_path / f"t.{ending}")
    assert [c.name for c in catalogue.classes] == ["2", "10"]
    assert told(catalogue)["in/2_png"] == ("2", "hash")


def test_numbers_with_leading_zeros_or_many_digits_are_words(tmp_path: Path) -> None:
    put(StorePath(tmp_path), IMAGES)
    lines = zip(IMAGES, ("007", "2000123", "3"), strict=True)
    (tmp_path / "t.csv").write_bytes(csv_of(("path", "label"), *lines))
    assert [c.name for c in opened(tmp_path / "t.csv").classes] == ["007", "2000123", "3"]


def test_a_column_of_labels_half_empty_or_not_wanted(tmp_path: Path) -> None:
    put(StorePath(tmp_path), IMAGES)
    lines = zip(IMAGES, ("a", "", " "), strict=True)
    (tmp_path / "t.csv").write_bytes(csv_of(("path", "label"), *lines))
    catalogue = opened(tmp_path / "t.csv")
    assert [label for label, _ in told(catalogue).values()] == ["a", "", ""]
    assert catalogue.notes == ["2 of 3 images have no label"]
    catalogue = opened(tmp_path / "t.csv", labels="none")
    assert (catalogue.classes, catalogue.notes) == ([], [])
    refused(tmp_path / "t.csv", "--labels folders is for folders", labels="folders")


def test_text_as_spreadsheets_write_it(tmp_path: Path) -> None:
    put(StorePath(tmp_path), contents("a, b.jpg", 'say "x".jpg', "ü.jpg"))
    text = '\ufeffimage,label\r\n"a, b.jpg",x\r\n\r\n"say ""x"".jpg","y\nz"\r\nü.jpg,x\r\n'
    (tmp_path / "t.csv").write_bytes(text.encode())
    assert told(opened(tmp_path / "t.csv")) == {
        "a, b_jpg": ("x", "hash"),
        'say "x"_jpg': ("y\nz", "hash"),
        "ü_jpg": ("x", "hash"),
    }
    (tmp_path / "t.jsonl").write_bytes('\ufeff{"image": "ü.jpg"}\r\n\r\n'.encode())
    assert [*told(opened(tmp_path / "t.jsonl"))] == ["ü_jpg"]


def test_images_elsewhere(tmp_path: Path, s3: Any) -> None:
    elsewhere = put(StorePath(s3.uri("images")), contents("a/1.jpg", "noending"))
    put(StorePath(tmp_path / "beside"), contents("2.jpg"))
    lines = [[f"{elsewhere}/a/1.jpg"], ["../beside/2.jpg"], [f"{elsewhere}/noending"]]
    table = StorePath(tmp_path / "tables/t.csv")
    table.write_bytes(csv_of(["uri"], *lines))
    found = rows(opened(table))
    prefix = elsewhere.uri.removeprefix("s3://")
    assert found[f"{prefix}/a/1_jpg"][2] == b"content of a/1.jpg"
    assert found[f"{prefix}/noending"][2] == b"content of noending"
    assert found[f"{tmp_path}/beside/2_jpg".lstrip("/")][2] == b"content of 2.jpg"
    above = StorePath(s3.uri("tables")) / "t.csv"
    above.write_bytes(csv_of(["uri"], [f"../{elsewhere.name}/a/1.jpg"]))
    assert [data for *_, data in rows(opened(above)).values()] == [b"content of a/1.jpg"]
    above.write_bytes(csv_of(["uri"], ["../../../x.jpg"]))
    refused(above, "row 2:")


def test_many_images_of_a_folder_are_listed_and_not_looked_at_one_by_one(
    s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = put(StorePath(s3.uri("many")), contents(*(f"a/{n}.jpg" for n in range(6)), "b/1.jpg"))
    lines = [[f"a/{n}.jpg"] for n in range(6)] + [["b/1.jpg"]]
    (root / "t.csv").write_bytes(csv_of(["uri"], *lines))
    expected = opened(root / "t.csv").columns
    monkeypatch.setattr(table_module, "_LISTED_FROM", 5)
    looked_at: list[StorePath] = []
    look = table_module._stat
    monkeypatch.setattr(table_module, "_stat", lambda p: (looked_at.append(p), look(p))[1])
    found = opened(root / "t.csv").columns
    assert looked_at == [root / "b/1.jpg"]
    assert found.stamps.tolist() == expected.stamps.tolist()
    assert found.sizes.tolist() == expected.sizes.tolist()
    (root / "a/3.jpg").delete()
    refused(root / "t.csv", "row 5: a/3.jpg is not there; check the table")


# Faults -----------------------------------------------------------------------------------------

WRONG = [
    (
        [("https://example.org/1.jpg", "a", "")],
        "row 3: 'https://example.org/1.jpg' is not in a sto",
    ),
    ([("gs://bucket/1.jpg", "a", "")], "row 3: 'gs://bucket/1.jpg' is not in a store: download"),
    ([("s3://B/1.jpg", "a", "")], "row 3: 's3://B/1.jpg' needs a bucket name"),
    ([("", "a", "")], "row 3: no URI; a path or s3://bucket/key is due"),
    ([("in/1.jpg", "a", "")], "row 3: in/1.jpg comes twice (first in row 2)"),
    ([("in/../in/1.jpg", "b", "")], "row 3: in/1.jpg comes twice (first in row 2)"),
    ([("in", "a", "")], "row 3: in is not there"),
    ([("absent.jpg", "a", ""), ("gone.jpg", "", "")], "row 3: absent.jpg is not there (nor are"),
    ([("in/2.png", "a", "dev")], "row 3: unknown split 'dev': choose from train, val"),
    ([("in/2.png", "a")], "row 3: 2 field(s), where the first row has 3"),
]


@pytest.mark.parametrize(("lines", "said"), WRONG, ids=[said[:30] for _, said in WRONG])
def test_wrong_rows(tmp_path: Path, lines: list[tuple[str, ...]], said: str) -> None:
    put(StorePath(tmp_path), IMAGES)
    data = csv_of(("uri", "label", "split"), ("in/1.jpg", "a", "train"), *lines)
    (tmp_path / "t.csv").write_bytes(data)
    refused(tmp_path / "t.csv", f"{tmp_path}/t.csv, {said}")


def test_rows_are_counted_as_editors_show_them(tmp_path: Path) -> None:
    put(StorePath(tmp_path), IMAGES)
    bad = "http://x/1.jpg"
    for name, data, row in (
        ("a.jsonl", b'{"uri": "in/1.jpg"}\n\n{"uri": "%s"}\n' % bad.encode(), 3),
        ("a.csv", b"uri\nin/1.jpg\n\n%s\n" % bad.encode(), 4),
        ("a.parquet", parquet_of(["uri"], ["in/1.jpg"], [bad]), 2),
    ):
        (tmp_path / name).write_bytes(data)
        refused(tmp_path / name, f"{name}, row {row}: '{bad}'")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("t.csv", b"", "is empty; name the columns in the first row"),
        ("t.csv", b"uri\n", "has no rows with images"),
        ("t.csv", b"in/1.jpg,a\n", "has no column uri (or image, path, file, file_name, url); its"),
        ("t.csv", b'uri\n"in/1.jpg\n', "row 2: unexpected end of data"),
        ("t.csv", b"uri\n\xff\xfe\n", "not UTF-8 text"),
        ("t.csv", "uri\nx\n".encode("utf-16"), "not UTF-8 text"),
        ("t.jsonl", b'{"uri": "in/1.jpg"}\n{"uri"\n', "row 2: no JSON"),
        ("t.jsonl", b'["in/1.jpg"]\n', "row 1: '[\"in/1.jpg\"]' is no JSON object"),
        ("t.jsonl", b'{"uri": 3}\n', "row 1: 3 is no URI"),
        ("t.jsonl", b'{"uri": "in/1.jpg", "label": 1.5}\n', "row 1: 1.5 is no label"),
        ("t.jsonl", b'{"uri": "in/1.jpg", "label": -1}\n', "row 1: -1 is no label"),
        ("t.jsonl", b'{"uri": "in/1.jpg"}\n\xff\n', "row 2: not UTF-8 text"),
        ("t.jsonl", b'{"uri": "in/1.jpg"}\n{"label": "a"}\n', "row 2: no URI"),
        ("t.jsonl", b'{"uri": "a\\u0000.jpg"}\n', "row 1: "),
        ("t.parquet", b"PAR1 and no more", "is no Parquet file that can be read"),
        ("t.parquet", parquet_of(["x"], ["y"]), "has no column uri"),
        ("t.parquet", parquet_of(["image"], [{"bytes": b"x"}]), "row 1: {'bytes': b'x'} is no URI"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_tables_that_are_wrong(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    put(StorePath(tmp_path), IMAGES)
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, f"{tmp_path}/{name}", said)


def test_parquet_without_the_package_that_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "t.parquet").write_bytes(parquet_of(["uri"], ["x"]))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    refused(tmp_path / "t.parquet", "pip install 'percmae[parquet]'")
