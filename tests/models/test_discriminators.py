"""Discriminators: layers at the published size, the rule for others, the batch's part in them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from percmae import load_config
from percmae.bench.flops import counted_flops
from percmae.models.discriminators import (
    DCGAN,
    EqualizedConv2d,
    MSGDiscriminator,
    build_discriminator,
    minibatch_deviation,
)


def test_dcgan_at_224_pixels() -> None:
    network = build_discriminator(load_config("ls_gan")).eval()
    assert isinstance(network, DCGAN)
    plan = [
        (block[0].out_channels, block[0].kernel_size[0], block[0].stride[0], block[0].padding[0])
        for block in network.blocks
    ]
    assert plan == [(64, 7, 2, 1), (128, 5, 2, 1), (256, 5, 2, 0), (512, 3, 2, 0), (512, 3, 2, 1)]
    normed = [any(isinstance(m, nn.BatchNorm2d) for m in block) for block in network.blocks]
    assert normed == [False, True, True, True, True]
    with torch.no_grad():
        judged = network([torch.randn(2, 3, 224, 224)])
    assert judged.logits.shape == (2,)
    assert [tuple(x.shape[1:]) for x in judged.maps] == [
        (64, 110, 110), (128, 54, 54), (256, 25, 25), (512, 12, 12),
    ]  # fmt: skip
    assert network.linear.in_features == 16


@pytest.mark.parametrize("size", [8, 16, 32, 48, 64, 96, 128])
def test_dcgan_at_other_sizes_never_shrinks_below_four_pixels(size: int) -> None:
    network = DCGAN(size, 16, batch_norm=True)
    judged = network([torch.randn(2, 3, size, size)])
    assert judged.logits.shape == (2,)
    assert min(x.shape[-1] for x in judged.maps) >= 4
    assert len(judged.maps) == 4


def test_dcgan_has_no_batch_norm_where_gradients_are_penalised() -> None:
    for kind, normed in (("ls", True), ("std", True), ("wgan", False), ("stylegan2_ada", False)):
        config = load_config("ls_gan", "demo", overrides=[f"adversarial.kind={kind}"])
        network = build_discriminator(config)
        assert network.same_in_evaluation is not normed


def test_msg_at_224_pixels() -> None:
    network = build_discriminator(load_config("msg_gan"))
    assert isinstance(network, MSGDiscriminator)
    widths = [(b.conv1.in_channels, b.conv2.out_channels) for b in network.blocks]
    assert widths == [(64, 64), (128, 128), (256, 256), (512, 256), (512, 256)]
    assert [c.out_channels for c in network.from_rgb] == [64, 64, 128, 256, 256, 256]
    assert network.conv1.in_channels == 513
    images = [torch.randn(1, 3, s, s) for s in (224, 112, 56, 28, 14, 7)]
    with torch.no_grad():
        judged = network(images)
        macs = counted_flops(lambda: network(images)) / 2
    assert [tuple(x.shape[1:]) for x in judged.maps] == [
        (64, 112, 112), (128, 56, 56), (256, 28, 28), (256, 14, 14), (256, 7, 7),
    ]  # fmt: skip
    # 29.6 GFLOP a pass: what the counts in docs/method.md, "Arithmetic of a step", are made of.
    assert macs / 1e9 == pytest.approx(14.8, abs=0.1)
    with pytest.raises(ValueError, match="5 images; this network judges 6"):
        network(images[1:])


def test_every_scale_is_judged() -> None:
    network = MSGDiscriminator([16, 8, 4], 16, "conv", 4)
    images = [torch.randn(3, 3, s, s, requires_grad=True) for s in (16, 8, 4)]
    network(images).logits.sum().backward()
    assert all(x.grad is not None and bool(x.grad.abs().max() > 0) for x in images)


def test_equalised_layers_scale_their_weights_when_used() -> None:
    torch.manual_seed(0)
    layer = EqualizedConv2d(8, 64, 3, padding=1)
    assert layer.weight.std().item() == pytest.approx(1, abs=0.03)
    x = torch.randn(1, 8, 5, 5)
    scaled = nn.functional.conv2d(x, layer.weight * math.sqrt(2 / (8 * 9)), layer.bias, padding=1)
    torch.testing.assert_close(layer(x), scaled)
    config = load_config("msg_gan", "demo", overrides=["discriminator.layer=equalized"])
    network = build_discriminator(config)
    kinds = {type(m) for m in network.modules() if isinstance(m, nn.Conv2d)}
    assert kinds == {EqualizedConv2d}


def test_minibatch_deviation_by_loops() -> None:
    x = torch.randn(6, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    made = minibatch_deviation(x, 4)  # 4 does not divide 6: groups of 3
    assert made.shape == (6, 3, 3, 3)
    assert torch.equal(made[:, :2], x)
    for group in range(2):
        rows = x[3 * group : 3 * group + 3]
        values = []
        for c in range(2):
            for i in range(3):
                for j in range(3):
                    cell = rows[:, c, i, j]
                    mean = sum(cell.tolist()) / 3
                    values.append(math.sqrt(sum((v - mean) ** 2 for v in cell.tolist()) / 3 + 1e-8))
        expected = sum(values) / len(values)
        found = made[3 * group : 3 * group + 3, 2]
        torch.testing.assert_close(found, torch.full_like(found, expected))
    # A sample's group is the same whether a process holds all of the batch or a part of it.
    whole = minibatch_deviation(x.repeat(2, 1, 1, 1)[:8], 4)
    torch.testing.assert_close(whole[4:], minibatch_deviation(x.repeat(2, 1, 1, 1)[4:8], 4))
