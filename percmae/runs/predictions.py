"""``predictions.json``: what a classifier answers for each test image.

Two files of the same test images say on which of them two classifiers differ, whatever has become
of the runs.
"""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from percmae.errors import DataError
from percmae.runs.files import Part, parse
from percmae.storage import StorePath

PREDICTIONS = "predictions.json"
_AGAIN = "evaluate the run again"


class Class(Part):
    """One class by its two names."""

    wnid: str
    name: str


class Predictions(Part):
    """The answers of one state of a run's weights.

    key: of the run; test: digest of the test images (percmae.data.split_digest); keys: their names
    in the dataset; labels, predicted: of each, its class and the first answer, as places in
    ``classes``.
    """

    format: Literal["percmae-predictions/1"] = "percmae-predictions/1"
    key: str
    test: str
    classes: list[Class]
    keys: list[str]
    labels: list[int]
    predicted: list[int]

    @model_validator(mode="after")
    def _fits(self) -> Predictions:
        if not len(self.keys) == len(self.labels) == len(self.predicted):
            raise ValueError("keys, labels and predicted must be of the same length")
        known = range(len(self.classes))
        if not all(label in known for label in {*self.labels, *self.predicted}):
            raise ValueError(f"labels and predicted must be below {len(known)}")
        return self


def parse_predictions(data: bytes, where: str) -> Predictions:
    """Raises DataError, naming ``where``, for damaged content."""
    return parse(Predictions, data, where, _AGAIN)


def read_predictions(folder: StorePath, key: str) -> Predictions:
    """The answers in a run's folder.

    Raises DataError where there are none, for a damaged file and for other weights than the run's.
    """
    path = folder / PREDICTIONS
    if not path.exists():
        raise DataError(f"{path} is missing; {_AGAIN}")
    found = parse_predictions(path.read_bytes(), path.uri)
    if found.key != key:
        raise DataError(f"{path}: it is of other weights than the run's; {_AGAIN}")
    return found


def write_predictions(folder: StorePath, predictions: Predictions) -> None:
    """Put the answers into a run's folder: in one line, for there may be many."""
    (folder / PREDICTIONS).write_bytes(predictions.model_dump_json().encode() + b"\n")
