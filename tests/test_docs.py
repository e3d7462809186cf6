"""What the texts refer to is there: links, headings, files, and the documents that sources name."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from texts import AS, READ, ROOT, RUN, TEXTS, Block, blocks, name, prose

from percmae.cli.parser import build_parser
from percmae.command import parse
from percmae.config import TRAININGS
from percmae.config.load import docs
from pipelines.__main__ import _parser as pipelines_parser

SOURCES = ("percmae", "components", "pipelines", "k8s", "docker", "tests")
KINDS = {".py", ".md", ".yaml", ".toml", ".sh"}

# Where the names of modules are short, as in a walk through one package.
PLACES = ("", "percmae", "docs", "tests")
# A path in backticks, if it begins with one of our folders or is a file at the top.
TOP = {p.name for p in ROOT.iterdir() if not p.name.startswith(".git")}
NOT_KEPT = ("runs/", ".percmae", "build/", ".venv", ".whl")  # what runs and set-up leave here


def anchors(text: str) -> set[str]:
    """The names by which the headings of a text can be linked to."""
    headings = re.findall(r"^#+ (.+)$", prose(text), re.M)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in plain}


def sources() -> list[Path]:
    """Every source and text of the project but this one."""
    found = [p for top in SOURCES for p in (ROOT / top).rglob("*") if p.suffix in KINDS]
    return [p for p in [*found, *TEXTS] if p.is_file() and p != Path(__file__)]


@pytest.mark.parametrize("path", TEXTS, ids=name)
def test_links_and_files_exist(path: Path) -> None:
    text = path.read_text()
    missing = []
    places = [*(ROOT / place for place in PLACES), path.parent]
    top = {p.name for p in path.parent.iterdir() if p.is_dir()}
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(text)):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        there = (path.parent / file) if file else path
        if not there.exists() or (anchor and anchor not in anchors(there.read_text())):
            missing.append(target)
    for named in re.findall(r"`([\w./*-]+)`", prose(text)):
        first, slash, _ = named.partition("/")
        file = (slash and first in TOP | top) or named.endswith((".py", ".md", ".toml"))
        if not file or named.startswith(NOT_KEPT):
            continue
        if not any(any(place.glob(named)) for place in places) and not (
            not slash and any((ROOT / "percmae").rglob(named))
        ):
            missing.append(named)
    assert not missing


def test_sources_name_documents_and_headings_that_exist() -> None:
    missing = []
    for path in sources():
        text = " ".join(path.read_text().replace("\n#", "\n").split())
        for file, heading in re.findall(r'(docs/[\w-]+\.md)(?:, "([^"]+)")?', text):
            there = ROOT / file
            if not there.exists() or (heading and f" {heading}\n" not in there.read_text()):
                missing.append(f"{path.relative_to(ROOT)}: {file} {heading}")
    assert not missing


def test_no_source_refers_to_numbered_sections_of_a_document_outside() -> None:
    numbered = re.compile(r"METHOD sections? \d|METHOD:|ARCHITECTURE \"")
    assert [p for p in sources() if numbered.search(p.read_text())] == []


def code(path: Path, *languages: str) -> list[Block]:
    """The blocks of a text that are in one of these languages."""
    return [block for block in blocks(path) if block.language in languages]


@pytest.mark.parametrize("path", TEXTS, ids=name)
def test_every_block_of_code_says_how_it_is_tried(path: Path) -> None:
    assert [str(block) for block in blocks(path) if not block.language] == []
    assert "```sh" not in path.read_text(), "of shell there is one name: bash"
    for block in code(path, "bash", "python"):
        if block.how.startswith(AS):
            assert (ROOT / block.how.removeprefix(AS)).is_file(), block
        else:
            carried_out = block.how == RUN and block.language == "bash"
            assert carried_out or re.match(READ + r"\w", block.how), block


HERE = ("run", "compare", "retrain")
"""Verbs of ``percmae`` whose options pipelines knows."""


def lines(block: str) -> Iterator[list[str]]:
    """The words of each line of shell, those that are continued put together."""
    text = ""
    for line in block.replace("\\\n", " ").splitlines():
        text += line
        try:
            yield shlex.split(text, comments=True)
        except ValueError:  # a quotation goes on
            text += "\n"
        else:
            text = ""
    assert not text, f"a quotation has no end: {text}"


def commands() -> list[str]:
    """The commands of ours in the texts' blocks of shell, each once."""
    found = set()
    for path in TEXTS:
        for block in code(path, "bash"):
            for words in lines(block.text):
                for part in re.split(r" (?:'\|'|'&&'|'<'|'>') ", shlex.join(words)):
                    begun = re.sub(r"^(?:\w+=\S+ |srun )+", "", part)
                    if re.match(r"(?:percmae|python -m (?:pipelines|percmae)) ", begun):
                        found.add(begun)
    return sorted(found)


@pytest.mark.parametrize("command", commands())
def test_commands_of_the_texts_are_taken(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Verbs, options and settings are there, but for what an ellipsis leaves out."""
    command = re.sub(r"(?<= --data )'…'", "somewhere", command)
    words = [word for word in shlex.split(command) if word != "…"]
    program, *given = words[2:] if words[0] == "python" else words
    pipeline = program == "pipelines" or given[0] in HERE
    parser = pipelines_parser(program) if pipeline else build_parser()
    try:
        known = parse(parser, given)
    except SystemExit:
        said = capsys.readouterr().err
        assert "…" in command, said
        assert "the following arguments are required" in said
        return
    if given[0] in (*TRAININGS, *HERE):
        settings = {key for key, _, _ in docs()}
        for word in known.overrides:
            key = word.partition("=")[0]
            assert {key, key.partition(".")[2]} & settings, f"{key} is no setting"
