"""The pods of one job over its whole life, also those that were replaced in between two looks."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable

from percmae.jobs import state
from percmae.jobs.client import Client, ClusterError
from percmae.jobs.names import POD, Object

STEADY = 600.0
"""A pod that was there this many seconds before it was replaced is not in a crash loop."""
_WATCH_SECONDS = 50


class Pods:
    """Watches the pods with a label in a thread, and remembers the last state of each.

    An operator that replaces a failed pod deletes it within a second: only a watch is sure to see
    why it failed. What a broken or expired watch misses, :meth:`look` makes up for.
    """

    def __init__(self, client: Client, selector: str, changed: Callable[[], None]) -> None:
        """``changed`` is called in the thread whenever a pod has changed."""
        self._client, self._selector, self._changed = client, selector, changed
        self._lock = threading.Lock()
        self._seen: dict[str, Object] = {}
        self._told: set[str] = set()
        self._stop = threading.Event()

    def watch(self) -> None:
        """Begin; what was there before is forgotten."""
        self.forget()
        threading.Thread(target=self._watch, daemon=True).start()

    def forget(self) -> None:
        """What was there before: it was not lost, but taken away."""
        with self._lock:
            self._seen.clear()

    def close(self) -> None:
        """Stop watching."""
        self._stop.set()

    def look(self) -> list[Object]:
        """The pods that are there now."""
        pods, _ = self._client.select(POD, labelSelector=self._selector)
        for pod in pods:
            self._remember(pod)
        return pods

    def lives(self) -> dict[str, list[Object]]:
        """All pods ever seen, oldest first, by name."""
        with self._lock:
            pods = sorted(self._seen.values(), key=lambda p: p["metadata"]["creationTimestamp"])
        lives: dict[str, list[Object]] = {}
        for pod in pods:
            lives.setdefault(pod["metadata"]["name"], []).append(pod)
        return lives

    def replaced(self) -> list[str]:
        """What to say of pods that have taken another's place since the last call."""
        said = []
        for name, lives in self.lives().items():
            for before, pod in itertools.pairwise(lives):
                uid = pod["metadata"]["uid"]
                if uid not in self._told:
                    self._told.add(uid)
                    said.append(f"pod {name} is new: {why_ended(before)}")
        return said

    def crash_loop(self, limit: int) -> str | None:
        """Which pod was replaced more than ``limit`` times in a row soon after it was made.

        The operator counts restarts of a pod in place alone: one that is killed for its memory
        and made anew would start over and over, until the job's deadline.
        """
        for name, lives in self.lives().items():
            quick = 0
            for one, other in itertools.pairwise(p["metadata"]["creationTimestamp"] for p in lives):
                quick = quick + 1 if state.seconds_between(one, other) < STEADY else 0
            if quick > limit:
                return f"pod {name} was started {quick + 1} times; {why_ended(lives[-2])}"
        return None

    def failures(self) -> list[state.PodFailure]:
        """How the last life of each pod failed, the first to fail first."""
        return state.failures(lives[-1] for lives in self.lives().values())

    def _remember(self, pod: Object) -> None:
        with self._lock:
            self._seen[pod["metadata"]["uid"]] = pod

    def _watch(self) -> None:
        while not self._stop.is_set():
            try:
                _, version = self._client.select(POD, labelSelector=self._selector)
                lines = self._client.stream(
                    self._client.path(POD),
                    self._stop,
                    watch="true",
                    labelSelector=self._selector,
                    resourceVersion=version,
                    timeoutSeconds=str(_WATCH_SECONDS),
                )
                for line in lines:
                    event = json.loads(line)
                    if event.get("type") in ("ADDED", "MODIFIED", "DELETED"):
                        self._remember(event["object"])
                        self._changed()
            except (ClusterError, ValueError):
                pass  # whoever looks meanwhile tells when the server stays away
            self._stop.wait(1.0)


def why_ended(pod: Object) -> str:
    """How a pod that was replaced ended."""
    failed = state.failures([pod])
    return str(failed[0]) if failed else "the one before it was removed"
