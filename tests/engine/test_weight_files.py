"""Files of weights as people have them: wrapped, renamed, packed, or not weights at all."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from percmae import build_model
from percmae.cli.verbs import main
from percmae.config import Config
from percmae.engine.features import network_tensors
from percmae.engine.weights import initial_weights
from percmae.errors import CheckpointError
from percmae.vision import torchvision

State = dict[str, Tensor]


@pytest.fixture
def weights(tiny: Callable[..., Config]) -> State:
    torch.manual_seed(4)
    return dict(build_model(tiny("model.encoder.depth=2")).state_dict())


def same(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def torch_bytes(value: object, zipped: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("prefix", "said"),
    [
        ("module.", "module. taken off the names"),
        ("_orig_mod.", "_orig_mod. taken off the names"),
        ("module._orig_mod.", "_orig_mod. module. taken off"),
        ("_orig_mod.module.", "_orig_mod. module. taken off"),
        ("model.", "model. taken off"),
        ("encoder.", "encoder. taken off"),
        ("module.backbone.", "module. taken off the names; backbone. taken off"),
    ],
)
def test_wrappers_are_taken_off_and_named(
    prefix: str, said: str, weights: State, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "weights.pth"
    torch.save({prefix + key: value for key, value in weights.items()}, file)
    assert same(initial_weights(str(file)), weights)
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert f"{file}: {said}" in line


def test_a_wrapper_around_a_part(weights: State, tmp_path: Path) -> None:
    """As torch.compile leaves it where each block is compiled."""
    file = tmp_path / "weights.pth"
    wrapped = {k.replace("blocks.0.", "blocks.0._orig_mod."): v for k, v in weights.items()}
    assert wrapped.keys() != weights.keys()
    torch.save(wrapped, file)
    assert same(initial_weights(str(file)), weights)
    torch.save({**wrapped, "blocks.0.norm1.weight": torch.zeros(24)}, file)
    with pytest.raises(CheckpointError, match="two keys have the same name without _orig_mod"):
        initial_weights(str(file))


@pytest.mark.parametrize(
    "holder",
    [
        *("state_dict", "model_state_dict", "model", "module", "model_ema", "state_dict_ema"),
        *("teacher", "student"),
    ],
)
def test_state_dicts_are_found_where_codes_put_them(
    holder: str, weights: State, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "weights.pth"
    optimizer = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": []}
    torch.save({"epoch": 3, "optimizer": optimizer, holder: weights}, file)
    assert same(initial_weights(str(file)), weights)
    said = "" if holder == "model" else f"the weights under {holder}"
    assert said in capsys.readouterr().err


def test_of_several_state_dicts_it_says_which(
    weights: State, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "weights.pth"
    other = {key: value + 1 for key, value in weights.items()}
    torch.save({"model_ema": other, "model": weights}, file)
    assert same(initial_weights(str(file)), weights)
    assert "the weights under model, not model_ema" in capsys.readouterr().err
    # As self-distillation writes it: two networks, each a backbone with a head.
    teacher = {f"backbone.{key}": value for key, value in weights.items()}
    teacher["head.mlp.0.weight"] = torch.zeros(3, 3)
    torch.save({"student": {"module.x": torch.zeros(1)}, "teacher": teacher}, file)
    assert same(initial_weights(str(file)), weights)
    assert (
        "the weights under teacher, not student; backbone. taken off the names; left out "
        "head.mlp.0.weight"
    ) in capsys.readouterr().err
    two = {
        f"{name}.{key}": value for name in ("base", "momentum") for key, value in weights.items()
    }
    torch.save(two, file)
    with pytest.raises(CheckpointError, match=r"several encoders \(base\., momentum\.\)"):
        initial_weights(str(file))


@pytest.mark.parametrize("generation", ["published", "modules"])
def test_hugging_faces_names(generation: str, weights: State, tmp_path: Path) -> None:
    """As its hub has them, and as version 5 of transformers calls its modules."""
    file = tmp_path / "model.safetensors"
    safetensors.torch.save_file(hugging_face(weights, generation), file)
    assert same(initial_weights(str(file)), weights)


def hugging_face(weights: State, generation: str) -> State:
    """An autoencoder's weights under the names that Hugging Face gives them."""
    inside = {
        "published": {
            "attn.proj": "attention.output.dense",
            "mlp.fc1": "intermediate.dense",
            "mlp.fc2": "output.dense",
        },
        "modules": {
            "attn.proj": "attention.o_proj",
            "mlp.fc1": "mlp.fc1",
            "mlp.fc2": "mlp.fc2",
        },
    }[generation]
    blocks = {"published": "encoder.layer", "modules": "layers"}[generation]
    outside = {
        "cls_token": "embeddings.cls_token",
        "pos_embed": "embeddings.position_embeddings",
        "patch_embed.proj": "embeddings.patch_embeddings.projection",
        "norm": "layernorm",
    }
    named: State = {}
    for key, value in weights.items():
        decoder = key.startswith(("decoder", "mask_token"))
        parts = key.split(".")
        if "blocks" in parts[0]:
            leaf, module = parts[-1], ".".join(parts[2:-1])
            where = f"decoder.decoder_layers.{parts[1]}" if decoder else f"vit.{blocks}.{parts[1]}"
            if module == "attn.qkv":
                three = {
                    "published": [f"attention.attention.{n}" for n in ("query", "key", "value")],
                    "modules": [f"attention.{n}_proj" for n in "qkv"],
                }[generation]
                for name, part in zip(three, value.chunk(3), strict=True):
                    named[f"{where}.{name}.{leaf}"] = part.clone()
                continue
            norms = {"norm1": "layernorm_before", "norm2": "layernorm_after"}
            named[f"{where}.{norms.get(module) or inside[module]}.{leaf}"] = value
        elif decoder:
            named[f"decoder.{key}"] = value
        else:
            path, _, leaf = key.rpartition(".")
            named[f"vit.{outside[path]}.{leaf}" if path else f"vit.{outside[key]}"] = value
    return named


def test_what_a_file_is_comes_from_its_content(weights: State, tmp_path: Path) -> None:
    st, zipped, legacy = (
        safetensors.torch.save(weights),
        torch_bytes(weights),
        torch_bytes(weights, zipped=False),
    )
    for name, data in (
        ("st.pth", st),
        ("torch.safetensors", zipped),
        ("legacy.safetensors", legacy),
        ("packed.pth.gz", gzip.compress(zipped)),
        ("packed.safetensors", gzip.compress(st)),
        ("looks-packed.safetensors", padded(st, 0x8B1F)),
        ("two-members.gz", gzip.compress(st[:100]) + gzip.compress(st[100:])),
    ):
        (tmp_path / name).write_bytes(data)
        assert same(initial_weights(str(tmp_path / name)), weights), name


def padded(data: bytes, header: int) -> bytes:
    """The same safetensors file with a header of that length, which begins it."""
    end = 8 + int.from_bytes(data[:8], "little")
    return header.to_bytes(8, "little") + data[8:end].ljust(header) + data[end:]


def tar_bytes() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("weights.pth"), io.BytesIO())
    return buffer.getvalue()


def zip_bytes(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return buffer.getvalue()


def npz_bytes() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, kernel=np.zeros(3))
    return buffer.getvalue()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
DENIED = b'<?xml version="1.0"?>\n<Error><Code>AccessDenied</Code></Error>'


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: b"", "the file is empty; fetch it again"),
        (lambda: bytes(5000), "nothing but zeros"),
        (lambda: POINTER, "a Git LFS pointer in place of the file; run `git lfs pull`"),
        (lambda: b"\n<!DOCTYPE html><title>Sign in</title>", r"a web page \(HTML\)"),
        (lambda: b"<HTML><body>", r"a web page \(HTML\)"),
        (lambda: DENIED, r"an XML answer \(AccessDenied\) in place of the file"),
        (lambda: b'{"error": "Repository not found"}', 'a text that begins \'{"error"'),
        (lambda: b"Entry not found", "a text that begins 'Entry not found'"),
        (lambda: "Zugriff verweigert für dich".encode() * 9, "a text that begins 'Zugriff"),
        (lambda: b'{"metadata": {}, "weight_map": {}}', "index of a safetensors file in parts"),
        (lambda: b"\x89HDF\r\n\x1a\n" + bytes(100), "an HDF5 file"),
        (lambda: b"\xfd7zXZ\0" + bytes(100), "a file compressed by xz"),
        (tar_bytes, "a tar archive; unpack it"),
        (lambda: zip_bytes("weights.pth"), "a zip archive; unpack it"),
        (npz_bytes, r"a NumPy archive \(npz\)"),
        (
            lambda: zip_bytes("m/data.pkl", "m/code/m.py", "m/constants.pkl"),
            "a TorchScript archive",
        ),
        (lambda: b"\x01\x02\x03\xff" * 50, "neither safetensors nor a torch archive: it begins"),
        (lambda: torch_bytes({"w": torch.zeros(99)})[:-20], "a torch archive that is cut off"),
        (lambda: torch_bytes({"w": torch.zeros(99)})[:300], "a torch archive that is cut off"),
        (lambda: torch_bytes({"w": torch.zeros(99)}, zipped=False)[:300], "that is cut off"),
        (lambda: torch_bytes({"w": torch.zeros(99)}, zipped=False)[:-9], "that is cut off"),
        (lambda: safetensors.torch.save({"w": torch.zeros(99)})[:-20], "damaged or cut off"),
        (lambda: gzip.compress(torch_bytes({"w": torch.zeros(99)}))[:-20], "gzip file that is cut"),
        (lambda: b"\x1f\x8b" + bytes(50), "a damaged gzip file"),
        (lambda: torch_bytes(nn.Linear(2, 2)), r"it holds torch\.nn\.modules\.linear\.Linear"),
        (
            lambda: torch_bytes({"networks": {"classifier": {"head.weight": torch.zeros(1)}}}),
            r"expected a state dict of tensors, or a run; it holds networks \(dict\)",
        ),
        (
            lambda: torch_bytes({"epoch": 3, "w": torch.zeros(1)}),
            r"expected a state dict of tensors, or a run; it holds epoch \(int\), w \(Tensor\)",
        ),
    ],
)
def test_what_is_not_weights_is_called_what_it_is(
    make: Callable[[], bytes],
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file, target = tmp_path / "mae.pth", tmp_path / "out.safetensors"
    file.write_bytes(make())
    with pytest.raises(CheckpointError, match=words):
        initial_weights(str(file))
    assert main(["import", "--weights", str(file), "--to", str(target)]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"percmae: error: {file}: ")
    assert told.count("\n") == 1
    assert not target.exists()


def test_a_gzip_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from percmae.engine import weight_files

    monkeypatch.setattr(weight_files, "ALWAYS_EXPANDED", 1 << 20)
    file = tmp_path / "bomb.pth"
    file.write_bytes(gzip.compress(bytes(5 << 20)))
    with pytest.raises(CheckpointError, match="expands to more than 1,048,576 bytes"):
        initial_weights(str(file))


def test_feature_networks_take_wrapped_weights_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layers = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["D"][:4])
    plain = {f"features.{k}": v for k, v in layers.state_dict().items()}
    file = tmp_path / "vgg16.pth"
    torch.save({"state_dict": {f"module.{k}": v for k, v in plain.items()}}, file)
    assert same(network_tensors("vgg16", str(file), "test"), plain)
    said = capsys.readouterr().err
    assert "test: the weights under state_dict; module. taken off the names" in said
