"""What is said on stderr: notes, warnings and progress, all through the logger ``percmae``.

An entry point gives that logger its handler while it works (:func:`log_to_stderr`). A program that
imports percmae decides by itself: it configures logging as it likes, and without that hears of
warnings only.

On a terminal a line is its message, and work under way has a bar. Anywhere else a line begins with
time, level and rank, so that a log of many processes can be read, and progress is a line at a
steady pace. tqdm writes both bar and line, and is loaded with the first of them.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, overload

if TYPE_CHECKING:
    from tqdm import tqdm

T = TypeVar("T")

_log = logging.getLogger("percmae")
# Bars of this process that are on the screen: what is said meanwhile goes above them.
_open_bars = 0


def _without_bars() -> None:
    global _open_bars
    _open_bars = 0


# Bars are the parent's, and so may be the lock that tqdm.write takes.
os.register_at_fork(after_in_child=_without_bars)


class Progress:
    """How far one piece of work is. Use as a context manager, and ``update`` as it goes on."""

    def __init__(
        self,
        desc: str,
        total: int | None,
        unit: str = "it",
        interval: float = 10.0,
        *,
        initial: int = 0,
        show: bool = True,
    ) -> None:
        """``desc`` names the work and ``unit`` what is counted ("B" for bytes).

        ``total`` may be unknown. ``interval``: seconds between two lines where there is no
        terminal. ``initial``: done before, in a run that is resumed; it counts for the position
        but not for the rate. ``show=False`` says nothing at all (every rank but the first).
        """
        self.desc = desc
        self.total = total
        self.unit = unit
        self.done = initial
        self._initial = initial
        self._interval = interval
        self._show = show
        self._postfix: dict[str, Any] = {}
        self._began = self._last_line = time.monotonic()
        self._closed = False
        self._bar = self._open_bar() if show and _draws_bars() else None

    def update(self, n: int = 1, **postfix: Any) -> None:
        """``n`` more are done; ``postfix`` (``loss=0.41``) is shown beside it until replaced."""
        self.done += n
        self._postfix.update(postfix)
        if self._bar is not None:
            if postfix:
                self._bar.set_postfix_str(self._beside(), refresh=False)
            self._bar.update(n)
        elif self._show and self.done != self.total:  # the last line is for close()
            now = time.monotonic()
            if now - self._last_line >= self._interval:
                self._last_line = now
                self._say()

    def close(self) -> None:
        """End the bar, or print the last line. Closing twice is fine."""
        global _open_bars
        if self._closed:
            return
        self._closed = True
        if self._bar is not None:
            self._bar.close()
            _open_bars -= 1
        elif self._show:
            self._say()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _open_bar(self) -> tqdm[Any]:
        global _open_bars
        from tqdm import tqdm

        _open_bars += 1
        return tqdm(
            desc=self.desc,
            total=self.total,
            unit=self.unit,
            unit_scale=self.unit == "B",
            initial=self.done,
            file=sys.stderr,
            dynamic_ncols=True,
        )

    def _say(self) -> None:
        """The text of the bar, as a line."""
        if not _log.isEnabledFor(logging.INFO):
            return
        from tqdm import tqdm

        line = tqdm.format_meter(
            self.done,
            self.total,  # type: ignore[arg-type]  # None is documented
            time.monotonic() - self._began,
            ncols=0,
            prefix=self.desc,
            unit=self.unit,
            unit_scale=self.unit == "B",
            initial=self._initial,
            postfix=self._beside(),
        )
        _log.info("%s", line)

    def _beside(self) -> str:
        from tqdm import tqdm

        return ", ".join(
            f"{name}={tqdm.format_num(value) if isinstance(value, float) else value}"
            for name, value in self._postfix.items()
        )


@overload
def progress(
    iterable: None, total: int | None = None, desc: str = "", unit: str = "it", **options: Any
) -> Progress: ...
@overload
def progress(
    iterable: Iterable[T],
    total: int | None = None,
    desc: str = "",
    unit: str = "it",
    **options: Any,
) -> Iterator[T]: ...
def progress(
    iterable: Iterable[T] | None,
    total: int | None = None,
    desc: str = "",
    unit: str = "it",
    **options: Any,
) -> Progress | Iterator[T]:
    """Show progress through ``iterable``, one step an item; with None, a ``Progress`` to update.

    ``total`` defaults to the iterable's length where it has one; ``options`` go to ``Progress``.
    """
    if iterable is None:
        return Progress(desc, total, unit, **options)
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    return _each(iterable, Progress(desc, total, unit, **options))


def note(message: str) -> None:
    """Say how it goes."""
    _log.info("%s", message)


def warn(message: str) -> None:
    """Say what had better be otherwise."""
    _log.warning("%s", message)


def relay(line: str) -> None:
    """Pass on a line of another process, which bears its own time, level and rank."""
    _log.info("%s", line, extra={"relayed": True})


@contextmanager
def log_to_stderr() -> Iterator[None]:
    """Send to stderr what the logger ``percmae`` is told, for as long as the block lasts.

    Nothing is changed where the logger has a handler already.
    """
    if _log.handlers:
        yield
        return
    handler, level, propagate = _Stderr(), _log.level, _log.propagate
    _log.addHandler(handler)
    _log.setLevel(level or logging.INFO)
    _log.propagate = False  # KFP's executor has a handler of its own at the root
    try:
        yield
    finally:
        _log.removeHandler(handler)
        _log.setLevel(level)
        _log.propagate = propagate


class _Stderr(logging.Handler):
    """Writes to what is stderr at the time, above the bars if there are any."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = _formatted(record)
            if _open_bars:
                from tqdm import tqdm

                tqdm.write(line, file=sys.stderr)
            else:
                print(line, file=sys.stderr, flush=True)
        except Exception:
            self.handleError(record)


def _formatted(record: logging.LogRecord) -> str:
    message = record.getMessage()
    if hasattr(record, "relayed"):
        return message
    if _is_terminal():
        return f"warning: {message}" if record.levelno >= logging.WARNING else message
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))
    rank = f" rank {os.environ['RANK']}" if os.environ.get("RANK") else ""
    return f"{when} {record.levelname}{rank}: {message}"


def _draws_bars() -> bool:
    return _is_terminal() and any(isinstance(handler, _Stderr) for handler in _log.handlers)


def _each(iterable: Iterable[T], shown: Progress) -> Iterator[T]:
    with shown:
        for item in iterable:
            yield item
            shown.update()


def _is_terminal() -> bool:
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
