"""Folders and prefixes as sources."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from source_forms import contents, opened, put, refused, rows, told

from percmae.data.tars import LARGEST_IMAGE
from percmae.storage import StorePath


def test_a_folder_for_each_class(tmp_store: StorePath) -> None:
    files = contents("dogs/2.png", "cats/1.jpg", "dogs/1.JPEG")
    catalogue = opened(put(tmp_store, files))
    assert [(c.wnid, c.name) for c in catalogue.classes] == [("cats", "cats"), ("dogs", "dogs")]
    assert rows(catalogue) == {
        "cats/1_jpg": ("cats", "hash", files["cats/1.jpg"]),
        "dogs/1_JPEG": ("dogs", "hash", files["dogs/1.JPEG"]),
        "dogs/2_png": ("dogs", "hash", files["dogs/2.png"]),
    }
    assert [catalogue.name(row) for row in range(3)] == ["cats/1.jpg", "dogs/1.JPEG", "dogs/2.png"]
    assert catalogue.notes == []
    (source,) = catalogue.sources
    assert (source["role"], source["kind"], source["images"]) == ("images", "folder", 3)


def test_images_in_no_folder_have_no_label(tmp_store: StorePath) -> None:
    catalogue = opened(put(tmp_store, contents("2.jpg", "1.jpg")))
    assert catalogue.classes == []
    assert told(catalogue) == {"1_jpg": ("", "hash"), "2_jpg": ("", "hash")}


def test_split_folders(tmp_store: StorePath) -> None:
    names = ["train/b/1.jpg", "train/a/1.jpg", "Valid/a/1.jpg", "test/1.jpg", "test/2.jpg"]
    catalogue = opened(put(tmp_store, contents(*names)))
    assert [c.name for c in catalogue.classes] == ["a", "b"]
    assert told(catalogue) == {
        "train/a/1_jpg": ("a", "train"),
        "train/b/1_jpg": ("b", "train"),
        "Valid/a/1_jpg": ("a", "val"),
        "test/1_jpg": ("", "test"),
        "test/2_jpg": ("", "test"),
    }


@pytest.mark.parametrize("other", ["val", "validation", "test"])
def test_a_split_that_is_lacking_is_drawn_out_of_the_training_images(
    tmp_path: Path, other: str
) -> None:
    put(StorePath(tmp_path), contents("train/a/1.jpg", f"{other}/a/1.jpg"))
    found = told(opened(tmp_path))
    assert found["train/a/1_jpg"] == ("a", "hash")
    assert found[f"{other}/a/1_jpg"] == ("a", "test" if other == "test" else "val")


REFUSED = {
    ("a/b/1.jpg",): ("lie 2 folders deep (a/b/1.jpg)", "--labels none", "--labels folders"),
    ("a/1.jpg", "a/b/2.jpg"): ("lie 1 to 2 folders deep", "--labels none", "--labels folders"),
    ("1.jpg", "a/2.jpg"): ("lie 0 to 1 folders deep (1.jpg, a/2.jpg)", "--labels none"),
    ("train/1.jpg", "train/a/b/2.jpg"): ("images of train lie 0 to 2",),
    ("train/a/1.jpg", "a/1.jpg"): ("beside the folder(s) train of a split", "others (a)"),
}


@pytest.mark.parametrize("names", REFUSED, ids=str)
def test_other_trees_are_refused_with_what_to_give(tmp_path: Path, names: tuple[str, ...]) -> None:
    put(StorePath(tmp_path), contents(*names))
    message = refused(tmp_path, str(tmp_path), *REFUSED[names])
    flat = any(name.count("/") == name.startswith("train/") for name in names)
    assert ("--labels folders" in message) == (not flat or "beside the folder" in message)


def test_without_labels_at_any_depth(tmp_path: Path) -> None:
    put(StorePath(tmp_path), contents("1.jpg", "a/2.jpg", "a/b/c/3.jpg"))
    catalogue = opened(tmp_path, labels="none")
    assert catalogue.classes == []
    assert {label for label, _ in told(catalogue).values()} == {""}
    assert len(catalogue.columns.keys) == 3


def test_without_labels_splits_still_count(tmp_path: Path) -> None:
    put(StorePath(tmp_path), contents("train/x/y/1.jpg", "val/2.jpg", "test/z/3.jpg"))
    found = told(opened(tmp_path, labels="none"))
    assert sorted(split for _, split in found.values()) == ["test", "train", "val"]


def test_the_first_folder_for_the_class_at_any_depth(tmp_path: Path) -> None:
    put(StorePath(tmp_path), contents("a/1.jpg", "a/x/y/2.jpg", "train/3.jpg"))
    catalogue = opened(tmp_path, labels="folders")
    assert [c.name for c in catalogue.classes] == ["a", "train"]
    assert catalogue.notes == ["train is taken for a class, since there is more beside it"]
    put(StorePath(tmp_path), contents("4.jpg"))
    refused(tmp_path, "4.jpg lies in no folder", "--labels none", labels="folders")


def test_what_is_no_image_is_skipped_counted_and_said(tmp_store: StorePath) -> None:
    images = contents("a/1.jpg", "a/2.webp")
    others = ["a/notes.txt", "README.md", "a/noending", "a/Thumbs.db", ".git/x.jpg", "a/._1.jpg"]
    others += ["__MACOSX/a/1.jpg", "a/.hidden.jpg", "@eaDir/a/1.jpg"]
    catalogue = opened(put(tmp_store, images | contents(*others)))
    assert [*told(catalogue)] == ["a/1_jpg", "a/2_webp"]
    notes = "\n".join(catalogue.notes)
    assert "skipped 4 side file(s) of macOS, Windows or a NAS" in notes
    assert "skipped 3 file(s) that by their ending are no images (first: README.md)" in notes
    hidden = [note for note in catalogue.notes if "hidden" in note]
    assert sum(int(note.split()[1]) for note in hidden) == 2


def test_formats_say_which_endings_are_images(tmp_path: Path) -> None:
    put(StorePath(tmp_path), contents("a/1.jpg", "a/2.avif", "a/3.tif"))
    assert [*told(opened(tmp_path))] == ["a/1_jpg", "a/3_tif"]
    assert [*told(opened(tmp_path, formats=("AVIF",)))] == ["a/2_avif"]


def test_no_image_at_all(tmp_store: StorePath) -> None:
    put(tmp_store, contents("a/readme.txt", "table.csv"))
    refused(
        tmp_store,
        f"there is no image below {tmp_store} (skipped 2 file(s)",
        f"give it: {tmp_store}/table.csv",
    )


def test_nothing_there(tmp_path: Path) -> None:
    refused(tmp_path / "absent", "there is nothing at", "check the path")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "there is no image below")


def test_nothing_below_a_prefix(tmp_store: StorePath) -> None:
    refused(tmp_store / "absent", str(tmp_store / "absent"), "check the path or URI")


def test_a_dataset_of_our_own(tmp_store: StorePath) -> None:
    (tmp_store / "manifest.json").write_json({"format": "percmae-dataset/7"})
    (tmp_store / "train/train-000000.tar").write_bytes(b"x")
    message = refused(tmp_store, "is a dataset already")
    assert message.endswith(f"give --data {tmp_store}/manifest.json")
    assert refused(tmp_store / "manifest.json") == message


@pytest.mark.parametrize("content", [b"{}", b"[1]", b"\xff", b'{"format": 3}'])
def test_a_manifest_of_something_else_is_no_matter(tmp_path: Path, content: bytes) -> None:
    put(StorePath(tmp_path), contents("a/1.jpg") | {"manifest.json": content})
    assert len(told(opened(tmp_path))) == 1


def test_other_uris(tmp_path: Path) -> None:
    refused("https://example.org/images", "only local paths and s3://bucket/key")
    (tmp_path / "1.jpg").write_bytes(b"x")
    refused(tmp_path / "1.jpg", "is a single file", "--images takes a folder")
    refused(tmp_path, "choose from auto, folders, none", labels="maybe")


def test_images_and_archives_together(tmp_path: Path) -> None:
    put(StorePath(tmp_path), contents("1.jpg", "2.jpg", "more.zip"))
    refused(tmp_path, "2 image file(s) and 1 archive(s) (first: more.zip)", "give a folder of")


def test_an_image_too_large_for_one(tmp_path: Path) -> None:
    with (tmp_path / "1.jpg").open("wb") as file:
        file.truncate(LARGEST_IMAGE + 1)
    refused(tmp_path, "1.jpg has 268,435,457 bytes", "no image has more than 256 MiB")


# Stamps -----------------------------------------------------------------------------------------


def test_a_stamp_changes_with_the_image_alone(tmp_store: StorePath) -> None:
    put(tmp_store, contents("1.jpg", "2.jpg"))
    before = opened(tmp_store).columns.stamps
    assert np.array_equal(opened(tmp_store).columns.stamps, before)
    put(tmp_store, {"1.jpg": b"another one", "3.jpg": b"new"})
    after = opened(tmp_store).columns.stamps
    assert after[0] != before[0]
    assert after[1] == before[1]


# What a file system may hold --------------------------------------------------------------------


def test_links_to_files_and_to_folders_elsewhere_are_followed(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "root", StorePath(tmp_path / "elsewhere")
    put(elsewhere, contents("cats/1.jpg", "2.jpg"))
    (root / "dogs").mkdir(parents=True)
    (root / "dogs/2.jpg").symlink_to(tmp_path / "elsewhere/2.jpg")
    (root / "cats").symlink_to(tmp_path / "elsewhere/cats")
    assert told(opened(root)) == {"cats/1_jpg": ("cats", "hash"), "dogs/2_jpg": ("dogs", "hash")}


def test_links_in_circles_and_into_nothing_are_left_out(tmp_path: Path) -> None:
    root = tmp_path / "root"
    put(StorePath(root), contents("a/1.jpg"))
    put(StorePath(tmp_path / "beside"), contents("2.jpg"))
    for name, target in {
        "a/self": root / "a",
        "a/above": tmp_path,
        "a/root": root,
        "again": root / "a",
        "beside": tmp_path / "beside",
        "beside-again": tmp_path / "beside",
    }.items():
        (root / name).symlink_to(target)
    (tmp_path / "beside/back").symlink_to(root)
    (root / "a/nothing.jpg").symlink_to(tmp_path / "nothing")
    catalogue = opened(root)
    assert [*told(catalogue)] == ["a/1_jpg", "beside/2_jpg"]
    assert sorted(catalogue.notes) == [
        "skipped 1 link(s) that lead nowhere (first: a/nothing.jpg)",
        "skipped 6 link(s) to folders that are read elsewhere (first: again)",
    ]


def test_a_pipe_with_the_name_of_an_image(tmp_path: Path) -> None:
    put(StorePath(tmp_path), contents("1.jpg"))
    os.mkfifo(tmp_path / "2.jpg")
    catalogue = opened(tmp_path)
    assert [*told(catalogue)] == ["1_jpg"]
    assert catalogue.notes == ["skipped 1 device(s), pipe(s) or socket(s) (first: 2.jpg)"]


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(StorePath(tmp_path), contents("1.jpg", "2.jpg"))
    # Who runs tests as root may read everything.
    monkeypatch.setattr(os, "access", lambda path, mode: not path.endswith("2.jpg"))
    refused(tmp_path, f"{tmp_path}/2.jpg may not be read")
    (tmp_path / "t.csv").write_text("uri\n1.jpg\n2.jpg\n")
    refused(tmp_path / "t.csv", f"{tmp_path}/2.jpg may not be read")


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9")).mkdir()
    (tmp_path / os.fsdecode(b"caf\xe9/1\xff.jpg")).write_bytes(b"x")
    catalogue = opened(tmp_path)
    assert told(catalogue) == {"caf%E9/1%FF_jpg": ("caf\\xe9", "hash")}
    assert catalogue.name(0) == "caf\\xe9/1\\xff.jpg"


def test_a_name_with_a_line_break_is_said_in_one_line(tmp_path: Path) -> None:
    put(StorePath(tmp_path), contents("a/1.jpg", "a/2\n3.jpg", "Icon\r", "x\ny.txt"))
    catalogue = opened(tmp_path)
    assert told(catalogue) == {"a/1_jpg": ("a", "hash"), "a/2%0A3_jpg": ("a", "hash")}
    assert catalogue.name(1) == "a/2\\n3.jpg"
    assert catalogue.notes[:2] == [
        "skipped 1 side file(s) of macOS, Windows or a NAS (first: Icon\\r)",
        "skipped 1 file(s) that by their ending are no images (first: x\\ny.txt)",
    ]
    put(StorePath(tmp_path), contents("a\nb/c/1.jpg"))
    refused(tmp_path, "folders deep")


def test_accents_in_either_form_are_one_class_and_one_key(tmp_path: Path) -> None:
    composed = "caf\u00e9"
    apart = unicodedata.normalize("NFD", composed)
    files = contents(f"train/{composed}/1.jpg", f"val/{apart}/1.jpg")
    catalogue = opened(put(StorePath(tmp_path), files))
    assert [c.name for c in catalogue.classes] == [composed]
    assert told(catalogue) == {
        f"train/{composed}/1_jpg": (composed, "hash"),
        f"val/{composed}/1_jpg": (composed, "val"),
    }
    put(StorePath(tmp_path), contents(f"train/{apart}/1.jpg"))
    refused(tmp_path, "would have the same name in a dataset", "rename one of them")


def test_a_key_with_an_empty_part_in_a_store(s3: object, tmp_path: Path) -> None:
    from percmae.storage.clients import client

    root = s3.uri("odd")  # type: ignore[attr-defined]
    bucket, _, prefix = root.removeprefix("s3://").partition("/")
    put(StorePath(root), contents("a/1.jpg"))
    store = client(s3.settings)  # type: ignore[attr-defined]
    import io

    store.put_object(bucket, f"{prefix}/a//2.jpg", io.BytesIO(b"x"), 1)
    names = [o.object_name for o in store.list_objects(bucket, f"{prefix}/", recursive=True)]
    if any("//" in (name or "") for name in names):
        refused(root, "has an empty part", "rename it")
    else:  # a store that keeps files: they are one name
        assert len(told(opened(root))) == 2
