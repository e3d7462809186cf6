"""A run as MLflow has it: its settings, its figures and where its files are, beside its own folder.

The folder is what counts: figures are sent from the run's history, and MLflow's run has a tag for
each split with the last step it was given. So whoever comes by, a training, the same command again
or an evaluation, sends what is missing, and nothing twice. It is found by a tag made of the run's
key, its address and when it was begun: a run that is gone on with stays one run there, and one that
is trained for longer, which is another by its key, becomes another.

Files are told by address (tags ``percmae.uri`` …) and not copied. Credentials are in MLflow's own
variables (MLFLOW_TRACKING_TOKEN …). MLflow's client is imported by who uses it alone.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, NamedTuple

from percmae.config import Config
from percmae.config.load import what_counts
from percmae.errors import DataError, PercmaeError, UserError, one_line
from percmae.progress import warn
from percmae.runs.evaluation import Evaluation, figures
from percmae.runs.history import HistoryRow, read_history
from percmae.runs.record import CHECKPOINTS, PICTURES, Run

if TYPE_CHECKING:
    from mlflow.entities import Metric
    from mlflow.tracking import MlflowClient

Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]

_SECONDS = "10"
# A request at a time, and no more than that: who asks decides what to do without an answer. Links
# on stdout would come between the lines that scripts read.
_MANNERS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": _SECONDS,
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
# What one request may hold, as MLflow's API has it.
_METRICS, _PARAMS = 1000, 100
_LONGEST_VALUE = 250  # of a parameter, before MLflow 2.8
_ID, _SENT = "percmae.id", "percmae.sent."


class NotTold(PercmaeError):
    """MLflow did not take what it was given; why, in one line."""


class Logged(NamedTuple):
    """Figures, and when they were logged in milliseconds since 1970."""

    when: int
    row: HistoryRow


def check_client(config: Config) -> None:
    """Raise UserError where ``tracking.mlflow`` is set and MLflow's client is not installed."""
    if config.tracking.mlflow is not None and importlib.util.find_spec("mlflow") is None:
        raise UserError(
            f"tracking.mlflow={config.tracking.mlflow} needs MLflow's client: pip install "
            "'percmae[mlflow]'"
        )


def client(server: str) -> MlflowClient:
    """A client of the server; what the environment says of MLflow is left as it is.

    Raises NotTold where it is not installed.
    """
    for name, value in _MANNERS.items():
        os.environ.setdefault(name, value)
    try:
        from mlflow.tracking import MlflowClient
    except ImportError as error:
        raise NotTold(f"MLflow's client cannot be imported ({one_line(error)})") from None
    return MlflowClient(tracking_uri=server, registry_uri=server)


@contextmanager
def telling() -> Iterator[None]:
    """Raises NotTold for whatever MLflow's client raises, which is no closed list."""
    try:
        yield
    except PercmaeError:
        raise
    except Exception as error:
        raise NotTold(one_line(error)) from error


class Mirror:
    """One run in MLflow. Each method asks the server, and raises NotTold where it refuses or does
    not answer: the same call may be made again, and sends nothing twice."""

    def __init__(self, run: Run, config: Config) -> None:
        """config: which server and experiment it is. Raises NotTold without a client."""
        assert config.tracking.mlflow is not None, "there is a server"
        self._run, self._experiment = run, config.tracking.mlflow_experiment
        self.server = config.tracking.mlflow
        self._client = client(self.server)
        self._id: str | None = None
        self._sent: dict[str, str] = {}
        self._status: str = ""

    @telling()
    def id(self) -> str:
        """MLflow's id of the run, which is made where there is none."""
        if self._id is None:
            from mlflow.entities import Param

            run_id = self._found() or self._made()
            counts = what_counts(self._run.config)
            params = [Param(k, json.dumps(v)[:_LONGEST_VALUE]) for k, v in counts.items()]
            for start in range(0, len(params), _PARAMS):
                self._client.log_batch(run_id, params=params[start : start + _PARAMS])
            self._id = run_id
        return self._id

    @telling()
    def figures(self, logged: Iterable[Logged]) -> None:
        """Send what of these figures MLflow does not have yet, by the steps of each split."""
        run_id = self.id()
        for metrics, sent in _requests(logged, self._sent):
            self._log(run_id, metrics, sent)

    @telling()
    def evaluated(self, evaluation: Evaluation) -> None:
        """Send the figures of a test set, once for each dataset and state of the run."""
        from mlflow.entities import Metric

        run_id, step = self.id(), self._run.record.step
        what = f"step {step}, {evaluation.data.digest}"
        if self._sent.get("test") == what:
            return
        when = _now()
        found = figures(evaluation).items()
        metrics = [Metric(f"test/{k}", v, when, step) for k, v in found if v is not None]
        self._client.set_tag(run_id, "percmae.evaluated_on", evaluation.data.uri)
        self._log(run_id, metrics, {"test": what})

    @telling()
    def status(self, status: Status) -> None:
        """Say how things stand."""
        run_id = self.id()
        if status == self._status:
            return
        if status == "RUNNING":
            self._client.update_run(run_id, status)
        else:
            self._client.set_terminated(run_id, status)
        self._status = status

    def _log(self, run_id: str, metrics: list[Metric], sent: dict[str, str]) -> None:
        """Figures, and in the same request how far they go."""
        from mlflow.entities import RunTag

        tags = [RunTag(f"{_SENT}{split}", value) for split, value in sent.items()]
        self._client.log_batch(run_id, metrics=metrics, tags=tags)
        self._sent |= sent

    def _found(self) -> str | None:
        """The run that has our tag, if there is one, and what it was given."""
        folder = self._client.get_experiment_by_name(self._experiment)
        if folder is None:
            return None
        tagged = f"tags.\"{_ID}\" = '{self._mark}'"
        found = self._client.search_runs([folder.experiment_id], tagged, max_results=1)
        if not found:
            return None
        tags = found[0].data.tags
        self._sent = {
            key.removeprefix(_SENT): value for key, value in tags.items() if key.startswith(_SENT)
        }
        self._status = found[0].info.status
        return str(found[0].info.run_id)

    def _made(self) -> str:
        folder = self._client.get_experiment_by_name(self._experiment)
        place = folder.experiment_id if folder else self._client.create_experiment(self._experiment)
        record = self._run.record
        began = round(1000 * record.started)
        made = self._client.create_run(place, began, self._tags(), record.name)
        self._status = made.info.status
        return str(made.info.run_id)

    @property
    def _mark(self) -> str:
        record = self._run.record
        whole = json.dumps([record.key, self._run.uri, record.started])
        return hashlib.sha256(whole.encode()).hexdigest()[:32]

    def _tags(self) -> dict[str, str]:
        """What it is and where its files are."""
        record, folder = self._run.record, self._run.path
        tags = {
            "id": self._mark,
            "key": record.key,
            "uri": self._run.uri,
            "checkpoints": (folder / CHECKPOINTS).uri,
            "pictures": (folder / PICTURES).uri,
            "stage": record.stage,
            "variant": record.variant,
            "tag": record.tag,
            "features": record.built_on,
            "data": record.data.uri,
            "data_digest": record.data.digest,
            "config_digest": record.config_digest,
            "parent": record.parent,
            "version": record.versions.get("percmae"),
        }
        named = {f"percmae.{key}": value for key, value in tags.items() if value is not None}
        return {**named, "mlflow.source.name": f"percmae {record.stage}"}


def tell(run: Run, config: Config, evaluation: Evaluation | None = None) -> None:
    """Give MLflow what it lacks of a run that is not under way, if ``config`` names a server.

    evaluation: what else there is to tell. It is a courtesy: where MLflow takes none of it, that is
    warned of.
    """
    if config.tracking.mlflow is None:
        return
    try:
        mirror = Mirror(run, config)
        when = _now() if run.record.finished is None else round(1000 * run.record.finished)
        mirror.figures(Logged(when, row) for row in read_history(run.path))
        if evaluation is not None:
            mirror.evaluated(evaluation)
        if run.complete:
            mirror.status("FINISHED")
    except (NotTold, DataError) as error:
        warn(
            f"MLflow at {config.tracking.mlflow} does not have all of {run.uri} ({error}); the "
            "same command again sends it"
        )


def _requests(
    logged: Iterable[Logged], sent: dict[str, str]
) -> Iterator[tuple[list[Metric], dict[str, str]]]:
    """Figures beyond what was sent, in pieces of what one request may hold; how far each goes."""
    from mlflow.entities import Metric

    before = {split: int(step) for split, step in sent.items() if step.isdecimal()}
    piece: list[Metric] = []
    reached: dict[str, str] = {}
    for when, row in logged:
        if row.step <= before.get(row.split, 0):
            continue
        if len(piece) + len(row.figures) > _METRICS:
            yield piece, reached
            piece, reached = [], {}
        for name, value in row.figures.items():
            known = math.nan if value is None else value
            piece.append(Metric(f"{row.split}/{name}", known, when, row.step))
        reached[row.split] = str(row.step)
    if piece:
        yield piece, reached


def _now() -> int:
    return round(1000 * time.time())
