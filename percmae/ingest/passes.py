"""The shards that are to be built, in passes: fetched as many at a time as there is room for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

from percmae.ingest.build import BuiltShard, Work
from percmae.ingest.crew import Hear, Job, Told, share_out
from percmae.ingest.plan import PlannedShard
from percmae.ingest.scratch import Piece, Scratch, Space, scratches
from percmae.ingest.states import States


@dataclass(frozen=True)
class Passes:
    """How shards are built.

    workers: processes; hear: what is told of images that are in their shards; fetched: of bytes
    that are on this machine's disk; built: of a shard that is whole.
    """

    work: Work
    states: States
    space: Space
    workers: int
    hear: Hear
    fetched: Callable[[int], None]
    built: Callable[[PlannedShard, BuiltShard], None]

    def run(self, shards: Sequence[PlannedShard]) -> None:
        """Build them all. Raises what :func:`percmae.ingest.crew.share_out` does."""
        for group, scratch in scratches(self.work.catalogue, shards, self.space):
            with scratch or nullcontext():
                if scratch is not None:
                    self._fetch(scratch)
                self._build(replace(self.work, scratch=scratch), group)

    def _fetch(self, scratch: Scratch) -> None:
        def lost(piece: Piece, how: str) -> str:
            return (
                f"while they read {piece.name} ({how}); if they were killed for memory, lower "
                "--workers"
            )

        job = Job(scratch.fetch, lambda piece, nothing: None, lost)
        hear = replace(self.hear, image=lambda count, fault: self.fetched(count))
        share_out(scratch.pieces(), job, self.workers, hear)

    def _build(self, work: Work, shards: Sequence[PlannedShard]) -> None:
        def build(planned: PlannedShard, told: Told) -> BuiltShard:
            return built_and_noted(work, self.states, planned, told)

        def lost(planned: PlannedShard, how: str) -> str:
            first = work.catalogue.name(int(planned.rows[0]))
            return (
                f"while they built {planned.name} ({how}); if they were killed for memory, lower "
                f"--workers; else one of its {len(planned.rows):,} images (first: {first}) crashes "
                "the decoder: find it and take it out"
            )

        share_out(shards, Job(build, self.built, lost), self.workers, self.hear)


def built_and_noted(work: Work, states: States, planned: PlannedShard, told: Told) -> BuiltShard:
    """A shard, and word of it in the store, which is not there while it is built."""
    states.forget(planned)
    built = work.build(planned, told)
    states.write(planned, built)
    return built
