"""``percmae predict``, ``embed`` and ``export``: their options, and what each does."""

from __future__ import annotations

import argparse

from percmae.errors import UserError

_MODEL = "a registered model, <folder>/<name>@<alias or version>, or a folder it was pulled to"
_IMAGES = "a folder or prefix, or image files"


def predict_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--model", required=True, metavar="MODEL", help=_MODEL)
    sub.add_argument("--images", required=True, nargs="+", metavar="URI", help=_IMAGES)
    text = "how many classes of each image (default: %(default)s)"
    sub.add_argument("--top", type=int, default=5, metavar="N", help=text)
    text = "JSON lines (default) or CSV"
    sub.add_argument("--format", default="jsonl", choices=["jsonl", "csv"], help=text)
    sub.add_argument("--to", metavar="URI", help="the file to write (default: stdout)")
    sub.add_argument("--force", action="store_true", help="replace a file that exists")


def embed_options(sub: argparse.ArgumentParser) -> None:
    of = sub.add_mutually_exclusive_group(required=True)
    of.add_argument("--run", metavar="URI", help="the pretraining run")
    of.add_argument("--model", metavar="MODEL", help=f"or {_MODEL}")
    text = f"{_IMAGES}; with --run also a dataset's manifest"
    sub.add_argument("--images", required=True, nargs="+", metavar="URI", help=text)
    text = "of a dataset: train, val or test (default: all three)"
    sub.add_argument("--split", metavar="S", help=text)
    text = "the file to write: .npz (keys, features), or .parquet where there is pyarrow"
    sub.add_argument("--out", required=True, metavar="FILE", help=text)


def export_options(sub: argparse.ArgumentParser) -> None:
    of = sub.add_mutually_exclusive_group(required=True)
    of.add_argument("--run", metavar="URI", help="the pretraining run")
    of.add_argument("--model", metavar="MODEL", help=f"for onnx: {_MODEL}")
    text = (
        "an official MAE checkpoint, the encoder for timm, or every tensor; or a folder of ONNX "
        "files, as Triton and KServe take it"
    )
    formats = ["mae", "timm", "safetensors", "onnx"]
    sub.add_argument("--format", required=True, choices=formats, help=text)
    text = "for onnx: what to check the files with (default: test images of the model's dataset)"
    sub.add_argument("--images", nargs="+", metavar="URI", help=text)
    sub.add_argument("--to", required=True, metavar="URI", help="the file or folder to write")
    sub.add_argument("--force", action="store_true", help="replace what is there")


def predict(args: argparse.Namespace) -> None:
    from percmae.registry.predict import predictions, write_predictions

    found = predictions(args.model, one_or_more(args.images), args.top)
    write_predictions(found, args.format, args.to, args.force)
    if args.to is not None:
        print(args.to)


def embed(args: argparse.Namespace) -> None:
    from percmae.engine.embed import check_target, embedded, write_embedding

    check_target(args.out)
    images = one_or_more(args.images)
    if args.model is None:
        parts = embedded(args.run, images, args.split, leave_out=True)
    elif args.split is not None:
        raise UserError(f"--split {args.split}: is of a dataset, which --run takes; leave it out")
    else:
        from percmae.registry.predict import features

        parts = features(args.model, images)
    write_embedding(parts, args.out)
    print(args.out)


def export(args: argparse.Namespace) -> None:
    if args.format == "onnx":
        if args.model is None:
            raise UserError("--format onnx takes a --model: percmae models add makes one of a run")
        from percmae.registry.onnx_files import export_onnx

        images = None if args.images is None else one_or_more(args.images)
        for file in export_onnx(args.model, args.to, images, args.force):
            print(f"sha256:{file.sha256}  {file.uri}")
        return
    if args.run is None or args.images is not None:
        raise UserError(f"--format {args.format} takes a --run, and neither --model nor --images")
    from percmae.engine.formats import export_weights

    written = export_weights(args.run, args.to, args.format, args.force)
    print(f"sha256:{written.sha256}", written.uri, sep="\n")


def one_or_more(images: list[str]) -> str | list[str]:
    """One may be a folder; several are files."""
    return images[0] if len(images) == 1 else images
