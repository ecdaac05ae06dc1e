"""`segjax predict`: predict label maps and overlays for image files."""

import argparse

from segjax.cli import arguments
from segjax.cli.arguments import path
from segjax.errors import UserError

SUMMARY = "Predict label maps and overlays for images of any size"
DETAILS = (
    "Writes PNG files. Label maps have the size of their images and are indexed: the pixels are "
    "class ids, which PIL.Image.open gives; OpenCV gives the colors of the palette. Files with "
    "several pages or frames give NAME_0.png, NAME_1.png and so on. Images keep their aspect "
    "ratio, even if the training resolution had changed that of its images, unless --squash is "
    "given; with data.fit letterbox or crop they have the scale of training. Arrays of N channels "
    "are .npy files."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("images", nargs="+", type=path, metavar="IMAGE", help="image files, or folders of them")
    add("--workdir", required=True, type=path, help="the run directory, or hf:user/name")
    add(
        "--output",
        required=True,
        type=path,
        metavar="DIR",
        help="folder for the label maps and overlays",
    )
    add(
        "--native",
        action="store_true",
        help="run the network at the image's own size instead of the height of training images",
    )
    add(
        "--squash",
        action="store_true",
        help="run the network at the training resolution, as training and `segjax evaluate` do, "
        "whatever the aspect ratio, if data.fit is resize; one compilation serves all images",
    )
    arguments.add_window(parser)
    arguments.add_inference(parser)


def run(options: argparse.Namespace) -> None:
    from segjax import predict
    from segjax.inference import windows
    from segjax.runs import compilation_cache, experiment, hub
    from segjax.system.progress import Bar

    compilation_cache.enable()
    fit = windows.choose_fit(
        native=options.native,
        squash=options.squash,
        window=options.window,
        overlap=options.overlap,
    )
    crf, transforms = arguments.crf(options), arguments.augmentation(options)
    if transforms and options.samples:
        raise UserError("--samples cannot be combined with --flip or --scales")

    paths = predict.find_images(options.images)
    workdir = hub.locate(options.workdir)
    run, _ = experiment.open_run(workdir, None)
    if options.squash:
        windows.require_squash(run)
    variables, _ = experiment.load_variables(run, workdir, None)
    with Bar("predict", len(paths), unit_per_step=1) as bar:
        predicted, failed = predict.predict_files(
            run,
            variables,
            paths,
            options.output,
            fit=fit,
            crf=crf,
            samples=options.samples,
            transforms=transforms,
            progress=bar.advance,
        )
    print(f"{predicted} label maps and overlays in {options.output}")
    if failed:
        raise UserError(f"{failed} of {predicted + failed} images failed, as said above")
