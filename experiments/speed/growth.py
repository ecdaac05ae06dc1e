"""Measure how the cost of a training step grows with batch, resolution and devices.

python experiments/speed/growth.py --output experiments/speed/results
python experiments/speed/growth.py --output experiments/speed/results --models segnet unet fcn8s \\
    --precision bfloat16 --batch 1 4 16 --resolution 180x240 360x480 720x960 --devices 1

The first is for two CPU cores and takes less than six minutes; the second is for a GPU. Rows in the
output are not measured again, so the same command continues. It writes

- growth.jsonl, rows of `segjax benchmark`: the batches at the middle resolution, and the other
  resolutions at the middle batch;
- growth_devices.jsonl, rows of `timings.py`: the largest batch on several numbers of devices (on a
  CPU, virtual devices that share its cores). Their losses must agree, so networks must be measured
  without dropout, which differs between devices;
- growth.svg and growth.png, drawn from all these rows.
"""

import argparse
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import timings
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from segjax import results
from segjax.benchmark import measurements, run
from segjax.benchmark.measurements import Facts
from segjax.benchmark.process import Failed, Side
from segjax.cli import arguments
from segjax.errors import UserError
from segjax.report import figures
from segjax.results.schema import Row
from segjax.system.files import write_whole

STEP = "training_step"
ROWS, OF_DEVICES, FIGURE = "growth.jsonl", "growth_devices.jsonl", "growth"
WORKER = Path(__file__).with_name("devices.py")
TOLERANCE = 1e-4  # relative difference of the losses, whose sums have different orders

# label -> (x, y) points
Curves = dict[str, list[tuple[float, float]]]


def measure(plans: Sequence[run.Plan], command: str, folder: Path) -> None:
    """Measure the rows of the plans that are not in the folder yet."""
    for plan in plans:
        run.check(plan)
    for plan in plans:
        run.run(plan, command, folder / ROWS)


def measure_devices(
    plan: run.Plan, batch: int, counts: Sequence[int], command: str, path: Path
) -> None:
    """Measure one batch on several numbers of devices; skip rows that are in the file already.

    Raises:
      UserError: a step fails, or its loss differs between numbers of devices.
    """
    rows = timings.read([path]) if path.exists() else []
    start = time.monotonic()
    for network in plan.networks():
        network.pop("num_classes")
        setting = {**network, "batch": batch, "dataset": "random", "placement": "stream"}
        known = [row for row in rows if row["setting"] == setting]
        for count in counts:
            late = plan.seconds is not None and time.monotonic() - start > plan.seconds
            if late or count in {row["devices"] for row in known}:
                continue
            found = _ask({**network, "batch": batch, "samples": plan.repeats}, count)
            known.append(
                {
                    "schema": timings.SCHEMA,
                    "kind": "devices",
                    "command": command,
                    "setting": setting,
                    "unit": "ms",
                    "samples": {"training_step": found["ms"]},
                    "devices": count,
                    "bytes": found["bytes"],
                    "loss": found["loss"],
                    **results.provenance(found["device"]),
                }
            )
            if abs(found["loss"] / known[0]["loss"] - 1) > TOLERANCE:
                losses = f"{found['loss']:.7f} on {count}, {known[0]['loss']:.7f}"
                raise UserError(f"{network['model']}: loss {losses} on {known[0]['devices']}")
            timings.append(path, known[-1])
            _say(
                f"{network['model']} x{batch} on {count}: {timings.median(known[-1], STEP):.1f} ms"
            )


def _ask(request, devices):
    # JAX is not initialized here, where it would reserve memory of a GPU.
    side = Side(["env", f"JAX_NUM_CPU_DEVICES={devices}", sys.executable, str(WORKER)])
    try:
        return side.ask("measure", devices=devices, **request)
    except Failed as error:
        raise UserError(f"{request['model']} on {devices} devices: {error}") from None
    finally:
        side.end()


def _say(text):
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _name(row: Row) -> str:
    options = ", ".join(f"{name} {value}" for name, value in row["model_options"].items())
    return f"{row['model']} ({options})" if options else row["model"]


def _curves(rows: Sequence[Row], x: Callable[[Row], float], y: Callable[[Row], Any]) -> Curves:
    found: Curves = {}
    for row in rows:
        value = y(row)
        if value is not None:
            found.setdefault(_name(row.get("setting", row)), []).append((x(row), value))
    return {name: sorted(points) for name, points in found.items()}


def draw(rows: Sequence[Row], of_devices: Sequence[Row]) -> Figure:
    """Draw time and memory of a training step by batch, resolution and devices.

    Args:
      rows: rows of `segjax benchmark`; drawn are those of the most common batch and those of the
        most common resolution.
      of_devices: rows of `timings.py`.
    """
    size = _commonest(tuple(row["resolution"]) for row in rows)
    batch = _commonest(row["batch"] for row in rows)
    by_batch = [row for row in rows if tuple(row["resolution"]) == size]
    by_size = [row for row in rows if row["batch"] == batch]
    where = f"{rows[0]['precision']}, {rows[0]['device']}"
    last = of_devices[-1]["setting"]

    def ms(row):
        return Facts(row).ms(STEP)

    def mb(row):
        return Facts(row).memory_mb(STEP, "compiled")

    columns: list[tuple[str, Sequence[Row], Callable[[Row], float]]] = [
        (f"batch of {_sides(by_batch[0])}", by_batch, lambda row: row["batch"]),
        (f"resolution, batch {batch}", by_size, lambda row: _pixels(row["resolution"])),
        (f"devices, batch {last['batch']} of {_sides(last)}", of_devices, lambda r: r["devices"]),
    ]
    heights = (
        ("training step, ms", ms, lambda row: timings.median(row, STEP)),
        ("memory of one device, MB", mb, lambda row: row["bytes"] and row["bytes"] / 1e6),
    )
    with matplotlib.rc_context(figures.STYLE):
        figure = Figure(figsize=(10.0, 6.2))
        grid = figure.subplots(2, 3, sharex="col", sharey="row", squeeze=False)
        for line, (label, of_row, of_device) in zip(grid, heights, strict=True):
            line[0].set_ylabel(label)
            for axes, (_, shown, x) in zip(line, columns, strict=True):
                y = of_device if shown is of_devices else of_row
                _lines(axes, _curves(shown, x, y), proportional=shown is not of_devices)
        for axes, (label, shown, x) in zip(grid[1], columns, strict=True):
            ticks = {x(row): _sides(row) if shown is by_size else f"{x(row):g}" for row in shown}
            axes.set_xticks(list(ticks), list(ticks.values()))
            axes.set_xlabel(label)
        figure.legend(
            *grid[0][0].get_legend_handles_labels(),
            loc="outside upper left",
            ncols=4,
            title=where,
            alignment="left",
        )
    return figure


def _pixels(resolution):
    return resolution[0] * resolution[1]


def _sides(row):
    return "x".join(map(str, row["resolution"]))


def _commonest(values):
    counted = list(values)
    return max(dict.fromkeys(counted), key=counted.count)


def _lines(axes: Axes, curves: Curves, proportional: bool) -> None:
    """Draw curves on logarithmic axes, and a line of proportional growth through the top one."""
    for k, (name, points) in enumerate(curves.items()):
        axes.plot(
            *zip(*points, strict=True),
            color=figures.COLORS[k % len(figures.COLORS)],
            marker=figures.MARKERS[k % len(figures.MARKERS)],
            linestyle=figures.DASHES[k % len(figures.DASHES)],
            linewidth=1.6,
            label=name,
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(ticker.NullFormatter())
    if proportional and curves:
        (last, top) = max(points[-1] for points in curves.values())
        first = min(points[0][0] for points in curves.values())
        axes.plot(
            [first, last],
            [top * first / last, top],
            color=figures.INK,
            linewidth=0.8,
            linestyle=(0, (1, 3)),
            label="in proportion",
        )


def plans(options: argparse.Namespace) -> list[run.Plan]:
    """Return plans of all batches at one resolution, and of the other resolutions at one batch."""
    batches, sizes = sorted(set(options.batch)), sorted(set(options.resolution), key=_pixels)
    middle = batches[len(batches) // 2], sizes[len(sizes) // 2]
    return [
        run.Plan(
            models=tuple(options.models),
            options=run.read_options(options.options),
            resolution=size,
            batches=tuple(batches) if size == middle[1] else (middle[0],),
            precisions=(options.precision,),
            repeats=options.repeats,
            seconds=options.seconds,
        )
        for size in [middle[1], *(size for size in sizes if size != middle[1])]
    ]


def main(given: list[str] | None = None) -> int:
    """Measure and draw; return the exit status, 2 for a user error."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = arguments.Parser(description=__doc__, formatter_class=layout)
    add = parser.add_argument
    add("--models", nargs="+", default=("segnet_basic", "segnet"), metavar="NAME")
    add("--options", nargs="+", default=("width=16",), metavar="[NAME.]OPTION=VALUE")
    add("--precision", choices=("float32", "bfloat16"), default="float32")
    add("--batch", nargs="+", type=arguments.count, default=(2, 4, 8), metavar="N")
    sizes = ((48, 64), (96, 128), (192, 256))
    add("--resolution", nargs="+", type=arguments.size, default=sizes, metavar="HxW")
    add("--devices", nargs="+", type=arguments.count, default=(1, 2, 4), metavar="N")
    add("--repeats", type=arguments.count, default=5, metavar="N", help="(default: 5)")
    add(
        "--seconds",
        type=arguments.count,
        metavar="S",
        help="time after which no more rows are measured, for each kind",
    )
    add("--output", type=Path, required=True, metavar="DIR")
    given = sys.argv[1:] if given is None else given
    try:
        options = parser.parse_args(given)
        command = shlex.join(["python", "experiments/speed/growth.py", *given])
        wanted, folder = plans(options), options.output
        measure(wanted, command, folder)
        measure_devices(
            wanted[0], max(options.batch), options.devices, command, folder / OF_DEVICES
        )
        figure = draw(measurements.read([folder / ROWS]), timings.read([folder / OF_DEVICES]))
        for format in figures.FORMATS:
            write_whole(folder / f"{FIGURE}.{format}", figures.render(figure, format))
        _say(f"drawn in {folder / FIGURE}.svg and .png")
    except (UserError, OSError) as error:
        sys.stderr.write(f"growth.py: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
