"""``percmae datasets``: its options, and what each action does."""

from __future__ import annotations

import argparse

from percmae.cli.actions import described


def options(sub: argparse.ArgumentParser) -> None:
    """Give the verb its actions."""
    actions = sub.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, text, arguments in (
        ("ls", "the datasets below a folder or prefix", ("uri",)),
        ("show", "what a dataset was made from, and what it holds", ("manifest",)),
        ("diff", "images that one dataset has and another has not", ("left", "right")),
        ("gc", "files that no manifest of a dataset refers to", ("dataset",)),
    ):
        action = described(actions, name, text)
        for argument in arguments:
            what = "URI" if name == "ls" else "FOLDER" if name == "gc" else "MANIFEST"
            action.add_argument(argument, metavar=what)
        if name == "gc":
            action.add_argument("--delete", action="store_true", help="delete them (default: list)")
            text = "also those of an ingest that may be under way"
            action.add_argument("--force", action="store_true", help=text)
        else:
            action.add_argument("--json", action="store_true", help="as one line of JSON")


def work(args: argparse.Namespace) -> None:
    """Do what was asked for, and print what came of it."""
    from percmae.ingest import datasets

    if args.action == "ls":
        print(datasets.listing(args.uri, args.json))
    elif args.action == "show":
        print(datasets.shown(args.manifest, args.json))
    elif args.action == "diff":
        print(datasets.difference(args.left, args.right, args.json))
    else:
        print(datasets.collected(args.dataset, args.delete, args.force))
