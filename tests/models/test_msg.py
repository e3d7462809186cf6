"""The multi-scale generator: its wiring, its scales at any size, what it refuses."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from percmae import build_model, load_config
from percmae.config.scales import scales
from percmae.errors import ConfigError
from percmae.models.mae import MaskedAutoencoder
from percmae.models.msg import MultiScaleAutoencoder
from percmae.models.weights import encoder_tensors
from percmae.runs.downstream import inherited

SMALL = [
    "data.image_size=32",
    "model.patch_size=8",
    "model.encoder.width=24",
    "model.encoder.depth=5",
    "model.encoder.heads=2",
    "model.decoder.width=16",
    "model.decoder.depth=4",
    "model.decoder.heads=2",
]


def small(*overrides: str) -> MultiScaleAutoencoder:
    torch.manual_seed(0)
    model = build_model(load_config("msg_gan", overrides=[*SMALL, *overrides]))
    assert isinstance(model, MultiScaleAutoencoder)
    return model


def test_six_scales_at_224_pixels() -> None:
    config = load_config("msg_gan")
    assert scales(config) == [224, 112, 56, 28, 14, 7]
    with torch.device("meta"):
        model = MultiScaleAutoencoder(config)
    # U-Net: the 7 blocks after the first take a map; heads after blocks 2 to 6 (counted from 0).
    assert [tuple(x.weight.shape) for x in model.compress] == [(512, 1024)] * 7
    assert len(model.heads) == 5
    assert [head.pool for head in model.heads] == [1, 2, 4, 8, 16]
    assert [head.to_rgb.kernel_size for head in model.heads] == [(3, 3)] + [(5, 5)] * 4


def test_published_size_makes_images_of_every_scale() -> None:
    config = load_config("msg_gan", overrides=["model.encoder.width=48", "model.decoder.width=32"])
    model = build_model(config)
    with torch.no_grad():
        made = model.generate(torch.randn(1, 3, 224, 224), torch.rand(1, 196))
    assert [tuple(x.shape) for x in made.images] == [(1, 3, s, s) for s in scales(config)]
    assert made.latent.shape == (1, 50, 48)


def test_forward_pass_spelled_out() -> None:
    """Block by block as docs/method.md says it ("Networks of the variants")."""
    model = small().eval()
    images, noise = torch.randn(2, 3, 32, 32), torch.rand(2, 16)
    masking = model.masking(noise)
    x = model._embed(model.patchify(images), masking.keep)
    outputs = []
    for block in model.blocks:
        x = block(x)
        outputs.append(x)
    latent = model.norm(x)
    depth, decoder_depth = 5, 4
    handed_on = outputs[depth - decoder_depth : depth - 1]  # indices 1, 2, 3
    x = model.decoder_blocks[0](model._unmask(latent, masking.restore))
    expected = []
    for i in range(1, decoder_depth):
        skip = model._unmask(handed_on[-i], masking.restore)
        x = model.decoder_blocks[i](model.compress[i - 1](torch.cat([x, skip], dim=2)))
        if i < decoder_depth - 1:
            head = model.heads[i]
            image = model.unpatchify(head.patches(x[:, 1:]))
            factor = 2 ** (i + 1)
            pooled = F.avg_pool2d(image, factor // 2)
            expected.append(head.to_rgb(pooled))
    made = model.generate(images, noise)
    assert model.sizes == [32, 16, 8, 4]
    assert [x.shape[-1] for x in made.images] == model.sizes
    full = model.unpatchify(model.decoder_pred(model.decoder_norm(x[:, 1:])))
    torch.testing.assert_close(made.images[0], full)
    # Three heads: after blocks 0, 1 and 2, the earliest the largest.
    for image, other in zip(made.images[2:], expected, strict=True):
        torch.testing.assert_close(image, other)
    torch.testing.assert_close(made.latent, latent)


def test_its_encoder_is_the_masked_autoencoders() -> None:
    model = small()
    plain = build_model(load_config("mae", overrides=SMALL))
    assert not isinstance(plain, MultiScaleAutoencoder)
    assert isinstance(plain, MaskedAutoencoder)
    assert encoder_tensors(model.state_dict()).keys() == encoder_tensors(plain.state_dict()).keys()
    extra = {k.split(".")[0] for k in set(model.state_dict()) - set(plain.state_dict())}
    assert extra == {"compress", "heads"}


@pytest.mark.parametrize(
    ("size", "decoder", "limit", "expected"),
    [
        (32, 8, 6, [32, 16, 8, 4]),
        (32, 3, 6, [32, 16, 8]),  # one scale a decoder block
        (96, 8, 6, [96, 48, 24, 12, 6]),
        (224, 8, 3, [224, 112, 56]),
        (200, 8, 6, [200, 100, 50, 25]),  # 25 does not halve
    ],
)
def test_scales_of_other_sizes(size: int, decoder: int, limit: int, expected: list[int]) -> None:
    config = load_config(
        "msg_gan",
        overrides=[
            f"data.image_size={size}",
            "model.patch_size=8",
            f"model.decoder.depth={decoder}",
            f"discriminator.depth={limit}",
        ],
    )
    assert scales(config) == expected


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model.encoder.depth=4"], r"model\.decoder\.depth=8 is above model\.encoder\.depth=4"),
        (["model.decoder.depth=1"], "two scales or more"),
        (["discriminator.depth=1"], "two scales or more"),
        (["data.image_size=49", "model.patch_size=7"], r"data\.image_size=49 must halve"),
    ],
)
def test_sizes_that_cannot_work_are_refused(overrides: list[str], words: str) -> None:
    for variant in ("msg_gan", "stylegan2_ada"):
        with pytest.raises(ConfigError, match=words):
            load_config(variant, overrides=overrides)
    sizes = load_config("ls_gan", overrides=overrides)
    load_config("msg_gan", stage="probe", base=inherited(sizes))
