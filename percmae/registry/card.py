"""The model card: what a version is, how good it is, how it is opened."""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined

from percmae.registry.files import Preprocess
from percmae.runs.evaluation import ClassifierEvaluation, Evaluation, ReconstructionEvaluation
from percmae.runs.record import Run

_WHAT = {
    "pretrain": "A pretrained encoder",
    "probe": "A linear classifier on a frozen pretrained encoder",
    "finetune": "A fine-tuned classifier",
}


def card(name: str, run: Run, evaluation: Evaluation, images: Preprocess) -> str:
    """Markdown, with the front matter that model hubs read.

    images: what preprocess.json says.
    """
    templates = Environment(
        loader=PackageLoader("percmae"), undefined=StrictUndefined, keep_trailing_newline=True
    )
    classifier = isinstance(evaluation, ClassifierEvaluation)
    text: str = templates.get_template("model_card.md.j2").render(
        name=name,
        run=run,
        record=run.record,
        config=run.config,
        encoder=run.config.model.encoder,
        what=_WHAT[run.record.stage],
        evaluation=evaluation,
        classifier=classifier,
        folder="classifier" if classifier else "encoder",
        figures=_figures(evaluation),
        images=images,
        numbers=lambda values: ", ".join(f"{value:.4f}" for value in values),
    )
    return text


def _figures(evaluation: Evaluation) -> list[tuple[str, str]]:
    if isinstance(evaluation, ClassifierEvaluation):
        return [
            ("top-1", f"{evaluation.top1:.1%}"),
            ("top-5", f"{evaluation.top5:.1%}"),
            ("random guess", f"{evaluation.random_guess.top1:.1%}"),
        ]
    assert isinstance(evaluation, ReconstructionEvaluation), "of a pretraining"
    found = evaluation.reconstruction
    rows: list[tuple[str, float | None, str]] = [
        ("PSNR of reconstructions", found.psnr, "{:.1f} dB"),
        ("SSIM of reconstructions", found.ssim, "{:.3f}"),
        ("effective rank (RankMe)", evaluation.rank.value if evaluation.rank else None, "{:.1f}"),
        ("k-NN top-1", evaluation.knn.top1 if evaluation.knn else None, "{:.1%}"),
    ]
    return [(what, form.format(value)) for what, value, form in rows if value is not None]
