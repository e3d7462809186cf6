"""A training step gives its work to the device and does not wait for any of it.

Seen on the CPU, as far as that goes: no value of a tensor reaches the host within a step, no tensor
is made of the host's numbers (a GPU would have to be waited for until it has them), and no shape
depends on values. And each variant's generator is one graph to the compiler, whole.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from percmae.bench.contenders import random_features, random_vgg16
from percmae.config import Config
from percmae.data.shards import Dataset
from percmae.engine import loop
from percmae.engine.pretrain import pretrain
from percmae.losses.build import build_objective
from percmae.losses.objective import Draws, Micro

Make = Callable[..., Config]
VARIANTS = ("mae", "ssim", "perceptual", "ls_gan", "msg_gan", "stylegan2_ada")
aten = torch.ops.aten
WAITING = {
    aten._local_scalar_dense: "a value read by the host",
    aten.equal: "a value read by the host",
    aten.lift_fresh: "a tensor made of the host's numbers",
    aten.nonzero: "a shape that depends on values",
    aten.masked_select: "a shape that depends on values",
    aten.unique_dim: "a shape that depends on values",
}


class NoWaiting(TorchDispatchMode):
    """Refuses what waits for a GPU."""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        why = WAITING.get(function.overloadpacket)
        if function.overloadpacket in (aten.index, aten.index_put, aten.index_put_):
            chosen = (index for index in args[1] if index is not None)
            if any(index.dtype in (torch.bool, torch.uint8) for index in chosen):
                why = "a shape that depends on values"
        assert why is None, f"{function}: {why}"
        return function(*args, **(kwargs or {}))


def refused(*_: Any) -> Any:
    raise AssertionError("a value read by the host")


@pytest.mark.parametrize(
    "work",
    [bool, float, torch.nonzero, lambda x: x[x > 0], lambda x: x + torch.tensor([1.0])],
)
def test_what_would_wait_is_refused(work: Callable[[Tensor], Any]) -> None:
    value = torch.ones(1)
    why = r"read by the host|depends on values|host's numbers"
    with pytest.raises(AssertionError, match=why), NoWaiting():
        work(value)


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_step_waits_for_the_device(
    tiny: Make,
    tiny_dataset: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    variant: str,
) -> None:
    """Through the whole loop: every kind of step, clipping, accumulation, the check for NaN."""
    settings = [
        "optim.max_steps=16", "optim.clip_grad=1", "optim.accumulate=2", "data.batch_size=8",
        "trainer.log_interval=100", "trainer.val_interval=100", "tracking.images=0",
        "tracking.knn_samples=0", "adversarial.refresh_epochs=2", "stylegan.r1_interval=3",
    ]  # fmt: skip
    if variant == "perceptual":
        file = tmp_path / "vgg16.pt"
        torch.save(random_vgg16().state_dict(), file)
        settings += ["perceptual.extractor=vgg16", f"perceptual.weights={file}"]
    original = loop.Loop._optimise
    watched = []

    def optimise(self: loop.Loop, *args: Any) -> bool:
        with monkeypatch.context() as patch, NoWaiting():
            patch.setattr(Tensor, "tolist", refused)
            patch.setattr(Tensor, "numpy", refused)
            watched.append(self.step)
            return original(self, *args)

    monkeypatch.setattr(loop.Loop, "_optimise", optimise)
    pretrain(tiny(*settings, variant=variant), tiny_dataset.uri, str(tmp_path))
    assert watched == list(range(16))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_generator_compiles_as_one_graph(tiny: Make, variant: str) -> None:
    """``fullgraph`` raises at the first thing that the compiler cannot follow."""
    config = tiny("perceptual.extractor=vgg16", "stylegan.path_length=0", variant=variant)
    torch.manual_seed(0)
    gradients = []
    for compiled in (False, True):
        torch.manual_seed(0)
        objective = build_objective(config, random_features(config))
        if compiled:
            call = objective.calls["generator"]
            whole = torch.compile(call, fullgraph=True, backend="eager")
            objective.calls["generator"] = whole  # type: ignore[assignment]
        torch.manual_seed(1)
        images, noise = torch.randn(4, 3, 32, 32), torch.rand(4, objective.generator.patches)
        draws = Draws(0, 1, range(4), torch.device("cpu"))
        objective.backward(images, noise, Micro(1, 1, 1, 1.0), draws)
        gradients.append([p.grad for p in objective.generator.parameters() if p.requires_grad])
    for plain, other in zip(*gradients, strict=True):
        torch.testing.assert_close(other, plain)
