"""Transformer parts shared by the encoder and the decoder (docs/method.md).

Parameter names follow the official MAE and timm checkpoints (``attn.qkv``, ``mlp.fc1`` …), so
that weights move between the three without renaming.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORM_EPS = 1e-6


class Attention(nn.Module):
    """Multi-head self-attention, (N, T, D) to (N, T, D), through PyTorch's fused kernel."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, last: int | None = None) -> Tensor:
        """With ``last``, the outputs (N, last, D) of that many tokens at the end alone."""
        if last is None:
            return self.attend(self.qkv(x))
        d = x.shape[-1]
        weight, bias = self.qkv.weight, self.qkv.bias
        (q,) = self._heads(F.linear(x[:, -last:], weight[:d], bias[:d]), 1)
        return self._attend(q, *self._heads(F.linear(x, weight[d:], bias[d:]), 2))

    def attend(self, qkv: Tensor) -> Tensor:
        """Outputs (N, T, D) from queries, keys and values (N, T, 3·D)."""
        return self._attend(*self._heads(qkv, 3))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = F.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        """(N, T, parts·D) as ``parts`` tensors (N, heads, T, D / heads)."""
        n, t, d = x.shape
        split = x.view(n, t, parts, self.heads, d // (parts * self.heads))
        return split.permute(2, 0, 3, 1, 4).unbind(0)


class Mlp(nn.Module):
    """Linear, GELU, linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm transformer block, (N, T, D) to (N, T, D)."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = Mlp(width, int(width * mlp_ratio))

    def forward(self, x: Tensor, last: int | None = None) -> Tensor:
        """With ``last``, the outputs (N, last, D) of that many tokens at the end alone."""
        attended = self.attn(self.norm1(x), last)
        x = (x if last is None else x[:, -last:]) + attended
        return x + self.mlp(self.norm2(x))

    def forward_shared(self, x: Tensor, shared: Tensor, places: Tensor) -> Tensor:
        """Outputs (N, T + M, D) for tokens x (N, T, D) and, behind them, shared tokens.

        shared (L, D) holds tokens that are the same for all samples, of which each has those at
        its places (N, M): their queries, keys and values are computed once, not once a sample.
        """
        own, common = self.attn.qkv(self.norm1(x)), self.attn.qkv(self.norm1(shared))
        qkv = torch.cat([own, F.embedding(places, common)], dim=1)
        x = torch.cat([x, F.embedding(places, shared)], dim=1) + self.attn.attend(qkv)
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    """Linear embedding of flattened patches, kept as a p×p stride-p convolution's weights.

    The weights are those of a convolution so that checkpoints fit; the product is a plain matrix
    multiplication on the patches that are asked for, since with 75 % of them masked a convolution
    over the whole image would be four times the work.
    """

    def __init__(self, patch_size: int, channels: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, kernel_size=patch_size, stride=patch_size)

    def forward(self, patches: Tensor) -> Tensor:
        """(N, T, p²·C) in (row, column, channel) order to (N, T, D)."""
        weight = self.proj.weight.permute(0, 2, 3, 1).flatten(1)
        return F.linear(patches, weight, self.proj.bias)


def take(x: Tensor, places: Tensor) -> Tensor:
    """The tokens (N, M, D) of x (N, T, D) at the places (N, M)."""
    return x.gather(1, places[:, :, None].expand(-1, -1, x.shape[2]))


def sincos_positions(width: int, grid: int) -> Tensor:
    """Fixed 2-D sin-cos positions with a zero row for the class token: (1, 1 + grid², width).

    Half of the width encodes the column, half the row, each as sines then cosines at the
    frequencies 10000^(-i / (width/4)); computed in float64 (arXiv 2111.06377, as its code).
    """
    omega = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = torch.arange(grid, dtype=torch.float64)[:, None] * omega
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)
    column = axis[None, :, :].expand(grid, grid, -1)
    row = axis[:, None, :].expand(grid, grid, -1)
    table = torch.cat([column, row], dim=2).reshape(grid * grid, width)
    return torch.cat([torch.zeros(1, width), table.float()])[None]


def channels_last(network: nn.Module) -> None:
    """Lay a convolutional network's weights out with channels last, in place.

    Convolutions then spare themselves a change of layout before and after each of them.
    """
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def init_linear(module: nn.Module) -> None:
    """MAE's initialisation of linear and norm layers, for ``Module.apply``."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
