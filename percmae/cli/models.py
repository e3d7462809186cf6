"""``percmae models``: its options, and what each action does."""

from __future__ import annotations

import argparse

from percmae.cli.actions import described


def options(sub: argparse.ArgumentParser) -> None:
    """Give the verb its actions."""
    actions = sub.add_subparsers(dest="action", metavar="ACTION", required=True)

    def action(name: str, text: str, *places: tuple[str, str]) -> argparse.ArgumentParser:
        added = described(actions, name, text)
        for place, metavar in places:
            added.add_argument(place, metavar=metavar)
        return added

    model, version = ("model", "MODEL"), ("model", "MODEL@VERSION")
    action("ls", "the models below a folder or prefix", ("uri", "URI"))
    action(
        "show", "a model's versions, aliases and history, or one version", ("model", "MODEL[@…]")
    )
    action(
        "diff", "what two versions do not share", ("left", version[1]), ("right", "[MODEL]@VERSION")
    )
    for name in ("ls", "show", "diff"):
        actions.choices[name].add_argument(
            "--json", action="store_true", help="as one line of JSON"
        )
    added = action("add", "make a version of a model from a finished, evaluated run", model)
    added.add_argument("--run", required=True, metavar="URI", help="the run, mostly a fine-tuning")
    moved = (
        action("promote", "have an alias name a version", version),
        action("rollback", "have an alias name again what it named before", model),
    )
    for added in moved:
        added.add_argument("--alias", default="champion", help="default: champion")
        added.add_argument("--why", metavar="TEXT", help="kept in the history")
    added = action("judge", "hold a version against the champion, and say why", version)
    text = "the alias of what it is held against (default: champion)"
    added.add_argument("--against", default="champion", metavar="ALIAS", help=text)
    text = "of the rule (may be repeated); `percmae config show --docs` explains them"
    added.add_argument("--rule", action="append", default=[], metavar="KEY=VALUE", help=text)
    text = "move the alias if the version is to take the place"
    added.add_argument("--promote", action="store_true", help=text)
    added = action("pull", "copy a version's files, each checked", ("model", "MODEL[@VERSION]"))
    added.add_argument("--to", required=True, metavar="URI", help="an empty folder")
    added.add_argument("--force", action="store_true", help="also where there are files")


def work(args: argparse.Namespace) -> None:
    """Do what was asked for, and print what came of it."""
    from percmae.registry import moves, verbs
    from percmae.registry.model import read_model, reference

    if args.action == "ls":
        print(verbs.listing(args.uri, args.json))
    elif args.action == "show":
        print(verbs.shown(args.model, args.json))
    elif args.action == "diff":
        print(verbs.difference(args.left, args.right, args.json))
    elif args.action == "pull":
        print("\n".join(verbs.pulled(args.model, args.to, args.force)))
    elif args.action == "judge":
        from percmae.engine.evaluate import evaluate
        from percmae.progress import note
        from percmae.stages.challenge import challenge

        given = (reference(args.model), args.rule, evaluate, args.against, args.promote)
        judged = challenge(*given)
        if judged.decision.outcome == "promote" and not args.promote:
            note("nothing was moved; --promote does that")
        print(judged.decision.why, judged.html, sep="\n")
    elif args.action == "add":
        from percmae.registry.package import register

        asked = reference(args.model)
        print(asked._replace(which=str(register(args.run, asked).version)))
    else:
        asked = reference(args.model)
        if args.action == "promote":
            current = read_model(asked.path).aliases.get(args.alias)
            model = moves.promote(asked, args.alias, args.why, instead_of=current)
        else:
            model = moves.rollback(asked, args.alias, args.why)
        print(asked._replace(which=str(model.aliases[args.alias])))
