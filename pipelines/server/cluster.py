"""The cluster that KFP runs in, where it can be asked: what a run's pods lack, wait for, said last.

KFP's API says of a run that ended badly which steps failed, and nothing else: the error fields of
its runs, tasks and state histories stay empty (2.15 to 2.17). Why is in Kubernetes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import TypeVar

from percmae.errors import UserError
from percmae.jobs import state
from percmae.jobs.client import Client, ClusterError
from percmae.jobs.logs import last_lines
from percmae.jobs.names import POD, Object, Resource
from percmae.progress import note
from pipelines.pod import PodSettings
from pipelines.server.api import Connection, found_inside
from pipelines.server.package import Package

T = TypeVar("T")

RUN_LABEL = "pipeline/runid"
"""Label that KFP gives to a run's workflow and pods."""
_NODE = "workflows.argoproj.io/node-name"
_WORKFLOW = Resource("argoproj.io/v1alpha1", "workflows", "Workflow")
_MAIN = "main"
_LINES = 50
_OURS = re.compile(r"percmae: (?:error|stopped): (.*)")


class Cluster:
    """The namespace of the steps; ``reachable`` is whether this process knows a way to it.

    It is asked where kubectl leads to KFP, or from inside. What may not be looked at is said once,
    and not missed: everything here explains, and nothing depends on it.
    """

    def __init__(self, where: Connection, package: Package) -> None:
        self.namespace = where.namespace or where.kfp_namespace
        self._package = package
        self._said: set[str] = set()
        self._waited: dict[str, str] = {}
        self._client: Client | None = None
        if where.port_forward or found_inside(where):
            self._client = self._asked(lambda: Client(self.namespace))

    @property
    def reachable(self) -> bool:
        return self._client is not None

    def check(self, pod: PodSettings) -> None:
        """Raises UserError for a secret or ConfigMap of the steps that is not there.

        Kubernetes would have each pod wait for it, and KFP's UI say that it is pending.
        """
        for kind, name, option in (
            ("Secret", pod.store_secret, "--store-secret"),
            ("ConfigMap", pod.store_config, "--store-config"),
        ):
            if self._is_there(Resource("v1", f"{kind.lower()}s"), name) is False:
                raise UserError(
                    f"{kind} {name} is not in namespace {self.namespace}, and the steps would wait "
                    f"for it: name another ({option}); `percmae doctor --cluster --kfp` says what "
                    "is missing"
                )

    def waiting(self, run_id: str) -> list[str]:
        """``step: reason`` of each pod of the run that does not start."""
        found = []
        for pod in self._of_run(POD, run_id):
            if state.phase(pod) == "Pending":
                words = state.waits_for({}, [pod], ())
                if words.startswith("pod "):
                    title, reason = self._title(pod), words.partition(": ")[2]
                    self._waited[title] = reason
                    found.append(f"{title}: {reason}")
        return list(dict.fromkeys(found))

    def reasons(self, run_id: str) -> dict[str, str]:
        """What each failed step of the run said last, by the title that the UI shows."""
        found: dict[str, str] = {}
        for pod in self._of_run(POD, run_id):
            if state.phase(pod) == "Failed":
                title = self._title(pod)
                said = self._last_line(pod["metadata"]["name"])
                # When its deadline ends it, a pod that could not start forgets why.
                ended = [words for words in (self._waited.get(title), _status(pod)) if words]
                found[title] = said or "; ".join(ended)
        return found

    def terminated(self, run_id: str) -> bool:
        """Whether somebody has told KFP to terminate the run, which then is one that failed."""
        workflows = self._of_run(_WORKFLOW, run_id)
        # What KFP patches to have Argo stop it.
        return any(each["spec"].get("activeDeadlineSeconds") == 0 for each in workflows)

    def logs_command(self, run_id: str) -> str:
        """The command with which a person sees the last lines of a run's steps."""
        return f"kubectl -n {self.namespace} logs -l {RUN_LABEL}={run_id} -c {_MAIN} --tail 3"

    def _is_there(self, resource: Resource, name: str) -> bool | None:
        return self._ask(lambda client: client.get(client.path(resource, name)) is not None)

    def _of_run(self, resource: Resource, run_id: str) -> list[Object]:
        selector = f"{RUN_LABEL}={run_id}"
        return self._ask(lambda c: c.select(resource, labelSelector=selector)[0]) or []

    def _ask(self, question: Callable[[Client], T]) -> T | None:
        client = self._client
        return None if client is None else self._asked(lambda: question(client))

    def _asked(self, question: Callable[[], T]) -> T | None:
        """The answer; None, once with the reason, where there is none."""
        try:
            return question()
        except (ClusterError, UserError) as error:
            if str(error) not in self._said:
                self._said.add(str(error))
                note(f"the cluster behind KFP does not say why: {error}")
            return None

    def _title(self, pod: Object) -> str:
        """The step that a pod or its driver is of, as the UI calls it."""
        name = (pod["metadata"].get("annotations") or {}).get(_NODE, "")
        for part in reversed(name.split(".")):
            step = part.partition("(")[0].removesuffix("-driver")
            if step in self._package.steps:
                return self._package.titles()[step]
        return str(pod["metadata"]["name"])

    def _last_line(self, pod: str) -> str:
        lines = self._ask(lambda client: last_lines(client, pod, _MAIN, _LINES))
        return next(_said(lines or []), "")


def _said(lines: list[str]) -> Iterator[str]:
    """What a step said last: our own words, which KFP's launcher says more behind, else any."""
    ours = [match[1] for line in lines if (match := _OURS.search(line))]
    yield from reversed(ours)
    yield from (line.strip() for line in reversed(lines) if line.strip())


def _status(pod: Object) -> str:
    """What Kubernetes says of a pod that has said nothing itself."""
    status = pod.get("status", {})
    said = [text for text in (status.get("reason"), status.get("message")) if text]
    return ": ".join(" ".join(text.split()) for text in said) or "no log, no reason"
