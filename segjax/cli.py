"""`segjax <command>`: the one entry point.

Nothing heavy is imported before a command needs it, so that --help answers at once.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import segjax
from segjax.errors import UserError


class _Parser(argparse.ArgumentParser):
    """argparse, but a mistake is one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit status: 2 for what the user can put right."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        options, rest = _parser().parse_known_args(arguments)
        if rest and not hasattr(options, "config"):
            raise UserError(f"unknown argument {rest[0]!r}; see segjax {options.command} --help")
        options.rest = rest
        options.shell = shlex.join(["segjax", *arguments])
        return options.run(options) or 0
    except UserError as error:
        print(f"segjax: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, a folder that may not be written
        print(f"segjax: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("segjax: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="segjax",
        description="Architecture ablations in semantic segmentation, in JAX and Flax.",
    )
    parser.add_argument("--version", action="version", version=f"segjax {segjax.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name, run, summary, details=""):
        sub = commands.add_parser(name, help=summary, description=f"{summary}. {details}")
        sub.set_defaults(run=run)
        return sub

    def refined(sub):
        sub.add_argument(
            "--crf",
            nargs="?",
            const="v2",
            metavar="v1|v2|NUMBERS",
            help="refine the labels by a dense CRF (default: v2); five numbers with commas are "
            "pos_w,pos_std,bi_w,bi_xy,bi_rgb, in pixels and grey values",
        )

    def sampled(sub):
        sub.add_argument(
            "--samples",
            type=_count,
            metavar="T",
            help="average T samples of a network with dropout, units dropped as in training",
        )

    config_help = "a config file; ARG goes to its get_config, such as smoke"
    override_help = "Any field is overridden by --config.FIELD=VALUE, such as --config.seed=1."

    data = command("data", _data, "Prepare a data set", "Done once; a prepared one is left alone.")
    data.add_argument("name", help="camvid, isbi2012 or streetscenes")
    data.add_argument("--source", metavar="DIR", help="the published folder (none: download it)")
    data.add_argument("--data-dir", metavar="DIR", help="where prepared sets lie")
    data.add_argument(
        "--resolution", type=_size, metavar="HxW", help="the size streetscenes are drawn at"
    )

    data.add_argument("--sheet", type=Path, metavar="FILE", help="draw a contact sheet of it")

    train = command("train", _train, "Train and test one run, or go on with it", override_help)
    train.add_argument("--config", required=True, metavar="FILE[:ARG]", help=config_help)
    train.add_argument("--workdir", required=True, type=Path, help="where the run lives")
    train.add_argument("--name", help="of the run (default: the config's name)")

    evaluate = command("evaluate", _evaluate, "Score a trained run on a split")
    evaluate.add_argument(
        "--workdir",
        required=True,
        action="append",
        type=Path,
        help="of the run; given again, the mean probabilities of all of them are scored",
    )
    evaluate.add_argument("--split", default="test", help="train, val or test (default: test)")
    evaluate.add_argument(
        "--checkpoint",
        choices=("final", "best", "latest"),
        help="default: final where the run is finished, else best",
    )
    evaluate.add_argument("--limit", type=_count, metavar="N", help="only the first N images")
    evaluate.add_argument("--data-dir", metavar="DIR", help="where prepared sets lie, if elsewhere")
    refined(evaluate)
    sampled(evaluate)

    predict = command("predict", _predict, "Write label maps and overlays for images of any size")
    predict.add_argument("images", nargs="+", metavar="IMAGE", help="image files, or folders")
    predict.add_argument("--workdir", required=True, type=Path, help="of the run")
    predict.add_argument("--output", required=True, type=Path, metavar="DIR", help="where to write")
    predict.add_argument(
        "--native",
        action="store_true",
        help="feed images at their own size, not resized to the height of training",
    )
    refined(predict)
    sampled(predict)

    sweep = command(
        "sweep",
        _sweep,
        "Run the grid of a config",
        f"Runs that are finished are skipped and failed ones tried again, so it may be killed and "
        f"started again. {override_help}",
    )
    sweep.add_argument("--config", required=True, metavar="FILE[:ARG]", help=config_help)
    sweep.add_argument("--workdir", required=True, type=Path, help="its runs live below")
    sweep.add_argument(
        "--seeds",
        nargs="+",
        type=_seed,
        default=(),
        metavar="SEED",
        help="each point with each of these; one number N: with the seeds 0 to N - 1",
    )
    sweep.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="PATTERN",
        help="runs whose name fits, such as '*,seed=0'; may be given again",
    )
    sweep.add_argument(
        "--jobs",
        type=_count,
        default=1,
        metavar="N",
        help="runs at a time, each with its part of the cores, GPUs and JAX_NUM_CPU_DEVICES",
    )
    instead = sweep.add_mutually_exclusive_group()
    instead.add_argument(
        "--dry-run",
        action="store_true",
        help="print the runs, their parameters, multiply-adds of training and status, and stop",
    )
    instead.add_argument("--commands", action="store_true", help="print their commands and stop")
    instead.add_argument("--status", action="store_true", help="print how far they are and stop")

    table = command(
        "table",
        _table,
        "Render result rows as a table, mean and sd over seeds, or beside published figures",
        "camvid: the published methods; table1, table3, cost: Tables 1, 3 and 6 of the SegNet "
        "paper; without a name: the rows alone.",
    )
    table.add_argument("name", nargs="?", choices=("camvid", "table1", "table3", "cost"))
    table.add_argument("--results", nargs="+", metavar="PATH", help="workdirs or .jsonl files")
    table.add_argument("--format", default="markdown", choices=("markdown", "latex", "csv", "json"))
    table.add_argument(
        "--per-class", choices=("iou", "accuracy"), help="default: iou; accuracy for camvid"
    )
    table.add_argument("--split", help="only rows of this split (published tables: test)")
    table.add_argument(
        "--interval",
        action="store_true",
        help="the 95%% interval of the mean over the seeds (Student's t) in place of the sd",
    )
    table.add_argument("--sort", metavar="HEADING", help="sort by this column, numbers downwards")
    table.add_argument(
        "--columns", nargs="+", metavar="HEADING", help="only these, beside those that name a line"
    )
    table.add_argument(
        "--groups", nargs="+", metavar="GROUP", help="of published methods, for camvid"
    )

    compare = command(
        "compare",
        _compare,
        "Tell how sure it is that one run is better than another",
        "A paired bootstrap over the test images of two finished runs.",
    )
    compare.add_argument("first", type=Path, help="the workdir of a run, or the file of its row")
    compare.add_argument("second", type=Path, help="likewise")
    compare.add_argument("--samples", type=_count, default=10_000, help="(default: 10000)")
    compare.add_argument("--seed", type=int, default=0, help="of the draw (default: 0)")

    picture = command("picture", _picture, "Draw test images, their truth and each run's labels")
    picture.add_argument("--results", required=True, type=Path, metavar="DIR", help="of the runs")
    picture.add_argument("--output", required=True, type=Path, metavar="FILE.png")
    picture.add_argument("--count", type=_count, default=4, metavar="N", help="images (default: 4)")
    picture.add_argument("--data-dir", metavar="DIR", help="where prepared sets lie, if elsewhere")
    refined(picture)

    def reported(sub, count):
        sub.add_argument(
            "--results", required=True, nargs="+", metavar="PATH", help="workdirs or .jsonl files"
        )
        sub.add_argument(
            "--count",
            type=_count,
            default=count,
            metavar="N",
            help=f"test images to predict (default: {count})",
        )
        sub.add_argument("--no-predictions", action="store_true", help="ask no network")
        sub.add_argument("--data-dir", metavar="DIR", help="where prepared sets lie, if elsewhere")

    figures = command(
        "figures",
        _figures,
        "Draw the figures of results",
        "Bars of each class, learning curves, cost, confusion matrices; and as PNG what is "
        "predicted.",
    )
    reported(figures, 4)
    figures.add_argument("--output", required=True, type=Path, metavar="DIR", help="where to write")
    figures.add_argument("--format", nargs="+", default=("svg",), choices=("svg", "png"))

    report = command(
        "report",
        _report,
        "Write results as one page: tables, figures, predictions, configs and provenance",
        "It needs no network and no other file.",
    )
    reported(report, 3)
    report.add_argument("--output", required=True, type=Path, metavar="FILE.html")

    preview = command(
        "preview",
        _preview,
        "Draw what a config trains on: images, labels and weights, plain and augmented",
        override_help,
    )
    preview.add_argument("--config", required=True, metavar="FILE[:ARG]", help=config_help)
    preview.add_argument("--output", required=True, type=Path, metavar="FILE.png")
    preview.add_argument("--count", type=_count, default=4, metavar="N", help="images (default: 4)")

    architectures = command(
        "models",
        _models,
        "Set the architectures beside what is published of them",
        "Parameters at 11 classes, sizes of output, and receptive fields measured by gradient.",
    )
    architectures.add_argument(
        "--models", nargs="+", metavar="NAME", help="only these (default: all, some minutes)"
    )
    architectures.add_argument("--format", default="markdown", choices=("markdown", "csv", "json"))

    floors = command(
        "floors",
        _floors,
        "Score guesses that see no image, and ceilings of the truth at coarse strides",
        "All of one class; the most frequent class at each pixel; majority votes of the truth.",
    )
    floors.add_argument("--dataset", default="camvid", help="camvid, isbi2012 or streetscenes")
    floors.add_argument("--split", default="test", help="train, val or test (default: test)")
    floors.add_argument("--data-dir", metavar="DIR", help="where prepared sets lie")
    floors.add_argument("--resolution", type=_size, metavar="HxW", help="of the images")
    floors.add_argument("--output", type=Path, metavar="FILE.jsonl", help="add the rows to a file")
    return parser


def _size(text: str) -> tuple[int, int]:
    sides = text.lower().split("x")
    if len(sides) != 2 or not all(side.isdigit() and int(side) for side in sides):
        raise argparse.ArgumentTypeError(f"expected HEIGHTxWIDTH such as 96x128, found {text!r}")
    return int(sides[0]), int(sides[1])


def _count(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"expected a positive number, found {text!r}")
    return int(text)


def _seed(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"expected a number from 0 up, found {text!r}")
    return int(text)


def _data(options):
    from segjax import datasets

    info = datasets.prepare(
        options.name,
        data_dir=options.data_dir,
        source=options.source,
        resolution=options.resolution,
    )
    sizes = ", ".join(f"{split} {counts.num_images}" for split, counts in info.splits.items())
    print(f"{info.name} is ready: {sizes} images of {info.resolution[0]}x{info.resolution[1]}")
    if options.sheet:
        from segjax import pictures, predict

        sheet = predict.contact_sheet(options.name, options.resolution, options.data_dir)
        pictures.save(options.sheet, sheet)


def _train(options):
    from segjax import config, train
    from segjax.experiment import Description

    overrides = config.parse_overrides(options.rest)
    loaded = config.load(options.config, overrides)
    name = config.experiment_name(options.config)
    fields = config.flat(loaded)
    kept = {name: fields[name] for name in overrides if not config.incidental(name)}
    description = Description(name, options.name or name, kept, options.shell)
    try:
        row = train.train(loaded, options.workdir, description)
    except train.Stopped as stopped:
        print(f"segjax: {stopped}", file=sys.stderr)
        return stopped.status
    except train.Diverged as diverged:
        print(f"segjax: {diverged}", file=sys.stderr)
        return 1
    print(
        f"test G {row['global_accuracy']:.1%}  C {row['class_accuracy']:.1%}  "
        f"mIoU {row['mean_iou']:.1%}, written to {options.workdir / 'result.json'}"
    )
    return 0


def _crf(options):
    """The parameters of the dense CRF that is asked for, or none."""
    if options.crf is None:
        return None
    from segjax import crf

    return crf.parse(options.crf)


def _evaluate(options):
    from segjax import ensemble, evaluate, results, tables

    path, row, counts = ensemble.evaluate_workdirs(
        options.workdir,
        options.split,
        kind=options.checkpoint,
        limit=options.limit,
        data_dir=options.data_dir,
        crf=_crf(options),
        samples=options.samples,
    )
    evaluate.write_counts(path, counts)
    results.write_row(path, row)
    print(tables.render(tables.summarise([row])))
    print(f"written to {path}")


def _predict(options):
    from segjax import experiment, predict
    from segjax.progress import Bar

    parameters = _crf(options)
    paths = predict.find_images(options.images)
    run, _ = experiment.open_run(options.workdir, None)
    variables, _ = experiment.load_variables(run, options.workdir, None)
    with Bar("predict", len(paths), unit_per_step=1) as bar:
        predict.predict_files(
            run,
            variables,
            paths,
            options.output,
            native=options.native,
            crf=parameters,
            samples=options.samples,
            progress=bar.advance,
        )
    print(f"{len(paths)} label maps and overlays in {options.output}")


def _sweep(options):
    from segjax import config, local, overview, status, sweep

    overrides = config.parse_overrides(options.rest)
    if options.seeds == [0]:
        raise UserError("--seeds 0 asks for no run, expected how many or which")
    seeds = range(options.seeds[0]) if len(options.seeds) == 1 else options.seeds
    points = sweep.points(options.config, overrides, seeds)
    points = sweep.select(points, options.only)
    if options.commands:
        for point in points:
            print(shlex.join(sweep.command(options.config, point, options.workdir)))
        return 0
    if options.dry_run or options.status:
        show = overview.plan if options.dry_run else overview.report
        print(show(points, status.snapshot(points, options.workdir)))
        return 0
    return local.run(options.config, points, options.workdir, options.jobs)


def _table(options):
    from segjax import comparison, results, segnet_tables, tables, typesetting

    name, interval = options.name, options.interval
    if not name and not options.results:
        raise UserError("segjax table wants --results, or the name of a table; see --help")
    for flag, given, fits in (
        ("--results", options.results, name != "cost"),
        ("--split", options.split, name != "cost"),
        ("--interval", interval, name != "cost"),
        ("--per-class", options.per_class, name in (None, "camvid")),
        ("--groups", options.groups, name == "camvid"),
    ):
        if given and not fits:
            raise UserError(f"{flag} does nothing for {f'table {name}' if name else 'rows alone'}")
    rows = results.read(options.results or [])
    split = options.split or "test"
    if rows and (name or options.split):
        rows = [row for row in rows if row["split"] == split]
        if not rows:
            raise UserError(f"{', '.join(options.results)}: no rows of split {split!r}")
    summaries = tables.summarise(rows)
    if name == "cost":
        table = segnet_tables.cost()
    elif name == "table1":
        table = segnet_tables.table1(summaries, split=split, interval=interval)
    elif name == "table3":
        table = segnet_tables.table3(summaries, split=split, interval=interval)
    elif name == "camvid":
        table = comparison.camvid(
            summaries,
            per_class=options.per_class or "accuracy",
            groups=options.groups,
            split=split,
            interval=interval,
        )
    else:
        table = tables.table(summaries, options.per_class or "iou", interval=interval)
    print(
        typesetting.draw(typesetting.arrange(table, options.sort, options.columns), options.format)
    )


def _compare(options):
    from segjax import compare

    differences = compare.compare(
        options.first, options.second, samples=options.samples, seed=options.seed
    )
    print(compare.render(differences))


def _picture(options):
    from segjax import predict

    parameters = _crf(options)
    workdirs = sorted(path.parent for path in options.results.rglob("result.json"))
    if not workdirs:
        raise UserError(f"{options.results}: no finished run below, expected a result.json")
    predict.comparison(workdirs, options.output, options.count, options.data_dir, parameters)
    print(f"{len(workdirs)} runs drawn in {options.output}")


def _figures(options):
    from segjax import gallery, gather

    settings = gather.gather(options.results)
    files = gallery.draw(settings, options.output, options.format)
    if not options.no_predictions:
        pictures, missing = gallery.draw_predictions(
            settings, options.output, options.count, options.data_dir
        )
        files += pictures
        for line in missing:
            print(f"no predictions of {line}")
    print(f"{len(files)} figures in {options.output}")


def _report(options):
    from segjax import report

    count = 0 if options.no_predictions else options.count
    rows = report.write(options.results, options.output, count=count, data_dir=options.data_dir)
    print(f"{rows} rows in {options.output}")


def _preview(options):
    from segjax import config, pictures, preview

    loaded = config.load(options.config, config.parse_overrides(options.rest))
    pictures.save(options.output, preview.preview(loaded, options.count))
    print(f"drawn in {options.output}")


def _models(options):
    from segjax import architectures, models
    from segjax.progress import Bar

    names = options.models or list(models.MODELS)
    rows = []
    with Bar("models", len(names)) as bar:
        for name in names:
            rows.append(architectures.describe(name))
            bar.advance(len(rows))
    print(architectures.render(rows, options.format))


def _floors(options):
    from segjax import floors, results, tables

    rows = floors.rows(
        options.dataset, options.split, options.data_dir, options.resolution, options.shell
    )
    print(tables.render(tables.summarise(rows)))
    if options.output:
        for row in rows:
            results.append(options.output, row)
