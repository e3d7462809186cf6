"""Variants with a discriminator: ls_gan, msg_gan, stylegan2_ada.

See docs/method.md, "Adversarial losses" and "StyleGAN2-ADA".

One micro-batch runs the generator forward once and the discriminator once on real and once on
generated images. Both networks' losses are taken from these passes, and both learn from the same
ones (simultaneous gradient descent): the generated images enter the discriminator as leaves, so its
loss ends there, and the generator's loss goes on from their gradients.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from percmae.config import Config
from percmae.losses.ada import DRAWS, AdaptiveAugmentation
from percmae.losses.adversarial import (
    adversarial_loss,
    gradient_penalty,
    mixed,
    path_lengths,
    r1_penalty,
)
from percmae.losses.health import image_gradients, map_distances
from percmae.losses.objective import Call, Draws, Micro, Objective, Terms, Weighted, total
from percmae.losses.perceptual import perceptual_loss, style_loss
from percmae.losses.pixel import l1_loss, resized
from percmae.models.discriminators import Discriminator, Judged, build_discriminator
from percmae.models.layers import channels_last
from percmae.models.mae import Generated

# What random numbers are for.
_MIX, _AUGMENT_REAL, _AUGMENT_FAKE, _PATH = range(4)


class JudgeAll(nn.Module):
    """The discriminator on several batches of images, in one call."""

    def __init__(self, discriminator: Discriminator) -> None:
        super().__init__()
        self.network = discriminator

    def forward(self, *batches: Sequence[Tensor]) -> list[Judged]:
        return [self.network(batch) for batch in batches]


class Adversarial(Objective):
    """L1, an adversarial loss, and perceptual and style terms on the discriminator's features.

    The features are those of a frozen copy of the discriminator in evaluation mode, refreshed from
    it at each step of the epochs divisible by ``adversarial.refresh_epochs``. At such a step the
    copy computes what the discriminator does (unless it holds batch normalisation), so the maps of
    the adversarial pass are used and the copy is not run.
    """

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.discriminator = build_discriminator(config)
        channels_last(self.discriminator)
        self.networks["discriminator"] = self.discriminator
        self.calls["discriminator"] = JudgeAll(self.discriminator)
        settings = config.adversarial
        self.loss = adversarial_loss(settings.kind, settings.drift)
        self.frozen = copy.deepcopy(self.discriminator).requires_grad_(False).eval()

    def to(self, device: torch.device) -> None:
        super().to(device)
        self.frozen.to(device)

    # One micro-batch

    def backward(self, images: Tensor, noise: Tensor, micro: Micro, draws: Draws) -> Terms:
        images = images.contiguous(memory_format=torch.channels_last)
        with self.autocast(), self._attention(micro):
            generated, extra = self._generate(images, noise, micro)
        real = self.pyramid(images, generated.images)
        fake = [image.detach().requires_grad_() for image in generated.images]
        refreshed = self._refresh(micro)
        inputs = self._inputs(real, fake, micro, draws)
        with self.autocast():
            judged = self.calls["discriminator"](*inputs)
        real_judged, fake_judged = judged[:2]
        logged = self._accuracy(real_judged, fake_judged)

        compared = self._compared(real, fake, real_judged, fake_judged, refreshed)
        through = self._through_discriminator(fake_judged, compared)
        loss, terms = total(through)
        logged.update(terms)
        if micro.logged:
            logged.update(image_gradients(through, fake))
            logged.update(map_distances(*compared) if compared else {})
        # The generator's gradients at the images it made; the discriminator collects none here.
        gradients = torch.autograd.grad(loss * micro.weight, fake, retain_graph=True)
        logged.update(self._discriminator_backward(inputs, judged, micro))

        own = self._direct(generated, images, extra, micro, draws)
        direct, terms = total(own)
        logged.update(terms)
        if micro.logged:
            logged.update(image_gradients(own, generated.images[:1]))
        torch.autograd.backward([direct * micro.weight, *generated.images], [None, *gradients])
        self._after(real_judged, micro, logged)
        return {"loss": (loss + direct).detach(), **logged}

    def _attention(self, micro: Micro) -> AbstractContextManager[Any]:
        """Attention kernels for the generator's pass."""
        return nullcontext()

    def _generate(self, images: Tensor, noise: Tensor, micro: Micro) -> tuple[Generated, Any]:
        return self.calls["generator"](images, noise), None

    def _inputs(
        self, real: list[Tensor], fake: list[Tensor], micro: Micro, draws: Draws
    ) -> list[list[Tensor]]:
        """What the discriminator is given: real, generated and, for wgan, mixed images."""
        inputs = [real, fake]
        if self.config.adversarial.kind == "wgan" and self.config.adversarial.gradient_penalty:
            inputs.append(mixed(real, fake, draws.uniform(_MIX)))
        return inputs

    def _compared(
        self,
        real: list[Tensor],
        fake: list[Tensor],
        real_judged: Judged,
        fake_judged: Judged,
        refreshed: bool,
    ) -> tuple[list[Tensor], list[Tensor]] | None:
        """Feature maps of generated images and what they are held to; None where they are not."""
        if not self.config.adversarial.features:
            return None
        if refreshed and self._maps_shared():
            return fake_judged.maps, [m.detach() for m in real_judged.maps]
        with self.autocast():
            with torch.no_grad():
                target = self.frozen(real).maps
            return self.frozen(fake).maps, target

    def _through_discriminator(
        self, fake_judged: Judged, compared: tuple[list[Tensor], list[Tensor]] | None
    ) -> Weighted:
        """The generator's terms whose gradients come through a discriminator."""
        weights = self.config.loss
        terms: Weighted = {"gan": (weights.gan, self.loss.generator(fake_judged.logits.float()))}
        if compared is not None:
            terms["perceptual"] = weights.perceptual, perceptual_loss(*compared)
            terms["style"] = weights.style, style_loss(*compared)
        return terms

    def _maps_shared(self) -> bool:
        """Whether the discriminator's own pass gives the maps that a fresh copy would."""
        return self.discriminator.same_in_evaluation

    def _direct(
        self, generated: Generated, images: Tensor, extra: Any, micro: Micro, draws: Draws
    ) -> Weighted:
        """The generator's terms that need no discriminator."""
        return {"l1": self._l1(generated, images)}

    def _l1(self, generated: Generated, images: Tensor) -> tuple[float, Tensor]:
        """L1 stands in the adversarial and in the feature loss: with both it counts twice."""
        times = 2 if self.config.adversarial.features else 1
        return times * self.config.loss.l1, l1_loss(generated.images[0], images)

    def _discriminator_backward(
        self, inputs: list[list[Tensor]], judged: list[Judged], micro: Micro
    ) -> Terms:
        real, fake = (j.logits.float() for j in judged[:2])
        terms: Weighted = {"discriminator": (1.0, self.loss.discriminator(real, fake))}
        terms.update(self._penalties(inputs, judged, micro))
        loss, logged = total(terms)
        trained = [p for p in self.discriminator.parameters() if p.requires_grad]
        (loss * micro.weight).backward(inputs=trained)
        return logged

    def _penalties(
        self, inputs: list[list[Tensor]], judged: list[Judged], micro: Micro
    ) -> Weighted:
        """Penalties on the discriminator's gradients."""
        if len(inputs) < 3:
            return {}
        penalty = gradient_penalty(judged[2].logits, inputs[2])
        return {"gradient_penalty": (self.config.adversarial.gradient_penalty, penalty)}

    def _after(self, real_judged: Judged, micro: Micro, logged: Terms) -> None:
        """What is kept from one micro-batch to the next."""

    def _refresh(self, micro: Micro) -> bool:
        """Refresh the frozen copy where the epoch asks for it; whether it is the discriminator."""
        settings = self.config.adversarial
        if not settings.features or micro.epoch % settings.refresh_epochs:
            return False
        if micro.first:
            self.frozen.load_state_dict(self.discriminator.state_dict())
        return True

    def _accuracy(self, real: Judged, fake: Judged) -> Terms:
        return self.loss.accuracy(real.logits.detach().float(), fake.logits.detach().float())

    @staticmethod
    def pyramid(images: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
        """Real images (N, 3, H, W) at the sizes of the generated ones."""
        return [images] + [resized(images, tuple(image.shape[2:])) for image in like[1:]]

    @torch.no_grad()
    def terms(self, images: Tensor, noise: Tensor) -> Terms:
        with self.autocast():
            generated = self.generator.generate(images, noise)
            real = self.pyramid(images, generated.images)
            real_judged, fake_judged = (
                self.discriminator(real),
                self.discriminator(generated.images),
            )
        logits = real_judged.logits.float(), fake_judged.logits.float()
        compared = self._compared(real, generated.images, real_judged, fake_judged, False)
        weighted = self._through_discriminator(fake_judged, compared)
        weighted["l1"] = self._l1(generated, images)
        loss, logged = total(weighted)
        logged["loss/discriminator"] = self.loss.discriminator(*logits)
        return {"loss": loss, **self._accuracy(real_judged, fake_judged), **logged}

    def state_dict(self) -> dict[str, Any]:
        return {"frozen": self.frozen.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.frozen.load_state_dict(state["frozen"])


class StyleGAN2ADA(Adversarial):
    """StyleGAN2-ADA's regularisers around the adversarial loss.

    See docs/method.md, "StyleGAN2-ADA".

    Lazy terms are weighted by their interval. The discriminator sees augmented images, and R1 is
    taken with respect to what it sees; features are compared on the images as they are.
    """

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.ada = AdaptiveAugmentation(config.stylegan, *config.data.augment.normalisation)
        self.path_mean = torch.zeros(())
        if config.stylegan.latent:
            self.calls["generator"] = Call(self.generator, "generate_and_encode")

    def to(self, device: torch.device) -> None:
        super().to(device)
        self.ada.to(device)
        self.path_mean = self.path_mean.to(device)

    def _path_step(self, micro: Micro) -> bool:
        settings = self.config.stylegan
        return bool(settings.path_length) and micro.step % settings.path_interval == 0

    def _r1_step(self, micro: Micro) -> bool:
        settings = self.config.stylegan
        return bool(settings.r1_gamma) and micro.step % settings.r1_interval == 0

    def _attention(self, micro: Micro) -> AbstractContextManager[Any]:
        # The fused kernels cannot differentiate their gradient, which the path length does.
        return sdpa_kernel(SDPBackend.MATH) if self._path_step(micro) else nullcontext()

    def _generate(self, images: Tensor, noise: Tensor, micro: Micro) -> tuple[Generated, Any]:
        if self.config.stylegan.latent:
            return self.calls["generator"](images, noise)
        return super()._generate(images, noise, micro)

    def _inputs(
        self, real: list[Tensor], fake: list[Tensor], micro: Micro, draws: Draws
    ) -> list[list[Tensor]]:
        inputs = [
            self.ada(images, draws.uniform(purpose, DRAWS))
            for images, purpose in ((real, _AUGMENT_REAL), (fake, _AUGMENT_FAKE))
        ]
        if self._r1_step(micro):
            inputs[0] = [image.detach().requires_grad_() for image in inputs[0]]
        return inputs

    def _maps_shared(self) -> bool:
        return False  # what it sees is augmented

    def _direct(
        self, generated: Generated, images: Tensor, extra: Any, micro: Micro, draws: Draws
    ) -> Weighted:
        terms = super()._direct(generated, images, extra, micro, draws)
        settings = self.config.stylegan
        if settings.latent:
            error = F.mse_loss(extra.float(), generated.latent.detach().float())
            terms["latent"] = settings.latent, error
        if self._path_step(micro):
            image = generated.images[0]
            lengths = path_lengths(image, generated.latent, draws.normal(_PATH, *image.shape[1:]))
            self._move_path_mean(lengths.detach().mean())
            penalty = (lengths - self.path_mean).square().mean()
            terms["path_length"] = settings.path_length * settings.path_interval, penalty
        return terms

    def _move_path_mean(self, mean: Tensor) -> None:
        if dist.is_initialized():
            dist.all_reduce(mean)
            mean = mean / dist.get_world_size()
        self.path_mean = self.path_mean.lerp(mean, self.config.stylegan.path_decay)

    def _penalties(
        self, inputs: list[list[Tensor]], judged: list[Judged], micro: Micro
    ) -> Weighted:
        settings = self.config.stylegan
        if not self._r1_step(micro):
            return {}
        penalty = r1_penalty(judged[0].logits, inputs[0])
        return {"r1": (settings.r1_gamma * settings.r1_interval, penalty)}

    def _after(self, real_judged: Judged, micro: Micro, logged: Terms) -> None:
        self.ada.observe(real_judged.logits)
        if micro.last and (micro.step + 1) % self.config.stylegan.ada_interval == 0:
            self.ada.adjust()
        logged["ada_p"] = self.ada.p.float()
        logged["path_mean"] = self.path_mean

    def state_dict(self) -> dict[str, Any]:
        own = {"ada": self.ada.state_dict(), "path_mean": self.path_mean.clone()}
        return {**super().state_dict(), **own}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.ada.load_state_dict(state["ada"])
        self.path_mean = state["path_mean"].to(self.path_mean.device, copy=True)
