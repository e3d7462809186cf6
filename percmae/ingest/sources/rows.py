"""Rows of a table of images, whatever its format: (number, URI, label, split) as they stand."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

from percmae.errors import DataError, UserError, one_line
from percmae.storage import StorePath

_URI = ("uri", "image", "path", "file", "file_name", "url")
_LABEL = ("label", "class", "category")
_SPLIT = ("split",)
_SHOWN = 8  # columns of a table that has none of these


class Row(NamedTuple):
    """number: a line of the table counts from 1, a CSV's header too; None for an empty field."""

    number: int
    uri: Any
    label: Any
    split: Any


def rows_of(path: StorePath) -> Iterator[Row]:
    """All rows of a table, of the format that its name ends with. Raises DataError, and UserError
    where the package that reads Parquet is not installed."""
    ending = path.name.lower().rpartition(".")[2]
    with path.open() as file:
        if ending == "parquet":
            yield from _parquet(file, path)
        elif ending in ("csv", "tsv"):
            yield from _csv(file, "\t" if ending == "tsv" else ",", path)
        else:
            yield from _json_lines(file, path)


class _Columns:
    """Which of a table's columns are meant."""

    def __init__(self, names: Sequence[str], path: StorePath) -> None:
        place = {name.strip().lower(): k for k, name in reversed(list(enumerate(names)))}
        uri, self.label, self.split = (
            next((place[name] for name in known if name in place), None)
            for known in (_URI, _LABEL, _SPLIT)
        )
        if uri is None:
            found = ", ".join(repr(name.strip()) for name in names[:_SHOWN]) or "none"
            raise DataError(
                f"{path} has no column {_URI[0]} (or {', '.join(_URI[1:])}); its columns are "
                f"{found}: name the one with the images' URIs in the first row"
            )
        self.uri: int = uri

    def row(self, number: int, fields: Sequence[Any]) -> Row:
        label = None if self.label is None else fields[self.label]
        split = None if self.split is None else fields[self.split]
        return Row(number, fields[self.uri], label, split)


def _csv(file: BinaryIO, delimiter: str, path: StorePath) -> Iterator[Row]:
    text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
    rows = csv.reader(text, delimiter=delimiter, strict=True)
    columns, number, width = None, 0, 0
    try:
        for number, fields in enumerate(rows, start=1):
            if not fields:  # an empty line
                continue
            if columns is None:
                columns, width = _Columns(fields, path), len(fields)
                continue
            if len(fields) != width:
                raise DataError(
                    f"{path}, row {number}: {len(fields)} field(s), where the first row has "
                    f"{width}; a field with {delimiter!r} in it needs quotes"
                )
            yield columns.row(number, [field or None for field in fields])
    except csv.Error as error:
        raise DataError(f"{path}, row {number + 1}: {error}") from None
    except UnicodeDecodeError as error:
        raise _not_utf8(path, number + 1, error) from None
    finally:
        text.detach()
    if columns is None:
        raise DataError(f"{path} is empty; name the columns in the first row")


def _json_lines(file: BinaryIO, path: StorePath) -> Iterator[Row]:
    names: dict[str, None] = {}
    for number, line in enumerate(file, start=1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            content = json.loads(text) if text else None
        except UnicodeDecodeError as error:
            raise _not_utf8(path, number, error) from None
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}, row {number}: no JSON: {error}") from None
        if not text:
            continue
        if not isinstance(content, dict):
            raise DataError(f"{path}, row {number}: {text[:40]!r} is no JSON object")
        if not names or not names.keys() >= content.keys():
            names |= dict.fromkeys(content)
            columns = _Columns(list(names), path)
        yield columns.row(number, [content.get(name) for name in names])


def _parquet(file: BinaryIO, path: StorePath) -> Iterator[Row]:
    try:
        from pyarrow import ArrowException, parquet
    except ModuleNotFoundError:
        raise UserError(
            f"{path}: reading Parquet needs pyarrow: pip install 'percmae[parquet]'"
        ) from None
    try:
        table = parquet.ParquetFile(file)
        names = table.schema_arrow.names
        wanted = _Columns(names, path)
        places = [k for k in (wanted.uri, wanted.label, wanted.split) if k is not None]
        kept = [names[k] for k in places]
        columns, number = _Columns(kept, path), 0
        for batch in table.iter_batches(columns=kept):
            for fields in zip(*(batch.column(name).to_pylist() for name in kept), strict=True):
                number += 1
                yield columns.row(number, fields)
    except (ArrowException, OSError) as error:
        raise DataError(f"{path} is no Parquet file that can be read: {one_line(error)}") from None


def _not_utf8(path: StorePath, number: int, error: UnicodeDecodeError) -> DataError:
    return DataError(
        f"{path}, about row {number}: not UTF-8 text ({error.reason}); save it as UTF-8"
    )
