"""`segjax push`: upload a finished run to the Hugging Face hub."""

import argparse

from segjax.cli.arguments import path

SUMMARY = "Upload a finished run to the Hugging Face hub"
DETAILS = (
    "Uploads weights, config.json, result.json and a model card made of the result row. Log in "
    "first with `hf auth login`, or set HF_TOKEN. hf:user/name then stands for the run."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("workdir", type=path, metavar="WORKDIR", help="the run directory, or an exported folder")
    add("name", metavar="USER/NAME", help="the repository, created if missing")
    add("--private", action="store_true", help="make a new repository private")


def run(options: argparse.Namespace) -> None:
    from segjax import export

    print(export.push(options.workdir, options.name, private=options.private))
