"""`segjax table`: print a table of result rows or of published figures."""

import argparse

from segjax.cli.arguments import path
from segjax.errors import UserError, warn

SUMMARY = "Print results as a table, mean and standard deviation over seeds"
DETAILS = (
    "With a name, beside published figures. camvid: all methods published on CamVid; table1, "
    "table3, cost: Tables 1, 3 and 6 of the SegNet paper; benchmark: rows of `segjax benchmark`."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "name",
        nargs="?",
        choices=("camvid", "table1", "table3", "cost", "benchmark"),
        help="(default: the results alone)",
    )
    add("--results", nargs="+", type=path, metavar="PATH", help="run directories or .jsonl files")
    add("--format", default="markdown", choices=("markdown", "latex", "csv", "json"))
    add(
        "--per-class",
        choices=("iou", "accuracy"),
        help="score in the columns of the classes (default: iou; accuracy for camvid)",
    )
    add("--split", help="only rows of this split (default for published tables: test)")
    add(
        "--interval",
        action="store_true",
        help="print 95%% intervals of the mean over seeds (Student's t), not standard deviations",
    )
    add("--sort", metavar="HEADING", help="sort by this column, greatest number first")
    add(
        "--columns",
        nargs="+",
        metavar="HEADING",
        help="only these columns, besides those that identify a line; of those only the given, if "
        "they suffice",
    )
    add(
        "--groups",
        nargs="+",
        metavar="GROUP",
        help="only these groups of published methods (camvid)",
    )


def run(options: argparse.Namespace) -> None:
    from segjax import results
    from segjax.benchmark import measurements
    from segjax.benchmark import tables as cost_tables
    from segjax.report import camvid_table, segnet_tables, tables
    from segjax.report.table import arrange, draw
    from segjax.results.summary import summarize

    name, interval = options.name, options.interval
    timed = name in ("cost", "benchmark")  # its rows are of `segjax benchmark`
    if name in (None, "benchmark") and not options.results:
        raise UserError(
            "segjax table needs --results, or the name of a published table; see --help"
        )
    for flag, given, fits in (
        ("--split", options.split, not timed),
        ("--interval", interval, not timed),
        ("--per-class", options.per_class, name in (None, "camvid")),
        ("--groups", options.groups, name == "camvid"),
    ):
        if given and not fits:
            raise UserError(
                f"{flag} does nothing for {f'table {name}' if name else 'results alone'}"
            )

    if interval and not options.results:
        raise UserError("--interval does nothing without --results")

    measured = measurements.read(options.results or []) if timed else []
    rows = [] if timed else results.read(options.results or [])
    split = options.split or "test"
    if rows and (name or options.split):
        others = [row for row in rows if row["split"] != split]
        rows = [row for row in rows if row["split"] == split]
        if not rows:
            raise UserError(f"{', '.join(map(str, options.results))}: no rows of split {split!r}")
        if others and not options.split:
            count = "1 row" if len(others) == 1 else f"{len(others)} rows"
            warn(f"not in the table: {count} of other splits")
    summaries = summarize(rows)

    if name == "cost":
        table = cost_tables.paper(measured)
    elif name == "benchmark":
        table = cost_tables.listing(measured)
    elif name == "table1":
        table = segnet_tables.table1(summaries, split=split, interval=interval)
    elif name == "table3":
        table = segnet_tables.table3(summaries, split=split, interval=interval)
    elif name == "camvid":
        table = camvid_table.camvid(
            summaries,
            per_class=options.per_class or "accuracy",
            groups=options.groups,
            split=split,
            interval=interval,
        )
    else:
        table = tables.table(summaries, options.per_class or "iou", interval=interval)
    print(draw(arrange(table, options.sort, options.columns), options.format))
