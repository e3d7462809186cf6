"""The networks and losses against implementations by others."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from percmae import build_model, load_config
from percmae.bench.transformers_mae import hf_model
from percmae.config import Config
from percmae.losses.perceptual import perceptual_loss, style_loss
from percmae.losses.pixel import ssim_map
from percmae.models.features import build_features


def config(norm_pix: bool) -> Config:
    return load_config(
        overrides=[
            "data.image_size=48",
            "model.patch_size=8",
            "model.encoder.width=48",
            "model.encoder.depth=3",
            "model.encoder.heads=3",
            "model.decoder.width=32",
            "model.decoder.depth=2",
            "model.decoder.heads=4",
            f"model.norm_pix_loss={str(norm_pix).lower()}",
        ]
    )


@pytest.mark.slow
@pytest.mark.parametrize("norm_pix", [False, True])
def test_masked_autoencoder_and_its_gradients_agree_with_transformers(norm_pix: bool) -> None:
    torch.manual_seed(3)
    settings = config(norm_pix)
    ours = build_model(settings)
    with torch.no_grad():
        # Every tensor counts: as initialised, biases are 0 and norms 1.
        for parameter in ours.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    theirs = hf_model(settings, ours.state_dict())
    images, noise = torch.randn(4, 3, 48, 48), torch.rand(4, 36)
    mine, other = ours(images, noise), theirs(images, noise=noise)
    assert torch.equal(mine.mask, other.mask)
    torch.testing.assert_close(mine.prediction, other.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mine.loss, other.loss, atol=1e-5, rtol=1e-5)

    mine.loss.backward()
    other.loss.backward()
    gradients = dict(theirs.named_parameters())
    for name, parameter in (
        ("decoder.decoder_pred.weight", ours.decoder_pred.weight),
        ("vit.embeddings.patch_embeddings.projection.weight", ours.patch_embed.proj.weight),
        ("vit.embeddings.cls_token", ours.cls_token),
        ("decoder.mask_token", ours.mask_token),
    ):
        torch.testing.assert_close(parameter.grad, gradients[name].grad, atol=1e-5, rtol=1e-4)


def test_ssim_agrees_with_scikit_image_inside_the_border() -> None:
    generator = np.random.default_rng(5)
    a = generator.random((3, 20, 30))
    b = np.clip(a + generator.normal(0, 0.2, a.shape), 0, 1)
    _, theirs = structural_similarity(
        a, b, win_size=3, data_range=1.0, channel_axis=0, use_sample_covariance=False, full=True
    )
    ours = ssim_map(torch.from_numpy(a)[None], torch.from_numpy(b)[None])[0].numpy()
    # At the border we mirror without the edge pixel, scikit-image with it.
    inside = np.s_[:, 1:-1, 1:-1]
    assert ours[inside].std() > 0.05
    np.testing.assert_allclose(ours[inside], theirs[inside], atol=1e-5)


def test_perceptual_and_style_losses_agree_with_piq() -> None:
    """The whole path: [0, 1] images, VGG16's normalisation and stages, mean over cells, Gram."""
    import piq

    from percmae import vision

    torch.manual_seed(7)
    plan = vision.torchvision.models.vgg.cfgs["D"][:10]
    layers = vision.torchvision.models.vgg.make_layers(plan)
    ours = build_features("vgg16", {f"features.{k}": v for k, v in layers.state_dict().items()})
    made, target = torch.rand(2, 3, 48, 48), torch.rand(2, 3, 48, 48)
    maps = ours(made), ours(target)
    pools, widths = ["4", "9", "16"], [64, 128, 256]

    def theirs(kind: str, shares: list[float]) -> torch.Tensor:
        loss = getattr(piq, kind)(layers, pools, shares, distance="mae")
        found: torch.Tensor = loss(made, target)
        return found

    # piq adds up over channels, and leaves Gram matrices undivided.
    content = theirs("ContentLoss", [1 / c for c in widths])
    torch.testing.assert_close(perceptual_loss(*maps), content, rtol=1e-5, atol=0)
    cells = [(48 // 2 ** (k + 1)) ** 2 for k in range(3)]
    style = theirs("StyleLoss", [1 / (c * n) for c, n in zip(widths, cells, strict=True)])
    torch.testing.assert_close(style_loss(*maps), style, rtol=1e-5, atol=0)
