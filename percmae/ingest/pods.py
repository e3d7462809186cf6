"""An ingest shared by the pods of an Indexed Job, which know each other through the store alone.

Each pod builds the shards of its turns; pod 0 waits for the others' and writes the manifest.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from percmae.errors import DataError, PercmaeError, StoreError, UserError
from percmae.ingest.build import BuiltShard
from percmae.ingest.plan import PlannedShard
from percmae.ingest.states import States
from percmae.progress import note
from percmae.storage import StorePath

INDEX = "JOB_COMPLETION_INDEX"
"""Variable of a pod of an Indexed Job: which of them it is."""

_LOOK = 2.0  # seconds between two looks into the store
_SAY = 60.0
_PATIENCE = 6 * 3600.0  # without a further shard: a lost pod is started anew long before


@dataclass(frozen=True)
class Pods:
    """index: which pod this is, from 0; of: how many there are."""

    index: int
    of: int

    def share(self, shards: Sequence[PlannedShard]) -> list[PlannedShard]:
        """The shards of this pod's turns."""
        return list(shards[self.index :: self.of])

    def fail(self, states: States, error: Exception) -> None:
        """Leave word of an error, which ends the waiting of pod 0."""
        with suppress(StoreError):  # the error itself is what is to be told
            # Without the attempt, the same error twice would have the same etag.
            word = {"error": str(error), "attempt": os.urandom(8).hex()}
            self._path(states, self.index).write_json(word)

    def begin(self, states: States) -> dict[str, str]:
        """Take back what this pod has left earlier; the words of others that are there already,
        which are of attempts that are over."""
        self._path(states, self.index).delete()
        return self._words(states)

    def wait(
        self,
        states: States,
        shards: Sequence[PlannedShard],
        built: dict[str, BuiltShard],
        earlier: dict[str, str],
    ) -> dict[str, BuiltShard]:
        """All shards, once the other pods have built theirs.

        built: those of this pod, by stem; earlier: what :meth:`begin` gave. Raises PercmaeError
        when another pod has failed since, or none goes on.
        """
        done = dict(built)
        progressed = said = time.monotonic()
        while missing := [shard for shard in shards if shard.stem not in done]:
            self._check(states, earlier)
            found = states.finished(missing)
            done |= found
            now = time.monotonic()
            if found:
                progressed = now
            elif now - progressed > _PATIENCE:
                raise PercmaeError(
                    f"{missing[0].name} and {len(missing) - 1:,} more shards of other pods do not "
                    f"come: none in {_PATIENCE / 3600:g} h; see to the job's pods, and that all "
                    "read the same source"
                )
            if now - said > _SAY:
                said = now
                note(f"ingest: waiting for {len(missing) - len(found):,} shards of other pods")
            if len(found) < len(missing):
                time.sleep(_LOOK)
        return done

    def _check(self, states: States, earlier: dict[str, str]) -> None:
        for name, tag in self._words(states).items():
            if earlier.get(name) == tag:
                continue
            try:
                text = (states.folder / name).read_json()["error"]
            except (DataError, StoreError, KeyError, TypeError):
                continue  # its pod has begun anew
            raise PercmaeError(f"another pod ({name.removesuffix('.txt')}) failed: {text}")

    def _words(self, states: States) -> dict[str, str]:
        """Name and etag of each pod's word of an error, but for this pod's."""
        own = self._path(states, self.index).name
        words = {}
        for entry in states.folder.iter():
            if entry.name.startswith("pod-") and entry.name != own:
                with suppress(StoreError):
                    words[entry.name] = entry.path.stat().etag
        return words

    def _path(self, states: States, index: int) -> StorePath:
        return states.folder / f"pod-{index}.txt"


def pods_of(of: int | None) -> Pods | None:
    """This pod among ``of``; None where the work is not shared.

    Raises UserError outside an Indexed Job, and where the numbers do not fit.
    """
    if of is None:
        return None
    text = os.environ.get(INDEX, "")
    if not text.isdigit():
        raise UserError(f"--of {of}: {INDEX} is not set: it is for the pods of an Indexed Job")
    if int(text) >= of:
        raise UserError(f"--of {of}: {INDEX}={text} is beyond; give the job's completions as --of")
    return Pods(int(text), of)
