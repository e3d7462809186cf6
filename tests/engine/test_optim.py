"""Schedules and parameter groups, figure by figure."""

from __future__ import annotations

import math

import pytest
import torch

from percmae import load_config
from percmae.engine.optim import (
    Schedule,
    build_optimizer,
    effective_lr,
    parameter_groups,
    step_unless,
)
from percmae.models.classifier import Classifier


def schedule(*overrides: str, recipe: str = "mae", peak: float = 1.0, epoch: int = 10) -> Schedule:
    optim = load_config(recipe=recipe, overrides=list(overrides)).optim
    return Schedule(optim, peak, epoch, epoch * optim.epochs)


def test_linear_scaling_rule() -> None:
    assert effective_lr(load_config(recipe="mae").optim, 4096) == pytest.approx(2.4e-3)
    assert effective_lr(load_config(recipe="reference").optim, 64) == 1.5e-4


def test_cosine_with_warmup() -> None:
    course = schedule("optim.epochs=10", "optim.warmup_epochs=2", "optim.min_lr=0.1")
    assert 0 < course(0) < 0.06
    assert course(19) < 1.0
    assert course(20) == 1.0
    assert course(60) == pytest.approx(0.1 + 0.9 * 0.5)
    assert course(100) == pytest.approx(0.1)
    rates = [course(step) for step in range(101)]
    assert rates[:21] == sorted(rates[:21])
    assert rates[20:] == sorted(rates[20:], reverse=True)


def test_the_references_step_decay() -> None:
    course = schedule(recipe="reference", peak=1.5e-4)
    assert course(0) == course(299) == 1.5e-4
    assert course(300) == pytest.approx(1.5e-4 * 0.9)
    assert course(300 * 9) == pytest.approx(1.5e-4 * 0.9**9)


def test_no_decay_on_biases_norms_and_tokens_and_rates_fall_with_depth() -> None:
    config = load_config(
        recipe="demo",
        stage="finetune",
        overrides=["optim.layer_decay=0.5"],
        base={"model": {"encoder": {"depth": 2}}},
    )
    model = Classifier(config, 3)
    groups = parameter_groups(model, config.optim, model.layer_of, model.layers)
    of = {id(p): group for group in groups for p in group["params"]}
    names = dict(model.named_parameters())
    assert len(of) == len(names)
    for name, decay, scale in (
        ("encoder.cls_token", 0.0, 0.5**3),
        ("encoder.pos_embed", 0.0, 0.5**3),
        ("encoder.patch_embed.proj.weight", 0.05, 0.5**3),
        ("encoder.blocks.0.attn.qkv.weight", 0.05, 0.5**2),
        ("encoder.blocks.1.mlp.fc1.bias", 0.0, 0.5),
        ("head.linear.weight", 0.05, 1.0),
        ("encoder.fc_norm.weight", 0.0, 1.0),
    ):
        group = of[id(names[name])]
        assert (group["weight_decay"], group["lr_scale"]) == (decay, scale), name
    optimizer = build_optimizer(config.optim, groups)
    Schedule(config.optim, 0.2, 1, 100).apply(optimizer, 50)
    rates = {g["lr"] / g["lr_scale"] for g in optimizer.param_groups}
    assert max(rates) - min(rates) < 1e-12


def test_lars_adapts_matrices_and_not_biases() -> None:
    """One step from rest: matrices move by lr · 0.001 · ‖w‖/‖g‖ · g, biases by lr · g."""
    optim = load_config(stage="probe").optim
    layer = torch.nn.Linear(3, 2)
    before = [p.detach().clone() for p in layer.parameters()]
    optimizer = build_optimizer(optim, parameter_groups(layer, optim))
    for parameter in layer.parameters():
        parameter.grad = torch.full_like(parameter, 0.3)
    for group in optimizer.param_groups:
        group["lr"] = 0.5
    optimizer.step()
    weight, bias = before
    trust = 0.001 * weight.norm() / math.sqrt(6 * 0.3**2)
    torch.testing.assert_close(layer.weight.detach(), weight - 0.5 * trust * 0.3)
    torch.testing.assert_close(layer.bias.detach(), bias - 0.5 * 0.3)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "lars"])
@pytest.mark.parametrize("at", [0, 2], ids=["first", "later"])
def test_a_skipped_step_changes_nothing(name: str, at: int) -> None:
    """With a step of infinite gradients among others, which is skipped: as if it had not been."""
    settings = [f"optim.name={name}", "optim.weight_decay=0.1", "optim.momentum=0.9"]
    optim = load_config(overrides=settings).optim
    trained = []
    for skipping in (False, True):
        torch.manual_seed(0)
        layer = torch.nn.Linear(7, 5)
        optimizer = build_optimizer(optim, parameter_groups(layer, optim))
        for step in range(4):
            for skip in (1.0, 0.0) if skipping and step == at else (0.0,):
                for number, parameter in enumerate(layer.parameters()):
                    gradient = torch.full_like(parameter, 0.1 * (step + number + 1))
                    parameter.grad = gradient / 0 if skip else gradient
                step_unless(optimizer, torch.tensor(skip))
        trained.append((list(layer.parameters()), optimizer.state_dict()["state"]))
    (weights, state), (others, other_state) = trained
    assert all(map(torch.equal, weights, others))
    assert state.keys() == other_state.keys() == {0, 1}
    for key, tensors in state.items():
        assert tensors.keys() == other_state[key].keys() != set()
        assert all(torch.equal(t, other_state[key][k]) for k, t in tensors.items())
