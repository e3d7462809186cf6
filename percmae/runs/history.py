"""``metrics.jsonl``: every figure a run has logged, a line each time."""

from __future__ import annotations

import json
from collections.abc import Mapping

from pydantic import ConfigDict, Field

from percmae.runs.files import Figure, Part, parse
from percmae.storage import StorePath

HISTORY = "metrics.jsonl"


class HistoryRow(Part):
    """Figures of one step (counted from 1) on one split; their names are further keys."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Figure] = Field(init=False)

    step: int
    epoch: float
    split: str

    @property
    def figures(self) -> Mapping[str, float | None]:
        """Value of each figure by name."""
        return self.__pydantic_extra__


class History:
    """A run's figures as they come.

    folder: the run's; step: where the run goes on (0 for a new one). Figures that an earlier,
    interrupted process logged beyond it are taken back, so no step is told twice. Raises DataError
    for a damaged file.
    """

    def __init__(self, folder: StorePath, step: int) -> None:
        self.path = folder / HISTORY
        rows = _rows(self.path) if step else []
        kept = [(line, row) for line, row in rows if row.step <= step]
        self._lines = [line for line, _ in kept]
        self.earlier = [row for _, row in kept]
        """What was there when it was opened, up to that step."""

    def add(self, step: int, epoch: float, split: str, figures: Mapping[str, float]) -> HistoryRow:
        """Take up figures; the row they make."""
        row = HistoryRow(step=step, epoch=round(epoch, 4), split=split, **figures)
        self._lines.append(json.dumps(row.model_dump()))
        return row

    def content(self) -> bytes:
        """All of them, as the file has to be: an object in a store cannot be appended to."""
        return "".join(line + "\n" for line in self._lines).encode()


def read_history(folder: StorePath) -> list[HistoryRow]:
    """Rows by step; of a step and split told twice the later one. None where nothing was logged.

    Raises DataError naming the line of a damaged file.
    """
    rows = {(row.split, row.step): row for _, row in _rows(folder / HISTORY)}
    return sorted(rows.values(), key=lambda row: row.step)


def _rows(path: StorePath) -> list[tuple[str, HistoryRow]]:
    """Lines and what they say."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [
        (line, parse(HistoryRow, line, f"{path.uri}, line {number}", "the file is damaged"))
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
