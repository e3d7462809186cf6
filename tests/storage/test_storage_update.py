"""A small file that several change at once."""

from __future__ import annotations

import json
import multiprocessing
from dataclasses import replace

import pytest
from faulty_proxy import FaultyProxy
from s3_server import S3

from percmae.storage import StorePath

WRITERS, TIMES = 4, 10


def counted(before: bytes | None) -> bytes:
    return str(int(before or b"0") + 1).encode()


def test_begins_with_nothing_and_builds_upon_what_is_there(tmp_store: StorePath) -> None:
    path = tmp_store / "folder" / "count.json"
    seen: list[bytes | None] = []

    def change(before: bytes | None) -> bytes:
        seen.append(before)
        return counted(before)

    path.update(change)
    path.update(change)
    assert seen == [None, b"1"]
    assert path.read_bytes() == b"2"
    assert [entry.name for entry in (tmp_store / "folder").iter()] == ["count.json"]


def test_what_the_change_raises_leaves_all_as_it_was(tmp_store: StorePath) -> None:
    path = tmp_store / "count.json"

    def refuse(before: bytes | None) -> bytes:
        raise KeyError("no")

    with pytest.raises(KeyError):
        path.update(refuse)
    assert not path.exists()
    path.write_bytes(b"7")
    with pytest.raises(KeyError):
        path.update(refuse)
    assert path.read_bytes() == b"7"


def _add(uri: StorePath, number: int) -> None:
    for turn in range(TIMES):

        def change(before: bytes | None, turn: int = turn) -> bytes:
            return json.dumps([*json.loads(before or b"[]"), [number, turn]]).encode()

        uri.update(change)


def test_of_several_processes_none_loses_a_change(tmp_store: StorePath) -> None:
    path = tmp_store / "list.json"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_add, args=(path, number)) for number in range(WRITERS)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(300)
        assert writer.exitcode == 0
    found = json.loads(path.read_bytes())
    assert sorted(found) == [[number, turn] for number in range(WRITERS) for turn in range(TIMES)]
    for number in range(WRITERS):
        own = [turn for who, turn in found if who == number]
        assert own == sorted(own)


@pytest.mark.parametrize("fault", ["lose", "503", "refuse"])
def test_a_change_is_made_once_though_its_answer_is_lost(s3: S3, fault: str) -> None:
    with FaultyProxy(s3.endpoint) as proxy:
        settings = replace(s3.settings, endpoint=proxy.endpoint)
        path = StorePath(s3.uri("update"), settings) / "count.json"
        path.update(counted)
        proxy.fault(fault, on="PUT")
        path.update(counted)
        assert path.read_bytes() == b"2"
