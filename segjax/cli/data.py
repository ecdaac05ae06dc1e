"""`segjax data`: prepare a dataset."""

import argparse

from segjax.cli.arguments import path, refuse_ignored, size
from segjax.errors import UserError

SUMMARY = "Prepare a dataset, or check a folder of your own"
DETAILS = (
    "Downloads or reads it and stores it for training. A prepared dataset stays as it is. `segjax "
    "data check DIR` describes a folder of your own images and masks instead, and exits with 1 if "
    "something in it needs attention."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "name",
        help="camvid, isbi2012, streetscenes, which is drawn, folder, tfds:NAME or module:NAME; or "
        "check",
    )
    add(
        "folder",
        nargs="?",
        type=path,
        metavar="DIR",
        help="check: a folder of your own images and masks, with classes.json",
    )
    add(
        "--source",
        type=path,
        metavar="DIR",
        help="folder of the published files, or of your own images (only camvid is downloaded)",
    )
    add("--data-dir", type=path, metavar="DIR", help="folder for prepared datasets")
    add("--resolution", type=size, metavar="HxW", help="image size; not of camvid, isbi2012")
    add("--sheet", type=path, metavar="FILE", help="also draw a contact sheet of its images")


def run(options: argparse.Namespace) -> int:
    from segjax import predict
    from segjax.data import datasets, pictures
    from segjax.inference import check

    if (options.name == "check") != (options.folder is not None):
        raise UserError("only `segjax data check` takes a folder, and it needs one")
    if options.folder:
        refuse_ignored(options, "with check", "source", "data_dir", "resolution", "sheet")
        described, problems = check.check(options.folder)
        print("\n".join(described + [f"PROBLEM: {line}" for line in problems]))
        return 1 if problems else 0

    if options.name == "streetscenes":
        refuse_ignored(options, "for streetscenes, which is drawn", "source")
    if options.name in ("camvid", "isbi2012") and not options.sheet:
        refuse_ignored(options, f"for {options.name}, which has a size of its own", "resolution")
    info = datasets.prepare(
        options.name,
        data_dir=options.data_dir,
        source=options.source,
        resolution=options.resolution,
    )
    sizes = ", ".join(f"{split} {counts.num_images}" for split, counts in info.splits.items())
    print(f"{info.name} is ready: {sizes} images of {info.resolution[0]}x{info.resolution[1]}")
    if options.sheet:
        folder = options.source if options.name == "folder" else None
        sheet = predict.contact_sheet(options.name, options.resolution, options.data_dir, folder)
        pictures.save(options.sheet, sheet)
    return 0
