"""A page about everything in a store: its models, its runs, its reports."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

from percmae import report
from percmae.errors import DataError, UserError
from percmae.registry.model import CHAMPION, LATEST, MODEL, read_model
from percmae.report import compare
from percmae.report.figures import gpu_hours
from percmae.report.index import render_index
from percmae.report.kinds import name
from percmae.runs.evaluation import figures, read_evaluation
from percmae.runs.record import RECORD, read_record
from percmae.stages.challenge import DECISIONS
from percmae.storage import StorePath

FORMAT = "percmae-index/1"
PAGE, FIGURES = "index.html", "index.json"
_READERS = 8  # requests at a time

Json = dict[str, Any]


def index(store: str, to: str | None = None) -> Json:
    """Write ``<to>/index.html`` and ``<to>/index.json`` about what lies below a folder or prefix.

    store: what is looked through, runs, models and reports wherever they lie in it; to: folder or
    s3:// prefix, by default the same. Returns the content of index.json (format
    ``percmae-index/1``): shares in 0..1, seconds in s, times in ISO 8601. What is damaged or is
    being written is named there under ``unreadable`` and left out.

    Raises UserError where there is nothing to list, StoreError when the store cannot be reached.
    """
    folder, target = StorePath(store), StorePath(to or store)
    found: dict[str, list[StorePath]] = {RECORD: [], MODEL: [], "page": []}
    for entry in folder.iter():
        path = entry.path
        if path.name in (RECORD, MODEL):
            found[path.name].append(path.parent)
        elif path.name in (report.PAGE, compare.MARKDOWN) or _is_decision(path):
            found["page"].append(path)
    if not any(found.values()):
        raise UserError(f"{folder.uri}: no run, no model and no report lies below it")
    unreadable: list[str] = []

    def each(paths: list[StorePath], read: Any) -> Iterator[Json]:
        def tried(path: StorePath) -> Json | str:
            try:
                return dict(read(path))
            except DataError as error:
                return str(error)

        with ThreadPoolExecutor(_READERS) as pool:
            for row in pool.map(tried, paths):
                if isinstance(row, str):
                    unreadable.append(row)
                else:
                    yield row

    document = {
        "format": FORMAT,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "store": folder.uri,
        "models": list(each(found[MODEL], _model)),
        "runs": sorted(each(found[RECORD], _run), key=lambda run: run["started"], reverse=True),
        "pages": [{"name": _name(path), "uri": path.uri, "href": _href(path, target)}
                  for path in found["page"]],
        "unreadable": unreadable,
    }  # fmt: skip
    target.prepare()
    # Figures first: a page that is there has its figures beside it.
    (target / FIGURES).write_json(document)
    (target / PAGE).write_text(render_index(document))
    return {**document, "files": {"html": (target / PAGE).uri, "json": (target / FIGURES).uri}}


def _model(path: StorePath) -> Json:
    model = read_model(path)
    champion = model.aliases.get(CHAMPION)
    last = model.history[-1] if model.history else None
    return {
        "name": model.name,
        "uri": path.uri,
        "versions": len(model.versions),
        "champion": champion,
        "latest": model.aliases.get(LATEST),
        "metrics": {} if champion is None else model.version(champion).metrics,
        "moved": None if last is None else last.when,
        "why": None if last is None else last.why,
    }


def _run(path: StorePath) -> Json:
    record = read_record(path)
    evaluation = read_evaluation(path, record)
    return {
        "name": record.name,
        "uri": path.uri,
        "kind": str(record.kind),
        "what": name(record.kind),
        "variant": record.variant,
        "seed": record.seed,
        "status": record.status,
        "step": record.step,
        "total_steps": record.total_steps,
        "seconds": record.seconds,
        **gpu_hours(record),
        "started": datetime.fromtimestamp(record.started, UTC).isoformat(timespec="seconds"),
        "data": record.data.model_dump(),
        "config_digest": record.config_digest,
        # On the test images, where it has been evaluated.
        "figures": {} if evaluation is None else figures(evaluation),
    }


def _is_decision(path: StorePath) -> bool:
    return path.parent.name == DECISIONS and path.name.endswith(".html")


def _name(path: StorePath) -> str:
    """What a page is about: the report's name, or two versions of a model."""
    if not _is_decision(path):
        return path.parent.name
    versions = path.name.removesuffix(".html").replace("-", " ")
    return f"{path.parent.parent.name}, version {versions}"


def _href(path: StorePath, target: StorePath) -> str | None:
    """The way from the index to a page below it; None where it lies elsewhere."""
    base = target.uri.rstrip("/") + "/"
    return path.uri.removeprefix(base) if path.uri.startswith(base) else None
