"""What one step of each variant computes: which networks its terms reach, how often each runs."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from percmae.losses.gan import Adversarial
from percmae.losses.objective import Draws, Micro, Objective

from .variants import ADVERSARIAL, VARIANTS, batch, config_of, gradients, objective_of, step

NONE = ("l1", "gan", "perceptual", "style")
OFF = [*(f"loss.{name}=0" for name in NONE), "stylegan.latent=0", "stylegan.path_length=0"]


def reached(objective: Objective, network: str) -> set[str]:
    found = gradients(objective.networks[network])
    return {name for name, g in found.items() if g is not None and bool(g.abs().max() > 0)}


def trained(objective: Objective, network: str) -> set[str]:
    return set(gradients(objective.networks[network]))


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_learns_and_the_loss_falls(variant: str) -> None:
    objective = objective_of(config_of(variant, "stylegan.ada_kimg=1", "loss.style=4"))
    images, noise = batch(objective)
    rates = {"generator": 2e-3, "discriminator": 2e-4}
    optimizers = [
        torch.optim.AdamW(v.parameters(), rates[k]) for k, v in objective.networks.items()
    ]
    losses, touched = [], set()
    for number in range(24):
        terms = step(objective, images, noise, number, epoch=number // 6)
        losses.append(terms.get("loss/l1", terms["loss"]).item())
        for name in objective.networks:
            assert trained(objective, name) == {
                n for n, g in gradients(objective.networks[name]).items() if g is not None
            }, "a parameter without a gradient would stop DistributedDataParallel"
            touched |= {f"{name}.{n}" for n in reached(objective, name)}
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    assert losses[-1] < 0.95 * losses[0]
    everything = {f"{k}.{n}" for k in objective.networks for n in trained(objective, k)}
    assert touched == everything
    objective.train(False)
    shown = {k for k in objective.terms(images, noise) if k.startswith("loss")}
    lazy_or_training_only = {"loss/r1", "loss/path_length", "loss/latent"}
    assert {k for k in terms if k.startswith("loss")} - shown <= lazy_or_training_only


@pytest.mark.parametrize("variant", ADVERSARIAL)
@pytest.mark.parametrize("term", ["l1", "gan", "perceptual", "style"])
@pytest.mark.parametrize("epoch", [0, 1], ids=["refreshing", "frozen"])
def test_each_term_of_the_generator_reaches_it_and_nothing_else(
    variant: str, term: str, epoch: int
) -> None:
    alone = objective_of(config_of(variant, *OFF, f"loss.{term}=1"))
    without = objective_of(config_of(variant, *OFF))
    assert isinstance(alone, Adversarial)
    images, noise = batch(alone)
    before = {k: v.clone() for k, v in alone.frozen.state_dict().items()}
    step(alone, images, noise, epoch=epoch)
    step(without, images, noise, epoch=epoch)
    missed = trained(alone, "generator") - reached(alone, "generator")
    if term == "l1" or variant == "ls_gan":  # the full image alone
        assert missed == {n for n in missed if n.startswith("heads.")}
    else:
        # Through a discriminator every scale is reached; the smallest joins behind the last map.
        last = "heads.1." if term != "gan" else "no head"
        assert missed == {n for n in trained(alone, "generator") if n.startswith(last)}
    # The discriminator's gradients are the same whatever the generator is asked for.
    mine, others = gradients(alone.discriminator), gradients(without.discriminator)
    for name, gradient in mine.items():
        torch.testing.assert_close(gradient, others[name], rtol=0, atol=0)
    assert all(p.grad is None for p in alone.frozen.parameters())
    after = alone.frozen.state_dict()
    assert all(torch.equal(v, after[k]) for k, v in before.items())


@pytest.mark.parametrize("variant", ADVERSARIAL)
@pytest.mark.parametrize("kind", ["std", "ls", "wgan", "stylegan2_ada"])
def test_the_discriminators_loss_never_reaches_the_generator(variant: str, kind: str) -> None:
    objective = objective_of(config_of(variant, *OFF, f"adversarial.kind={kind}"))
    images, noise = batch(objective)
    terms = step(objective, images, noise)
    assert terms["loss"].item() == 0
    assert reached(objective, "generator") == set()
    assert reached(objective, "discriminator") == trained(objective, "discriminator")


@pytest.mark.parametrize("term", ["latent", "path_length"])
def test_stylegan_terms_reach_the_generator_alone(term: str) -> None:
    objective = objective_of(config_of("stylegan2_ada", *OFF, f"stylegan.{term}=1"))
    without = objective_of(config_of("stylegan2_ada", *OFF))
    images, noise = batch(objective)
    step(objective, images, noise)
    step(without, images, noise)
    assert {"decoder_embed.weight", "decoder_pred.weight"} <= reached(objective, "generator")
    if term == "latent":
        assert "blocks.0.attn.qkv.weight" in reached(objective, "generator")
    others = gradients(without.networks["discriminator"])
    for name, gradient in gradients(objective.networks["discriminator"]).items():
        # The path length's attention kernel rounds the images differently, and how differently
        # depends on the processor: held against the largest entry, as small ones are sums that
        # cancel.
        scale = others[name].abs().max().item()
        torch.testing.assert_close(gradient, others[name], rtol=0, atol=1e-5 * scale)


def test_perceptual_terms_reach_the_generator_and_not_the_feature_network() -> None:
    for term in ("perceptual", "style"):
        objective = objective_of(config_of("perceptual", *OFF, f"loss.{term}=1"))
        step(objective, *batch(objective))
        assert reached(objective, "generator") == trained(objective, "generator")
        features = objective.features  # type: ignore[attr-defined]
        assert all(p.grad is None and not p.requires_grad for p in features.parameters())
        assert not features.training


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v != "stylegan2_ada"])
def test_the_generators_gradient_is_that_of_its_loss(variant: str) -> None:
    """One backward pass through leaves gives what plain autograd gives for the whole loss."""
    objective = objective_of(config_of(variant))
    images, noise = batch(objective)
    step(objective, images, noise, epoch=1)
    found = gradients(objective.generator)
    objective.generator.zero_grad()
    if not isinstance(objective, Adversarial):
        direct = objective_of(config_of(variant))
        out = direct.generator.reconstruct(images, noise)
        loss = direct.generator.masked_loss(images, *out)
        if variant != "mae":
            made = direct.generator.generate(images, noise).images
            loss = sum(w * v for w, v in direct.weighted(made, images).values())  # type: ignore
        loss.backward()
        objective = direct
    else:
        made = objective.generator.generate(images, noise).images
        real = objective.pyramid(images, made)
        fresh = objective_of(config_of(variant))
        assert isinstance(fresh, Adversarial)
        judged = fresh.discriminator(real), fresh.discriminator(made)
        compared = objective._compared(real, made, *judged, refreshed=False)
        weighted = objective._through_discriminator(judged[1], compared)
        loss = sum(w * v for w, v in weighted.values()) + 2 * (made[0] - images).abs().mean()
        loss.backward()
    for name, expected in gradients(objective.generator).items():
        torch.testing.assert_close(found[name], expected, rtol=1e-3, atol=1e-6, msg=name)


def counted(objective: Objective, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    counts: Counter[str] = Counter()

    def count(module: torch.nn.Module, name: str) -> None:
        module.register_forward_hook(lambda *_: counts.update([name]))

    count(objective.generator.patch_embed, "encoder")
    count(objective.generator.decoder_norm, "decoder")
    if isinstance(objective, Adversarial):
        count(objective.discriminator, "discriminator")
        count(objective.frozen, "frozen copy")
    if hasattr(objective, "features"):
        count(objective.features, "features")
    return counts


ONCE = {"encoder": 1, "decoder": 1}
COPIED = {**ONCE, "discriminator": 2, "frozen copy": 2}


@pytest.mark.parametrize(
    ("variant", "overrides", "number", "epoch", "expected"),
    [
        ("mae", [], 0, 0, ONCE),
        ("ssim", [], 0, 0, ONCE),
        ("perceptual", [], 0, 0, {**ONCE, "features": 2}),
        ("ls_gan", ["adversarial.features=false"], 0, 1, {**ONCE, "discriminator": 2}),
        ("ls_gan", [], 0, 1, COPIED),
        # Its copy normalises by running statistics, so it is no twin of the network in training.
        ("ls_gan", [], 0, 0, COPIED),
        ("ls_gan", ["adversarial.kind=wgan"], 0, 0, {**ONCE, "discriminator": 3}),
        ("msg_gan", [], 0, 0, {**ONCE, "discriminator": 2}),
        ("msg_gan", [], 0, 1, COPIED),
        # The second pass of the encoder is the latent reconstruction's: on another image.
        # The discriminator sees augmented images; features are compared on them as they are.
        ("stylegan2_ada", [], 0, 0, {**COPIED, "encoder": 2}),
        ("stylegan2_ada", ["stylegan.latent=0"], 1, 0, COPIED),
    ],
)
def test_how_often_each_network_runs_in_a_step(
    variant: str,
    overrides: list[str],
    number: int,
    epoch: int,
    expected: dict[str, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    objective = objective_of(config_of(variant, *overrides))
    counts = counted(objective, monkeypatch)
    step(objective, *batch(objective), number, epoch)
    assert counts == expected


def test_the_frozen_copy_follows_in_epochs_divisible_by_five_and_rests_in_others() -> None:
    objective = objective_of(config_of("ls_gan"))
    assert isinstance(objective, Adversarial)
    images, noise = batch(objective)
    optimizer = torch.optim.Adam(objective.discriminator.parameters(), 1e-3)

    def weight(network: torch.nn.Module) -> torch.Tensor:
        return next(network.parameters()).detach().clone()

    for epoch, follows in ((0, True), (1, False), (4, False), (5, True), (6, False)):
        before, copy = weight(objective.discriminator), weight(objective.frozen)
        step(objective, images, noise, epoch=epoch)
        assert torch.equal(weight(objective.frozen), before if follows else copy), epoch
        optimizer.step()
        optimizer.zero_grad()
        assert not torch.equal(weight(objective.discriminator), before)


@pytest.mark.parametrize("variant", ["ssim", "msg_gan", "stylegan2_ada"])
def test_the_weight_scales_every_gradient(variant: str) -> None:
    found: list[dict[str, Any]] = []
    for weight in (1.0, 0.25):
        objective = objective_of(config_of(variant))
        images, noise = batch(objective)
        draws = Draws(0, 0, range(len(images)), torch.device("cpu"))
        objective.backward(images, noise, Micro(0, 0, 0, weight), draws)
        found.append(
            {f"{k}.{n}": g for k, v in objective.networks.items() for n, g in gradients(v).items()}
        )
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient * 0.25, found[1][name], rtol=1e-4, atol=1e-8)


def test_two_micro_batches_give_the_gradients_of_one() -> None:
    """Where no term looks at the batch as a whole (the deviation's groups are within a half)."""
    whole, halves = objective_of(config_of("msg_gan")), objective_of(config_of("msg_gan"))
    images, noise = batch(whole)
    step(whole, images, noise)
    for place in range(2):
        rows = slice(4 * place, 4 * place + 4)
        micro = Micro(place, 0, 0, 0.5, first=place == 0, last=place == 1)
        draws = Draws(0, place, range(4), torch.device("cpu"))
        halves.backward(images[rows], noise[rows], micro, draws)
    for network in whole.networks:
        expected = gradients(whole.networks[network])
        for name, gradient in gradients(halves.networks[network]).items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_running_state_goes_through_a_checkpoint(variant: str) -> None:
    overrides = ("stylegan.ada_kimg=0.05", "adversarial.refresh_epochs=2")
    whole = objective_of(config_of(variant, *overrides))
    images, noise = batch(whole)
    for number in range(6):
        step(whole, images, noise, number, epoch=number // 2)
    other = objective_of(config_of(variant, *overrides))
    for name, network in other.networks.items():
        network.load_state_dict(whole.networks[name].state_dict())
        whole.networks[name].zero_grad()
    other.load_state_dict(whole.state_dict())
    if variant == "stylegan2_ada":
        state = other.state_dict()
        assert state["ada"]["p"] > 0
        assert state["ada"]["signs"][1] > 0
        assert state["path_mean"] > 0
    for number in (6, 7, 8):
        a = step(whole, images, noise, number, epoch=3)
        b = step(other, images, noise, number, epoch=3)
        assert {k: v.item() for k, v in a.items()} == {k: v.item() for k, v in b.items()}
