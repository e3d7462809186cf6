"""Weights out to official, timm and safetensors files and back in; nothing in a file is run."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from percmae import build_model
from percmae.config import Config, digest, load_config
from percmae.data.shards import Dataset
from percmae.engine.features import feature_network
from percmae.engine.formats import export_weights, import_weights
from percmae.engine.pretrain import pretrain
from percmae.engine.spool import Spool
from percmae.engine.weights import initial_weights, network_weights
from percmae.errors import CheckpointError, PercmaeError, UnsafeFileError, UserError
from percmae.models.weights import encoder_tensors, load_generator
from percmae.runs.record import Identity, Run
from percmae.storage import StorePath
from percmae.vision import load_timm

Tiny = Callable[..., Config]
State = dict[str, Tensor]


def stored(to: str, config: Config, state: State) -> str:
    """A run whose newest checkpoint holds these weights, without the training."""
    run = Run.create(to, Identity(config.run_name, config, "data", "digest"), {})
    checkpoint = {"networks": {"generator": state}}
    with Spool(run.path, 0.0, config.checkpoint) as spool:
        spool.checkpoint(checkpoint, run.changed(), 3, 1)
    run.save(status="complete")
    return run.uri


@pytest.fixture
def weights(tiny: Tiny) -> State:
    torch.manual_seed(4)
    return dict(build_model(tiny()).state_dict())


@pytest.fixture
def run(tmp_store: StorePath, tiny: Tiny, weights: State) -> str:
    return stored((tmp_store / "runs").uri, tiny(), weights)


def same(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def near(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(torch.allclose(a[k], b[k], rtol=0, atol=1e-20) for k in a)


def encoder_only(state: State) -> State:
    """What the official pretraining releases hold, chosen without the code under test."""
    return {k: v for k, v in state.items() if not k.startswith(("decoder", "mask_token"))}


def test_official_checkpoint(run: str, weights: State, tmp_store: StorePath) -> None:
    written = export_weights(run, (tmp_store / "mae.pth").uri, "mae")
    data = StorePath(written.uri).read_bytes()
    assert hashlib.sha256(data).hexdigest() == written.sha256
    with StorePath(written.uri).open() as stream:
        state = torch.load(stream, weights_only=True)
    assert list(state) == ["model"]
    assert same(state["model"], weights)
    # As the official network registers them: its own parameters, then layer after layer.
    assert list(state["model"])[:5] == [
        "cls_token", "pos_embed", "mask_token", "decoder_pos_embed", "patch_embed.proj.weight",
    ]  # fmt: skip
    assert same(initial_weights(written.uri), weights)


def test_safetensors_with_metadata_and_always_the_same_bytes(
    run: str, weights: State, tiny: Tiny, tmp_path: Path
) -> None:
    first = export_weights(run, str(tmp_path / "a.safetensors"), "safetensors")
    assert (
        len({export_weights(run, first.uri, "safetensors", force=True).sha256 for _ in range(5)})
        == 1
    )
    with safetensors.safe_open(first.uri, framework="pt") as file:
        assert set(file.keys()) == set(weights)
        assert file.metadata() == {
            "format": "pt",
            "variant": "mae",
            "config_digest": digest(tiny()),
            "image_size": "32",
            "patch_size": "8",
        }
    data = Path(first.uri).read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert list(header["__metadata__"]) == sorted(header["__metadata__"])
    assert int.from_bytes(data[:8], "little") % 8 == 0
    assert same(initial_weights(first.uri), weights)


@pytest.mark.slow
def test_timm_takes_the_encoder_of_a_vit_b(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = load_config(overrides=["model.decoder.depth=1"], tag="b")
    model = build_model(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("bias", "norm1.weight", "norm2.weight", "norm.weight")):
                parameter.add_(torch.randn_like(parameter) * 0.1)
    run = stored(str(tmp_path), config, dict(model.state_dict()))
    written = export_weights(run, str(tmp_path / "timm.pth"), "timm")
    theirs = load_timm().create_model("vit_base_patch16_224.mae", num_classes=0).eval()
    theirs.load_state_dict(torch.load(written.uri, weights_only=True), strict=True)
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        ours = model.encode(model.patchify(images), torch.arange(196).expand(2, -1))
        torch.testing.assert_close(ours, theirs.forward_features(images), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(ours[:, 0], theirs(images), atol=1e-5, rtol=1e-5)


def test_a_generator_with_more_than_an_mae(tiny: Tiny, weights: State, tmp_path: Path) -> None:
    more = {**weights, "compress.0.weight": torch.ones(16, 32), "heads.1.bias": torch.ones(3)}
    assert encoder_tensors(more).keys() == encoder_only(weights).keys()
    run = stored(str(tmp_path), tiny(), more)
    with pytest.raises(CheckpointError, match=r"compress\.0\.weight.*--format timm"):
        export_weights(run, str(tmp_path / "mae.pth"), "mae")
    assert not (tmp_path / "mae.pth").exists()
    timm = export_weights(run, str(tmp_path / "timm.pth"), "timm")
    assert same(torch.load(timm.uri, weights_only=True), encoder_only(weights))
    everything = export_weights(run, str(tmp_path / "all.safetensors"), "safetensors")
    assert same(initial_weights(everything.uri), more)


def test_nothing_is_replaced_unasked(run: str, tmp_store: StorePath) -> None:
    target = tmp_store / "file"
    target.write_text("precious")
    for work in (
        lambda force: export_weights(run, target.uri, "timm", force),
        lambda force: import_weights(run, target.uri, "mae", force),
    ):
        with pytest.raises(UserError, match="--force"):
            work(False)
        assert target.read_text() == "precious"
        work(True)
        assert target.read_bytes() != b"precious"
        target.write_text("precious")


def test_only_known_formats_and_pretraining_runs(run: str, tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="mae, timm, safetensors"):
        export_weights(run, str(tmp_path / "x"), "onnx")
    with pytest.raises(UserError, match="vgg16"):
        import_weights(run, str(tmp_path / "x"), "vgg19")
    probe = Run.create(str(tmp_path), Identity("p", tiny(stage="probe"), "d", "d"), {})
    with pytest.raises(UserError, match="is a probe run"):
        export_weights(probe.uri, str(tmp_path / "x"), "timm")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("form", ["official", "plain", "legacy", "training", "safetensors", "timm"])
def test_import_reads_every_form(weights: State, tmp_path: Path, form: str) -> None:
    source, target = tmp_path / "source", tmp_path / "out.safetensors"
    if form == "safetensors":
        safetensors.torch.save_file(weights, source)
    else:
        # A checkpoint of the official training code holds its command line as well.
        state = {
            "official": {"model": weights},
            "training": {"model": weights, "epoch": 7, "args": argparse.Namespace(lr=1e-3)},
            "timm": encoder_only(weights),
        }.get(form, weights)
        torch.save(state, source, _use_new_zipfile_serialization=form != "legacy")
    written = import_weights(str(source), str(target))
    assert written.settings == f"model.init_from={target}"
    assert written.sha256 == hashlib.sha256(target.read_bytes()).hexdigest()
    expected = encoder_only(weights) if form == "timm" else weights
    assert same(safetensors.torch.load_file(target), expected)


def test_import_refuses_what_is_not_one_autoencoder(weights: State, tmp_path: Path) -> None:
    source, target = tmp_path / "source.pth", tmp_path / "out.safetensors"
    head = {"head.weight": torch.zeros(10, 24)}
    for bad, words in (
        ({**weights, "extra": torch.zeros(1)}, "extra has no place"),
        ({**encoder_only(weights), **head}, r"head\.weight has no place"),
        ({k: v for k, v in weights.items() if k != "mask_token"}, "mask_token is missing"),
        ({k: v for k, v in weights.items() if k != "decoder_pred.bias"}, "decoder_pred.bias is"),
        ({k: v for k, v in encoder_only(weights).items() if k != "norm.bias"}, "norm.bias is mis"),
        (
            {k: v for k, v in weights.items() if k != "blocks.0.attn.qkv.bias"},
            "qkv.bias is missing",
        ),
        ({**weights, "norm.bias": torch.zeros(7)}, r"norm.bias is \(7,\)"),
        ({**weights, "pos_embed": torch.zeros(1, 60, 24)}, r"pos_embed is \(1, 60, 24\)"),
        ({**weights, "cls_token": torch.zeros(24)}, r"cls_token is \(24,\)"),
        ({**weights, "cls_token": torch.zeros(1, 1, 0)}, r"cls_token is \(1, 1, 0\)"),
        ({"a": 1}, "expected a state dict"),
        ({"model": {}}, "expected a state dict"),
        ({"networks": {"classifier": weights}}, "expected a state dict"),
        ([weights], "expected a dictionary"),
    ):
        torch.save(bad, source)
        with pytest.raises(CheckpointError, match=words) as caught:
            import_weights(str(source), str(target))
        assert "\n" not in str(caught.value)
        assert str(source) in str(caught.value)
        assert not target.exists()


class Hostile:
    """A pickle that runs a shell command when it is opened."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle", "disguised"])
def test_hostile_files_run_nothing_anywhere(
    tiny: Tiny, tiny_dataset: Dataset, weights: State, tmp_path: Path, form: str
) -> None:
    mark = tmp_path / "executed"
    evil = {**weights, "norm.bias": Hostile(mark)}
    file = tmp_path / ("evil.safetensors" if form == "disguised" else "evil.pth")
    if form in ("zip", "legacy"):
        torch.save(evil, file, _use_new_zipfile_serialization=form == "zip")
    else:
        file.write_bytes(pickle.dumps(evil))
    # The payload does work: what follows proves something.
    os.system(f"touch {mark}.works")
    assert Path(f"{mark}.works").exists()
    attempts: dict[str, Callable[[], object]] = {
        kind: lambda kind=kind: import_weights(str(file), str(tmp_path / "out"), kind)  # type: ignore[misc]
        for kind in ("mae", "vgg16", "dalle", "efficientnet_lite0")
    }
    attempts["model.init_from"] = lambda: pretrain(
        tiny(f"model.init_from={file}"), tiny_dataset.uri, str(tmp_path / "runs")
    )
    attempts["perceptual.weights"] = lambda: feature_network(tiny(f"perceptual.weights={file}"))
    for name, attempt in attempts.items():
        kind = CheckpointError if form == "disguised" else UnsafeFileError
        with pytest.raises(kind, match=r"refused|not a safetensors file") as caught:
            attempt()
        assert "\n" not in str(caught.value), name
        assert not mark.exists(), name
    assert not (tmp_path / "out").exists()
    assert not list((tmp_path / "runs").rglob("*"))


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_damaged_files_are_one_line(weights: State, tmp_path: Path, form: str) -> None:
    whole = tmp_path / "whole"
    if form == "safetensors":
        safetensors.torch.save_file(weights, whole)
    else:
        torch.save(weights, whole, _use_new_zipfile_serialization=form == "zip")
    data = whole.read_bytes()
    file = tmp_path / "damaged"
    for size in (0, 1, 7, 8, 9, 20, 500, len(data) // 2, len(data) - 1):
        file.write_bytes(data[:size])
        with pytest.raises(CheckpointError) as caught:
            import_weights(str(file), str(tmp_path / "out"))
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_safetensors_with_a_broken_header(tmp_path: Path) -> None:
    file = tmp_path / "evil.safetensors"

    def header(text: str, body: int = 8, length: int | None = None) -> bytes:
        size = len(text.encode()) if length is None else length
        return size.to_bytes(8, "little") + text.encode() + b"\0" * body

    far = '{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,%d]}}'
    overlapping = (
        '{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
        '"b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    )
    for data in (
        header("{}", length=1 << 62),
        header("{not json}"),
        header(far % (1 << 40)),
        header(far % 4),
        header(overlapping),
        header('{"a":{"dtype":"F99","shape":[2],"data_offsets":[0,8]}}'),
        header('{"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}'),
    ):
        file.write_bytes(data)
        words = "a safetensors file that is damaged|neither safetensors nor"
        with pytest.raises(CheckpointError, match=words) as caught:
            initial_weights(str(file))
        assert "\n" not in str(caught.value)


def test_absent_files_and_folders(tmp_path: Path) -> None:
    for uri in (tmp_path / "absent.pth", tmp_path):
        with pytest.raises(CheckpointError, match="cannot be read"):
            import_weights(str(uri), str(tmp_path / "out"))
    with pytest.raises(PercmaeError, match=r"it has no run\.json"):
        export_weights(str(tmp_path / "absent"), str(tmp_path / "out"), "mae")


@pytest.mark.parametrize("form", ["mae", "timm", "safetensors"])
def test_pretraining_starts_from_each_format(
    run: str,
    weights: State,
    tiny: Tiny,
    tiny_dataset: Dataset,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    form: str,
) -> None:
    written = export_weights(run, str(tmp_path / "weights"), form)
    # So small a rate that a step leaves weights where they were.
    config = tiny(
        f"model.init_from={written.uri}", "optim.max_steps=1", "optim.lr=1e-30",
        "optim.weight_decay=0", "seed=9", tag="u",
    )  # fmt: skip
    result = pretrain(config, tiny_dataset.uri, str(tmp_path / "runs"))
    begun = network_weights(result.uri, "generator")
    said = capsys.readouterr().err.count("holds the encoder only; the decoder starts fresh")
    if form != "timm":
        assert near(begun, weights)
        assert said == 0
        return
    assert said == 1
    torch.manual_seed(9)
    fresh = build_model(config).state_dict()
    assert near(begun, {**fresh, **encoder_only(weights)})


def test_a_file_with_part_of_a_decoder_is_no_encoder(tiny: Tiny, weights: State) -> None:
    model = build_model(tiny())
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for bad, words in (
        ({**encoder_only(weights), "mask_token": weights["mask_token"]}, "is missing"),
        ({k: v for k, v in encoder_only(weights).items() if k != "pos_embed"}, "pos_embed is miss"),
        ({}, "cls_token is missing"),
    ):
        with pytest.raises(CheckpointError, match=words):
            load_generator(model, bad, "test")
    assert same(dict(model.state_dict()), before)
