"""YAML of any kind becomes plain values, or one line."""

from __future__ import annotations

import pytest

from percmae.errors import ConfigError
from percmae.plain import read_yaml

TEXT = "seed: 4\nname: Größe\nlr: 1e-4\n"
VALUES = {"seed": 4, "name": "Größe", "lr": 1e-4}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings_that_yaml_has(encoding: str) -> None:
    assert read_yaml(TEXT.encode(encoding), "it") == VALUES
    assert read_yaml(TEXT, "it") == VALUES


def test_an_alias_is_no_loop() -> None:
    assert read_yaml("a: &x [1]\nb: *x\nc: [*x, *x]\n", "it")["c"] == [[1], [1]]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (TEXT.encode("latin-1"), "is not UTF-8 text (byte 16: invalid start byte); save it as"),
        (TEXT.encode("utf-16")[:-1], "is not UTF-8 text"),
        (b"\0\0\0", "is not YAML: unacceptable character #x0000"),
        (bytes(range(128, 256)), "is not UTF-8 text"),
        ("a: [", "is not YAML: expected the node content, but found '<stream end>' (line 1, col"),
        ("? [a]\n: 3", "is not YAML: found unhashable key (line 1, column 3)"),
        ("a: 1\n---\nb: 2\n", "is not YAML: but found another document (line 2, column 1)"),
        ("seed: 2024-13-45", "is not YAML: month must be in 1..12"),
        ("seed: !!int ''", "is not YAML: "),
        ("seed: !!timestamp x", "is not YAML: "),
        ("seed: " + "9" * 5000, "is not YAML: "),
        ("seed: &a [*a]", "nested too deep, or a value that contains itself"),
        ("a: &a {b: *a}", "nested too deep, or a value that contains itself"),
        ("[" * 5000, "nested too deep"),
        ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
    ],
)
def test_everything_else_is_one_line(source: str | bytes, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        read_yaml(source, "file x.yaml")
    message = str(error.value)
    assert message.startswith("file x.yaml")
    assert said in message
    assert "\n" not in message


def test_the_text_around_a_fault_is_not_shown() -> None:
    """A store's settings hold its keys."""
    with pytest.raises(ConfigError) as error:
        read_yaml("secret_key: [hush", "it")
    assert "hush" not in str(error.value)
