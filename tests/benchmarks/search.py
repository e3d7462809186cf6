"""The same small search of settings for each variant of the demo: what docs/demo.md rests upon.

    python tests/benchmarks/search.py MANIFEST --log FILE [--variants mae,ssim] [--epochs 1]

Eight trials a variant, each one call of tune.py, which judges without the test set: three rates,
then at the best of them four other weights of what the variant adds (and for `mae` of what it has),
and three quarters of the patches masked. A trial that is in the log is not made again, so the same
command goes on where it was stopped. Ends with a table: the variants by their best linear probe.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

TUNE = Path(__file__).with_name("tune.py")
RATES = ("1.0e-3", "2.0e-3", "4.0e-3")
MASKED = "model.mask_ratio=0.75"
ADVERSARIAL = (
    "loss.gan=0.1",
    "loss.gan=0.02",
    "discriminator.lr=2.0e-4",
    "discriminator.lr=2.0e-3",
)
WEIGHTS = {
    "mae": (
        "model.norm_pix_loss=false",
        "optim.weight_decay=0.01",
        "optim.weight_decay=0.2",
        "optim.betas=[0.9,0.999]",
    ),
    "ssim": ("loss.ssim=0.5", "loss.ssim=0.95", "loss.ssim_levels=2", "loss.ssim_levels=1"),
    "perceptual": (
        "loss.style=0.02",
        "loss.style=2.0",
        "loss.perceptual=0.5",
        "loss.perceptual=0.005",
    ),
    "ls_gan": ADVERSARIAL,
    "msg_gan": ADVERSARIAL,
    "stylegan2_ada": ADVERSARIAL,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("manifest")
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--variants", default=",".join(WEIGHTS))
    parser.add_argument("--epochs", type=int, default=1)
    options = parser.parse_args()
    variants = options.variants.split(",")
    unknown = sorted(set(variants) - set(WEIGHTS))
    if unknown:
        parser.error(f"--variants: unknown {', '.join(unknown)}; known: {', '.join(WEIGHTS)}")
    length = f"optim.epochs={options.epochs}"

    def tried(variant: str, *settings: str) -> dict[str, Any]:
        return trial(options.manifest, options.log, variant, [length, *settings])

    for rate in RATES:  # of all variants first: what a search is stopped at is as far for each
        for variant in variants:
            tried(variant, f"optim.lr={rate}")
    for place in range(4):
        for variant in variants:
            tried(variant, best_rate(options.log, variant, length), WEIGHTS[variant][place])
    for variant in variants:
        tried(variant, best_rate(options.log, variant, length), MASKED)
    for variant in variants:
        line = max(lines(options.log, variant, length), key=quality)
        print(f"{variant:14} {quality(line):.4f} {' '.join(line['settings'])}")


def trial(manifest: str, log: Path, variant: str, settings: list[str]) -> dict[str, Any]:
    """The line of the log for these settings, after making the trial where there is none."""
    for line in lines(log, variant, settings[0]):
        if line["settings"] == settings:
            return line
    command = [sys.executable, str(TUNE), manifest, "--log", str(log), "--variant", variant]
    subprocess.run([*command, *settings], check=True)
    return lines(log, variant, settings[0])[-1]


def best_rate(log: Path, variant: str, length: str) -> str:
    """The setting of the rate whose features are best, other settings as the recipe has them."""
    rates = [line for line in lines(log, variant, length) if len(line["settings"]) == 2]
    return str(max(rates, key=quality)["settings"][1])


def lines(log: Path, variant: str, length: str) -> list[dict[str, Any]]:
    """What the log has of a variant's search at this length."""
    found = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    return [
        line for line in found if line["variant"] == variant and line["settings"][:1] == [length]
    ]


def quality(line: dict[str, Any]) -> float:
    return float(line["linear_avg"])


if __name__ == "__main__":
    main()
