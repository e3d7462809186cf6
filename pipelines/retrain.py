"""The retrain pipeline: what is new is learned, and the better of two stays in use.

check → look ─ if there is anything new: pretrain → finetune → evaluate → judge
"""

from typing import Any

from kfp import dsl

from components import IMAGE
from components.check.component import check
from components.evaluate.component import evaluate
from components.finetune.component import finetune
from components.judge.component import judge
from components.look.component import look
from components.pretrain.component import pretrain
from percmae.jobs.names import BUCKET
from pipelines import RETRAIN
from pipelines.making import Steps, launching_with
from pipelines.pod import PodSettings, give_webhook


def retrain_pipeline(image: str = IMAGE, pod: PodSettings | None = None) -> Any:
    """The pipeline, all steps of which run in ``image``; call it with arguments to run it.

    pod: what the steps' pods need of a cluster; None for a run on this machine.
    """
    made = Steps(image, pod)
    limits, step, in_image = made.limits, made.step, made.in_image

    @dsl.pipeline(
        name=RETRAIN,
        display_name="Perceptual MAE: retrain",
        description="Learn what is new in a source of images; keep the better model in use.",
        pipeline_config=made.config,
    )
    def retrain(
        images: str,
        model: str,
        labels: str = "auto",
        dataset: str = "retrain",
        store: str = BUCKET,
        start: str = "champion",
        rule: list[str] = [],  # noqa: B006 (KFP copies it)
        variant: str = "mae",
        recipe: str = "mae",
        size: str = "",
        tag: str = "retrain",
        seed: int = 0,
        overrides: list[str] = [],  # noqa: B006
        launcher: str = "pytorchjob",
        train_image: str = limits.train_image,
        nodes: int = 1,
        gpus: int = 1,
        job: list[str] = [],  # noqa: B006
        schedule: str = "",
    ) -> None:
        """Where a source has new images: train, evaluate, and promote what is better.

        Args:
            images: Data: your own, a folder, table, archives or shards.
            model: Model: name under which versions and aliases are kept in the store.
            labels: Data: auto (folders one deep are classes) or folders.
            dataset: Data: name under which the ingested dataset is kept in the store.
            store: Data: where datasets, runs and models are kept, such as s3://bucket.
            start: Training: where pretraining begins; champion (its weights), or afresh.
            rule: Model: when a challenger is promoted, such as ["min_gain=0.01", "level=0.01"].
            variant: Training: what is learned; mae (masked pixels), ssim, msg_gan and so on.
            recipe: Training: optimiser and schedule; mae (MAE paper), reference (authors'), demo.
            size: Training: encoder; tiny, small, base, large or huge. Empty keeps the recipe's.
            tag: Training: what the names of all runs begin with.
            seed: Training: a whole number, of the weights and all that is drawn.
            overrides: Training: settings; "optim.lr=1e-3" in all stages, "finetune.optim.lr=1".
            launcher: Jobs: what trains; pytorchjob, trainjob, job, or local for the step itself.
            train_image: Jobs: their image, best pinned by digest. Empty for percmae's own.
            nodes: Jobs: pods that train together, one a machine.
            gpus: Jobs: GPUs of each pod; 0 trains on the CPU.
            job: Jobs: further settings; "memory=64Gi" in all stages, "pretrain.memory=64Gi".
            schedule: Jobs: filled in by a schedule, so that a run can tell of missed starts.
        """
        where, launch = launching_with(launcher, train_image, nodes, gpus, job)
        what = {"variant": variant, "recipe": recipe, "size": size, "store": store}
        with made.whatever_happens(launcher, job):
            # Its pod needs what all the others do: where it cannot start, the run ends with it.
            # (The next step looks at the seed: of a parameter in a list KFP makes a text.)
            checked = check(seeds=[0], tag=tag, overrides=overrides, **what, **where)
            in_image(checked, "Check the parameters")
            seen = look(
                images=images,
                labels=labels,
                name=dataset,
                model=model,
                start=start,
                rule=rule,
                tag=tag,
                seed=seed,
                overrides=overrides,
                schedule=schedule,
                **what,
                **launch,
            )
            in_image(seen, "Look for new images").after(checked)
            shards, settings = seen.outputs["dataset"], seen.outputs["overrides"]
            # kfp.local 2.17 finds what a condition is of by this name alone.
            new = seen.outputs["Output"]
            with dsl.If(new == True, name="If there is anything new"):  # noqa: E712 (an expression)
                pretrained = step(pretrain)(
                    dataset=shards,
                    tag=seen.outputs["tag"],
                    seed=seed,
                    overrides=settings,
                    **what,
                    **launch,
                )
                in_image(pretrained, "Pretrain")
                tuned = step(finetune)(
                    pretrained=pretrained.outputs["model"],
                    dataset=shards,
                    overrides=settings,
                    **launch,
                )
                in_image(tuned, "Fine-tune")
                classifier = tuned.outputs["model"]
                judged = step(evaluate)(model=classifier, dataset=shards, **launch)
                in_image(judged, "Evaluate")
                decided = step(judge)(
                    model=classifier, store=store, name=model, rule=rule, **launch
                )
                give_webhook(in_image(decided, "Champion and challenger").after(judged), pod)

    return retrain
