"""Reads what a step writes to stderr: progress, notes, and the one line that says what failed."""

from __future__ import annotations

import codecs
import fcntl
import os
import pty
import re
import signal
import struct
import termios
from typing import TextIO

from pipelines.local.console import Console, Lines

_OURS = re.compile(r"percmae: (?:error|stopped): (.*)")
_TRACEBACK = (
    "Traceback (most recent call last):",
    "During handling of the above exception",
    "The above exception was the direct cause",
)
# What the shell around a step says when the step is ended by a signal; the exit code says it too.
_SHELL = ("Hangup", "Killed", "Terminated")


class StepErrors:
    """Takes tracebacks and final error lines out of a step's lines, and keeps the last of them."""

    def __init__(self) -> None:
        self._message: str | None = None
        self._in_traceback = False
        self._unexpected = False

    def takes(self, line: str) -> bool:
        """Whether the line is part of an error, and so not a note to show."""
        ours = _OURS.fullmatch(line)
        if ours:
            self._message = ours[1]
            return True
        if line.startswith(_TRACEBACK):
            self._in_traceback = True
            return True
        if self._in_traceback:
            # Source lines are indented; the line that is not says which exception it was.
            if not line.startswith((" ", "\t")):
                self._message, self._unexpected, self._in_traceback = line, True, False
            return True
        return line in _SHELL

    def summary(self, code: int) -> str:
        """In one line, why a step ended with this exit code (negative: the signal's number)."""
        if code in (-signal.SIGKILL, 128 + signal.SIGKILL):
            return "it was killed (SIGKILL), as the system does when memory runs out"
        if self._message is None:
            return f"it ended with exit code {code} and said nothing; see the log"
        return f"{self._message} (traceback in the log)" if self._unexpected else self._message


def terminal_for(console: Console) -> tuple[int, int]:
    """File descriptors ``(ours, the step's)`` for a step's stderr.

    A terminal if we show one, so that the step draws bars; otherwise a pipe, and it prints lines.
    """
    if not console.is_terminal:
        return os.pipe()
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, console.columns, 0, 0))
    return ours, theirs


def pump(stderr: int, label: str, console: Console, log: TextIO, errors: StepErrors) -> None:
    """Show and log what comes from ``stderr`` until its end, then close it."""
    decoder, lines = codecs.getincrementaldecoder("utf-8")("replace"), Lines()
    while True:
        try:
            data = os.read(stderr, 1 << 16)
        except OSError:  # how a terminal's end shows on Linux
            data = b""
        text = decoder.decode(data, final=not data) + ("" if data else "\n")
        for line in lines.feed(text):
            log.write(f"{label} | {line}\n")
            if not errors.takes(line):
                console.line(label, line)
        if lines.open:
            console.live(label, lines.open)
        if not data:
            break
    os.close(stderr)
