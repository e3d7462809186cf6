"""What a person sees of steps that run at the same time: one line of progress each, notes above."""

from __future__ import annotations

import os
import re
import shutil
import sys
import threading
from typing import Any, TextIO

from tqdm import tqdm

# Cursor movements and colours; a line is shown by our own means.
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Console:
    """Lines on stderr, each with the label of the step it comes from; safe to use from threads.

    On a terminal the last lines are kept for the progress of the steps that run: a step's bar is
    redrawn in place (``live``), and lines that stay (``line``) appear above.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self.is_terminal = self._stream.isatty() and os.environ.get("TERM") != "dumb"
        self._lock = threading.Lock()
        self._bars: dict[str, tqdm[Any]] = {}

    @property
    def columns(self) -> int:
        """Width left for a text behind its label."""
        return max(20, shutil.get_terminal_size().columns - _LABEL - 4)

    def line(self, label: str, text: str) -> None:
        """A line that stays."""
        with self._lock:
            if self._bars:
                tqdm.write(_labelled(label, text), file=self._stream)
            else:
                # Where tqdm has taken its last bar away, the cursor may stand anywhere in the line.
                start = "\r\x1b[K" if self.is_terminal else ""
                print(start + _labelled(label, text), file=self._stream, flush=True)

    def live(self, label: str, text: str) -> None:
        """Where a step stands, replacing what was said before. Shown on a terminal only."""
        if not self.is_terminal:
            return
        with self._lock:
            if label not in self._bars:
                # A bar that is nothing but its text: tqdm finds it a free line.
                self._bars[label] = tqdm(
                    total=0, bar_format="{desc}", leave=False, file=self._stream, dynamic_ncols=True
                )
            self._bars[label].set_description_str(_labelled(label, text))

    def done(self, label: str) -> None:
        """The step has ended: its line of progress goes."""
        with self._lock:
            bar = self._bars.pop(label, None)
            if bar is not None:
                bar.close()


_LABEL = 24


def _labelled(label: str, text: str) -> str:
    return f"{label:<{_LABEL}} | {text}"


class Lines:
    """Cuts what a program writes into lines that stay and a last line that is being redrawn.

    A carriage return starts the line over, as on a terminal.
    """

    def __init__(self) -> None:
        self._open = ""

    def feed(self, text: str) -> list[str]:
        """The lines that ``text`` completes."""
        *finished, self._open = (self._open + text).replace("\r\n", "\n").split("\n")
        lines = [_last_drawn(line) for line in finished]
        # What was drawn over is not needed; a bar that runs for hours must not pile up.
        head, separator, tail = self._open.rpartition("\r")
        self._open = (_last_drawn(head) + separator + tail) if separator else tail
        return [line for line in lines if line]

    @property
    def open(self) -> str:
        """What the unfinished line shows."""
        return _last_drawn(self._open)


def _last_drawn(line: str) -> str:
    """What is left of a line after all redrawing, without trailing blanks and control codes."""
    parts = (_CONTROL.sub("", part).rstrip() for part in reversed(line.split("\r")))
    return next((part for part in parts if part), "")
