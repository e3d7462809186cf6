"""Reads run folders from the store: what a report is made of, checked, as plain values."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from percmae.errors import DataError, UserError
from percmae.storage import StorePath

RUN_FORMAT = "percmae-run/1"
EVALUATION_FORMAT = "percmae-evaluation/1"
STAGES = ("pretrain", "probe", "finetune")

Json = dict[str, Any]


@dataclass(frozen=True)
class Picture:
    """A PNG of the store: its address, its bytes and its size in pixels."""

    uri: str
    data: bytes
    width: int
    height: int


@dataclass(frozen=True)
class Run:
    """One run folder.

    ``info`` is run.json, ``config`` the text of config.yaml (None when absent), ``metrics`` the
    rows of metrics.jsonl by step, ``evaluation`` evaluation.json (None before ``percmae
    evaluate``), ``picture`` the reconstruction grid of a pretraining run (None when it has none).
    """

    uri: str
    info: Json
    config: str | None
    metrics: list[Json]
    evaluation: Json | None
    picture: Picture | None

    @property
    def name(self) -> str:
        return str(self.info["name"])

    @property
    def stage(self) -> str:
        return str(self.info["stage"])

    @property
    def seed(self) -> int:
        return int(self.info["seed"])

    @property
    def kind(self) -> str:
        """The stage, with ``_untrained`` behind it for the control on an untrained encoder."""
        return f"{self.stage}_untrained" if self.info.get("baseline") else self.stage

    @property
    def complete(self) -> bool:
        return self.info.get("status") == "complete"

    def curve(self, split: str, key: str, x: str = "step") -> list[tuple[float, float]]:
        """``(x, value)`` of one logged figure, by step; rows without the two are left out."""
        rows = (row for row in self.metrics if row["split"] == split)
        pairs = ((_number(row.get(x)), _number(row.get(key))) for row in rows)
        return [(a, b) for a, b in pairs if a is not None and b is not None]


def read_run(uri: str) -> Run:
    """Read one run folder (path or s3:// URI).

    Raises DataError naming the file for a folder that is no run and for a damaged file, StoreError
    when the store cannot be reached.
    """
    folder = StorePath(uri)
    info = _json(folder / "run.json")
    if info is None:
        raise DataError(
            f"{folder.uri} is not a run: it has no run.json; give the folder that the training "
            "printed as its last line"
        )
    _check_info(folder / "run.json", info)
    evaluation = _json(folder / "evaluation.json")
    if evaluation is not None:
        _check_evaluation(folder / "evaluation.json", evaluation, info)
    pretrain = info["stage"] == "pretrain"
    return Run(
        uri=folder.uri,
        info=info,
        config=_text(folder / "config.yaml"),
        metrics=_metrics(folder / "metrics.jsonl"),
        evaluation=evaluation,
        picture=_picture(folder / "mae_recon_out") if pretrain else None,
    )


def clean(value: Any) -> Any:
    """The same value with None in place of NaN and infinity, which JSON does not have."""
    if isinstance(value, Mapping):
        return {str(key): clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [clean(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def _text(path: StorePath) -> str | None:
    return path.read_text() if path.exists() else None


def _json(path: StorePath) -> Json | None:
    text = _text(path)
    if text is None:
        return None
    try:
        value = json.loads(text)
    except ValueError as error:
        raise DataError(f"{path.uri} is not JSON ({error}); the file is damaged") from None
    if not isinstance(value, dict):
        raise DataError(f"{path.uri} is not a JSON object; the file is damaged")
    return dict(clean(value))


def _check_info(path: StorePath, info: Json) -> None:
    _check_format(path, info, RUN_FORMAT)
    _check_types(path, info, {"name": str, "stage": str, "variant": str, "seed": int})
    if info["stage"] not in STAGES:
        raise DataError(f"{path.uri}: unknown stage {info['stage']!r}; one of: {', '.join(STAGES)}")


def _check_evaluation(path: StorePath, evaluation: Json, info: Json) -> None:
    _check_format(path, evaluation, EVALUATION_FORMAT)
    # The training key too, where both tell it: the folder may have been trained anew since.
    for key in ("stage", "seed", "baseline", "key"):
        ours, theirs = info.get(key, False), evaluation.get(key, False)
        if theirs != ours and (key != "key" or (ours and theirs)):
            raise DataError(
                f"{path.uri}: its {key} is {theirs!r} but the run's is {ours!r}; evaluate the run "
                "again"
            )
    if info["stage"] == "pretrain":
        _check_types(path, evaluation, {"reconstruction": dict})
        _check_figures(path, evaluation["reconstruction"], ("psnr", "ssim"))
        return
    _check_figures(path, evaluation, ("ece", "loss"))
    wanted = {"data": dict, "samples": dict, "top1": float, "top5": float, "random_guess": dict}
    _check_types(path, evaluation, {**wanted, "classes": list, "confusion": list})
    _check_types(path, evaluation["samples"], {"test": int})
    _check_types(path, evaluation["random_guess"], {"top1": float, "top5": float})
    _check_classes(path, evaluation)


def _check_classes(path: StorePath, evaluation: Json) -> None:
    classes, confusion = evaluation["classes"], evaluation["confusion"]
    for item in classes:
        if not isinstance(item, dict):
            raise DataError(f"{path.uri}: classes must be objects; evaluate the run again")
        _check_types(path, item, {"wnid": str, "name": str, "samples": int})
        _check_figures(path, item, ("top1",))
    if len(confusion) != len(classes) or any(
        not isinstance(row, list) or len(row) != len(classes) for row in confusion
    ):
        raise DataError(
            f"{path.uri}: confusion must have a row and a column for each of the "
            f"{len(classes)} classes; evaluate the run again"
        )


def _check_format(path: StorePath, value: Json, wanted: str) -> None:
    if value.get("format") != wanted:
        raise DataError(
            f"{path.uri}: format is {value.get('format')!r}, this percmae reads {wanted!r}"
        )


def _check_types(path: StorePath, value: Json, wanted: Mapping[str, type]) -> None:
    for key, kind in wanted.items():
        given = value.get(key)
        accepted = (int, float) if kind is float else kind
        if not isinstance(given, accepted) or isinstance(given, bool):
            raise DataError(
                f"{path.uri}: {key} must be {kind.__name__}, not {given!r}; the file is damaged"
            )


def _check_figures(path: StorePath, value: Json, keys: tuple[str, ...]) -> None:
    """Figures that may be absent or not finite (None by now), but not of another type."""
    _check_types(path, value, {key: float for key in keys if value.get(key) is not None})


def _metrics(path: StorePath) -> list[Json]:
    """Rows in the order of their steps; of a step logged twice (a resumed run) the later row."""
    rows: dict[tuple[str, float], Json] = {}
    for line_number, line in enumerate((_text(path) or "").splitlines(), start=1):
        if line.strip():
            row = _metrics_row(line)
            if row is None:
                raise DataError(
                    f"{path.uri}, line {line_number}: not a JSON object with step and split; "
                    "the file is damaged"
                )
            rows[row["split"], row["step"]] = row
    return [rows[key] for key in sorted(rows, key=lambda key: key[1])]


def _metrics_row(line: str) -> Json | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    if not isinstance(row, dict) or not isinstance(row.get("split"), str):
        return None
    return row if _number(row.get("step")) is not None else None


def _picture(folder: StorePath) -> Picture | None:
    """The grid that evaluate made or, before that, the last one of the training."""
    path = folder / "evaluation.png"
    if not path.exists():
        steps = [entry.path for entry in _entries(folder) if entry.name.startswith("step-")]
        if not steps:
            return None
        path = max(steps, key=lambda step: step.name)
    from percmae.data.decode import decode

    data = path.read_bytes()
    try:
        width, height = decode(data, name="it", formats=["PNG"]).size
    except DataError as error:
        raise DataError(
            f"{path.uri} is not a PNG image ({error}); evaluate the run again"
        ) from None
    return Picture(path.uri, data, width, height)


def _entries(folder: StorePath) -> Iterator[Any]:
    return (entry for entry in folder.iter() if entry.name.endswith(".png"))


def read_runs(uris: list[str]) -> list[Run]:
    """Read run folders and check that they belong in one report.

    Raises UserError for no runs at all, for two runs of one stage and seed, and for runs whose
    figures cannot stand side by side (another variant, another data set, another test split).
    """
    if not uris:
        raise UserError("report needs at least one run; give the address of a run folder")
    runs = [read_run(uri) for uri in uris]
    seen: dict[tuple[str, int], Run] = {}
    for run in runs:
        twin = seen.setdefault((run.kind, run.seed), run)
        if twin is not run:
            raise UserError(
                f"{twin.uri} and {run.uri} are both {run.kind} runs of seed {run.seed}; "
                "give one of the two"
            )
        if run.info["variant"] != runs[0].info["variant"]:
            raise UserError(
                f"{run.uri} is of variant {run.info['variant']}, {runs[0].uri} of "
                f"{runs[0].info['variant']}; make one report for each variant"
            )
    check_same_test(runs)
    return sorted(runs, key=lambda run: run.seed)


def check_same_test(runs: list[Run]) -> None:
    """Raise UserError unless all classifiers among the runs were judged on the same test images."""
    judged = [run for run in runs if run.evaluation and run.stage != "pretrain"]
    for run in judged[1:]:
        if _test_identity(run) != _test_identity(judged[0]):
            raise UserError(
                f"{run.uri} and {judged[0].uri} were evaluated on different test images; evaluate "
                "them on the same data set, or make a report for each"
            )


def _test_identity(run: Run) -> tuple[Any, ...]:
    evaluation = run.evaluation or {}
    classes = tuple(item["wnid"] for item in evaluation["classes"])
    return evaluation["data"].get("digest"), evaluation["samples"]["test"], classes
