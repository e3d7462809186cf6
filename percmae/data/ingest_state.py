"""How far an ingest has come, kept in the store so that an interrupted one can go on.

Of each archive by itself, with what its shards were made from: an archive that was mended since, or
a setting that changed, costs the work on that archive alone.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from percmae.data.imagenet import Position
from percmae.data.shards import ShardInfo
from percmae.errors import DataError
from percmae.progress import note, warn
from percmae.storage import StorePath

STATE = ".ingest/state.json"
_FORMAT = "percmae-ingest/3"

Json = dict[str, Any]


@dataclass
class SplitState:
    """How far one split has come: finished shards and where the archive is read on.

    made_from: all that decides what its shards hold. found: images seen of each class, by label,
    the damaged ones among them. moments: sums over the samples of a training split (see
    :class:`percmae.data.checked.Seen`). md5: of the archive, once read to its end.
    """

    made_from: Json
    found: list[int]
    shards: list[ShardInfo] = field(default_factory=list)
    position: Position = field(default_factory=Position)
    corrupt: list[dict[str, str]] = field(default_factory=list)
    moments: list[float] = field(default_factory=lambda: [0.0] * 6)
    md5: str | None = None

    @property
    def images(self) -> int:
        """Images seen."""
        return sum(self.found)

    @property
    def samples(self) -> int:
        """Images in the shards."""
        return sum(shard.samples for shard in self.shards)


State = dict[str, SplitState]


def save_state(to: StorePath, state: State) -> None:
    """Replace the state of the ingest into ``to``."""
    splits = {split: dataclasses.asdict(progress) for split, progress in state.items()}
    (to / STATE).write_json({"format": _FORMAT, "splits": splits})


def load_state(to: StorePath, made_from: dict[str, Json], classes: int) -> State:
    """The state of the ingest into ``to``: of each split what was made from the same, else nothing.

    made_from: by split. Says what is gone on with and what is not. Raises StoreError.
    """
    saved = _saved(to / STATE)
    state = {split: SplitState(now, [0] * classes) for split, now in made_from.items()}
    for split, now in made_from.items():
        before = saved.get(split)
        if before is not None and before.made_from == now:
            state[split] = before
        elif before is not None and before.images:
            note(
                f"ingest: {to} holds {before.images:,} images of another {split} archive, or made "
                "with other settings; starting afresh there"
            )
    done = sum(progress.images for progress in state.values())
    if done:
        note(f"ingest: going on after {done:,} images ingested before")
    return state


def _saved(path: StorePath) -> State:
    if not path.exists():
        return {}
    try:
        values = path.read_json()
        if values["format"] == _FORMAT:
            return {split: _from_json(v) for split, v in values["splits"].items()}
    except (DataError, KeyError, TypeError, AttributeError):
        pass
    warn(f"ingest: {path} is damaged or was written by another version; starting afresh")
    return {}


def _from_json(values: Json) -> SplitState:
    shards = [ShardInfo(**shard) for shard in values["shards"]]
    return SplitState(**values | {"shards": shards, "position": Position(*values["position"])})
