"""`segjax data`: prepare a dataset."""

import argparse

from segjax.cli.arguments import path, size

SUMMARY = "Prepare a dataset"
DETAILS = "Downloads or reads it and stores it for training. A prepared dataset stays as it is."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("name", help="camvid, isbi2012, or streetscenes, which is drawn by a program")
    add(
        "--source",
        type=path,
        metavar="DIR",
        help="folder of the published dataset (default: download it)",
    )
    add("--data-dir", type=path, metavar="DIR", help="folder for prepared datasets")
    add("--resolution", type=size, metavar="HxW", help="image size of streetscenes")
    add("--sheet", type=path, metavar="FILE", help="also draw a contact sheet of its images")


def run(options: argparse.Namespace) -> None:
    from segjax import predict
    from segjax.data import datasets, pictures

    info = datasets.prepare(
        options.name,
        data_dir=options.data_dir,
        source=options.source,
        resolution=options.resolution,
    )
    sizes = ", ".join(f"{split} {counts.num_images}" for split, counts in info.splits.items())
    print(f"{info.name} is ready: {sizes} images of {info.resolution[0]}x{info.resolution[1]}")
    if options.sheet:
        sheet = predict.contact_sheet(options.name, options.resolution, options.data_dir)
        pictures.save(options.sheet, sheet)
