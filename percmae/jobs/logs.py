"""Follows a container's log over broken connections, every line once."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable

from percmae.errors import PercmaeError
from percmae.jobs.cluster import Cluster

_TIME = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+(Z|[+-][\d:]+)$")


class Lines:
    """Drops what has been seen: the server resumes at a second, lines bear nanoseconds.

    Lines may share a time, so those seen at the last one are counted.
    """

    def __init__(self) -> None:
        self.last = ""
        self._at_last = 0
        self._skip = 0

    @property
    def since(self) -> str | None:
        """Where to take up again, to the second: sinceTime of the next request."""
        return f"{self.last.partition('.')[0].rstrip('Z')}Z" if self.last else None

    def resume(self) -> None:
        """A new connection begins: what follows starts at :attr:`since`."""
        self._skip = self._at_last

    def new(self, line: str) -> str | None:
        """The text of a line behind its time, or None when it has been seen."""
        time, _, text = line.partition(" ")
        if not _TIME.match(time):
            return None  # the node's own words on a container that is gone
        if _order(time) < _order(self.last):
            return None
        if time == self.last:
            if self._skip:
                self._skip -= 1
                return None
            self._at_last += 1
        else:
            self.last, self._at_last, self._skip = time, 1, 0
        return text


def _order(time: str) -> tuple[str, str]:
    """Times compare as text once their fractions, of any length, are apart."""
    seconds, _, fraction = time.rstrip("Z").partition(".")
    return seconds, fraction.ljust(9, "0")


class Follower:
    """Hands the lines of one container to ``emit`` until :meth:`finish`."""

    def __init__(
        self, cluster: Cluster, pod: str, uid: str, container: str, emit: Callable[[str], None]
    ) -> None:
        self.uid = uid
        self._cluster, self._pod, self._container, self._emit = cluster, pod, container, emit
        self._lines = Lines()
        self._done, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def finish(self, wait: float = 5.0) -> None:
        """Take what is left of an ended container's log, and stop following.

        The connection ends with the container; where the node is gone it need not.
        """
        self._done.set()
        self._thread.join(wait)
        self._stop.set()

    def _follow(self) -> None:
        last = False
        while not (last or self._stop.is_set()):
            last = self._done.is_set()  # one more time after the end, for what came in between
            self._lines.resume()
            try:
                stream = self._cluster.follow(
                    self._pod, self._container, self._lines.since, self._stop
                )
                for line in stream:
                    text = self._lines.new(line)
                    if text is not None:
                        self._emit(text)
            except (PercmaeError, OSError):
                pass  # the main thread tells when the server stays away
            self._done.wait(1.0)
