"""Errors that no part of percmae has put into words: what a library or the system raised.

What the surroundings are to blame for (a full disk, a limit on files, threads or memory, a folder
that may not be written to) becomes the one line of any other error. Everything else is a fault of
percmae: one line as well, and the traceback, which its authors need, in a file of its own. With
``PERCMAE_DEBUG=1`` tracebacks go to stderr instead: where nobody can fetch a file, as from a pod.
"""

from __future__ import annotations

import errno
import os
import platform
import re
import sys
import tempfile
import traceback

from percmae.errors import PercmaeError, UserError

DEBUG = "PERCMAE_DEBUG"
_OURS = ("percmae", "components", "pipelines")
_LONGEST = 400  # characters of a library's message

_ROOM = "make room, or use another place (TMPDIR says where temporary files go)"
_PATH = "check the path"
_RIGHTS = "use a place that may be written to, or see who may do so"
_FILES = "raise the limit on open files (ulimit -n 4096), or lower data.workers"
_PROCESSES = (
    "no more processes or threads may be started: raise the limit (ulimit -u, or a container's "
    "limit on pids), or lower data.workers and trainer.threads"
)
_MEMORY = "there is not enough memory: use more, or lower data.batch_size or data.workers"
# What runs out on the way may be there another time; what is set up wrongly is not (exit code 2).
_RUNS_OUT = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), _ROOM),
    errno.EFBIG: "raise the limit on the size of a file (ulimit -f), or use another place",
    errno.ENFILE: "the whole system has too many files open",
    errno.ENOMEM: _MEMORY,
    **dict.fromkeys((errno.EIO, errno.ESTALE), "see to the disk, or what it is mounted from"),
}
_SET_UP_WRONGLY = {
    **dict.fromkeys((errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP), _PATH),
    errno.ENAMETOOLONG: _PATH,
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), _RIGHTS),
    errno.EMFILE: _FILES,
    errno.EAGAIN: _PROCESSES,
}
_SAID_OF_MEMORY = ("can't allocate memory", "CUDA out of memory", "failed to map segment")
_SAID_OF_FOLDERS = {
    "No usable temporary directory": "set TMPDIR to one with room in it",
    "Could not determine home directory": "set HOME, or write the path without ~",
    "Matplotlib requires access to a writable cache directory": "TMPDIR will do as well",
}
_ERRNO = re.compile(r"\[Errno (\d+)\]|\((\d+)\)$")


def debugging() -> bool:
    """Whether tracebacks are to be seen."""
    return os.environ.get(DEBUG, "0") not in ("", "0")


def in_words(error: Exception, logged: bool = False) -> PercmaeError:
    """The error as one line for a person; the traceback of a fault is kept in a file.

    logged: on stderr instead, where all of them go with ``PERCMAE_DEBUG=1``.
    """
    blamed = _surroundings(error)
    kept = None if blamed is not None or logged or debugging() else _kept(error)
    if debugging() or (blamed is None and kept is None):
        traceback.print_exception(error)
    if blamed is not None:
        return blamed
    what = f"unexpected {type(error).__name__}{_place(error)}: {_line(error)}"
    where = f", {kept}" if kept else ""
    return PercmaeError(f"{what}; this is a fault of percmae: report it with its traceback{where}")


def _surroundings(error: Exception) -> PercmaeError | None:
    """The error in other words where it is not percmae's fault."""
    text = _line(error)
    if isinstance(error, MemoryError) or any(said in text for said in _SAID_OF_MEMORY):
        return PercmaeError(f"memory ran out{_place(error)}: {text}; {_MEMORY}")
    if "can't start new thread" in text:
        return UserError(f"{text}{_place(error)}; {_PROCESSES}")
    for said, fix in _SAID_OF_FOLDERS.items():
        if said in text:
            return UserError(f"{text[text.index(said) :]}; {fix}")
    if isinstance(error, ImportError) and not (error.name or "percmae").startswith(_OURS):
        return UserError(
            f"{error.name} cannot be used here: {text}; `pip install percmae` mends what is "
            "missing, `percmae doctor` says what is there"
        )
    number = _number(error, text)
    where = getattr(error, "filename", None)
    said = f"{os.fsdecode(where)}: " if isinstance(where, str | bytes) else ""
    said += os.strerror(number) + ("" if said else _place(error))
    if number in _SET_UP_WRONGLY:
        return UserError(f"{said}; {_SET_UP_WRONGLY[number]}")
    return PercmaeError(f"{said}; {_RUNS_OUT[number]}") if number in _RUNS_OUT else None


def _number(error: Exception, text: str) -> int:
    """The system's number of the error, which libraries often have in the text alone; or 0."""
    number = getattr(error, "errno", None)
    if isinstance(number, int):
        return number
    if isinstance(error, OSError | RuntimeError):
        if "Too many open files" in text:
            return errno.EMFILE
        found = _ERRNO.search(text)
        if found is not None:
            number = int(found[1] or found[2])
            return number if os.strerror(number) in text else 0
    return 0


def _place(error: Exception) -> str:
    """`` in percmae/engine/loop.py, line 7``: the last place that is percmae's own."""
    place = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        module = str(frame.f_globals.get("__name__"))
        if module.partition(".")[0] in _OURS and module != "percmae.command":
            place = f" in {module.replace('.', '/')}.py, line {line}"
    return place


def _line(error: Exception) -> str:
    """The message in one line; of one with a traceback in it (a worker's), the end."""
    text = str(error).strip()
    if "Traceback (most recent call last)" in text:
        text = text.splitlines()[-1]
    text = " ".join(text.split()) or type(error).__name__
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _kept(error: Exception) -> str | None:
    """The file that the traceback was written to; None where none can be made."""
    named = {name: sys.modules.get(name) for name in ("percmae", "torch")}
    versions = [f"{name} {module.__version__}" for name, module in named.items() if module]
    python = platform.python_version()
    text = f"{', '.join(versions)}, Python {python}, {platform.platform()}\n\n"
    text += "".join(traceback.format_exception(error))
    try:
        descriptor, name = tempfile.mkstemp(".txt", "percmae-traceback-")
        with open(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
    except OSError:
        return None
    return name
