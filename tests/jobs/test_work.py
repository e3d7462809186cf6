"""What a job carries out: names that a retry finds again, commands that say all that is meant."""

from __future__ import annotations

import dataclasses
import re
from types import SimpleNamespace
from typing import Any, get_args

import pytest

from percmae.cli import verbs
from percmae.cli.submit import work_of
from percmae.config import Config, config_from_dict, load_config, to_dict
from percmae.config.naming import Features
from percmae.errors import UserError
from percmae.jobs.names import LONGEST_JOB_NAME
from percmae.jobs.work import Work, command, training
from percmae.runs.downstream import downstream_config
from percmae.runs.record import Identity, Run

from .works import DATA, RECIPES, RUNS, SIZES, VARIANTS, every_work, pretraining, probing

DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")


def test_names_are_dns_labels_with_room_for_what_follows() -> None:
    works = [
        *every_work().values(),
        pretraining(f"name={'x' * 127}"),
        pretraining("name=A..B__C--9"),
        command("ingest", "Fußgänger/été 2026", "--to", "x"),
        command("evaluate", "___", "--run", "x"),
    ]
    for work in works:
        assert DNS_1035.fullmatch(work.name), work.name
        assert len(work.name) <= LONGEST_JOB_NAME
        for behind in ("-worker-9999", "-master-0", "-node-0-999-x7k2p"):
            assert len(work.name + behind) <= 63
    names = [work.name for work in works]
    assert len(set(names)) == len(names)
    assert pretraining().name.startswith("pretrain-t-mae-")
    assert probing(features="untrained").name.startswith("probe-t-mae-untrained-")


@pytest.mark.parametrize(
    "verb",
    [
        ["evaluate", "--data", "s3://bkt/d/manifest.json", "--run", "{}"],
        ["pretrain", "--data", "s3://bkt/d/manifest.json", "--to={}"],
        ["ingest", "--train", "{}", "--val", "{}", "--devkit", "{}", "--to", "{}"],
        [
            "export",
            "--format",
            "onnx",
            "--model",
            "{}/m@champion",
            "--images",
            "{}/1",
            "--to",
            "{}",
        ],
    ],
)
def test_a_uri_in_another_form_is_the_same_work(verb: list[str]) -> None:
    plain, other = (work_of([w.format(u) for w in verb]) for u in ("s3://bkt/a", "s3://bkt//a/./"))
    assert (plain.name, plain.arguments) == (other.name, other.arguments)


@pytest.mark.parametrize(("option", "value"), [("--images", "1.png"), ("--model", "m@1")])
def test_a_pod_sees_no_files_of_this_machine(option: str, value: str) -> None:
    given = {"--to": "s3://bkt/x", "--model": "s3://bkt/m@champion", "--images": "s3://bkt/1.png"}
    verb = ["export", "--format", "onnx"]
    assert work_of([*verb, *(part for pair in given.items() for part in pair)]).stage == "export"
    given[option] = value
    with pytest.raises(UserError, match=f"{option} {value}: a pod does not see"):
        work_of([*verb, *(part for pair in given.items() for part in pair)])


def test_a_retry_has_the_same_name() -> None:
    assert pretraining("optim.lr=1e-3").name == pretraining("optim.lr=0.001").name
    assert probing(stage="finetune").name == probing(stage="finetune").name


@pytest.mark.parametrize(
    "override", ["data.workers=2", "trainer.log_interval=7", "checkpoint.every_steps=100"]
)
def test_how_it_is_carried_out_is_not_part_of_the_name(override: str) -> None:
    assert pretraining(override).name == pretraining().name
    assert pretraining(override).arguments != pretraining().arguments


def test_whatever_changes_the_result_changes_the_name() -> None:
    config = load_config("mae", "mae", tag="t")
    run = f"{RUNS}/t_mae"
    probe = load_config("mae", "mae", "probe", tag="t")
    works = [
        training(config, DATA, RUNS),
        training(config, DATA + "2", RUNS),
        training(config, DATA, RUNS + "2"),
        training(dataclasses.replace(config, seed=1), DATA, RUNS),
        training(dataclasses.replace(config, tag="u"), DATA, RUNS),
        pretraining("optim.lr=1e-3"),
        training(probe, DATA, RUNS, run, base=probe),
        training(probe, DATA, RUNS, run + "2", base=probe),
        training(probe, DATA, RUNS, run, "untrained", probe),
        training(probe, DATA, RUNS, run, "pixels", probe),
    ]
    assert len({work.name for work in works}) == len(works)
    digests = {work.digest for work in works}
    assert len(digests) == len(works)


def carried_out(work: Work, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, ...]:
    """What the command line calls a training with: all but the training itself is real."""
    calls: list[tuple[Any, ...]] = []

    def train(*args: Any) -> SimpleNamespace:
        calls.append(args)
        return SimpleNamespace(uri="somewhere")

    module = "pretrain" if work.stage == "pretrain" else "finetune"
    monkeypatch.setattr(f"percmae.engine.{module}.{work.stage}", train)
    assert verbs.main(list(work.arguments)) == 0
    (call,) = calls
    return call


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_command_gives_back_exactly_the_config(
    variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for recipe in RECIPES:
        for size in (None, *SIZES):
            fitting = ("data.image_size=28",) if size == "huge" else ()  # its patches are 14 px
            for overrides in (fitting, (*SOME, *fitting)):
                config = load_config(variant, recipe, overrides=overrides, size=size, tag="a.b")
                work = training(config, DATA, RUNS)
                assert carried_out(work, monkeypatch) == (config, DATA, RUNS, "auto")


SOME = (
    "seed=7",
    "name=other.name",
    "data.workers=0",
    "data.pin_memory=false",
    "data.augment.crop_scale=[0.08, 1]",
    "data.augment.interpolation=lanczos",
    "optim.lr=3.3e-7",
    "optim.eps=1e-300",
    "optim.scale_batch=null",
    "optim.max_steps=12",
    "optim.clip_grad=0.3333333333333333",
    "checkpoint.every_minutes=1e+16",
    "trainer.threads=3",
)

# Strings that YAML, a shell, argparse or Kubernetes could take for something else.
STRINGS = [
    "a b", " a ", "", "null", "~", "true", "no", "3", "1e-4", "0x1f", "2026-11-25", "[1, 2]",
    "{a: b}", "- a", "-x", "--tag=x", "a=b", "a: b", "a # b", "#", "it's", 'say "x"', "back\\slash",
    "\\n", "two\nlines", "tab\there", "&a", "*a", "!a", "%a", "@a", "`a`", "$HOME", "$(HOME)",
    "$$(HOME)", "${HOME}", "é", "名前", "😀", "\u2028", "\x7f", "\u00a0", "\ufeff", "<<", "=",
]  # fmt: skip


@pytest.mark.parametrize("text", STRINGS)
def test_any_string_comes_through(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values = to_dict(load_config("perceptual", "demo"))
    values["perceptual"]["weights"] = f"s3://weights/{text}"
    values["model"]["init_from"] = text
    config = config_from_dict(values)
    assert carried_out(training(config, DATA, RUNS), monkeypatch)[0] == config


@pytest.fixture(scope="module")
def parents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """Runs to build upon, begun and never trained: one with the presets' settings, one with own."""
    to = str(tmp_path_factory.mktemp("runs"))

    def begin(config: Config) -> Run:
        return Run.create(to, Identity(config.run_name, config, DATA, "sha256:0"), {})

    own = load_config("stylegan2_ada", "demo", overrides=SOME, size="small", tag="own")
    return {"presets": begin(load_config("mae", "mae", tag="t")), "own": begin(own)}


@pytest.mark.parametrize("parent", ["presets", "own"])
@pytest.mark.parametrize("stage", ["probe", "finetune"])
@pytest.mark.parametrize(
    "overrides", [(), ("optim.epochs=3", "optim.lr=2e-5", "seed=9", "data.workers=5")]
)
def test_a_downstream_command_gives_back_exactly_the_config(
    parents: dict[str, Run],
    parent: str,
    stage: str,
    overrides: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = parents[parent]
    choices = get_args(Features) if stage == "probe" else ("pretrained", "untrained")
    for features in choices:
        config, base = (
            downstream_config(run, stage, overrides=o, features=features) for o in (overrides, ())
        )
        work = training(config, DATA, RUNS, run.uri, features, base)
        assert carried_out(work, monkeypatch) == (config, run, DATA, RUNS, "auto", features)
        assert len([text for text in work.arguments if "=" in text]) == len(overrides)


@pytest.mark.parametrize("stage", ["probe", "finetune"])
def test_a_downstream_recipe_and_tag_of_its_own(
    parents: dict[str, Run], stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = parents["presets"]
    config = downstream_config(run, stage, recipe="reference", tag="second")
    base = downstream_config(run, stage, recipe="reference")
    call = carried_out(training(config, DATA, RUNS, run.uri, base=base), monkeypatch)
    assert call[0] == config
    assert call[1] == run
