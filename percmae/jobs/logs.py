"""The log of a container: its end, or followed over broken connections with every line once."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable

from percmae.jobs.client import Client, ClusterError
from percmae.jobs.names import POD

# Seconds that an ended container's log may take.
_LAST_SECONDS = 5.0
_TIME = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+(Z|[+-][\d:]+)$")


class LogLines:
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


def last_lines(client: Client, pod: str, container: str, count: int) -> list[str]:
    """The last lines that a container printed; none where its log cannot be had any more."""
    path = _path(client, pod)
    try:
        return client.text(path, container=container, tailLines=str(count)).splitlines()
    except ClusterError:
        return []  # its node has gone


def _path(client: Client, pod: str) -> str:
    return client.path(POD, pod) + "/log"


class Follower:
    """Hands the lines of one container to ``emit`` until :meth:`finish`."""

    def __init__(
        self, client: Client, pod: str, uid: str, container: str, emit: Callable[[str], None]
    ) -> None:
        self.uid = uid
        self._client, self._path, self._emit = client, _path(client, pod), emit
        self._query = {"container": container, "timestamps": "true", "follow": "true"}
        self._lines = LogLines()
        self._done, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Take what is left of an ended container's log, and stop following.

        The connection ends with the container; where the node is gone it need not.
        """
        self._done.set()
        self._thread.join(_LAST_SECONDS)
        self._stop.set()

    def _follow(self) -> None:
        last = False
        while not (last or self._stop.is_set()):
            last = self._done.is_set()  # one more time after the end, for what came in between
            self._lines.resume()
            since = {"sinceTime": self._lines.since} if self._lines.since else {}
            # Where it ends early the main thread tells, when the server stays away.
            for line in self._client.stream(self._path, self._stop, **self._query, **since):
                text = self._lines.new(line)
                if text is not None:
                    self._emit(text)
            self._done.wait(1.0)
