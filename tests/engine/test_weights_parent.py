"""Probes and fine-tunings of a file of weights, and of images of another size."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
import yaml
from fixtures_data import TINY
from s3_server import S3
from torch import Tensor

from percmae import build_model
from percmae.cli.verbs import main
from percmae.config import Config, load_config
from percmae.data.shards import Dataset
from percmae.engine.evaluate import evaluate
from percmae.engine.finetune import finetune, probe
from percmae.engine.pretrain import pretrain
from percmae.engine.weights import network_weights
from percmae.errors import CheckpointError, ConfigError, UserError
from percmae.models.classifier import Classifier
from percmae.models.weights import on_grid
from percmae.runs.downstream import downstream_config
from percmae.runs.parent import WeightsFile
from percmae.runs.record import Run
from percmae.stages.parent import parent_of
from percmae.storage import StorePath
from percmae.vision import load_timm

from .conftest import changed
from .test_weight_files import hugging_face

State = dict[str, Tensor]
# The width of a size preset, so that its heads are known.
SIZES = [
    *("data.image_size=32", "model.patch_size=8", "model.encoder.width=192"),
    *("model.encoder.depth=2", "model.encoder.heads=3", "model.encoder.mlp_ratio=2.0"),
    *("model.decoder.width=16", "model.decoder.depth=1", "model.decoder.heads=2"),
]
FEW = [
    *("data.workers=0", "trainer.threads=1", "optim.max_steps=2", "data.batch_size=8"),
    *("optim.total_batch=null", "trainer.val_samples=8"),
]


@pytest.fixture(scope="module")
def weights() -> State:
    torch.manual_seed(4)
    return dict(build_model(load_config(overrides=SIZES)).state_dict())


def encoder_only(state: State) -> State:
    return {k: v for k, v in state.items() if not k.startswith(("decoder", "mask_token"))}


def encoder_of(run: str) -> State:
    weights = network_weights(run, "classifier")
    return {k.removeprefix("encoder."): v for k, v in weights.items() if k.startswith("encoder.")}


def holds(encoder: State, weights: State) -> bool:
    """Whether a probe's encoder is that of the weights; its final norm has another name."""
    named = {k.replace("fc_norm.", "norm."): v for k, v in encoder.items()}
    return named.keys() == encoder_only(weights).keys() and all(
        torch.equal(named[key], weights[key]) for key in named
    )


FORMS: dict[str, Callable[[State, Path], None]] = {
    "official.pth": lambda w, file: torch.save({"model": w, "epoch": 799}, file),
    "timm.bin": lambda w, file: torch.save(encoder_only(w), file),
    "ours.safetensors": lambda w, file: safetensors.torch.save_file(w, file),
    "hugging_face.safetensors": lambda w, file: safetensors.torch.save_file(
        hugging_face(w, "published"), file
    ),
    "trained.pth.tar": lambda w, file: torch.save(
        {"state_dict": {**encoder_only(w), "head.weight": w["norm.weight"]}}, file
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_probe_of_each_form(
    name: str,
    weights: State,
    tiny_dataset: Dataset,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file, to = tmp_path / name, tmp_path / "runs"
    FORMS[name](weights, file)
    command = ["probe", "--run", str(file), "--data", tiny_dataset.uri, "--to", str(to)]
    assert main([*command, "--recipe", "demo", *FEW]) == 0
    said, told = capsys.readouterr()
    run = Run.open(said.strip())
    assert run.uri == str(to / f"{name.partition('.')[0]}_probe")
    assert ("left out head.weight" in told) is (name == "trained.pth.tar")
    encoder, data = run.config.model.encoder, run.config.data
    assert (encoder.width, encoder.depth, encoder.heads, encoder.mlp_ratio) == (192, 2, 3, 2.0)
    assert (run.config.model.patch_size, data.image_size) == (8, 32)
    assert holds(encoder_of(run.uri), weights)
    assert run.record.parent == str(file)
    assert run.record.parent_sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert evaluate(run.uri, tiny_dataset.uri).evaluation.name == run.record.name


def test_the_same_content_is_the_same_parent_wherever_it_lies(
    weights: State, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    file, other = tmp_path / "a" / "mae.pth", tmp_path / "b" / "mae.pth"
    for place in (file, other):
        place.parent.mkdir()
    torch.save(weights, file)
    shutil.copy(file, other)

    def tuned(path: Path, tag: str | None = None) -> tuple[str, bool]:
        parent = parent_of(str(path))
        config = downstream_config(parent, "finetune", "demo", overrides=FEW, tag=tag)
        result = finetune(config, parent, tiny_dataset.uri, str(tmp_path / "runs"))
        return Path(result.uri).name, result.reused

    assert tuned(file) == ("mae_finetune", False)
    assert tuned(other) == ("mae_finetune", True)
    torch.save({**weights, "norm.bias": weights["norm.bias"] + 1}, other)
    with pytest.raises(UserError, match=r"another parent run \(.* → .*\); choose another --tag"):
        tuned(other)
    assert tuned(other, "second") == ("second_mae_finetune", False)


def test_the_control_of_a_file(weights: State, tiny_dataset: Dataset, tmp_path: Path) -> None:
    file = tmp_path / "mae.pth"
    torch.save(encoder_only(weights), file)
    parent = parent_of(str(file))
    drawn = []
    for seed in (0, 1):
        config = downstream_config(parent, "probe", "demo", overrides=[*FEW, f"seed={seed}"])
        to = str(tmp_path / str(seed))
        run = probe(config, parent, tiny_dataset.uri, to, features="untrained").run
        assert (run.record.name, run.record.baseline) == ("mae_probe_untrained", True)
        drawn.append(encoder_of(run.uri)["blocks.1.attn.qkv.weight"])
    assert not torch.equal(*drawn)
    assert not torch.equal(drawn[0], weights["blocks.1.attn.qkv.weight"])


def test_heads_that_nothing_tells_are_asked_for(
    tiny: Callable[..., Config], tiny_dataset: Dataset, tmp_path: Path
) -> None:
    file = tmp_path / "mae.pth"
    torch.save(build_model(tiny()).state_dict(), file)
    parent = parent_of(str(file))
    for recipe in ("mae", "demo"):
        with pytest.raises(ConfigError, match=r"width 24 is not that .* model\.encoder\.heads="):
            downstream_config(parent, "probe", recipe)
    given = tmp_path / "default.yaml"
    given.write_text("model: {encoder: {heads: 2}}\n")
    for options in ({"overrides": ["model.encoder.heads=2"]}, {"file": str(given)}):
        config = downstream_config(parent, "probe", "demo", **options)  # type: ignore[arg-type]
        assert config.model.encoder.heads == 2
    with pytest.raises(ConfigError, match=r"is not a multiple of model\.encoder\.heads=5"):
        downstream_config(parent, "probe", "demo", overrides=["model.encoder.heads=5"])


def test_a_checkpoint_of_a_run_has_all_from_its_config(
    tiny: Callable[..., Config], tiny_dataset: Dataset, tmp_path: Path
) -> None:
    config = tiny("optim.max_steps=4", "checkpoint.every_steps=2", variant="msg_gan")
    run = pretrain(config, tiny_dataset.uri, str(tmp_path)).run
    file = f"{run.uri}/checkpoints/step-00000002.pt"
    parent = parent_of(file)
    assert isinstance(parent, WeightsFile)
    made = downstream_config(parent, "probe", overrides=FEW)
    assert made.run_name == "t_msg_gan_step-00000002_probe"
    assert (made.model.encoder, made.recipe) == (config.model.encoder, "demo")
    assert made.data.augment.mean == config.data.augment.mean
    assert not torch.equal(
        parent.encoder["norm.weight"], network_weights(run.uri, "generator")["norm.weight"]
    )
    assert probe(made, parent, tiny_dataset.uri, str(tmp_path)).run.complete


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: {**w, "norm_pre.weight": w["norm.weight"]}, "norm_pre.weight has no place"),
        (lambda w: {**w, "blocks.0.ls1.gamma": w["norm.weight"]}, "ls1.gamma has no place"),
        (lambda w: {**w, "dist_token": w["cls_token"]}, "dist_token has no place"),
        (lambda w: {k: v for k, v in w.items() if k != "blocks.1.norm2.bias"}, "norm2.bias is mis"),
        (lambda w: {k: v for k, v in w.items() if k != "norm.weight"}, "norm.weight is missing"),
        (lambda w: {**w, "pos_embed": w["pos_embed"][:, 1:]}, r"pos_embed is \(1, 16, 192\)"),
        (lambda w: {**w, "pos_embed": w["pos_embed"].long()}, "holds torch.int64"),
        (lambda w: {"head.weight": w["norm.weight"]}, "patch_embed.proj.weight is missing"),
    ],
)
def test_files_are_loaded_strictly(
    change: Callable[[State], State],
    words: str,
    weights: State,
    tiny_dataset: Dataset,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file, to = tmp_path / "mae.pth", tmp_path / "runs"
    torch.save(change(encoder_only(weights)), file)
    with pytest.raises(CheckpointError, match=words):
        parent_of(str(file))
    command = ["probe", "--run", str(file), "--data", tiny_dataset.uri, "--to", str(to)]
    assert main([*command, *FEW]) == 2
    said = [x for x in capsys.readouterr().err.splitlines() if x.startswith("percmae: error: ")]
    assert len(said) == 1
    assert not to.exists()


def test_neither_a_run_nor_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for place in (tmp_path, tmp_path / "mae.pth"):
        assert main(["probe", "--run", str(place), "--data", "x", "--to", "y"]) == 2
        told = capsys.readouterr().err
        assert f"--run {place}: there is neither a run (a folder with run.json) nor a file" in told
        assert told.count("\n") == 1


def test_submitted_as_a_job(weights: State, s3: S3, capsys: pytest.CaptureFixture[str]) -> None:
    file = StorePath(s3.uri("weights")) / "mae.safetensors"
    file.write_bytes(safetensors.torch.save(weights))
    options = ["--run", file.uri, "--data", "s3://data/manifest.json", "--to", "s3://data/runs"]
    submit = ["submit", "--print", "probe", *options, "--recipe", "demo", "seed=3"]

    def arguments() -> list[str]:
        job = yaml.safe_load(capsys.readouterr().out)
        assert job["metadata"]["name"].startswith("probe-mae-")
        pod = job["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]
        given: list[str] = pod["containers"][0]["command"]
        return given[given.index("probe") :]

    assert main(submit) == 0
    shown = ["probe", "--run", file.uri, "--recipe", "demo", *options[2:], "--resume", "auto"]
    assert arguments() == [*shown, "seed=3"]
    narrow = build_model(load_config(overrides=TINY)).state_dict()
    file.write_bytes(safetensors.torch.save(narrow))
    for heads in (1, 2):
        assert main([*submit, f"model.encoder.heads={heads}"]) == 0
        assert arguments() == [*shown, "seed=3", f"model.encoder.heads={heads}"]
    assert main(submit) == 2
    assert "give it as model.encoder.heads=" in capsys.readouterr().err


# Images of another size


def test_positions_are_timms_own(weights: State) -> None:
    """From 4² patches to 8² and to 3²; what the official code makes of them is near."""
    theirs = load_timm().layers.resample_abs_pos_embed
    torch.manual_seed(1)
    positions = torch.randn(1, 17, 192)
    for given in (positions, weights["pos_embed"]):
        for grid in (8, 3):
            made = on_grid(given, grid)
            torch.testing.assert_close(made, theirs(given, [grid, grid]), rtol=0, atol=0)
            assert torch.equal(made[:, 0], given[:, 0])
        assert on_grid(given, 4) is given
    smooth = weights["pos_embed"]
    square = smooth[:, 1:].reshape(1, 4, 4, 192).permute(0, 3, 1, 2)
    official = F.interpolate(square, (8, 8), mode="bicubic", align_corners=False)
    assert (
        on_grid(smooth, 8)[:, 1:] - official.permute(0, 2, 3, 1).flatten(1, 2)
    ).abs().max() < 0.1


def test_the_network_at_another_size_is_timms(weights: State) -> None:
    """As timm itself builds it and loads the same weights, the pretraining's size being another."""
    overrides = ["data.image_size=64", "optim.total_batch=null", *SIZES[1:]]
    config = changed(load_config(stage="probe"), *overrides)
    ours = Classifier(config, 4)
    ours.load_encoder(weights, "token", "test")
    theirs = load_timm().create_model(
        "vit_tiny_patch16_224", num_classes=0, global_pool="token", img_size=64, patch_size=8,
        depth=2, mlp_ratio=2.0,
    ).eval()  # fmt: skip
    named = load_timm().models.vision_transformer.checkpoint_filter_fn(
        encoder_only(weights), theirs
    )
    theirs.load_state_dict(named, strict=True)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours.encoder(images), theirs(images), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("stage", ["probe", "finetune"])
@pytest.mark.parametrize("of", ["run", "file"])
def test_trained_at_another_size(
    stage: str,
    of: str,
    tiny: Callable[..., Config],
    tiny_dataset: Dataset,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = pretrain(tiny("optim.max_steps=1"), tiny_dataset.uri, str(tmp_path)).uri
    given, few = run, [*FEW, "data.image_size=48"]
    if of == "file":
        given = str(tmp_path / "mae.pth")
        torch.save(network_weights(run, "generator"), given)
        few += ["model.encoder.heads=2"]
    command = [stage, "--run", given, "--data", tiny_dataset.uri, "--to", str(tmp_path / "runs")]
    capsys.readouterr()
    assert main([*command, "--recipe", "demo", *few]) == 0
    said, told = capsys.readouterr()
    assert "position embeddings interpolated from 32 to 48 px images" in told
    made = Run.open(said.strip())
    assert made.config.data.image_size == 48
    positions = encoder_of(made.uri)["pos_embed"]
    assert positions.shape == (1, 37, 24)
    begun = on_grid(network_weights(run, "generator")["pos_embed"], 6)
    assert torch.equal(positions, begun) is (stage == "probe")
    assert (positions - begun).abs().max() < 0.1
    assert evaluate(made.uri, tiny_dataset.uri).evaluation.samples.test == 40
    # A size that patches do not fill is refused before anything is written.
    assert main([*command, "--recipe", "demo", *few, "data.image_size=36", "tag=odd"]) == 2
    assert "data.image_size=36 is not a multiple of model.patch_size=8" in capsys.readouterr().err
    assert not list((tmp_path / "runs").glob("odd*"))
