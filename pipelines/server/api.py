"""A Kubeflow Pipelines server: reaching it, and the calls of its v2beta1 API that are needed here.

``kfp.Client`` makes the connection. The calls go to its generated API, because its own methods
print to stdout, have no time limit, and cannot name the version that is the latest, nor spare the
runs of a schedule that is deleted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from percmae.errors import Interrupted, PercmaeError, UserError, one_line
from percmae.jobs.names import KFP_NAMESPACE
from percmae.progress import note, warn
from pipelines.server.forward import by_hand, port_forward

HOST_VARIABLE = "KF_PIPELINES_ENDPOINT"
TOKEN_VARIABLE = "PERCMAE_KFP_TOKEN"
_UI_VARIABLE = "KF_PIPELINES_UI_ENDPOINT"
_OWN_PORT = 8080
_POD_TOKEN = Path("/var/run/secrets/kubeflow/pipelines/token")
_SECONDS = 60
"""Most seconds a call may take."""
_PAGE = 100
_LOCAL = ("localhost", "127.0.0.1", "::1")


class KfpError(PercmaeError):
    """KFP could not be reached or did not do what was asked; ``status`` is the HTTP code, or 0."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class KfpRefused(KfpError, UserError):
    """KFP refused what it was given (4xx): trying again will not help."""

    exit_code = 2


@dataclass(frozen=True)
class Connection:
    """How to reach a KFP server.

    host: its URL, the UI's address or that of the API; None: KF_PIPELINES_ENDPOINT, or inside a
    cluster the Service there. port_forward: through kubectl instead. kfp_namespace: where KFP is
    installed. namespace: whose pipelines and runs, where KFP serves several users. token: file with
    a bearer token, read anew for every call; without one, the environment variable
    PERCMAE_KFP_TOKEN. ca: file with the certificate authority of an https host. ui: URL that links
    begin with, if not host.
    """

    host: str | None = None
    port_forward: bool = False
    kfp_namespace: str = KFP_NAMESPACE
    namespace: str | None = None
    token: str | None = None
    ca: str | None = None
    ui: str | None = None


@contextlib.contextmanager
def connect(where: Connection) -> Iterator[Kfp]:
    """A server that has answered, for as long as the block lasts.

    Raises UserError when nothing says where KFP is, KfpError when it does not answer, KfpRefused
    when it refuses the token.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(_ended_by_signal())
        if where.port_forward:
            if where.host is not None:
                raise UserError("--host and --port-forward: give one of them")
            host = stack.enter_context(port_forward(where.kfp_namespace))
            if not (where.ui or os.environ.get(_UI_VARIABLE)):
                # The way closes behind us; links are for one that a person opens.
                where = dataclasses.replace(where, ui=f"http://localhost:{_OWN_PORT}")
                note(f"links open after: {by_hand(where.kfp_namespace, _OWN_PORT)}")
        else:
            host = _host(where)
        yield Kfp(_client(host, where), host, where)


def found_inside(where: Connection) -> bool:
    """Whether KFP is that of the cluster in which this process runs: nothing says another."""
    named = where.host or os.environ.get(HOST_VARIABLE)
    return named is None and bool(os.environ.get("KUBERNETES_SERVICE_HOST"))


def _host(where: Connection) -> str:
    host = where.host or os.environ.get(HOST_VARIABLE)
    if host is not None:
        parts = urlsplit(host)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise UserError(f"KFP host {host!r}: give its URL, such as https://kfp.example")
        return host.rstrip("/")
    if found_inside(where):
        return f"http://ml-pipeline.{where.kfp_namespace}.svc.cluster.local:8888"
    raise UserError(
        f"where is KFP? Give --host URL (or {HOST_VARIABLE}), or --port-forward to go through "
        "kubectl; inside a cluster it is found by itself"
    )


def _client(host: str, where: Connection) -> Any:
    import kfp  # an optional package, and takes a second
    from kfp.client.set_volume_credentials import ServiceAccountTokenVolumeCredentials

    token = os.environ.get(TOKEN_VARIABLE)
    file = where.token
    if file is None and token is None and _POD_TOKEN.exists():
        file = str(_POD_TOKEN)
    if file is not None:
        token = None
        _readable(file)
    if (file or token) and host.startswith("http://") and not _inside(host):
        warn(f"{host}: the token is sent unencrypted; an https address would protect it")
    options: dict[str, Any] = {"host": host, "existing_token": token, "ssl_ca_cert": where.ca}
    if file is not None:
        # As a file may change during a run (a pod's token does within the hour).
        options["credentials"] = ServiceAccountTokenVolumeCredentials(path=file)
    _answers(host, options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it wants KFP 2
        # A namespace other than kubeflow is meant as the user's.
        return kfp.Client(**options, namespace=where.namespace or KFP_NAMESPACE)


def _readable(file: str) -> None:
    try:
        text = Path(file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise UserError(f"token file {file}: cannot be read: {reason}") from None
    if not text or any(c.isspace() for c in text):
        raise UserError(f"token file {file}: should hold one token and nothing else")


def _inside(host: str) -> bool:
    """Whether the address stays on this machine or in this cluster."""
    name = urlsplit(host).hostname or ""
    return name in _LOCAL or name.endswith(".svc.cluster.local")


def _answers(host: str, options: dict[str, Any]) -> None:
    """Ask for the server's health; kfp.Client would try for half a minute, with tracebacks."""
    import kfp_server_api

    config = kfp_server_api.Configuration(host=host)
    config.api_key_prefix["authorization"] = "Bearer"
    if options["ssl_ca_cert"]:
        config.ssl_ca_cert = options["ssl_ca_cert"]
    if options.get("credentials"):
        config.refresh_api_key_hook = options["credentials"].refresh_api_key_hook
        config.refresh_api_key_hook(config)
    elif options["existing_token"]:
        config.api_key["authorization"] = options["existing_token"]
    with kfp_server_api.ApiClient(config) as api:
        health = kfp_server_api.HealthzServiceApi(api).healthz_service_get_healthz
        answer = _call(host, "asking whether it is there", health, _request_timeout=10)
    if getattr(answer, "multi_user", None) is None:
        # The generated API takes a page of HTML for an answer without fields.
        raise KfpError(f"{host}: something else than KFP answers there, perhaps a login page")


def _call(host: str, doing: str, method: Callable[..., Any], **values: Any) -> Any:
    """One call of the generated API, with errors in our words."""
    from kfp_server_api.exceptions import ApiException, OpenApiException
    from urllib3.exceptions import HTTPError

    try:
        return method(**{"_request_timeout": _SECONDS, **values})
    except ApiException as error:
        raise _refusal(host, doing, error) from None
    except (HTTPError, OSError) as error:
        reason = getattr(error, "reason", None) or error
        text = str(reason).rpartition(": ")[2]
        raise KfpError(f"KFP at {host} cannot be reached while {doing}: {text}") from None
    except (OpenApiException, ValueError) as error:
        # Something else answers there: a login page, another service.
        line = str(error).splitlines()[0]
        raise KfpError(f"{host}: not the answer of a KFP server while {doing}: {line}") from None


def _refusal(host: str, doing: str, error: Any) -> KfpError:
    status, message = int(error.status or 0), _message(error.body)
    if status in (401, 403):
        hint = (
            f"the token is missing, expired or may not do this (--token FILE or {TOKEN_VARIABLE})"
        )
        return KfpRefused(f"KFP at {host} refused access ({status}) while {doing}: {hint}", status)
    kind = KfpRefused if 400 <= status < 500 else KfpError
    reason = message or error.reason or "no reason given"
    return kind(f"KFP at {host} failed ({status}) while {doing}: {reason}", status)


def _message(body: Any) -> str:
    """What the server says: google.rpc.Status, or an upload's error_message."""
    text = body.decode(errors="replace") if isinstance(body, bytes) else str(body or "")
    try:
        answer = json.loads(text)
    except ValueError:
        return ""
    if not isinstance(answer, dict):
        return ""
    message = answer.get("message") or answer.get("error_message") or answer.get("error") or ""
    return one_line(message)


@contextlib.contextmanager
def _ended_by_signal() -> Iterator[None]:
    """Make SIGTERM an exception, so that what was started for the connection is ended too."""

    def stop(number: int, frame: Any) -> None:
        raise Interrupted(number, "told to stop; what was submitted goes on")

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread: whoever owns that handles signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Kfp:
    """The calls. All raise KfpError, KfpRefused for 4xx; ids are KFP's."""

    def __init__(self, client: Any, host: str, where: Connection) -> None:
        self._client, self._host = client, host
        self._namespace = where.namespace or client.get_user_namespace() or None
        self._ui = (where.ui or os.environ.get(_UI_VARIABLE) or host).rstrip("/")

    def run_link(self, run_id: str) -> str:
        """The page of a run."""
        return f"{self._ui}/#/runs/details/{run_id}"

    def recurring_link(self, recurring_id: str) -> str:
        """The page of a recurring run."""
        return f"{self._ui}/#/recurringrun/details/{recurring_id}"

    def _do(self, doing: str, method: Callable[..., Any], **values: Any) -> Any:
        given = {name: value for name, value in values.items() if value is not None}
        return _call(self._host, doing, method, **given)

    def _all(self, doing: str, method: Callable[..., Any], items: str, **values: Any) -> Any:
        """Every item of a list, page after page."""
        token = ""
        while True:
            page = self._do(doing, method, page_token=token, page_size=_PAGE, **values)
            yield from getattr(page, items) or []
            token = page.next_page_token or ""
            if not token:
                return

    def pipeline(self, name: str) -> str | None:
        """Id of the pipeline with this name, if there is one."""
        method = self._client.pipelines.pipeline_service_get_pipeline_by_name
        doing = f"looking for the pipeline {name}"
        try:
            return str(self._do(doing, method, name=name, namespace=self._namespace).pipeline_id)
        except KfpError as error:
            if error.status == 404:
                return None
            raise

    def create_pipeline(self, name: str, title: str, description: str) -> str:
        """A new pipeline without versions; its id. KfpRefused with status 409: it exists."""
        body = self._client.api_models.V2beta1Pipeline(
            name=name, display_name=title, description=description, namespace=self._namespace
        )
        method = self._client.pipelines.pipeline_service_create_pipeline
        return str(self._do(f"creating the pipeline {name}", method, pipeline=body).pipeline_id)

    def versions(self, pipeline_id: str) -> list[Any]:
        """The versions of a pipeline (V2beta1PipelineVersion), newest first."""
        method = self._client.pipelines.pipeline_service_list_pipeline_versions
        return list(
            self._all(
                "listing the pipeline's versions",
                method,
                "pipeline_versions",
                pipeline_id=pipeline_id,
                sort_by="created_at desc",
            )
        )

    def upload_version(self, pipeline_id: str, name: str, text: str, description: str) -> Any:
        """Upload YAML as a new version; KfpRefused with status 409 when the name is taken."""
        method = self._client.pipeline_uploads.upload_pipeline_version
        with tempfile.TemporaryDirectory(prefix="percmae-") as folder:
            file = Path(folder) / "pipeline.yaml"
            file.write_text(text, encoding="utf-8")
            return self._do(
                f"uploading version {name}",
                method,
                uploadfile=str(file),
                name=name,
                pipelineid=pipeline_id,
                description=description,
            )

    def experiment(self, name: str) -> str:
        """Id of the experiment with this name, created if need be."""
        predicate = {"operation": "EQUALS", "key": "display_name", "stringValue": name}
        experiments = self._do(
            f"looking for the experiment {name}",
            self._client.experiments.experiment_service_list_experiments,
            filter=json.dumps({"predicates": [predicate]}),
            namespace=self._namespace,
        ).experiments
        if experiments:
            return str(experiments[0].experiment_id)
        body = self._client.api_models.V2beta1Experiment(
            display_name=name, namespace=self._namespace
        )
        method = self._client.experiments.experiment_service_create_experiment
        created = self._do(f"creating the experiment {name}", method, experiment=body)
        return str(created.experiment_id)

    def experiment_name(self, experiment_id: str) -> str:
        """Name of an experiment."""
        method = self._client.experiments.experiment_service_get_experiment
        experiment = self._do("looking at the experiment", method, experiment_id=experiment_id)
        return str(experiment.display_name)

    def create_run(self, **fields: Any) -> Any:
        """Start a run (V2beta1Run); fields as in the API, with ``pipeline`` for a version."""
        body = self._client.api_models.V2beta1Run(**self._body(fields))
        return self._do("starting the run", self._client.runs.run_service_create_run, run=body)

    def get_run(self, run_id: str) -> Any:
        """A run as it is now."""
        method = self._client.runs.run_service_get_run
        return self._do(f"looking at run {run_id}", method, run_id=run_id)

    def recurring_runs(self) -> list[Any]:
        """All recurring runs (V2beta1RecurringRun) of the namespace, oldest first."""
        method = self._client.recurring_runs.recurring_run_service_list_recurring_runs
        doing, order = "listing the schedules", "created_at"
        return list(
            self._all(doing, method, "recurring_runs", namespace=self._namespace, sort_by=order)
        )

    def create_recurring_run(self, cron: str, **fields: Any) -> Any:
        """A recurring run; cron: KFP's six fields. The rest as for ``create_run``."""
        models = self._client.api_models
        trigger = models.V2beta1Trigger(cron_schedule=models.V2beta1CronSchedule(cron=cron))
        body = models.V2beta1RecurringRun(trigger=trigger, **self._body(fields))
        method = self._client.recurring_runs.recurring_run_service_create_recurring_run
        return self._do("creating the schedule", method, recurring_run=body)

    def enable(self, recurring_id: str) -> None:
        """Let a recurring run start runs."""
        method = self._client.recurring_runs.recurring_run_service_enable_recurring_run
        self._do("enabling the schedule", method, recurring_run_id=recurring_id)

    def disable(self, recurring_id: str) -> None:
        """Let a recurring run start no more runs; those that run go on."""
        method = self._client.recurring_runs.recurring_run_service_disable_recurring_run
        self._do("disabling the schedule", method, recurring_run_id=recurring_id)

    def delete(self, recurring_id: str) -> None:
        """Delete a recurring run. Its runs stay: by default Kubernetes would remove them too."""
        method = self._client.recurring_runs.recurring_run_service_delete_recurring_run
        self._do(
            "deleting the schedule",
            method,
            recurring_run_id=recurring_id,
            propagation_policy="ORPHAN",
        )

    def _body(self, fields: dict[str, Any]) -> dict[str, Any]:
        models = self._client.api_models
        pipeline_id, version_id = fields.pop("pipeline")
        parameters = fields.pop("parameters")
        return {
            "pipeline_version_reference": models.V2beta1PipelineVersionReference(
                pipeline_id=pipeline_id, pipeline_version_id=version_id
            ),
            "runtime_config": models.V2beta1RuntimeConfig(parameters=parameters),
            **fields,
        }
