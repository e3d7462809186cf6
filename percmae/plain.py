"""YAML as people write it and as it is found: plain values, or one line that says what is wrong."""

from __future__ import annotations

import re
from typing import Any

import yaml
from yaml.reader import ReaderError

from percmae.errors import ConfigError, one_line


class _Loader(yaml.SafeLoader):
    """``1e-4`` is a number (YAML 1.1 would read a string)."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


# Ten times as quick, where PyYAML has libyaml.
_QUICK = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def documents(text: str) -> list[Any]:
    """All documents of YAML that a program has written. Raises yaml.YAMLError for what is none."""
    return list(yaml.load_all(text, Loader=_QUICK))


def read_yaml(source: str | bytes, what: str) -> Any:
    """The values of one YAML document; of bytes, in UTF-8 or, where they begin so, UTF-16.

    what: what is read, for the message. Raises ConfigError for bytes of another encoding, for what
    is not YAML, and for a value that contains itself or is nested too deep to be taken apart.
    """
    try:
        value = yaml.load(source, Loader=_Loader)
        _refuse_loops(value, [])
    except ReaderError as error:
        if error.encoding == "unicode":  # text, with a character that YAML does not allow
            raise ConfigError(f"{what} is not YAML: {_line(error)}") from None
        raise ConfigError(
            f"{what} is not UTF-8 text (byte {error.position}: {error.reason}); save it as UTF-8"
        ) from None
    except RecursionError:
        raise ConfigError(f"{what}: nested too deep, or a value that contains itself") from None
    except Exception as error:
        # Of 2024-13-45 or !!int x the parser raises whatever it stumbles over.
        raise ConfigError(f"{what} is not YAML: {_line(error)}") from None
    return value


def _refuse_loops(value: Any, above: list[int]) -> None:
    """Raises RecursionError for a value that contains itself, which JSON and a config cannot."""
    if isinstance(value, dict | list):
        if id(value) in above:
            raise RecursionError
        for part in value.values() if isinstance(value, dict) else value:
            _refuse_loops(part, [*above, id(value)])


def _line(error: Exception) -> str:
    """What is wrong and where; not the text around it, which may hold a key."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return one_line(error)
    return f"{error.problem} (line {mark.line + 1}, column {mark.column + 1})"  # type: ignore[attr-defined]
