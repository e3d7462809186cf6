"""The ILSVRC archives as a source. (Here, where their archives are built.)

What is wrong with archives is in test_bad_archives.py and test_odd_archives.py.
"""

from __future__ import annotations

from pathlib import Path

import archive_building as ab
import numpy as np
import pytest

from percmae.data import devkit as devkit_module
from percmae.data.shards import ClassInfo
from percmae.errors import DataError, UserError
from percmae.ingest.catalogue import BY_HASH, TEST
from percmae.ingest.places import read_place
from percmae.ingest.sources import open_ilsvrc
from percmae.storage import StorePath


def test_what_the_archives_hold(tmp_path: Path, tmp_store: StorePath) -> None:
    archives = ab.build(tmp_path / "in")
    uris = []
    for path in (archives.train, archives.val, archives.devkit):
        (tmp_store / path.name).write_file(path)
        uris.append((tmp_store / path.name).uri)
    catalogue = open_ilsvrc(*uris)
    assert catalogue.classes == [ClassInfo(w, f"thing {w}") for w in sorted(ab.WNIDS)]
    expected = {}
    for k, wnid in enumerate(ab.WNIDS):
        label = sorted(ab.WNIDS).index(wnid)
        for n in range(5):
            name = f"{wnid}.tar/{wnid}_{n}.JPEG"
            expected[f"{wnid}_{n}"] = (label, BY_HASH, ab.picture(1000 * k + n), name)
    for (name, data), id_ in zip(ab.val_files().items(), ab.TRUTH, strict=True):
        label = sorted(ab.WNIDS).index(ab.WNIDS[id_ - 1])
        expected[name.removesuffix(".JPEG")] = (label, TEST, data, name)
    columns, found = catalogue.columns, {}
    for row, key in enumerate(columns.keys.tolist()):
        data = read_place(catalogue.place(row))
        assert len(data) == columns.sizes[row]
        label, split = int(columns.labels[row]), int(columns.splits[row])
        found[key.decode()] = (label, split, data, catalogue.name(row))
    assert found == expected
    assert [*found] == sorted(found)
    assert len(np.unique(columns.stamps)) == len(found)
    assert [source["role"] for source in catalogue.sources] == ["train", "val", "devkit"]
    for source, uri in zip(catalogue.sources, uris, strict=True):
        stat = StorePath(uri).stat()
        assert (source["size"], source["etag"]) == (stat.size, stat.etag)
    assert (catalogue.found, catalogue.due, catalogue.notes) == ([5, 5, 5], [5, 5, 5], [])


def test_oddities_are_noted_in_the_archives_order(tmp_path: Path) -> None:
    tars = ab.class_tars()
    for wnid in ab.WNIDS[1:]:
        files = {f"._{wnid}_1.JPEG": b"x", f"{wnid}_1.JPEG": ab.picture(1)}
        tars[f"{wnid}.tar"] = ab.tar_bytes(files)
    train = ab.tar_bytes({".DS_Store": b"x"} | tars)
    catalogue = open_ilsvrc(**ab.build(tmp_path / "in", train=train).uris())
    (note,) = catalogue.notes
    assert note.startswith("skipped 3 side file(s)")
    assert note.endswith("ILSVRC2012_img_train.tar → .DS_Store)")
    found = dict(zip(sorted(ab.WNIDS), catalogue.found, strict=True))
    assert [found[wnid] for wnid in ab.WNIDS] == [5, 1, 1]


def test_what_the_headers_tell_of_the_last_image(tmp_path: Path) -> None:
    """All headers are looked at, so that a fault shows before the hours that images take."""
    tars = ab.class_tars()
    last = {f"{ab.WNIDS[2]}_{n}.JPEG": ab.picture(n) for n in range(4)} | {"a b.JPEG": b""}
    tars[f"{ab.WNIDS[2]}.tar"] = ab.tar_bytes(last)
    with pytest.raises(DataError, match=r"'a b\.JPEG' is no name for an image"):
        open_ilsvrc(**ab.build(tmp_path / "in", train=ab.tar_bytes(tars)).uris())


def test_numbers_of_images_of_the_real_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devkit_module, "_ILSVRC", (3, 15))
    few = ab.tar_bytes({f"{ab.WNIDS[0]}_1.JPEG": ab.picture(1)})
    train = ab.tar_bytes(ab.class_tars() | {f"{ab.WNIDS[0]}.tar": few})
    uris = ab.build(tmp_path / "in", train=train).uris()
    with pytest.raises(DataError, match=r"holds 1 images, the devkit says 5; .* give --subset"):
        open_ilsvrc(**uris)
    assert sorted(open_ilsvrc(**uris, subset=True).found) == [1, 5, 5]


def test_a_format_that_there_is_not(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="image formats JPG: choose from"):
        open_ilsvrc(**ab.build(tmp_path / "in").uris(), formats=["JPG"])
