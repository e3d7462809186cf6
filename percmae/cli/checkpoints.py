"""``percmae checkpoints``: its options, and what each action does."""

from __future__ import annotations

import argparse

from percmae.cli.actions import described


def options(sub: argparse.ArgumentParser) -> None:
    """Give the verb its actions."""
    actions = sub.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, text in (
        ("ls", "the checkpoints of a run, and why each is kept"),
        ("verify", "fetch every checkpoint of a run and compare its SHA-256"),
        ("gc", "files among a run's checkpoints that a crash has left"),
    ):
        action = described(actions, name, text)
        action.add_argument("run", metavar="RUN", help="the run's folder")
        if name == "ls":
            action.add_argument("--json", action="store_true", help="as one line of JSON")
        elif name == "gc":
            action.add_argument("--delete", action="store_true", help="delete them (default: list)")
            text = "also those of a training that may be under way"
            action.add_argument("--force", action="store_true", help=text)


def work(args: argparse.Namespace) -> None:
    """Do what was asked for, and print what came of it."""
    from percmae.runs import checkpoint_list

    if args.action == "ls":
        print(checkpoint_list.listing(args.run, args.json))
    elif args.action == "verify":
        print(checkpoint_list.verified(args.run))
    else:
        print(checkpoint_list.collected(args.run, args.delete, args.force))
