"""``percmae gc``: its options, and what it does."""

from __future__ import annotations

import argparse


def options(sub: argparse.ArgumentParser) -> None:
    """Give the verb its options."""
    sub.add_argument("uri", metavar="URI", help="a folder or prefix, such as the whole store")
    text = "spare what was written to since then: hours, days or weeks (default: %(default)s)"
    sub.add_argument("--older-than", default="30d", metavar="AGE", help=text)
    text = "further places whose models, runs and reports count (of a store the bucket does)"
    sub.add_argument("--also", nargs="+", default=[], metavar="URI", help=text)
    text = "addresses that something outside refers to, such as a pipeline"
    sub.add_argument("--keep", nargs="+", default=[], metavar="URI", help=text)
    text = "list all there is, with what keeps it, as one line of JSON"
    sub.add_argument("--json", action="store_true", help=text)
    sub.add_argument("--delete", action="store_true", help="delete them (default: list)")


def work(args: argparse.Namespace) -> None:
    """Do what was asked for, and print what came of it."""
    from percmae.unused import collected

    print(collected(args.uri, args.older_than, args.also, args.keep, args.delete, args.json))
