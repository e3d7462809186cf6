"""The masked autoencoder against loops by hand, timm, and the official checkpoints' names."""

from __future__ import annotations

import math

import pytest
import torch

from percmae import build_model, load_config
from percmae.config import Config
from percmae.errors import CheckpointError, UserError
from percmae.models.classifier import Classifier
from percmae.models.layers import sincos_positions
from percmae.models.weights import load_strict
from percmae.runs.downstream import inherited

TINY = [
    "data.image_size=16",
    "model.patch_size=4",
    "model.encoder.width=32",
    "model.encoder.depth=2",
    "model.encoder.heads=2",
    "model.decoder.width=16",
    "model.decoder.depth=2",
    "model.decoder.heads=2",
    "model.norm_pix_loss=false",
]


def tiny(*overrides: str, stage: str = "pretrain") -> Config:
    if stage == "pretrain":
        return load_config(overrides=[*TINY, *overrides])
    return load_config(stage=stage, overrides=overrides, base=inherited(tiny()))


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def test_outputs_and_mask(images: torch.Tensor) -> None:
    model = build_model(tiny())
    loss, prediction, mask = model(images)
    assert loss.shape == ()
    assert prediction.shape == (3, 16, 48)
    assert mask.shape == (3, 16)
    assert mask.sum(1).tolist() == [12.0, 12.0, 12.0]


def test_noise_fixes_the_mask_and_the_smallest_are_kept(images: torch.Tensor) -> None:
    model = build_model(tiny())
    noise = torch.rand(3, 16)
    first, second = model(images, noise), model(images, noise)
    assert torch.equal(first.mask, second.mask)
    assert torch.equal(first.loss, second.loss)
    for row, mask in zip(noise, first.mask, strict=True):
        kept = set((mask == 0).nonzero().flatten().tolist())
        assert kept == set(row.argsort()[:4].tolist())


def test_patch_order_is_row_column_channel(images: torch.Tensor) -> None:
    model = build_model(tiny())
    patches = model.patchify(images)
    for index in (0, 5, 15):
        row, column = divmod(index, 4)
        expected = [
            images[1, c, row * 4 + p, column * 4 + q]
            for p in range(4)
            for q in range(4)
            for c in range(3)
        ]
        assert torch.equal(patches[1, index], torch.stack(expected))
    assert torch.equal(model.unpatchify(patches), images)


def test_loss_by_hand(images: torch.Tensor) -> None:
    for norm in (False, True):
        model = build_model(tiny(f"model.norm_pix_loss={str(norm).lower()}"))
        loss, prediction, mask = model(images)
        target = model.patchify(images)
        errors = []
        for n in range(3):
            for patch in mask[n].nonzero().flatten().tolist():
                wanted = target[n, patch]
                if norm:
                    variance = ((wanted - wanted.mean()) ** 2).sum() / (wanted.numel() - 1)
                    wanted = (wanted - wanted.mean()) / (variance + 1e-6).sqrt()
                errors.append(((prediction[n, patch] - wanted) ** 2).mean())
        assert loss.item() == pytest.approx(torch.stack(errors).mean().item(), rel=1e-5)


def test_visible_patches_do_not_depend_on_removed_ones(images: torch.Tensor) -> None:
    """What is removed cannot leak into the prediction."""
    model = build_model(tiny()).eval()
    noise = torch.rand(3, 16)
    prediction, mask = model.reconstruct(images, noise)
    patches = model.patchify(images)
    spoilt = torch.where(mask[:, :, None] > 0, torch.full_like(patches, 9.0), patches)
    again, _ = model.reconstruct(model.unpatchify(spoilt), noise)
    assert torch.equal(prediction, again)


def test_every_trainable_parameter_gets_a_gradient(images: torch.Tensor) -> None:
    model = build_model(tiny())
    model(images).loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name
    fixed = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert fixed == {"pos_embed", "decoder_pos_embed"}


def test_positions_by_the_formula() -> None:
    table = sincos_positions(16, 3)[0]
    assert torch.equal(table[0], torch.zeros(16))
    for row in range(3):
        for column in range(3):
            expected = []
            for place in (column, row):
                angles = [place / 10000 ** (i / 4) for i in range(4)]
                expected += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            found = table[1 + row * 3 + column].tolist()
            assert found == pytest.approx(expected, abs=1e-6)


def test_encoder_agrees_with_timm(images: torch.Tensor) -> None:
    """With nothing masked, the features are those of timm's ViT with the same weights."""
    config = tiny("classifier.pool=token", stage="probe")
    model = build_model(tiny()).eval()
    classifier = Classifier(config, classes=5).eval()
    classifier.load_encoder(model.state_dict(), "token", "test")
    everything = torch.arange(16).expand(3, -1)
    ours = model.encode(model.patchify(images), everything)
    theirs = classifier.encoder.forward_features(images)  # type: ignore[operator]
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_state_dict_has_the_official_names() -> None:
    keys = set(build_model(tiny()).state_dict())
    block = ["norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"]
    layers = [f"{p}.{i}.{b}" for p in ("blocks", "decoder_blocks") for i in (0, 1) for b in block]
    layers += ["patch_embed.proj", "norm", "decoder_embed", "decoder_norm", "decoder_pred"]
    expected = {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}
    expected |= {"cls_token", "pos_embed", "mask_token", "decoder_pos_embed"}
    assert keys == expected


def test_vit_b_has_the_published_size() -> None:
    with torch.device("meta"):
        model = build_model(load_config())
    encoder = sum(
        p.numel()
        for n, p in model.named_parameters()
        if not n.startswith(("decoder", "mask")) and n != "pos_embed"
    )
    assert encoder + 197 * 768 == 85_798_656  # ViT-B/16 without a head, positions included


def test_wrong_image_size_is_one_clear_line() -> None:
    with pytest.raises(UserError, match=r"expected \(N, 3, 16, 16\)"):
        build_model(tiny())(torch.zeros(1, 3, 32, 32))


def test_wrong_noise_is_one_clear_line(images: torch.Tensor) -> None:
    with pytest.raises(UserError, match=r"expected \(N, 16\)"):
        build_model(tiny())(images, torch.rand(3, 64))


def test_strict_loading_names_the_key_and_changes_nothing() -> None:
    model = build_model(tiny())
    before = {k: v.clone() for k, v in model.state_dict().items()}
    good = dict(build_model(tiny()).state_dict())
    wider = build_model(tiny("model.encoder.width=64")).state_dict()
    for bad, words in (
        (wider, "the network needs"),
        ({**good, "generator.extra": torch.zeros(1)}, "generator.extra has no place"),
        ({k: v for k, v in good.items() if k != "norm.bias"}, "norm.bias is missing"),
    ):
        with pytest.raises(CheckpointError, match=words):
            load_strict(model, bad, "test")
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_every_encoder_tensor_finds_its_place_in_the_classifier() -> None:
    model = build_model(tiny())
    for pool in ("avg", "token"):
        config = tiny(f"classifier.pool={pool}", stage="finetune")
        classifier = Classifier(config, classes=3)
        classifier.load_encoder(model.state_dict(), pool, "test")
        loaded = dict(classifier.encoder.state_dict())
        for name in ("cls_token", "pos_embed", "blocks.1.attn.qkv.weight", "patch_embed.proj.bias"):
            assert torch.equal(loaded[name], model.state_dict()[name])
        final = "fc_norm.weight" if pool == "avg" else "norm.weight"
        assert torch.equal(loaded[final], model.state_dict()["norm.weight"])


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("normalised", [False, True])
def test_predicting_the_removed_patches_alone_is_the_same_loss(
    images: torch.Tensor, depth: int, normalised: bool
) -> None:
    """With tokens left shuffled and mask tokens' products computed once: same loss, gradients."""
    overrides = (f"model.decoder.depth={depth}", f"model.norm_pix_loss={str(normalised).lower()}")
    model = build_model(tiny(*overrides)).double()
    noise = torch.rand(3, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    trained = [p for p in model.parameters() if p.requires_grad]
    whole = model(images.double(), noise).loss
    short = model.removed_loss(images.double(), noise)
    # The errors are summed in float32.
    assert short.item() == pytest.approx(whole.item(), rel=1e-6)
    expected = torch.autograd.grad(whole, trained)
    for found, other in zip(torch.autograd.grad(short, trained), expected, strict=True):
        torch.testing.assert_close(found, other, rtol=1e-5, atol=1e-9)
