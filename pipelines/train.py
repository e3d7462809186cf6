"""The training pipeline: how the components hang together.

check → ingest → for each seed: pretrain ┬→ probe ────────────────┬→ evaluate each → report
                                         ├→ probe, untrained ─────┤
                                         ├→ probe, pixels ────────┤
                   for each share of the ┼→ finetune ─────────────┤
                   labels                └→ finetune, untrained ──┘
"""

from typing import Any

from kfp import dsl

from components import IMAGE
from components.check.component import check
from components.evaluate.component import evaluate
from components.finetune.component import finetune
from components.ingest.component import ingest
from components.pretrain.component import pretrain
from components.probe.component import probe
from components.reconstruct.component import reconstruct
from components.report.component import report
from percmae.data.archives import ARCHIVES
from percmae.jobs.names import BUCKET
from pipelines import NAME
from pipelines.making import Steps, launching_with
from pipelines.pod import PodSettings

PROBES = {
    "pretrained": "Probe",
    "untrained": "Probe, untrained encoder",
    "pixels": "Probe, pixels",
}
"""Title of the probe of each features."""


def train_pipeline(image: str = IMAGE, pod: PodSettings | None = None) -> Any:
    """The pipeline, all steps of which run in ``image``; call it with arguments to run it.

    pod: what the steps' pods need of a cluster; None for a run on this machine.
    """
    made = Steps(image, pod)
    limits, step, in_image = made.limits, made.step, made.in_image

    @dsl.pipeline(
        name=NAME,
        display_name="Perceptual MAE: train",
        description="Pretrain, probe, fine-tune and evaluate on images or ImageNet, over seeds.",
        pipeline_config=made.config,
    )
    def train(
        images: str = "",
        labels: str = "auto",
        archive_train: str = f"{BUCKET}/archives/{ARCHIVES['train']}",
        archive_val: str = f"{BUCKET}/archives/{ARCHIVES['val']}",
        archive_devkit: str = f"{BUCKET}/archives/{ARCHIVES['devkit']}",
        dataset: str = "imagenet",
        store: str = BUCKET,
        variant: str = "mae",
        recipe: str = "mae",
        size: str = "",
        tag: str = "",
        seeds: list[int] = [0],  # noqa: B006 (KFP copies it)
        overrides: list[str] = [],  # noqa: B006
        fine_tune: bool = True,
        label_fractions: list[float] = [1.0],  # noqa: B006
        launcher: str = "pytorchjob",
        train_image: str = limits.train_image,
        nodes: int = 1,
        gpus: int = 1,
        job: list[str] = [],  # noqa: B006
    ) -> None:
        """Pretrain a masked autoencoder, judge what it learned, and report.

        Args:
            images: Data: your own, a folder, table, archives or shards. Empty takes the archives.
            labels: Data: of images; auto (folders one deep are classes), folders, or none.
            archive_train: Data: without images, ILSVRC's tar of class tars, s3:// or a path.
            archive_val: Data: without images, its validation images' tar, which is the test set.
            archive_devkit: Data: without images, its development kit's tar.gz.
            dataset: Data: name under which the ingested dataset is kept in the store.
            store: Data: where datasets, runs and reports are kept, such as s3://bucket.
            variant: Training: what is learned; mae (masked pixels), ssim, msg_gan and so on.
            recipe: Training: optimiser and schedule; mae (MAE paper), reference (authors'), demo.
            size: Training: encoder; tiny, small, base, large or huge. Empty keeps the recipe's.
            tag: Training: name of the experiment; runs are <tag>_<variant>.
            seeds: Training: whole numbers; all is repeated for each, such as [0, 1, 2].
            overrides: Training: settings; "optim.lr=1e-3" in all stages, "probe.optim.lr=1" in one.
            fine_tune: Training: whether to fine-tune the whole encoder as well as to probe it.
            label_fractions: Training: shares of the labels to fine-tune on, such as [0.01, 0.1, 1].
            launcher: Jobs: what trains; pytorchjob, trainjob, job, or local for the step itself.
            train_image: Jobs: their image, best pinned by digest. Empty for percmae's own.
            nodes: Jobs: pods that train together, one a machine.
            gpus: Jobs: GPUs of each pod; 0 trains on the CPU.
            job: Jobs: further settings; "memory=64Gi" in all stages, "probe.memory=8Gi" in one.
        """
        where, launch = launching_with(launcher, train_image, nodes, gpus, job)
        what = {
            "variant": variant,
            "recipe": recipe,
            "size": size,
            "tag": tag,
            "overrides": overrides,
            "store": store,
        }
        with made.whatever_happens(launcher, job):
            # Its pod needs what all the others do: where it cannot start, the run ends with it.
            checked = check(seeds=seeds, label_fractions=label_fractions, **what, **where)
            in_image(checked, "Check the parameters")
            ingested = ingest(
                images=images,
                labels=labels,
                archive_train=archive_train,
                archive_val=archive_val,
                archive_devkit=archive_devkit,
                store=store,
                name=dataset,
            )
            in_image(ingested, "Ingest").after(checked)
            shards = ingested.outputs["dataset"]

            def evaluated(model: Any, title: str) -> None:
                in_image(step(evaluate)(model=model, dataset=shards, **launch), f"Evaluate {title}")

            loop = dsl.ParallelFor(
                seeds, name="For each seed", parallelism=limits.parallelism or None
            )
            with loop as seed:
                pretrained = step(pretrain)(dataset=shards, seed=seed, **what, **launch)
                in_image(pretrained, "Pretrain")
                encoder = pretrained.outputs["model"]
                common = {
                    "pretrained": encoder,
                    "dataset": shards,
                    "overrides": overrides,
                    **launch,
                }
                pictured = step(reconstruct)(model=encoder, dataset=shards, **launch)
                in_image(pictured, "Evaluate reconstructions")
                probed, control, pixels = (
                    in_image(step(probe)(**common, features=features), title).outputs["model"]
                    for features, title in PROBES.items()
                )
                for model, title in ((probed, "probe"), (control, "untrained probe")):
                    evaluated(model, title)
                evaluated(pixels, "probe of pixels")
                # The seed does not reach the inner loop: kfp.local 2.17 would put the inner item
                # in the place of any outer one.
                with (
                    dsl.If(fine_tune == True, name="If fine-tuning"),  # noqa: E712 (an expression)
                    dsl.ParallelFor(label_fractions, name="For each share of labels") as fraction,
                ):
                    for untrained, title in ((False, "fine-tuned"), (True, "from scratch")):
                        tuned = step(finetune)(
                            **common, label_fraction=fraction, untrained=untrained
                        )
                        in_image(tuned, f"Train, {title}")
                        evaluated(tuned.outputs["model"], title)
            # Collecting from the loop makes the report wait for all of it, evaluations included.
            final = report(
                pretrained=dsl.Collected(encoder),
                probes=dsl.Collected(probed),
                controls=dsl.Collected(control),
                pixels=dsl.Collected(pixels),
                fine_tuned=fine_tune,
                label_fractions=label_fractions,
                store=store,
            )
            in_image(final, "Report")

    return train
