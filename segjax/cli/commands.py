"""What each `segjax <command>` does with its options, parsed by `segjax.cli.main`.

Each gives the exit status, or none for 0. What is heavy is imported in the functions, so that
--help answers at once.
"""

import os
import shlex
import sys
import time
from pathlib import Path

from segjax.errors import UserError


def data(options):
    """Prepares a data set."""
    from segjax.data import datasets

    info = datasets.prepare(
        options.name,
        data_dir=options.data_dir,
        source=options.source,
        resolution=options.resolution,
    )
    sizes = ", ".join(f"{split} {counts.num_images}" for split, counts in info.splits.items())
    print(f"{info.name} is ready: {sizes} images of {info.resolution[0]}x{info.resolution[1]}")
    if options.sheet:
        from segjax import predict
        from segjax.data import pictures

        sheet = predict.contact_sheet(options.name, options.resolution, options.data_dir)
        pictures.save(options.sheet, sheet)


def train(options):
    """Trains and tests a run, or goes on with it."""
    from segjax import config, train
    from segjax.runs import compilation_cache, processes
    from segjax.runs.experiment import Description

    compilation_cache.turn_on()
    processes.join(always=options.distributed)
    overrides = config.parse_overrides(options.rest)
    loaded = config.load(options.config, overrides)
    name = config.experiment_name(options.config)
    fields = config.flat(loaded)
    kept = {name: fields[name] for name in overrides if not config.incidental(name)}
    description = Description(name, options.name or name, kept, options.shell)
    try:
        row = train.train(loaded, options.workdir, description)
    except train.Stopped as stopped:
        if processes.is_first():
            print(f"segjax: {stopped}", file=sys.stderr)
        return stopped.status
    except train.Diverged as diverged:
        print(f"segjax: {diverged}", file=sys.stderr)
        return 1
    except (UserError, OSError) as error:
        processes.leave(error)
    if processes.is_first():
        print(
            f"{row['split']} G {row['global_accuracy']:.1%}  C {row['class_accuracy']:.1%}  "
            f"mIoU {row['mean_iou']:.1%}, written to {options.workdir / 'result.json'}"
        )
    return 0


def _crf(options):
    """The parameters of the dense CRF that is asked for, or none."""
    if options.crf is None:
        return None
    from segjax.inference import crf

    return crf.parse(options.crf)


def _views(options):
    """How each image is to be shown to a network, or none: as it is."""
    if not (options.flip or options.scales):
        return None
    from segjax.inference import outputs

    return outputs.Views(tuple(options.scales or (1.0,)), options.flip)


def evaluate(options):
    """Scores runs on a split."""
    from segjax import evaluate, results
    from segjax.report import tables
    from segjax.results.counts import write_counts
    from segjax.results.summary import summarize
    from segjax.runs import compilation_cache

    compilation_cache.turn_on()
    path, row, counts = evaluate.evaluate_workdirs(
        options.workdir,
        options.split,
        kind=options.checkpoint,
        limit=options.limit,
        data_dir=options.data_dir,
        crf=_crf(options),
        samples=options.samples,
        views=_views(options),
    )
    write_counts(path, counts)
    results.write_row(path, row)
    print(tables.render(summarize([row])))
    print(f"written to {path}")


def predict(options):
    """Labels images."""
    from segjax import predict
    from segjax.progress import Bar
    from segjax.runs import compilation_cache, experiment

    compilation_cache.turn_on()
    parameters, views = _crf(options), _views(options)
    if views and options.samples:
        raise UserError("--samples draws maps of its own, expected neither --flip nor --scales")
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
            views=views,
            progress=bar.advance,
        )
    print(f"{len(paths)} label maps and overlays in {options.output}")


def sweep(options):
    """Runs a grid, or says what is in it."""
    from segjax import config
    from segjax.sweep import display, grids, local, slurm, slurm_script, status

    wanted = slurm_script.given(options)
    on_slurm = options.launcher == "slurm"
    if wanted and not on_slurm:
        flag = "--" + next(iter(wanted)).replace("_", "-")
        raise UserError(f"{flag} does nothing without --launcher slurm")
    overrides = config.parse_overrides(options.rest)
    points = grids.asked(options.config, overrides, options.seeds, options.only)
    if options.commands:
        for point in points:
            print(shlex.join(grids.command(options.config, point, options.workdir)))
        return 0
    if on_slurm:
        asked = slurm_script.Options(**wanted)
        what = options.config, points, options.workdir, asked, options.jobs
        if options.status:
            print(slurm.report(points, options.workdir))
        elif options.dry_run:
            print(display.plan(points, status.snapshot(points, options.workdir)), end="\n\n")
            print(slurm.script(*what))
        else:
            print(slurm.submit(*what))
        return 0
    if options.dry_run or options.status:
        show = display.plan if options.dry_run else display.report
        print(show(points, status.snapshot(points, options.workdir)))
        return 0
    return local.run(options.config, points, options.workdir, options.jobs or 1)


def reproduce(options):
    """Does what fits into the budget of the grid of a table."""
    began = time.monotonic() - _age()
    from segjax import config
    from segjax.sweep import grids, reproduce

    spec = options.config
    if spec is None:
        size = options.size or "full"
        spec = reproduce.config_file(options.table) + (f":{size}" if size != "full" else "")
    overrides = config.parse_overrides(options.rest)
    return reproduce.run(
        spec,
        grids.asked(spec, overrides, options.seeds, options.only),
        options.output,
        seconds=options.budget,
        began=began,
        part=options.part,
        whole_only=options.whole,
        retry=options.retry,
        source=options.source,
    )


def _age():
    """Seconds since this process began, where Linux tells; they are of the budget."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        began = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return max(time.clock_gettime(time.CLOCK_BOOTTIME) - began, 0.0)
    except (OSError, AttributeError):
        return 0.0


def table(options):
    """Prints a table of rows or of published figures."""
    from segjax import results
    from segjax.benchmark import measurements
    from segjax.benchmark import tables as cost_tables
    from segjax.report import camvid_table, segnet_tables, tables
    from segjax.report.table import arrange, draw
    from segjax.results.summary import summarize

    name, interval = options.name, options.interval
    timed = name in ("cost", "benchmark")  # its rows are of `segjax benchmark`
    if name in (None, "benchmark") and not options.results:
        raise UserError("segjax table wants --results, or the name of another table; see --help")
    for flag, given, fits in (
        ("--split", options.split, not timed),
        ("--interval", interval, not timed),
        ("--per-class", options.per_class, name in (None, "camvid")),
        ("--groups", options.groups, name == "camvid"),
    ):
        if given and not fits:
            raise UserError(f"{flag} does nothing for {f'table {name}' if name else 'rows alone'}")
    measured = measurements.read(options.results or []) if timed else []
    rows = [] if timed else results.read(options.results or [])
    split = options.split or "test"
    if rows and (name or options.split):
        rows = [row for row in rows if row["split"] == split]
        if not rows:
            raise UserError(f"{', '.join(options.results)}: no rows of split {split!r}")
    summaries = summarize(rows)
    if name == "cost":
        found = cost_tables.paper(measured)
    elif name == "benchmark":
        found = cost_tables.listing(measured)
    elif name == "table1":
        found = segnet_tables.table1(summaries, split=split, interval=interval)
    elif name == "table3":
        found = segnet_tables.table3(summaries, split=split, interval=interval)
    elif name == "camvid":
        found = camvid_table.camvid(
            summaries,
            per_class=options.per_class or "accuracy",
            groups=options.groups,
            split=split,
            interval=interval,
        )
    else:
        found = tables.table(summaries, options.per_class or "iou", interval=interval)
    print(draw(arrange(found, options.sort, options.columns), options.format))


def compare(options):
    """Sets two runs side by side."""
    from segjax.results import bootstrap

    differences = bootstrap.compare(
        options.first, options.second, samples=options.samples, seed=options.seed
    )
    print(bootstrap.render(differences))


def picture(options):
    """Draws the labels of runs."""
    from segjax import predict

    parameters = _crf(options)
    workdirs = sorted(path.parent for path in options.results.rglob("result.json"))
    if not workdirs:
        raise UserError(f"{options.results}: no finished run below, expected a result.json")
    predict.comparison(workdirs, options.output, options.count, options.data_dir, parameters)
    print(f"{len(workdirs)} runs drawn in {options.output}")


def figures(options):
    """Draws the figures of results."""
    from segjax.report import groups, predictions

    settings = groups.gather(options.results)
    files = predictions.draw(settings, options.output, options.format)
    if not options.no_predictions:
        pictures, missing = predictions.draw_predictions(
            settings, options.output, options.count, options.data_dir
        )
        files += pictures
        for line in missing:
            print(f"no predictions of {line}")
    print(f"{len(files)} figures in {options.output}")


def report(options):
    """Writes the page of results."""
    from segjax.report import page

    count = 0 if options.no_predictions else options.count
    rows = page.write(options.results, options.output, count=count, data_dir=options.data_dir)
    print(f"{rows} rows in {options.output}")


def preview(options):
    """Draws what a config trains on."""
    from segjax import config
    from segjax.data import pictures
    from segjax.runs import preview

    loaded = config.load(options.config, config.parse_overrides(options.rest))
    pictures.save(options.output, preview.preview(loaded, options.count))
    print(f"drawn in {options.output}")


def models(options):
    """Prints the table of architectures."""
    from segjax import models
    from segjax.models import summary
    from segjax.progress import Bar

    names = options.models or list(models.MODELS)
    rows = []
    with Bar("models", len(names)) as bar:
        for name in names:
            rows.append(summary.describe(name))
            bar.advance(len(rows))
    print(summary.render(rows, options.format))


def benchmark(options):
    """Measures what networks cost."""
    from segjax.benchmark import run, tables
    from segjax.report import table

    plan = run.Plan(
        models=tuple(options.models or run.NETWORKS),
        options=run.read_options(options.options),
        resolution=options.resolution,
        batches=tuple(sorted(set(options.batch))),
        precisions=tuple(dict.fromkeys(options.precision)),
        against=tuple(dict.fromkeys(options.against)),
        repeats=options.repeats,
        seconds=options.seconds,
        torch_python=options.torch_python or sys.executable,
    )
    run.check(plan)
    command, other = options.shell, options.torch_python
    if other:  # where one machine has it says nothing on another
        command = command.replace(other, Path(other).name)
    rows = run.run(plan, command, options.output)
    if rows:
        print(table.draw(tables.listing(rows), options.format))


def floors(options):
    """Scores guesses and ceilings."""
    from segjax import results
    from segjax.inference import baselines
    from segjax.report import tables
    from segjax.results.summary import summarize

    rows = baselines.rows(
        options.dataset, options.split, options.data_dir, options.resolution, options.shell
    )
    print(tables.render(summarize(rows)))
    if options.output:
        for row in rows:
            results.append(options.output, row)
