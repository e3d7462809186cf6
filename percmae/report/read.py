"""Reads run folders from the store: what a report is made of, checked, as plain values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from percmae.errors import DataError, UserError
from percmae.runs.evaluation import (
    EVALUATION_PICTURE,
    NEIGHBOURS_PICTURE,
    ClassifierEvaluation,
    Evaluation,
    ReconstructionEvaluation,
    read_evaluation,
)
from percmae.runs.history import HistoryRow, read_history
from percmae.runs.record import CONFIG, PICTURES, RunRecord, read_record
from percmae.storage import StorePath

Axis = Literal["step", "epoch"]


@dataclass(frozen=True)
class StoredPicture:
    """A PNG of the store: its address, its bytes and its size in pixels."""

    uri: str
    data: bytes
    width: int
    height: int


@dataclass(frozen=True)
class ReportedRun:
    """What a report takes of one run's folder.

    ``config`` is the text of config.yaml (None when absent), ``history`` the rows of metrics.jsonl
    by step, ``evaluation`` None before ``percmae evaluate``, ``picture`` the reconstructions of a
    pretraining run (None when it has none), ``neighbours`` likewise, of its features.
    """

    uri: str
    record: RunRecord
    config: str | None
    history: list[HistoryRow]
    evaluation: Evaluation | None
    picture: StoredPicture | None
    neighbours: StoredPicture | None = None

    @property
    def name(self) -> str:
        return self.record.name

    @property
    def stage(self) -> str:
        return self.record.stage

    @property
    def variant(self) -> str:
        return self.record.variant

    @property
    def seed(self) -> int:
        return self.record.seed

    @property
    def kind(self) -> str:
        """``pretrain``, or what is built upon it, as in the run's name behind the pretraining's."""
        return str(self.record.kind)

    @property
    def complete(self) -> bool:
        return self.record.status == "complete"

    @property
    def judged(self) -> ClassifierEvaluation | None:
        """Test figures of a classifier, if it has been evaluated."""
        found = self.evaluation
        return found if isinstance(found, ClassifierEvaluation) else None

    @property
    def told(self) -> ReconstructionEvaluation | None:
        """Test figures of a pretraining, if it has been evaluated."""
        found = self.evaluation
        return found if isinstance(found, ReconstructionEvaluation) else None

    def curve(self, split: str, key: str, x: Axis = "step") -> list[tuple[float, float]]:
        """``(x, value)`` of one logged figure, by step; rows without it are left out."""
        rows = (row for row in self.history if row.split == split)
        pairs = ((getattr(row, x), row.figures.get(key)) for row in rows)
        return [(at, value) for at, value in pairs if value is not None]


def read_run(uri: str) -> ReportedRun:
    """Read one run folder (path or s3:// URI).

    Raises DataError naming the file for a folder that is no run and for a damaged file, StoreError
    when the store cannot be reached.
    """
    folder = StorePath(uri)
    record = read_record(folder)
    config = folder / CONFIG
    pretrain = record.stage == "pretrain"
    return ReportedRun(
        uri=folder.uri,
        record=record,
        config=config.read_text() if config.exists() else None,
        history=read_history(folder),
        evaluation=read_evaluation(folder, record),
        picture=read_picture(folder) if pretrain else None,
        neighbours=read_neighbours(folder) if pretrain else None,
    )


def read_picture(run: StorePath) -> StoredPicture | None:
    """The grid that evaluate made of a run or, before that, the last one of its training.

    Raises DataError for a damaged one.
    """
    folder = run / PICTURES
    path = folder / EVALUATION_PICTURE
    if not path.exists():
        names = (entry for entry in folder.iter() if entry.name.startswith("step-"))
        steps = [entry.path for entry in names if entry.name.endswith(".png")]
        if not steps:
            return None
        path = max(steps, key=lambda step: step.name)
    return _read_png(path)


def read_neighbours(run: StorePath) -> StoredPicture | None:
    """The gallery of nearest neighbours that evaluate made of a run; raises as read_picture."""
    path = run / PICTURES / NEIGHBOURS_PICTURE
    return _read_png(path) if path.exists() else None


def _read_png(path: StorePath) -> StoredPicture:
    from percmae.data.decode import decode

    data = path.read_bytes()
    try:
        width, height = decode(data, name="it", formats=["PNG"]).size
    except DataError as error:
        raise DataError(
            f"{path.uri} is not a PNG image ({error}); evaluate the run again"
        ) from None
    return StoredPicture(path.uri, data, width, height)


def read_runs(uris: list[str]) -> list[ReportedRun]:
    """Read run folders and check that they belong in one report.

    Raises UserError for no runs at all, for two runs of one stage and seed, and for runs whose
    figures cannot stand side by side (another variant, another data set, another test split).
    """
    if not uris:
        raise UserError("report needs at least one run; give the address of a run folder")
    runs = [read_run(uri) for uri in uris]
    seen: dict[tuple[str, int], ReportedRun] = {}
    for run in runs:
        twin = seen.setdefault((run.kind, run.seed), run)
        if twin is not run:
            raise UserError(
                f"{twin.uri} and {run.uri} are both {run.kind} runs of seed {run.seed}; "
                "give one of the two"
            )
        if run.variant != runs[0].variant:
            raise UserError(
                f"{run.uri} is of variant {run.variant}, {runs[0].uri} of {runs[0].variant}; make "
                "one report for each variant"
            )
    check_same_test(runs)
    return sorted(runs, key=lambda run: run.seed)


def check_same_test(runs: list[ReportedRun]) -> None:
    """Raise UserError unless all classifiers among the runs were judged on the same test images."""
    judged = [(run, _test_identity(run.judged)) for run in runs if run.judged is not None]
    for run, identity in judged[1:]:
        first, expected = judged[0]
        if identity != expected:
            raise UserError(
                f"{run.uri} and {first.uri} were evaluated on different test images; evaluate "
                "them on the same data set, or make a report for each"
            )


def _test_identity(judged: ClassifierEvaluation) -> tuple[str, int, list[str]]:
    return judged.data.digest, judged.samples.test, [item.wnid for item in judged.classes]
