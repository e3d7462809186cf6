"""What can be configured: one dataclass a section, a docstring under each field.

The docstrings are the documentation: ``percmae config show --docs`` prints them. Fields marked
``OPERATIONAL`` change how a run is carried out but not what it computes; they stay out of the
config's digest, so changing one does not make a finished run stale. So does, at its default, one
marked ``LATER``, which came after runs had been made without it.

Fields marked ``PRETRAIN``, ``FINETUNE`` or ``DOWNSTREAM`` are settings of those stages alone: in
another they have no effect, or it takes them over from the run it builds upon (its network's
sizes). A marked section marks its fields; all others are settings of every stage.
``percmae.config.load.stages_of`` reads this.

More than 400 lines: every setting with its documentation, in one place.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt
from pydantic.config import JsonDict
from pydantic.dataclasses import dataclass

from percmae.config.naming import Features, Kind
from percmae.config.variants import (
    SETTINGS,
    AdversarialSettings,
    DiscriminatorSettings,
    PerceptualSettings,
    StyleGAN2ADASettings,
)

OPERATIONAL: JsonDict = {"digest": False}
LATER: JsonDict = {"digest": "unless default"}
PRETRAIN: JsonDict = {"stages": ["pretrain"]}
FINETUNE: JsonDict = {"stages": ["finetune"]}
DOWNSTREAM: JsonDict = {"stages": ["finetune", "probe"]}
SHOWN: JsonDict = {**OPERATIONAL, **PRETRAIN}

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Variant = Literal["mae", "ssim", "perceptual", "ls_gan", "msg_gan", "stylegan2_ada"]
Stage = Literal["pretrain", "finetune", "probe"]
Interpolation = Literal["bilinear", "bicubic", "lanczos"]
Decode = Literal["exact", "fast", "fastest"]
ImageFormat = Literal["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM"]
"""What may be opened, by Pillow's names: decoders of pictures, none of which starts a program."""
FORMATS: tuple[ImageFormat, ...] = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""What is opened where nothing else is asked for."""


@dataclass(config=SETTINGS)
class Augment:
    """How an image becomes a network input (torchvision and timm transforms)."""

    crop_scale: list[float] = Field(default_factory=lambda: [0.2, 1.0], min_length=2, max_length=2)
    """Area range of RandomResizedCrop as a share of the image; [1, 1] with crop_aspect [1, 1]
    turns random cropping into a plain resize."""
    crop_aspect: list[float] = Field(
        default_factory=lambda: [0.75, 4 / 3], min_length=2, max_length=2
    )
    """Aspect ratio range (width / height) of RandomResizedCrop."""
    interpolation: Interpolation = "bicubic"
    """Filter used whenever an image is resized."""
    flip: Fraction = 0.5
    """Probability of a horizontal flip."""
    color_jitter: Annotated[NonNegativeFloat, Field(json_schema_extra=FINETUNE)] = 0.0
    """Strength of brightness, contrast and saturation jitter (fine-tuning; unused with
    rand_augment, as in timm)."""
    rand_augment: str | None = Field(default=None, json_schema_extra=FINETUNE)
    """timm's RandAugment policy (fine-tuning), e.g. rand-m9-mstd0.5-inc1, or one of its others;
    null for none."""
    erasing: Annotated[Fraction, Field(json_schema_extra=FINETUNE)] = 0.0
    """Probability of random erasing (fine-tuning)."""
    eval_crop: Annotated[float, Field(ge=0.1, le=1.0)] = 0.875
    """Evaluation: resize the shorter side to image_size / eval_crop, then crop the centre."""
    mean: list[float] | None = Field(
        default_factory=lambda: [0.485, 0.456, 0.406], min_length=3, max_length=3
    )
    """Mean of each channel in [0, 1], subtracted from the input (ImageNet's by default); null takes
    that of the dataset's training images, which the run's record then has."""
    std: list[float] | None = Field(
        default_factory=lambda: [0.229, 0.224, 0.225], min_length=3, max_length=3
    )
    """Standard deviation of each channel in [0, 1], which the input is divided by; null as for
    mean."""

    @property
    def normalisation(self) -> tuple[list[float], list[float]]:
        """mean and std; they must be known (see :func:`percmae.runs.record.identity_of`)."""
        mean, std = self.mean, self.std
        assert mean is not None, "the dataset's, and there is none here"
        assert std is not None, "the dataset's, and there is none here"
        return mean, std


@dataclass(config=SETTINGS)
class Data:
    """Images and how they are read."""

    image_size: Annotated[int, Field(ge=8)] = 224
    """Side of the square network input in pixels; for another than that of pretraining, a probe or
    fine-tuning interpolates the position embeddings."""
    batch_size: PositiveInt = 64
    """Images a process (a GPU) takes in one forward pass."""
    label_fraction: Annotated[
        float, Field(gt=0.0, le=1.0, json_schema_extra={**DOWNSTREAM, **LATER})
    ] = 1.0
    """Share of the training images whose labels are used, the same of each class and at least one;
    those of a smaller share are among those of a larger one (docs/method.md, "Few labels")."""
    decode: Annotated[Decode, Field(json_schema_extra=LATER)] = "fast"
    """How pixels are made: by Pillow, or faster (docs/performance.md, "Loading images")."""
    workers: Annotated[NonNegativeInt, Field(json_schema_extra=OPERATIONAL)] = 8
    """Loader processes for each training process; 0 decodes in the training process itself."""
    pin_memory: Annotated[bool, Field(json_schema_extra=OPERATIONAL)] = True
    """Copy batches into page-locked memory (GPU runs only; ignored on CPU)."""
    timeout: Annotated[float, Field(gt=0, json_schema_extra=OPERATIONAL)] = 600.0
    """Seconds to wait for a batch; then the run ends, so that a job's pods begin again."""
    cache: Annotated[str | None, Field(json_schema_extra=OPERATIONAL)] = None
    """Folder of this machine that keeps what is read of a store, for later epochs; null: none."""
    cache_bytes: Annotated[PositiveInt, Field(json_schema_extra=OPERATIONAL)] = 160 << 30
    """Limit of data.cache (ImageNet takes 150 GB); what was not used for longest goes."""
    formats: Annotated[list[ImageFormat], Field(min_length=1, json_schema_extra=OPERATIONAL)] = (
        Field(default_factory=lambda: list(FORMATS))
    )
    """Image formats that are opened at all; an image of another is an error that names it."""
    augment: Augment = Field(default_factory=Augment)
    """Transforms and their parameters."""


@dataclass(config=SETTINGS)
class Encoder:
    """The Vision Transformer that is kept after pretraining (ViT-B by default)."""

    width: PositiveInt = 768
    """Embedding dimension; a multiple of heads and of 4."""
    depth: PositiveInt = 12
    """Transformer blocks."""
    heads: PositiveInt = 12
    """Attention heads."""
    mlp_ratio: Annotated[float, Field(gt=0)] = 4.0
    """Hidden width of a block's MLP over its width."""


@dataclass(config=SETTINGS)
class Decoder:
    """The light transformer that reconstructs pixels; thrown away after pretraining."""

    width: PositiveInt = 512
    """Embedding dimension; a multiple of heads and of 4."""
    depth: PositiveInt = 8
    """Transformer blocks."""
    heads: PositiveInt = 16
    """Attention heads."""
    mlp_ratio: Annotated[float, Field(gt=0)] = 4.0
    """Hidden width of a block's MLP over its width."""


@dataclass(config=SETTINGS)
class Model:
    """Masked autoencoder sizes."""

    patch_size: PositiveInt = 16
    """Side of a patch in pixels; must divide data.image_size."""
    encoder: Encoder = Field(default_factory=Encoder)
    """Encoder sizes."""
    decoder: Decoder = Field(default_factory=Decoder)
    """Decoder sizes (pretraining)."""
    mask_ratio: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.75
    """Share of patches removed from each image."""
    norm_pix_loss: bool = False
    """Normalise each target patch by its own mean and variance (variant mae only)."""
    init_from: str | None = None
    """Start from these weights: a run, or a file of weights of this project, the official MAE code,
    timm or Hugging Face (path or s3:// URI). Every key must find its place; only a file with
    nothing but the encoder leaves the decoder fresh."""


@dataclass(config=SETTINGS)
class Loss:
    """Weights of the loss terms (docs/method.md, "Whole-image losses"); a variant uses those
    it defines."""

    l1: NonNegativeFloat = 1.0
    """Whole-image L1 reconstruction."""
    perceptual: NonNegativeFloat = 0.05
    """Feature reconstruction."""
    style: NonNegativeFloat = 40.0
    """Gram matrices of the features."""
    gan: NonNegativeFloat = 0.7
    """Adversarial term of the generator."""
    ssim: Fraction = 0.85
    """Share of SSIM in each level of the ssim pyramid; L1 has the rest."""
    ssim_levels: PositiveInt = 4
    """Levels of the ssim pyramid; each halves the image."""


@dataclass(config=SETTINGS)
class Optim:
    """Optimiser and learning-rate schedule (docs/method.md, "Recipes")."""

    name: Literal["adam", "adamw", "sgd", "lars"] = "adamw"
    """Optimiser (lars: layer-wise adaptive rates, for probes with very large batches)."""
    lr: Annotated[float, Field(gt=0)] = 1.5e-4
    """Learning rate; for a batch of scale_batch images when that is set."""
    scale_batch: PositiveInt | None = 256
    """Linear scaling rule: the rate used is lr · effective batch / scale_batch; null uses lr
    as it is."""
    total_batch: PositiveInt | None = None
    """Effective batch over all processes; gradient accumulation is derived from it. Null: it is
    batch_size · processes · accumulate."""
    accumulate: PositiveInt = 1
    """Forward passes for each optimiser step (when total_batch is null)."""
    betas: list[float] = Field(default_factory=lambda: [0.9, 0.95], min_length=2, max_length=2)
    """Adam's decay rates."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Adam's epsilon."""
    momentum: Fraction = 0.9
    """Momentum of sgd and lars."""
    nesterov: bool = False
    """Nesterov momentum (sgd)."""
    weight_decay: NonNegativeFloat = 0.05
    """Decoupled weight decay (coupled for adam, sgd and lars); not on biases, norms, tokens."""
    layer_decay: Annotated[float, Field(gt=0.0, le=1.0, json_schema_extra=FINETUNE)] = 1.0
    """Learning-rate factor from each encoder layer to the one below (fine-tuning)."""
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    """Course of the rate after warm-up."""
    warmup_epochs: NonNegativeFloat = 40
    """Epochs of linear warm-up from 0."""
    min_lr: NonNegativeFloat = 0.0
    """Where the cosine ends, at most the rate it starts from (not scaled by the batch)."""
    step_epochs: PositiveInt = 30
    """Epochs between the steps of schedule step."""
    step_factor: Annotated[float, Field(gt=0.0, le=1.0)] = 0.9
    """Factor at each step of schedule step."""
    epochs: PositiveInt = 800
    """Passes over the training set, or over that share of it whose labels are used."""
    max_steps: PositiveInt | None = None
    """Stop after this many optimiser steps, if that comes first."""
    clip_grad: Annotated[float, Field(gt=0)] | None = None
    """Largest gradient norm, over all parameters of one optimiser; null for no clipping."""


@dataclass(config=SETTINGS)
class ClassifierSettings:
    """Fine-tuning and linear probing."""

    classes: Annotated[int, Field(ge=2)] | None = None
    """Number of classes; null takes the dataset's. A number that differs from it is an error."""
    pool: Literal["avg", "token"] = "token"
    """Features the head sees: the mean of the patch tokens, or the class token."""
    drop_path: Annotated[Fraction, Field(json_schema_extra=FINETUNE)] = 0.0
    """Stochastic depth, linearly increasing to this rate in the last block."""
    dropout: Fraction = 0.0
    """Dropout before the head."""
    label_smoothing: Fraction = 0.0
    """Label smoothing."""
    mixup: Annotated[NonNegativeFloat, Field(json_schema_extra=FINETUNE)] = 0.0
    """Mixup alpha; 0 for none."""
    cutmix: Annotated[NonNegativeFloat, Field(json_schema_extra=FINETUNE)] = 0.0
    """CutMix alpha; 0 for none."""
    batch_norm: bool = False
    """Affine-free BatchNorm in front of the head (the MAE paper's linear probe)."""


@dataclass(config=SETTINGS)
class Trainer:
    """Where and how a run is carried out."""

    devices: Annotated[int, Field(ge=-1, json_schema_extra=OPERATIONAL)] = -1
    """GPU to use: -1 for all of them (one process each), or the 0-based index of one."""
    num_nodes: Annotated[PositiveInt, Field(json_schema_extra=OPERATIONAL)] = 1
    """Machines expected in the job; a different number of joined machines is an error."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the forward pass: auto is bf16 autocast on a GPU, fp32 on a CPU."""
    strategy: Annotated[Literal["auto", "ddp"], Field(json_schema_extra=OPERATIONAL)] = "auto"
    """auto: DistributedDataParallel when there is more than one process; ddp: always."""
    compile: Annotated[bool, Field(json_schema_extra=OPERATIONAL)] = False
    """torch.compile the generator or classifier."""
    compile_mode: Annotated[
        Literal["default", "reduce-overhead"], Field(json_schema_extra=OPERATIONAL)
    ] = "default"
    """torch.compile's mode. reduce-overhead: on a GPU, passes are replayed as CUDA graphs, for
    hosts that cannot start kernels as quickly as the GPU carries them out."""
    threads: Annotated[PositiveInt | None, Field(json_schema_extra=OPERATIONAL)] = None
    """CPU threads of a process; null keeps torch's choice."""
    val_interval: Annotated[float, Field(gt=0, json_schema_extra=OPERATIONAL)] = 1.0
    """Epochs between validations; a fraction validates several times an epoch."""
    val_samples: Annotated[PositiveInt | None, Field(json_schema_extra=OPERATIONAL)] = None
    """Images of the validation slice to use; null for all."""
    log_interval: Annotated[PositiveInt, Field(json_schema_extra=OPERATIONAL)] = 50
    """Optimiser steps between logged training figures."""
    hang_minutes: Annotated[float, Field(gt=0, lt=30, json_schema_extra=OPERATIONAL)] = 15
    """Minutes without a move (waits for images or a store have other limits) after which a run says
    which process is behind, and ends to begin again (138); more than the longest step takes."""
    store_outage: Annotated[float, Field(ge=0, le=43_200)] | None = Field(
        default=None, json_schema_extra=OPERATIONAL
    )
    """Minutes for which a store that is away, full or refuses keys it took before is waited for.
    Training goes on meanwhile as long as images were read ahead and the local disk takes what is
    saved; then it ends with a code that has its pod made anew. null: what the environment's
    PERCMAE_STORE_OUTAGE_SECONDS says, which is of all verbs; 30 minutes without it."""
    exit_on_nan_losses: bool = True
    """Stop when a loss is not finite, naming the step and term; false skips the step."""


@dataclass(config=SETTINGS)
class Checkpoint:
    """What is kept in the store. Nothing here changes the result of a run."""

    every_steps: PositiveInt | None = Field(default=None, json_schema_extra=OPERATIONAL)
    """Optimiser steps between checkpoints; null saves at the end of each epoch."""
    every_minutes: Annotated[float, Field(gt=0)] | None = Field(
        default=None, json_schema_extra=OPERATIONAL
    )
    """Also save when this many minutes have passed since the last one."""
    keep_last: Annotated[PositiveInt, Field(json_schema_extra=OPERATIONAL)] = 2
    """Most recent checkpoints kept."""
    keep_best: Annotated[NonNegativeInt, Field(json_schema_extra=OPERATIONAL)] = 1
    """Checkpoints with the lowest validation loss kept."""
    milestone_epochs: PositiveInt | None = Field(default=None, json_schema_extra=OPERATIONAL)
    """Keep a checkpoint for good every so many epochs; null for none."""
    spool: Annotated[str | None, Field(json_schema_extra=OPERATIONAL)] = None
    """Folder of this machine where checkpoints and figures of a run in a store lie until they are
    there, up to three checkpoints at a time (job setting scratch); null: below TMPDIR. The same run
    finds there what an earlier process could not send, and sends it first."""
    grace: Annotated[float, Field(gt=0, json_schema_extra=OPERATIONAL)] = 60.0
    """Seconds that a run which is told to stop, or has failed, goes on sending; what is not in the
    store by then stays in checkpoint.spool. Below the job setting grace by what a step and writing
    a checkpoint to disk take."""


@dataclass(config=SETTINGS)
class Tracking:
    """What people and their systems see of a run while it is going on (docs/monitoring.md)."""

    images: Annotated[NonNegativeInt, Field(json_schema_extra=SHOWN)] = 8
    """Images reconstructed for mae_recon_out and TensorBoard; 0 for none."""
    images_every: Annotated[float, Field(gt=0, json_schema_extra=SHOWN)] = 1.0
    """Epochs between reconstructions."""
    knn_samples: Annotated[NonNegativeInt | None, Field(json_schema_extra=SHOWN)] = None
    """Labelled training images whose encoder features classify the validation slice by nearest
    neighbours at each validation; 0 for none, null for 1000 where there are labels."""
    knn_neighbours: Annotated[PositiveInt, Field(json_schema_extra=SHOWN)] = 20
    """Neighbours that vote."""
    rankme_samples: Annotated[NonNegativeInt, Field(json_schema_extra=SHOWN)] = 2048
    """Images of the validation slice whose encoder features' effective rank (RankMe) is measured at
    each validation, best several times the encoder's width; 0 for none."""
    gpu_price: Annotated[float, Field(ge=0, json_schema_extra=OPERATIONAL)] = 0.0
    """Price of an hour of one GPU, in any currency: reports tell what a training has cost; 0: they
    tell hours alone."""
    metrics_port: Annotated[int | None, Field(ge=0, le=65535, json_schema_extra=OPERATIONAL)] = None
    """Port at which a training serves figures to Prometheus, in the first process of each machine;
    0: none; null: what PERCMAE_METRICS_PORT says, as in a job (job setting metrics_port), else
    none."""
    mlflow: Annotated[str | None, Field(json_schema_extra=OPERATIONAL)] = None
    """Address of an MLflow server, http:// or https://, that is given what the run's folder has:
    settings, figures, evaluations, addresses of files, and versions of models made of it; null:
    none. Needs percmae[mlflow]; credentials are in MLflow's own variables."""
    mlflow_experiment: Annotated[
        str, Field(min_length=1, max_length=250, json_schema_extra=OPERATIONAL)
    ] = "percmae"
    """MLflow's experiment that runs are put into."""


@dataclass(config=SETTINGS)
class Config:
    """A whole run: what is trained, on what, how, and what is kept."""

    stage: Stage = "pretrain"
    """Which training this is."""
    variant: Variant = "mae"
    """Objective of the pretraining (docs/method.md, "Networks of the variants")."""
    recipe: str = "mae"
    """Name of the recipe the defaults came from (informative)."""
    tag: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$",
        max_length=63,
        json_schema_extra=OPERATIONAL,
    )
    """Experiment tag; the run is named <tag>_<variant>."""
    name: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$",
        max_length=127,
        json_schema_extra=OPERATIONAL,
    )
    """Experiment name; null derives it from tag and variant."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of the weights, the order of the data, its augmentation and the masks."""
    data: Data = Field(default_factory=Data)
    """Images and how they are read."""
    model: Model = Field(default_factory=Model, json_schema_extra=PRETRAIN)
    """Network sizes."""
    loss: Loss = Field(default_factory=Loss, json_schema_extra=PRETRAIN)
    """Weights of the loss terms."""
    perceptual: PerceptualSettings = Field(
        default_factory=PerceptualSettings, json_schema_extra=PRETRAIN
    )
    """Feature network of the perceptual and style terms."""
    adversarial: AdversarialSettings = Field(
        default_factory=AdversarialSettings, json_schema_extra=PRETRAIN
    )
    """Adversarial loss."""
    discriminator: DiscriminatorSettings = Field(
        default_factory=DiscriminatorSettings, json_schema_extra=PRETRAIN
    )
    """Discriminator sizes."""
    stylegan: StyleGAN2ADASettings = Field(
        default_factory=StyleGAN2ADASettings, json_schema_extra=PRETRAIN
    )
    """StyleGAN2-ADA's regularisers and augmentation."""
    optim: Optim = Field(default_factory=Optim)
    """Optimiser and schedule."""
    classifier: ClassifierSettings = Field(
        default_factory=ClassifierSettings, json_schema_extra=DOWNSTREAM
    )
    """Fine-tuning and linear probing."""
    trainer: Trainer = Field(default_factory=Trainer)
    """How the run is carried out."""
    checkpoint: Checkpoint = Field(default_factory=Checkpoint)
    """Checkpoints in the store."""
    tracking: Tracking = Field(default_factory=Tracking)
    """What is seen of the run."""

    @property
    def run_name(self) -> str:
        """``<tag>_<variant>``, with the kind behind it for what builds upon a pretraining."""
        return self.name_on("pretrained")

    def name_on(self, features: Features) -> str:
        """The run's name where it builds upon these features."""
        base = self.name or (f"{self.tag}_{self.variant}" if self.tag else self.variant)
        if self.stage == "pretrain":
            return base
        return f"{base}_{Kind(self.stage, self.data.label_fraction, features)}"
