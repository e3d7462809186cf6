"""A verb's actions, and verbs themselves, as the parser lists them."""

from __future__ import annotations

import argparse
from typing import Any


def described(among: Any, name: str, text: str) -> argparse.ArgumentParser:
    """A parser of that name among others (``add_subparsers``); text: what it does, for its line in
    the list and, with a capital letter and a full stop, for its own help."""
    parser: argparse.ArgumentParser = among.add_parser(
        name, help=text, description=text[0].upper() + text[1:] + "."
    )
    return parser
