"""The step benchmark: its arithmetic, and that it measures what it says. No timing is asserted."""

from __future__ import annotations

import json

import pytest
import torch

from percmae import load_config
from percmae.bench import step
from percmae.bench.flops import counted_flops, mae_flops, matmul_rate
from percmae.bench.step import bench, table
from percmae.cli.verbs import main
from percmae.errors import ConfigError, UserError

SMALL = [
    "data.image_size=32",
    "model.patch_size=8",
    "model.encoder.depth=3",
    "model.decoder.depth=3",
    "model.decoder.width=32",
    "discriminator.width=16",
]


def test_flops_of_the_published_sizes() -> None:
    assert mae_flops(load_config()) / 1e9 == pytest.approx(58.7, abs=0.05)
    large, huge = (mae_flops(load_config(size=size)) for size in ("large", "huge"))
    assert mae_flops(load_config()) < large < huge


def test_counted_flops_are_those_of_the_products() -> None:
    a = torch.randn(4, 8, requires_grad=True)
    b = torch.randn(8, 16, requires_grad=True)
    # One product forward, two backward, 2 FLOPs a multiplication and addition.
    assert counted_flops(lambda: (a @ b).sum().backward()) == 3 * 2 * 4 * 8 * 16
    image = torch.randn(2, 3, 8, 8)
    weight = torch.randn(5, 3, 3, 3, requires_grad=True)
    product = 2 * 2 * 5 * 6 * 6 * 3 * 9
    found = counted_flops(lambda: torch.nn.functional.conv2d(image, weight).sum().backward())
    assert found == 2 * product  # the image asks for no gradient


def test_the_rate_of_a_product_is_of_this_machine() -> None:
    assert 1e8 < matmul_rate(torch.device("cpu"), torch.float32) < 1e15


@pytest.mark.slow
def test_a_measurement_is_a_process_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--size", "tiny", "--batch", "2", "--rounds", "1", "--json", *SMALL]
    assert main(["bench", "step", "--variants", "mae", *arguments]) == 0
    ours, theirs = json.loads(capsys.readouterr().out)["sizes"][0]["rows"]
    assert (ours["name"], theirs["name"]) == ("mae", "transformers ViTMAE")
    assert ours["peak_memory_gib"] != theirs["peak_memory_gib"]
    refused = [*arguments, "model.encoder.heads=5"]
    assert main(["bench", "step", "--variants", "mae", *refused]) == 2


@pytest.mark.slow
def test_the_document_has_a_row_for_each_kind_of_step(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measured in this process, as the processes of the benchmark would, but shortly."""
    monkeypatch.setattr(step, "_in_a_process", step._measure)
    monkeypatch.setattr(step, "ENOUGH", 0.01)
    monkeypatch.setattr(step, "matmul_rate", lambda device, dtype: 1e11)
    arguments = ["--size", "tiny", "--batch", "4", "--rounds", "1", "--json", *SMALL]
    assert main(["bench", "step", *arguments]) == 0
    document = json.loads(capsys.readouterr().out)
    (size,) = document["sizes"]
    rows = {row["name"]: row for row in size["rows"]}
    assert list(rows) == [
        "mae", "transformers ViTMAE", "ssim", "perceptual", "ls_gan", "msg_gan",
        "msg_gan, refreshing epoch", "stylegan2_ada", "stylegan2_ada, refreshing epoch",
        "stylegan2_ada, R1", "stylegan2_ada, path length",
    ]  # fmt: skip
    assert rows["mae"]["ratio_to_mae"] == 1
    for row in rows.values():
        assert row["images_per_second"] == pytest.approx(4 / row["seconds"])
        assert 0.1 < row["peak_memory_gib"] < 8
    flops = {name: row["gflop_per_image"] or 0 for name, row in rows.items()}
    assert 0.7 * flops["mae"] < size["mae_gflop_per_image"] < 1.3 * flops["mae"]
    # The copy's passes are spared while the discriminator itself gives the features.
    assert flops["msg_gan, refreshing epoch"] < 0.85 * flops["msg_gan"]
    assert flops["stylegan2_ada"] < flops["stylegan2_ada, R1"]
    assert flops["stylegan2_ada"] < flops["stylegan2_ada, path length"]
    assert size["mae_share_of_floor"] == pytest.approx(
        size["floor_seconds"] / rows["mae"]["seconds"]
    )
    text = table(document)
    assert all(name in text for name in rows)


def test_bad_input_is_refused_before_anything_is_measured() -> None:
    with pytest.raises(UserError, match="--rounds 0"):
        bench(rounds=0)
    with pytest.raises(ConfigError, match=r"unknown variant 'msggan'.*msg_gan"):
        bench(variants=["msggan"])
    with pytest.raises(ConfigError, match="unknown size"):
        bench(sizes=["enormous"])
