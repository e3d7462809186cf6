"""Whether a training may go on with a run, or take it: equal keys, or the same for longer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from percmae.config import Config, Optim, config_from_dict
from percmae.config.load import what_counts
from percmae.errors import UserError
from percmae.runs.record import Identity, Run

_LENGTH = ("epochs", "max_steps")


def may_go_on(run: Run, identity: Identity, resume: str) -> bool:
    """Raise UserError unless a training of this identity may go on with, or take, the run.

    Under ``resume="auto"`` it may where the run was begun with the same key; else the run has to be
    complete as well. Whether the run is to be extended (:meth:`Run.extend`) first: under ``auto``
    it may be trained for more epochs or steps than it was begun for, all else being equal.
    """
    if run.key != identity.key:
        if not _longer(run.config.optim, identity.config.optim) or not _else_equal(run, identity):
            raise UserError(
                f"run {run.uri} exists with another {_difference(run, identity)}; choose another "
                "--tag, or remove it"
            )
        if resume != "auto":
            raise UserError(
                f"run {run.uri} exists, begun for fewer steps "
                f"({told(what_differs(run.config, identity.config))}); add --resume auto to train "
                "it for longer, or choose another --tag"
            )
        return True
    if resume != "auto" and not run.complete:
        raise UserError(
            f"run {run.uri} exists, stopped at step {run.record.step}; add --resume auto to go "
            "on with it, or choose another --tag"
        )
    return False


def may_hold(run: Run, data_digest: str | None, config: dict[str, Any] | None) -> None:
    """Raise UserError unless a state of this dataset and config may be the run's.

    It may also have been begun for fewer steps. None: not known, as of a checkpoint of format 1.
    """
    if data_digest not in (None, run.record.data.digest):
        raise UserError(f"is of another dataset: {data_digest} → {run.record.data.digest}")
    if config is None:
        return
    then = config_from_dict(config)
    found = what_differs(then, run.config)
    if found and not (
        _longer(then.optim, run.config.optim) and found.keys() <= {f"optim.{n}" for n in _LENGTH}
    ):
        raise UserError(f"is of another config ({told(found)})")


def what_differs(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """Settings that change what is computed: by dotted key the two values."""
    before, now = what_counts(old), what_counts(new)
    return {
        key: (before.get(key), now.get(key))
        for key in {**now, **before}
        if before.get(key) != now.get(key)
    }


def told(differences: dict[str, tuple[Any, Any]]) -> str:
    """The first of them, for a message."""
    return ", ".join(f"{key}: {a} → {b}" for key, (a, b) in list(differences.items())[:3])


def _longer(old: Optim, new: Optim) -> bool:
    """Whether there are more steps, and no limit is new or nearer."""
    unlimited = new.max_steps is None
    further = unlimited or (old.max_steps is not None and new.max_steps >= old.max_steps)  # type: ignore[operator]
    changed = (old.epochs, old.max_steps) != (new.epochs, new.max_steps)
    return changed and new.epochs >= old.epochs and further


def _else_equal(run: Run, identity: Identity) -> bool:
    old, config = run.config.optim, identity.config
    as_it_was = replace(config.optim, **{name: getattr(old, name) for name in _LENGTH})
    return identity._replace(config=replace(config, optim=as_it_was)).key == run.key


def _difference(run: Run, identity: Identity) -> str:
    if run.record.data.digest != identity.data_digest:
        return f"dataset ({run.record.data.digest} → {identity.data_digest})"
    found = what_differs(run.config, identity.config)
    if found:
        return f"config ({told(found)})"
    if run.record.parent == identity.parent:
        return f"parent run ({identity.parent} has been trained anew, or for longer, since)"
    return f"parent run ({run.record.parent} → {identity.parent})"
