"""A KFP server for tests: real HTTP, the documented v2beta1 REST API, state in memory.

Written from KFP's protocol definitions and what its API server checks (2.17): field names, paging,
filters, error forms, conflicts, unknown ids, parameters, and the cron it understands. It runs
nothing; a test says how its runs go (``script``). As in KFP, no run, task or state history has an
error, and a run that is terminated is CANCELING, then FAILED. Not the same code as KFP's, so what
it accepts is evidence, not proof.

More than 400 lines, in one file: what it answers for one kind of thing depends on the others.

``events`` keeps each change of a recurring run with the enabled ones of that name after it, and
``faults`` makes calls fail.
"""

from __future__ import annotations

import base64
import json
import re
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from kfp_rules import Json, Refused, check_parameters, invalid, robfig, spec_of

CODES = {400: 3, 401: 16, 404: 5, 409: 6, 500: 13, 503: 14}
"""google.rpc.Code of an HTTP status."""


class Server:
    """State and address. token: what a request must bear."""

    def __init__(self, token: str | None = None, page: int | None = None) -> None:
        self.token, self.page = token, page
        self.pipelines: dict[str, Json] = {}
        self.versions: dict[str, Json] = {}
        self.experiments: dict[str, Json] = {}
        self.runs: dict[str, Json] = {}
        self.recurring: dict[str, Json] = {}
        self.requests: list[tuple[str, str, str | None]] = []
        self.events: list[tuple[str, int]] = []
        self.faults: list[tuple[str, re.Pattern[str], int]] = []
        self.script: list[Json] = [{"state": "PENDING"}, {"state": "SUCCEEDED"}]
        self._now = datetime.now(UTC)
        self.url = ""
        self.page_of_html = False  # as a proxy answers that wants a login

    def fail(self, method: str, path: str, status: int = 500) -> None:
        """Have the next call of this kind fail."""
        self.faults.append((method, re.compile(path), status))

    def now(self) -> str:
        """A time that is never the same twice."""
        self._now += timedelta(seconds=1)
        return self._now.strftime("%Y-%m-%dT%H:%M:%SZ")

    def enabled(self, name: str) -> list[Json]:
        """The recurring runs of a name that would start runs."""
        every = self.recurring.values()
        return [r for r in every if r["display_name"] == name and r["status"] == "ENABLED"]

    def answer(self, method: str, path: str, query: Json, body: Any) -> Json:
        """Route a request."""
        for fault in self.faults:
            if fault[0] == method and fault[1].search(path):
                self.faults.remove(fault)
                raise Refused(fault[2], "Internal Server Error: the test wants it so")
        for verb, pattern, handler in ROUTES:
            match = re.fullmatch(pattern, path)
            if verb == method and match:
                return handler(self, query, body, *match.groups())
        raise Refused(404, "Not Found")

    # Lists

    def listed(self, items: list[Json], key: str, query: Json, fields: set[str]) -> Json:
        """A page of a list, filtered and sorted as asked."""
        size = min(int(query.get("page_size") or 20), 200)
        size = min(size, self.page or size)
        how = {name: query.get(name, "") for name in ("sort_by", "filter")}
        start = 0
        if query.get("page_token"):
            token = json.loads(base64.b64decode(query["page_token"]))
            if any(how.values()) and token["how"] != how:
                raise invalid("page token does not match the supplied sort by and/or filtering")
            how, start = token["how"], token["start"]
        found = [item for item in items if self._fits(item, how["filter"], fields)]
        name, _, direction = (how["sort_by"] or "created_at").partition(" ")
        if name not in fields or direction not in ("", "asc", "desc"):
            raise invalid(f"Invalid sorting field: {name!r}")
        found.sort(key=lambda item: item[name], reverse=direction == "desc")
        made: Json = {"total_size": len(found)}
        if found[start : start + size]:
            made[key] = found[start : start + size]
        if start + size < len(found):
            token = {"how": how, "start": start + size}
            made["next_page_token"] = base64.b64encode(json.dumps(token).encode()).decode()
        return made

    def _fits(self, item: Json, text: str, fields: set[str]) -> bool:
        predicates = json.loads(text)["predicates"] if text else []
        for predicate in predicates:
            if predicate["key"] not in fields or predicate["operation"] not in ("EQUALS", 1):
                raise invalid(f"unsupported filter {predicate}")
            wanted = predicate.get("stringValue", predicate.get("string_value"))
            if item[predicate["key"]] != wanted:
                return False
        return True


def healthz(server: Server, query: Json, body: Any) -> Json:
    return {"multi_user": False, "pipeline_store": "database"}


# Pipelines


def create_pipeline(server: Server, query: Json, body: Json) -> Json:
    name = body.get("name") or body.get("display_name")
    if not name:
        raise invalid("pipeline's name cannot be empty")
    if len(name) > 128:
        raise invalid("Pipeline.Name length cannot exceed 128")
    if any(p["name"] == name for p in server.pipelines.values()):
        raise Refused(
            409, f"Already exist error: The name {name} already exist. Specify a new name"
        )
    made = {"pipeline_id": str(uuid.uuid4()), "name": name, "created_at": server.now()}
    made["display_name"] = body.get("display_name") or name
    made["description"] = body.get("description", "")
    server.pipelines[made["pipeline_id"]] = made
    return made


def pipeline_by_name(server: Server, query: Json, body: Any, name: str) -> Json:
    for pipeline in server.pipelines.values():
        if pipeline["name"] == name:
            return pipeline
    raise Refused(404, f"ResourceNotFoundError: Pipeline {name} not found")


def known(things: dict[str, Json], kind: str, identity: str) -> Json:
    if identity not in things:
        raise Refused(404, f"ResourceNotFoundError: {kind} {identity} not found")
    return things[identity]


def versions_of(server: Server, pipeline_id: str) -> list[Json]:
    known(server.pipelines, "Pipeline", pipeline_id)
    return [v for v in server.versions.values() if v["pipeline_id"] == pipeline_id]


def list_versions(server: Server, query: Json, body: Any, pipeline_id: str) -> Json:
    fields = {"pipeline_version_id", "name", "display_name", "created_at", "description"}
    return server.listed(versions_of(server, pipeline_id), "pipeline_versions", query, fields)


def upload_version(server: Server, query: Json, body: bytes) -> Json:
    """Answers errors as the upload handler does, which is none of the generated API's."""
    pipeline_id, name = query.get("pipelineid", ""), query.get("name", "")
    if not pipeline_id or pipeline_id not in server.pipelines or not name:
        raise Refused(400, "Failed to create a pipeline version")
    if len(name) > 127:
        raise Refused(400, "PipelineVersion.Name length cannot exceed 127")
    if any(v["name"] == name for v in versions_of(server, pipeline_id)):
        raise Refused(409, "Failed to create a pipeline version")
    made = {
        "pipeline_id": pipeline_id,
        "pipeline_version_id": str(uuid.uuid4()),
        "name": name,
        "display_name": query.get("display_name") or name,
        "description": query.get("description", ""),
        "created_at": server.now(),
        "pipeline_spec": spec_of(body),
    }
    server.versions[made["pipeline_version_id"]] = made
    return made


# Experiments


def list_experiments(server: Server, query: Json, body: Any) -> Json:
    fields = {"experiment_id", "display_name", "created_at"}
    return server.listed(list(server.experiments.values()), "experiments", query, fields)


def create_experiment(server: Server, query: Json, body: Json) -> Json:
    name = body.get("display_name")
    if not name:
        raise invalid("Experiment name is empty. Please specify a valid experiment name")
    if any(e["display_name"] == name for e in server.experiments.values()):
        raise Refused(409, f"Already exist error: Experiment {name} already exists")
    made = {"experiment_id": str(uuid.uuid4()), "display_name": name, "created_at": server.now()}
    server.experiments[made["experiment_id"]] = made
    return made


def get_experiment(server: Server, query: Json, body: Any, identity: str) -> Json:
    return known(server.experiments, "Experiment", identity)


# Runs


def create_run(server: Server, query: Json, body: Json) -> Json:
    if not body.get("display_name"):
        raise invalid("The run name is empty. Please specify a valid name")
    known(server.experiments, "Experiment", body.get("experiment_id", ""))
    check_parameters(body, version_for(server, body))
    made = {**body, "run_id": str(uuid.uuid4()), "created_at": server.now(), "state": "PENDING"}
    made["asked"] = 0
    server.runs[made["run_id"]] = made
    return shown_run(made)


def get_run(server: Server, query: Json, body: Any, identity: str) -> Json:
    """Each look takes a run one step on in the script; one to be terminated fails at the second."""
    run = known(server.runs, "Run", identity)
    if run["state"] == "CANCELING":
        run["terminating"] += 1
        if run["terminating"] > 1:
            run["state"] = "FAILED"
    elif not run.get("terminating"):
        run.update(server.script[min(run["asked"], len(server.script) - 1)])
        run["asked"] += 1
    return shown_run(run)


def terminate_run(server: Server, query: Json, body: Any, identity: str) -> Json:
    """What is written into the state history of KFP's tasks and runs says nothing of it."""
    run = known(server.runs, "Run", identity)
    if run["state"] not in ("PENDING", "RUNNING", "PAUSED"):
        raise invalid(f"Failed to terminate a run {identity}. Row not found")
    run.update(state="CANCELING", terminating=0)
    return {}


def shown_run(run: Json) -> Json:
    tasks = run.get("run_details", {}).get("task_details", [])
    for thing in (run, *tasks):
        histories = thing.get("state_history", [])
        assert not any("error" in each for each in (thing, *histories)), "KFP has no such thing"
    return {name: value for name, value in run.items() if name not in ("asked", "terminating")}


def version_for(server: Server, body: Json) -> Json:
    reference = body.get("pipeline_version_reference") or {}
    pipeline_id = reference.get("pipeline_id", "")
    if not pipeline_id:
        raise Refused(500, "Pipeline spec source is missing")
    versions = sorted(versions_of(server, pipeline_id), key=lambda v: str(v["created_at"]))
    if not reference.get("pipeline_version_id"):
        if not versions:
            raise Refused(404, f"No pipeline version was found in pipeline {pipeline_id}")
        return versions[-1]
    version = known(server.versions, "PipelineVersion", reference["pipeline_version_id"])
    if version["pipeline_id"] != pipeline_id:
        raise invalid(f"Pipeline version belongs to pipeline {version['pipeline_id']}")
    return version


# Recurring runs


def create_recurring(server: Server, query: Json, body: Json) -> Json:
    name = body.get("display_name")
    if not name:
        raise Refused(500, "Recurring run's name cannot be empty")
    if not 1 <= int(body.get("max_concurrency") or 0) <= 10:
        raise invalid("Max concurrency of a recurring run must be at least 1 and at most 10")
    trigger = body.get("trigger") or {}
    if "cron_schedule" in trigger:
        try:
            robfig(trigger["cron_schedule"].get("cron", ""))
        except ValueError as error:
            raise invalid(f"Schedule cron is not a supported format: {error}") from None
    elif "periodic_schedule" not in trigger:
        raise Refused(500, "API Trigger cannot be nil")
    if body.get("mode", "MODE_UNSPECIFIED") not in ("MODE_UNSPECIFIED", "ENABLE", "DISABLE"):
        raise invalid(f"mode {body['mode']}")
    known(server.experiments, "Experiment", body.get("experiment_id", ""))
    check_parameters(body, version_for(server, body))
    enabled = body.get("mode") == "ENABLE"
    made = {
        "no_catchup": False,
        "service_account": "pipeline-runner",
        **{key: value for key, value in body.items() if value is not None},
        "recurring_run_id": str(uuid.uuid4()),
        "max_concurrency": str(int(body["max_concurrency"])),  # as protobuf's JSON has an int64
        "status": "ENABLED" if enabled else "DISABLED",
        "created_at": server.now(),
    }
    server.recurring[made["recurring_run_id"]] = made
    server.events.append((f"create {made['mode'].lower()}d", len(server.enabled(name))))
    return made


def list_recurring(server: Server, query: Json, body: Any) -> Json:
    fields = {"recurring_run_id", "display_name", "created_at", "updated_at", "description"}
    return server.listed(list(server.recurring.values()), "recurringRuns", query, fields)


def set_mode(server: Server, query: Json, body: Any, identity: str, mode: str) -> Json:
    run = known(server.recurring, "Job", identity)
    run.update(status=f"{mode.upper()}D", mode=mode.upper())
    server.events.append((mode, len(server.enabled(run["display_name"]))))
    return {}


def delete_recurring(server: Server, query: Json, body: Any, identity: str) -> Json:
    run = known(server.recurring, "Job", identity)
    del server.recurring[identity]
    kept = query.get("propagation_policy") == "ORPHAN"
    # Kubernetes removes what the deleted object owns, unless told not to.
    if not kept:
        started = [i for i, r in server.runs.items() if r.get("recurring_run_id") == identity]
        for run_id in started:
            del server.runs[run_id]
    server.events.append(("delete", len(server.enabled(run["display_name"]))))
    return {}


API = "/apis/v2beta1"
ID = "([^/:]+)"
ROUTES: list[tuple[str, str, Callable[..., Json]]] = [
    ("GET", f"{API}/healthz", healthz),
    ("POST", f"{API}/pipelines", create_pipeline),
    ("GET", f"{API}/pipelines/names/{ID}", pipeline_by_name),
    ("POST", f"{API}/pipelines/upload_version", upload_version),
    ("GET", f"{API}/pipelines/{ID}/versions", list_versions),
    ("GET", f"{API}/experiments", list_experiments),
    ("POST", f"{API}/experiments", create_experiment),
    ("GET", f"{API}/experiments/{ID}", get_experiment),
    ("POST", f"{API}/runs", create_run),
    ("GET", f"{API}/runs/{ID}", get_run),
    ("POST", f"{API}/runs/{ID}:terminate", terminate_run),
    ("POST", f"{API}/recurringruns", create_recurring),
    ("GET", f"{API}/recurringruns", list_recurring),
    ("POST", f"{API}/recurringruns/{ID}:(enable|disable)", set_mode),
    ("DELETE", f"{API}/recurringruns/{ID}", delete_recurring),
]


def handler_of(server: Server) -> type[BaseHTTPRequestHandler]:
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # or head and body come 40 ms apart

        def log_message(self, *args: Any) -> None:
            pass

        def _serve(self) -> None:
            parts = urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            upload = parts.path.endswith("/upload_version")
            status, made = 200, {}
            with lock:
                bearer = self.headers.get("Authorization")
                server.requests.append((self.command, parts.path, bearer))
                try:
                    if server.token is not None and bearer != f"Bearer {server.token}":
                        raise Refused(401, "Unauthenticated: the request has no valid identity")
                    content = self._form(body) if upload else json.loads(body or b"{}")
                    made = server.answer(
                        self.command, parts.path, dict(parse_qsl(parts.query)), content
                    )
                except Refused as error:
                    status, text = error.status, str(error)
                    rpc = {"code": CODES.get(status, 2), "message": text, "details": []}
                    made = {"error_message": text, "error_details": text} if upload else rpc
            data, kind = json.dumps(made).encode(), "application/json"
            if server.page_of_html:
                status, data, kind = 200, b"<html>Sign in</html>", "text/html"
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def _form(self, body: bytes) -> bytes:
            head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
            form = BytesParser().parsebytes(head + body)
            for part in form.get_payload() if form.is_multipart() else []:
                if part.get_param("name", header="content-disposition") == "uploadfile":
                    if not str(part.get_filename()).endswith((".yaml", ".yml", ".zip", ".tar.gz")):
                        raise Refused(400, "Failed to create a pipeline version")
                    return bytes(part.get_payload(decode=True))
            raise Refused(400, "Failed to create a pipeline version")

        do_GET = do_POST = do_DELETE = _serve

    return Handler


@contextmanager
def running(server: Server) -> Iterator[Server]:
    """Serve on a free port of this machine; ``server.url`` says where."""
    http = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(server))
    http.daemon_threads = True
    server.url = f"http://127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
