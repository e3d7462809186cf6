"""What a run writes for people: metrics.jsonl, TensorBoard events, reconstruction images.

Everything is collected on local disk first and handed on at ``flush`` (each checkpoint), since an
object in a store cannot be appended to.
"""

from __future__ import annotations

import io
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from percmae.engine.spool import Spool
from percmae.errors import StoreError
from percmae.runs.history import History, HistoryRow
from percmae.runs.record import PICTURES
from percmae.storage.follow import LOGS

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

# An event file is uploaded again at each flush while it grows; a new one is begun at this size.
EVENT_FILE_BYTES = 8 << 20


class Tracker:
    """Writer of one run's figures; use it as a context manager, in the main process only.

    spool: what writes to the run's folder; step: where the run goes on (0 for a new one). What an
    earlier, interrupted process logged beyond that step is taken back, so no step is told twice.
    """

    def __init__(self, spool: Spool, step: int) -> None:
        self._spool = spool
        self._scratch = Path(tempfile.mkdtemp(prefix="percmae-events-"))
        self._resumed = step
        self._history = History(spool.run, step)
        self.earlier = self._history.earlier
        """Figures that were logged before."""
        self._writer: SummaryWriter | None = None
        self._uploaded: dict[str, int] = {}

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._writer is not None:
            with suppress(OSError):  # what matters was flushed before
                self._writer.close()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def log(self, step: int, epoch: float, split: str, values: dict[str, float]) -> HistoryRow:
        """Record figures of optimiser step ``step`` (counted from 1) under ``<split>/<name>``; the
        row of the history that they make.

        Raises as :meth:`Spool.check` does.
        """
        self._spool.check()
        row = self._history.add(step, epoch, split, values)
        with self._events() as writer:
            for name, value in values.items():
                writer.add_scalar(f"{split}/{name}", value, step)
        return row

    def image(self, step: int, name: str, picture: Tensor) -> None:
        """Keep a picture (3, H, W) in [0, 1] under mae_recon_out and in TensorBoard.

        The file is step-N.png for the picture called reconstruction, <name>-step-N.png for others.
        """
        prefix = "" if name == "reconstruction" else f"{name}-"
        file = self._spool.run / PICTURES / f"{prefix}step-{step:08d}.png"
        self._spool.put(file, png(picture))
        with self._events() as writer:
            writer.add_image(name, picture, step)

    def flush(self) -> None:
        """Hand on what is new."""
        self._spool.put(self._history.path, self._history.content())
        if self._writer is None:
            return
        with self._events() as writer:
            writer.flush()
        logs = self._spool.run / LOGS
        for file in sorted(self._scratch.iterdir()):
            size = file.stat().st_size
            if self._uploaded.get(file.name) != size:
                self._spool.put_file(logs / file.name, file)
                self._uploaded[file.name] = size
        if max(self._uploaded.values(), default=0) > EVENT_FILE_BYTES:
            self._writer.close()
            self._writer = None
            for file in self._scratch.iterdir():
                file.unlink()
            self._uploaded.clear()

    @contextmanager
    def _events(self) -> Iterator[SummaryWriter]:
        """The TensorBoard writer, made when first used (its import takes a second).

        Raises StoreError where its files cannot be written, which it tells without their name.
        """
        try:
            if self._writer is None:
                from torch.utils.tensorboard import SummaryWriter

                purge = self._resumed + 1 if self._resumed else None
                self._writer = SummaryWriter(str(self._scratch), purge_step=purge)
                self._resumed = 0  # a later file of this process must not take back what it logged
            yield self._writer
        except OSError as error:
            raise StoreError(
                f"cannot write TensorBoard's files below {self._scratch}: {error.strerror}; make "
                "room there, or set TMPDIR to another folder"
            ) from error


def png(grid: Tensor) -> bytes:
    """A picture (3, H, W) with values in [0, 1] as PNG."""
    from PIL import Image

    pixels = (grid.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
