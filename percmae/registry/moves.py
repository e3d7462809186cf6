"""Aliases of a model moved: a version promoted, or what was in use before taken back."""

from __future__ import annotations

from percmae.errors import UserError
from percmae.registry.mlflow import tell_of_alias
from percmae.registry.model import (
    CHAMPION,
    LATEST,
    MODEL,
    Model,
    Reference,
    Version,
    change,
    read_model,
)


def listed(reference: Reference, key: str) -> Version | None:
    """The version that a model has of the run with this key."""
    if not (reference.path / MODEL).exists():
        return None
    return _of_key(read_model(reference.path), key)


def add(reference: Reference, version: Version) -> Version:
    """List a version whose files are in place; the alias ``latest`` names it then.

    Its number is the next one, whatever it has. A run that is listed already keeps its version,
    which is returned: of the same run there is one, however often it is added.
    """

    def by(model: Model) -> Model:
        if _of_key(model, version.key) is not None:
            return model
        number = max((each.version for each in model.versions), default=0) + 1
        numbered = version.model_copy(update={"version": number})
        listed = model.model_copy(update={"versions": [*model.versions, numbered]})
        return listed.moved(LATEST, number, "add", None)

    added = _of_key(change(reference.path, by), version.key)
    assert added is not None, "it has just been listed"
    return added


def promote(
    reference: Reference,
    alias: str = CHAMPION,
    why: str | None = None,
    instead_of: int | None = None,
) -> Model:
    """Have an alias name the version of ``reference``.

    instead_of: what it named when that was decided (None: nothing); where it names another one by
    now, the move is refused with UserError: of two promotions at once only one wins. Raises
    UserError for a version that there is not, and for ``latest``, which moves by itself.
    """
    if alias == LATEST:
        raise UserError(f"{LATEST} names the newest version by itself; promote it to another alias")
    if reference.which is None:
        raise UserError(f"model {reference}: say which version, as in {reference}@{LATEST}")
    which = reference.which
    # An alias may move meanwhile; the version meant is the one it named when that was asked for.
    chosen = read_model(reference.path).named(which).version

    def by(model: Model) -> Model:
        model.version(chosen)
        current = model.aliases.get(alias)
        if current == chosen:
            return model
        if current != instead_of:
            raise UserError(
                f"model {reference.path}: {alias} is {_told(current)} by now, not "
                f"{_told(instead_of)}: compare with that, and promote again"
            )
        return model.moved(alias, chosen, "promote", why)

    return _told_to_mlflow(reference, alias, change(reference.path, by))


def rollback(reference: Reference, alias: str = CHAMPION, why: str | None = None) -> Model:
    """Have an alias name again what it named before; once more goes back further.

    Raises UserError where it has named nothing before.
    """
    asked = read_model(reference.path)

    def by(model: Model) -> Model:
        earlier = model.before(alias)
        if alias not in model.aliases or earlier is None:
            raise UserError(
                f"model {reference.path}: {alias} has named no version before "
                f"{_told(model.aliases.get(alias))}, so there is nothing to go back to"
            )
        if model.aliases[alias] != asked.aliases.get(alias):
            raise UserError(f"model {reference.path}: {alias} has been moved meanwhile; look again")
        return model.moved(alias, earlier, "rollback", why)

    return _told_to_mlflow(reference, alias, change(reference.path, by))


def _told_to_mlflow(reference: Reference, alias: str, model: Model) -> Model:
    tell_of_alias(reference, alias, model.version(model.aliases[alias]))
    return model


def _of_key(model: Model, key: str) -> Version | None:
    return next((each for each in model.versions if each.key == key), None)


def _told(version: int | None) -> str:
    return "no version" if version is None else f"version {version}"
