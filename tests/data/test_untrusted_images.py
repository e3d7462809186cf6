"""Image bytes that nobody vouches for: which decoders they reach, and what becomes of the rest."""

from __future__ import annotations

import io
import json
import random
import subprocess
import sys
import warnings
from pathlib import Path

import archive_building as ab
import fuzz_images
import numpy as np
import pytest
from PIL import Image

from percmae.config import FORMATS, load_config
from percmae.data import decode as decode_module
from percmae.data.augment import framed_transform
from percmae.data.decode import ImageWarning, Once, check_formats, decode, telling
from percmae.data.stream import Loader
from percmae.engine.evaluate import _read
from percmae.errors import DataError, UserError
from percmae.ingest import ingest

WNID = ab.WNIDS[0]


def encoded(format: str, image: Image.Image | None = None) -> bytes:
    buffer = io.BytesIO()
    (image or Image.new("RGB", (24, 18), "teal")).save(buffer, format)
    return buffer.getvalue()


def with_images(folder: Path, files: dict[str, bytes]) -> ab.Archives:
    """Archives whose first class has these images."""
    tars = ab.class_tars() | {f"{WNID}.tar": ab.tar_bytes(files)}
    return ab.build(folder, train=ab.tar_bytes(tars))


@pytest.mark.slow
def test_thousands_of_damaged_files_of_each_format() -> None:
    """No exception but one, no end that does not come, bounded memory, nothing on stderr."""
    done = subprocess.run(
        [sys.executable, fuzz_images.__file__, "20221229", "500"],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "libraries write nothing by themselves"
    found = json.loads(done.stdout)
    for format, outcomes in found["outcomes"].items():
        assert outcomes["decoded"] > 50, f"{format}: the damage reaches decoders"
        assert outcomes["damaged"] > 50, f"{format}: and harms"
    assert found["memory_mib"] < 1024


def test_the_files_that_are_damaged_are_sound_before() -> None:
    for files in fuzz_images.sound_files().values():
        for data in files:
            decode(data, formats=fuzz_images.FORMATS)


def test_a_damaged_jpeg_that_is_decoded_quickly_is_what_pillow_makes_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    draw, quick = random.Random(1), decode_module._quick
    monkeypatch.setattr(decode_module, "_quick", lambda *args: None)
    decoded = 0
    for data in fuzz_images.sound_files()["JPEG"]:
        for _ in range(150):
            damaged = fuzz_images.mutated(data, draw)
            pixels = quick(damaged, 1)
            if pixels is not None:
                decoded += 1
                assert pixels.tobytes() == decode(damaged, 1).tobytes()
    assert decoded > 50


EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 20 20
%%EndComments
0 0 20 20 rectfill
%%EOF
"""


@pytest.fixture
def ghostscript(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program ``gs`` that leaves a mark; where it leaves it."""
    mark = tmp_path / "started"
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "gs"
    program.write_text(f"#!/bin/sh\ntouch {mark}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)
    return mark


def test_no_program_is_started(tmp_path: Path, ghostscript: Path) -> None:
    with pytest.raises(OSError, match=r".*"):  # what Pillow would do by itself
        Image.open(io.BytesIO(EPS)).load()
    assert ghostscript.exists()
    ghostscript.unlink()
    with pytest.raises(DataError, match=r"^a\.JPEG is not an image that can be opened as JPEG, "):
        decode(EPS, name="a.JPEG")
    archives = with_images(tmp_path / "in", {f"{WNID}_1.JPEG": EPS, "2.JPEG": ab.picture(1)})
    dataset = ingest(**archives.uris(), to=str(tmp_path / "out")).dataset
    assert [c["member"] for c in dataset.manifest["corrupt"]] == [f"{WNID}.tar/{WNID}_1.JPEG"]
    assert not ghostscript.exists()
    with pytest.raises(UserError, match="image formats EPS: choose from JPEG, PNG, "):
        ingest(**archives.uris(), to=str(tmp_path / "other"), formats=["EPS"])


@pytest.mark.parametrize("format", ["ICO", "PCX", "TGA", "PPM", "JPEG2000", "AVIF", "SGI", "DDS"])
def test_other_formats_are_not_opened(format: str) -> None:
    with pytest.raises(DataError, match="image is not an image that can be opened as JPEG, PNG"):
        decode(encoded(format))


def test_a_damaged_image_of_any_decoder_is_left_out_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    avif = encoded(
        "AVIF",
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)),
    )
    half = avif[:-30]
    files = {f"{WNID}_1.JPEG": half, f"{WNID}_2.JPEG": avif, f"{WNID}_3.JPEG": ab.picture(1)}
    archives = with_images(tmp_path / "in", files)
    without = ingest(**archives.uris(), to=str(tmp_path / "out")).dataset
    assert [c["member"][-6] for c in without.manifest["corrupt"]] == ["1", "2"]
    err = capsys.readouterr().err
    assert f"left out: {WNID}.tar/{WNID}_1.JPEG is not an image that can be opened as" in err
    assert "left out 2 damaged image(s) of" in err
    allowed = [*FORMATS, "AVIF"]
    dataset = ingest(**archives.uris(), to=str(tmp_path / "avif"), formats=allowed).dataset
    (left_out,) = dataset.manifest["corrupt"]
    assert left_out["member"] == f"{WNID}.tar/{WNID}_1.JPEG"
    assert "is damaged: Failed to decode" in left_out["reason"]
    assert dataset.manifest["formats"] == allowed
    with pytest.raises(DataError, match="already holds a dataset made from other archives, or wi"):
        ingest(**archives.uris(), to=str(tmp_path / "avif"))


def test_training_opens_what_its_setting_says(tmp_path: Path) -> None:
    archives = with_images(tmp_path / "in", {f"{WNID}_1.JPEG": encoded("AVIF")})
    allowed = [*FORMATS, "AVIF"]
    dataset = ingest(**archives.uris(), to=str(tmp_path / "out"), formats=allowed).dataset
    dataset.require_formats(allowed)
    with pytest.raises(DataError, match=r"images of format AVIF; set data\.formats=\[JPEG,.*AVIF"):
        dataset.require_formats(FORMATS)
    split = dataset._load("train")

    def batches(formats: list[str]) -> list[object]:
        from torchvision.transforms.functional import resize, to_tensor

        loader = Loader(
            split,
            lambda image: to_tensor(resize(image, [8, 8])),
            batch_size=len(split),
            seed=0,
            shuffle=False,
            drop_last=True,
            formats=formats,
        )
        return list(loader.batches())

    assert len(batches(allowed)) == 1
    with pytest.raises(DataError, match=rf"sample {WNID}_1 .* is not an image that can be opened"):
        batches(list(FORMATS))


def test_reconstruct_opens_what_its_setting_says(tmp_path: Path) -> None:
    picture = tmp_path / "a.jpg"
    picture.write_bytes(encoded("AVIF"))
    transform = framed_transform(load_config().data, False, "pretrain")
    assert _read(str(picture), transform, ["AVIF"]).shape == (224, 224, 3)
    with pytest.raises(DataError, match=r"image .*a\.jpg is not an image that can be opened as"):
        _read(str(picture), transform, FORMATS)


def test_formats_that_there_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_formats(["PNG"]) == ("PNG",)
    for wrong in (["png"], ["EPS", "PNG"], []):
        with pytest.raises(UserError, match="choose from JPEG, PNG, WEBP"):
            check_formats(wrong)
    monkeypatch.delitem(Image.OPEN, "AVIF")
    with pytest.raises(UserError, match=r"AVIF: Pillow .* cannot read these; install a newer"):
        check_formats(["AVIF"])


# Bombs ------------------------------------------------------------------------------------------


def test_small_files_that_would_take_much_memory_or_time_are_damaged() -> None:
    buffer = io.BytesIO()
    Image.new("L", (16, 16)).save(buffer, "JPEG", progressive=True)
    scans = buffer.getvalue()
    last = scans[scans.rindex(b"\xff\xda") : -2]
    bombs = {
        "pixels in": encoded("PNG", Image.new("1", (9000, 9000))),
        "a JPEG of 60": scans[:-2] + 600 * last + scans[-2:],
        "1 × 201 pixels in": encoded("PNG", Image.new("1", (1, 201))),
        "exceeds limit": encoded("PNG", Image.new("1", (20000, 20000))),
    }
    for reason, data in bombs.items():
        assert len(data) < 200_000
        with pytest.raises(DataError, match=f"is damaged: .*{reason}"):
            decode(data)
    decode(scans)
    for size in ((4000, 4000), (200, 1), (1, 1)):
        decode(encoded("PNG", Image.new("1", size)))


@pytest.mark.parametrize("error", [MemoryError(), RecursionError("deep"), NotImplementedError("x")])
def test_whatever_a_decoder_raises(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", failing)
    with pytest.raises(DataError, match=r"^image is damaged: ") as caught:
        decode(encoded("PNG"))
    assert str(error) in str(caught.value)


# Warnings ---------------------------------------------------------------------------------------


def with_bad_exif(seed: int, count: int = 1, mode: str = "RGB") -> bytes:
    """A sound JPEG whose EXIF data ends too early."""
    exif = b"Exif\0\0II*\0\x08\0\0\0" + bytes([count, 0]) + b"\x12\x01\x03\0"
    data = encoded("JPEG", Image.open(io.BytesIO(ab.picture(seed))).convert(mode))
    segment = b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif
    return data[:2] + segment + data[2:]


def test_a_warning_is_said_once_with_the_first_image_s_name() -> None:
    told: list[ImageWarning] = []
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        with telling(told.append):
            decode(with_bad_exif(1), name=lambda: "one.JPEG")
            decode(with_bad_exif(2, count=2), name="two.JPEG")
            with pytest.warns(UserWarning, match="of other code"):
                warnings.warn("of other code", stacklevel=1)
    assert {warning.name for warning in told} <= {"one.JPEG", "two.JPEG"}
    assert told[0].name == "one.JPEG"
    assert "orrupt EXIF" in told[0].text
    said: list[str] = []
    once = Once(said.append)
    for warning in (*told, *told):
        once(warning)
    assert len(said) == len({warning.kind for warning in told})
    assert said[0].startswith("one.JPEG: ")


def test_warnings_while_ingesting(tmp_path: Path) -> None:
    # Of CMYK, for in ingest nothing but the pixels of other JPEGs is looked at.
    files = {f"{WNID}_{n}.JPEG": with_bad_exif(n, 1 + n % 3, "CMYK") for n in range(20)}
    files[f"{WNID}_99.JPEG"] = ab.picture(1)
    a = with_images(tmp_path / "in", files)
    command = [sys.executable, "-m", "percmae", "ingest", "--to", str(tmp_path / "out")]
    sources = ["--train", str(a.train), "--val", str(a.val), "--devkit", str(a.devkit)]
    done = subprocess.run([*command, *sources], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if "EXIF" in line]
    assert len(lines) == 1
    assert f"ingest: {WNID}.tar/{WNID}_" in lines[0]
    assert "Warning" not in done.stderr


LOADING = """
import sys, torch
from percmae.data.shards import Dataset
from percmae.data.stream import Loader
split = Dataset.open(sys.argv[1]).split("test")
zeros = lambda image: torch.zeros(3, 8, 8)
for rank in (0, 1):
    loader = Loader(split, zeros, batch_size=1, seed=0, shuffle=False, drop_last=False,
                    workers=int(sys.argv[2]), rank=rank, world=2)
    for _ in range(2):
        list(loader.batches())
"""


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 3])
def test_warnings_while_loading(tmp_path: Path, workers: int) -> None:
    files = {name: with_bad_exif(n) for n, name in enumerate(ab.val_files())}
    archives = ab.build(tmp_path / "in", val=ab.tar_bytes(files))
    uri = ingest(**archives.uris(), to=str(tmp_path / "out")).manifest_uri
    done = subprocess.run(
        [sys.executable, "-c", LOADING, uri, str(workers)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("sample ILSVRC2012_val_0000000")
    assert "test-000000.tar at byte" in line
    assert "orrupt EXIF" in line
