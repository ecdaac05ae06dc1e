"""`segjax export`: write a trained network as weights or as a program."""

import argparse

from segjax.cli.arguments import add_checkpoint, path, size
from segjax.errors import UserError

SUMMARY = "Export a trained network as weights to share or as a program without segjax"
DETAILS = (
    "Writes a folder with config.json and, of a finished run, result.json. safetensors: float32 "
    "weights; the folder can be opened like a run directory. stablehlo: the network with its "
    "weights for CPU, CUDA and TPU, which jax.export.deserialize reads; images uint8 (B, H, W, C) "
    "in, labels uint8 (B, H, W) out."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("workdir", type=path, metavar="WORKDIR", help="the run directory, or hf:user/name")
    add("--output", required=True, type=path, metavar="DIR", help="folder for the export")
    add(
        "--format",
        choices=("safetensors", "stablehlo"),
        default="safetensors",
        help="weights, or a program (default: safetensors)",
    )
    add_checkpoint(parser)
    add(
        "--size",
        type=size,
        metavar="HxW",
        help="stablehlo: size of the images (default: the training resolution)",
    )
    add("--logits", action="store_true", help="stablehlo: float32 logits instead of labels")


def run(options: argparse.Namespace) -> None:
    from segjax import export

    if options.format != "stablehlo" and (options.size or options.logits):
        raise UserError("--size and --logits need --format stablehlo")
    written = export.export(
        options.workdir,
        options.output,
        options.format,
        kind=options.checkpoint,
        size=options.size,
        logits=options.logits,
    )
    print(f"written to {written}")
