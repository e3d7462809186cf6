"""The training loop, the same for pretraining, fine-tuning and probing.

What differs is in a Learner: its networks, what one micro-batch computes, how it is validated. The
loop owns the order of things: accumulation, clipping, the schedule, logging, validation,
checkpoints, resuming and signals. All of a run's course is a function of the config and the step,
so that going on from a checkpoint gives what an uninterrupted run gives.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from percmae.config import Config
from percmae.data.batch import Batch
from percmae.data.stream import Source
from percmae.engine.checkpoint import State, write_state
from percmae.engine.distributed import World, seed_step
from percmae.engine.finite import NotFinite, Watch, listed
from percmae.engine.learner import Learner
from percmae.engine.optim import Schedule, effective_lr, step_unless
from percmae.engine.plan import Plan
from percmae.engine.saving import latest_state, put_back, state_of
from percmae.engine.signals import BrokenOff, stopped, training_signals
from percmae.engine.spool import Spool
from percmae.engine.teller import Teller
from percmae.engine.waiting import LoaderWait
from percmae.engine.watchdog import COMPUTING, IMAGES, OTHERS, SAVING, Watchdog, at
from percmae.engine.window import Window
from percmae.errors import PercmaeError
from percmae.losses.objective import Micro, Terms
from percmae.progress import note, warn
from percmae.runs.checkpoints import Checkpoints
from percmae.runs.record import CHECKPOINTS, Run
from percmae.signals import Signals


class Loop:
    """One run from where it stands to its end; see :meth:`run`."""

    def __init__(
        self, learner: Learner, config: Config, run: Run, source: Source, world: World, plan: Plan
    ) -> None:
        self.learner, self.config, self.run_folder = learner, config, run
        self.source, self.world, self.plan = source, world, plan
        peak = effective_lr(config.optim, plan.batch)
        self.schedule = Schedule(config.optim, peak, plan.epoch, plan.total)
        self.waits = LoaderWait(world.device)
        self.watch = Watch(world, stop=config.trainer.exit_on_nan_losses)
        self.step = 0
        self.seconds = self.gpu_seconds = 0.0
        self._gpus = world.size if world.device.type == "cuda" else 0
        # Whether the validation after this step was broken off.
        self.owes_validation = False
        self.metrics: dict[str, float] = {}
        self.spool: Spool | None = None  # of the main process
        if world.main:
            self.spool = Spool(run.path, run.record.started, config.checkpoint)

    def run(self) -> dict[str, float]:
        """Train to the last step and return the last figures.

        Raises Interrupted after a SIGINT or SIGTERM (a checkpoint was saved), PercmaeError when
        the loss is not finite, StoreError when the store is away for too long (``spool.left``).
        """
        with ExitStack() as stack:
            self.world.first(lambda: self._open(stack))
            self._restore()
            signals = stack.enter_context(training_signals())
            stack.enter_context(Watchdog(self.world, self.config.trainer.hang_minutes, signals))
            teller = Teller(self.run_folder, self.plan, self.config, self.spool, self.step)
            stack.enter_context(teller)
            # Closed however training ends, so that no loader process outlives it.
            steps = stack.enter_context(closing(self._steps()))
            if self.step < self.plan.total or self.owes_validation:
                self._train(steps, teller, signals)
            self._finish(signals)
        if self.world.main:
            self.run_folder.save(
                status="complete", finished=time.time(), metrics=self.metrics, **self._progress()
            )
        self.world.barrier()
        return self.metrics

    def _train(self, steps: Iterator[list[Batch]], teller: Teller, signals: Signals) -> None:
        window = Window()
        self.learner.train(True)
        self._hold_gradients()
        saved, saved_step = time.monotonic(), self.step
        began = time.monotonic() - self.seconds
        awaited = self.waits.over(steps)
        try:
            if self.owes_validation:
                self._save(teller, self._validate(teller))
            while self.step < self.plan.total:
                at(IMAGES, self.step)
                micros = signals.unless_told(lambda: next(awaited))
                at(OTHERS)
                # The one thing that is agreed on at each step: whether any process is told to stop.
                if self.world.any(micros is None):
                    raise BrokenOff
                assert micros is not None
                at(COMPUTING)
                seed_step(self.config.seed, self.step, self.world.rank)
                self._optimise(micros, window)
                self.step += 1
                teller.stepped(self.step)
                self._passed(time.monotonic() - began)
                last = self.step == self.plan.total
                log, val = (self._due(every, last) for every in (self.plan.log, self.plan.val))
                save = self._due(self.plan.save, last) or self._overdue(saved)
                if log or val or save:
                    self._look()
                if log:
                    self._log(window, teller)
                    window = Window()
                else:
                    teller.unlogged()
                val_loss = self._validate(teller) if val else None
                if save:
                    self._save(teller, val_loss)
                    saved, saved_step = time.monotonic(), self.step
        except BrokenOff:
            if self.step > saved_step:
                self._look()
                self._save(teller, None)
            self._settle()
            raise stopped(signals, self._where_it_stands()) from None

    def _where_it_stands(self) -> str:
        if not self.step:
            return "stopped before the first step, with nothing to save"
        return (
            f"stopped at step {self.step} of {self.plan.total}, checkpoint saved; the same command "
            "with --resume auto goes on from there"
        )

    def _overdue(self, saved: float) -> bool:
        """Whether to save because of the time since the last checkpoint."""
        minutes = self.config.checkpoint.every_minutes
        return minutes is not None and self.world.any(time.monotonic() - saved > 60 * minutes)

    def _due(self, every: int, last: bool) -> bool:
        return last or self.step % every == 0

    def _steps(self) -> Generator[list[Batch], None, None]:
        """The micro-batches of each remaining step."""
        plan = self.plan
        epoch, step = divmod(self.step, plan.epoch)
        whole = plan.epoch * plan.accumulate
        micros: list[Batch] = []
        with closing(self.source.batches(epoch, step * plan.accumulate, epochs=None)) as batches:
            for _, index, batch in batches:
                if index >= whole:  # what an epoch has beyond its whole steps
                    continue
                micros.append(batch)
                if len(micros) == plan.accumulate:
                    yield micros
                    micros = []

    def _optimise(self, micros: list[Batch], window: Window) -> None:
        """One step.

        The weights are changed only by losses and gradients that are finite in every process.
        """
        terms, ids = self._backward(micros)
        norms = {f"grad_norm/{name}": self._clip(name) for name in self.learner.optimizers}
        losses = {name: value for name, value in terms.items() if name.startswith("loss")}
        checked = {**losses, **norms}
        everything = {**checked, **{k: v for k, v in terms.items() if k not in losses}}
        names = tuple(everything)
        values = torch.stack([value.detach().float() for value in everything.values()])
        skip = self.watch.skips(self.step + 1, names[: len(checked)], values[: len(checked)], ids)
        for optimizer in self.learner.optimizers.values():
            self.schedule.apply(optimizer, self.step)
            step_unless(optimizer, skip)
        window.add(names, values, skip)
        self._zero()

    def _clip(self, network: str) -> Tensor:
        """The norm of a network's gradients, clipped where the config says so."""
        parameters = [p for p in self.learner.networks[network].parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if self.config.optim.clip_grad is not None:
            nn.utils.clip_grads_with_norm_(parameters, self.config.optim.clip_grad, norm)
        return norm

    def _backward(self, micros: list[Batch]) -> tuple[Terms, Tensor]:
        """Gradients of one step; the mean of each term over its micro-batches, and all samples."""
        weight = 1.0 / len(micros)
        totals: Terms = {}
        ids: list[Tensor] = []
        epoch = self.step // self.plan.epoch
        number = self.step + 1
        logged = number == self.plan.total or number % self.plan.log == 0
        for place, batch in enumerate(micros):
            last = place == len(micros) - 1
            index = self.step * len(micros) + place
            micro = Micro(index, self.step, epoch, weight, place == 0, last, logged)
            with ExitStack() as stack:
                if not last:
                    for call in self.learner.calls.values():
                        if isinstance(call, nn.parallel.DistributedDataParallel):
                            stack.enter_context(call.no_sync())
                ids.append(batch.ids)
                terms = self.learner.backward(batch, micro)
            for name, value in terms.items():
                totals[name] = totals.get(name, 0.0) + value.float() * weight
        return totals, torch.cat(ids)

    @property
    def _keeps_gradients(self) -> bool:
        """Whether gradients are added to tensors of ours.

        What a CUDA graph gives lies in its own memory, which its next replay writes over.
        """
        trainer = self.config.trainer
        return trainer.compile and trainer.compile_mode != "default"

    def _hold_gradients(self) -> None:
        if self._keeps_gradients:
            for optimizer in self.learner.optimizers.values():
                for group in optimizer.param_groups:
                    for parameter in group["params"]:
                        parameter.grad = torch.zeros_like(parameter)

    def _zero(self) -> None:
        for optimizer in self.learner.optimizers.values():
            optimizer.zero_grad(set_to_none=not self._keeps_gradients)

    def _look(self) -> None:
        """See whether a step was not finite: say that it was skipped, or give up."""
        found = self.watch.found()
        if found is None:
            return
        if self.config.trainer.exit_on_nan_losses:
            self._give_up(found)
        more = f" (and {found.steps - 1} more up to step {self.step})" if found.steps > 1 else ""
        warn(f"step {found.step}: not finite: {listed(found.names)}; step skipped{more}")

    def _give_up(self, found: NotFinite) -> NoReturn:
        """Save what is needed to look into it, and raise PercmaeError."""
        gathered = self.world.gather((found.names, found.ids))
        names = list(dict.fromkeys(name for terms, _ in gathered for name in terms))
        where = self.run_folder.path / CHECKPOINTS / f"diagnostic-step-{found.step:08d}.pt"
        if self.world.main:
            diagnosis = {
                "step": found.step,
                "not_finite": names,
                "samples": [ids for terms, ids in gathered if terms],
            }
            state = {**self._state(), "step": found.step - 1, "diagnosis": diagnosis}
            write_state(where, state)
        self.world.barrier()
        raise PercmaeError(
            f"run {self.run_folder.uri}: not finite at step {found.step}: {listed(names)}; "
            f"weights as they were before it, and the samples: {where}. Lower optim.lr, set "
            "optim.clip_grad, or skip such steps with trainer.exit_on_nan_losses=false"
        )

    def _log(self, window: Window, teller: Teller) -> None:
        values = window.means(self.world)
        elapsed = time.perf_counter() - window.started
        values["lr"] = self.schedule(self.step - 1)
        values["images_per_second"] = round(window.steps * self.plan.batch / elapsed, 2)
        # Of the process that waits longest, for the others wait for it.
        share = self.world.largest(torch.tensor(self.waits.share()))
        values["loader_wait"] = round(float(share), 4)
        remarks = (
            self.learner.remark(values, window.steps, self.plan.epoch),
            self.waits.remark(self.config.data),
        )
        for remark in remarks:
            if remark is not None and self.world.main:
                warn(f"step {self.step}: {remark}")
        self.metrics.update({f"train/{k}": v for k, v in values.items()})
        teller.log(values)

    def _validate(self, teller: Teller) -> float | None:
        """The loss on the validation slice; None where it is not finite.

        Raises BrokenOff in all processes where one is told to stop; who goes on owes it.
        """
        self.owes_validation = True
        self.learner.train(False)
        try:
            values = self.learner.validate()
            self._look_at(values)
            self.metrics.update({f"val/{k}": v for k, v in values.items()})
            teller.validated(values)
            if self.world.main and self._due(self.plan.picture, self.step == self.plan.total):
                teller.pictures(self.learner.pictures())
        finally:
            self.learner.train(True)
        self.owes_validation = False
        return values["loss"] if math.isfinite(values["loss"]) else None

    def _look_at(self, values: dict[str, float]) -> None:
        """Say which figures of a validation are not finite, or raise PercmaeError.

        A step's loss and gradients can be finite and what they make of the weights not.
        """
        lost = [name for name, value in values.items() if not math.isfinite(value)]
        if not lost:
            return
        what = f"not finite in the validation after step {self.step}: {listed(lost)}"
        if self.config.trainer.exit_on_nan_losses:
            raise PercmaeError(
                f"run {self.run_folder.uri}: {what}; lower optim.lr or optim.weight_decay, or set "
                "optim.clip_grad"
            )
        note(what)

    def _passed(self, seconds: float) -> None:
        """Since training began, pauses left out; GPUs may be others after a pause."""
        self.gpu_seconds += (seconds - self.seconds) * self._gpus
        self.seconds = seconds

    def _progress(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "total_steps": self.plan.total,
            "epochs": self.step / self.plan.epoch,
            "seconds": round(self.seconds, 3),
            "gpu_seconds": round(self.gpu_seconds, 3),
        }

    def _open(self, stack: ExitStack) -> None:
        if self.spool is not None:
            stack.enter_context(self.spool)

    def _save(self, teller: Teller, val_loss: float | None) -> None:
        """Save a checkpoint: returns when the state has been copied."""
        if self.spool is not None:
            at(SAVING)
            # Figures first: what a resumed run must cut is beyond the checkpoint, never before it.
            teller.flush()
            milestone = self.plan.milestone is not None and self.step % self.plan.milestone == 0
            epoch = self.step // self.plan.epoch
            record = self.run_folder.changed(metrics=self.metrics, **self._progress())
            self.spool.checkpoint(self._state(), record, self.step, epoch, val_loss, milestone)
        at(COMPUTING)

    def _settle(self) -> None:
        """Before the run is left: wait until what was saved is in the store.

        After ``checkpoint.grace`` seconds it stays on the disk of process 0.
        """
        if self.spool is not None:
            at(SAVING)
            self.spool.drain(self.config.checkpoint.grace)
        at(OTHERS)
        self.world.barrier()

    def _finish(self, signals: Signals) -> None:
        """Wait until everything is in the store; once told to stop, ``checkpoint.grace`` longer."""
        if self.spool is None:
            return
        while not self.spool.written(1.0):
            at(SAVING)  # it moves, for requests have limits of their own
            if signals.stopping:
                if self.spool.drain(self.config.checkpoint.grace):
                    return
                raise stopped(signals, "stopped after the last step, before all of it was sent")

    def _state(self) -> State:
        progress = {
            "step": self.step,
            "seconds": self.seconds,
            "gpu_seconds": self.gpu_seconds,
            "metrics": dict(self.metrics),
            "owes_validation": self.owes_validation,
        }
        return state_of(self.run_folder, self.learner, progress)

    def _restore(self) -> None:
        run = self.run_folder
        state = latest_state(Checkpoints(run.path / CHECKPOINTS, self.config.checkpoint), run)
        if state is None:
            return
        self.step, self.seconds = state["step"], state["seconds"]
        # Of before it was counted: as if it had been on as many as now.
        self.gpu_seconds = state.get("gpu_seconds", self.seconds * self._gpus)
        self.metrics = dict(state["metrics"])
        self.owes_validation = state.get("owes_validation", False)
        put_back(self.learner, state)
        if self.world.main:
            note(f"{run.uri}: going on from step {self.step} of {self.plan.total}")
