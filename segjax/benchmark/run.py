"""Measure time, memory and size of the architectures, and of PyTorch implementations beside them.

Each side (segjax, and PyTorch if requested) runs in a process of its own for each network and
precision: `benchmark.worker`, or a script that answers the same requests. The sides are timed in
turn, so that other load on the machine affects them alike. A row is written as soon as it is
measured; rows that are in the file already are not measured again.
"""

import dataclasses
import datetime
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import segjax
from segjax import config as configs
from segjax import models
from segjax.benchmark import measurements, tables, worker
from segjax.benchmark.measurements import OURS
from segjax.benchmark.process import PROGRAMS, Failed, Side
from segjax.errors import UserError
from segjax.models import flops
from segjax.models.summary import NUM_CLASSES
from segjax.results.schema import Row
from segjax.runs import experiment
from segjax.system.progress import Bar

# Measured if no network is named.
NETWORKS = (
    *("segnet", "segnet_basic", "fcn32s", "fcn16s", "fcn8s", "deconvnet", "unet"),
    *("deeplab_largefov", "deeplab_aspp", "dilation8", "fc_densenet103"),
)
PEERS = Path(__file__).with_name("torch_peers.py")


@dataclasses.dataclass(frozen=True)
class Plan:
    """Networks and sizes to measure, and the implementations to compare with."""

    models: tuple[str, ...]
    # {"width": 16} for every model that has the option, {"deconvnet.fc_width": 1024} for one.
    options: dict[str, Any]
    resolution: tuple[int, int]
    batches: tuple[int, ...]
    precisions: tuple[str, ...]
    against: tuple[str, ...] = ()  # from measurements.AGAINST
    repeats: int = 20  # number of samples of each program and side
    torch_python: str = sys.executable
    seconds: float | None = None  # time after which no further row is measured

    def networks(self) -> list[dict[str, Any]]:
        """Return the networks at each precision, as requests for `benchmark.worker`."""
        return [
            {
                "model": name,
                "model_options": self._options(name),
                "num_classes": NUM_CLASSES,
                "resolution": list(self.resolution),
                "precision": precision,
            }
            for name in self.models
            for precision in self.precisions
        ]

    def _options(self, name: str) -> dict[str, Any]:
        fields = {field.name for field in dataclasses.fields(models.find(name))}
        of_all = {k: v for k, v in self.options.items() if k in fields}
        prefix = f"{name}."
        own = {k.removeprefix(prefix): v for k, v in self.options.items() if k.startswith(prefix)}
        return of_all | own


def check(plan: Plan) -> None:
    """Raise if the plan cannot be measured.

    Raises:
      UserError: a network or option is unknown, a network does not support the resolution, or
        PyTorch is missing.
    """
    for name in plan.models:
        models.create(name, NUM_CLASSES)
    if plan.against:
        try:
            done = subprocess.run(
                [plan.torch_python, "-c", "import torch, numpy"], capture_output=True, text=True
            )
        except OSError as error:
            raise UserError(f"--torch-python {plan.torch_python}: {error.strerror}") from None
        if done.returncode:
            said = (done.stderr.strip().splitlines() or ["no error message"])[-1]
            raise UserError(f"--against needs PyTorch in {plan.torch_python}, found: {said}")
    networks = plan.networks()
    used = {option for network in networks for option in network["model_options"]}
    for option in plan.options:
        name, _, field = option.rpartition(".")
        if field not in used or (name and name not in plan.models):
            raise UserError(f"none of {', '.join(plan.models)} has an option {option!r}")
    for network in networks:
        config = worker.config_of(1, **network)
        experiment.check_names(config)
        model = models.create(network["model"], NUM_CLASSES, **config.model.options)
        flops.forward_macs(model, (*plan.resolution, 3))


def read_options(texts: Sequence[str]) -> dict[str, Any]:
    """Parse `name=value` texts as options of models.

    Raises:
      UserError: a text has a different form.
    """
    options = {}
    for text in texts:
        name, equals, value = text.partition("=")
        *_, field = name.split(".")
        if not (all(part.isidentifier() for part in name.split(".")) and equals and value):
            raise UserError(f"--options {text!r}, expected OPTION=VALUE such as width=16")
        config = configs.default()
        configs.override(config, {f"model.options.{field}": value})
        options[name] = config.model.options[field]
    return options


def run(plan: Plan, command: str, output: Path | None) -> list[Row]:
    """Measure the rows that the file does not have; return all rows of the plan.

    Args:
      plan: a plan that passes `check`.
      command: the command as typed, for the rows.
      output: file to append the rows to, if any.
    """
    kept = measurements.read([output]) if output and output.exists() else []
    done = {measurements.key(row): row for row in kept}
    rows: list[Row] = []
    start, machine = time.monotonic(), None
    networks = plan.networks()
    with Bar("benchmark", len(networks) * len(plan.batches)) as bar:
        count, over = 0, False
        for network in networks:
            bench = _Network(plan, network)
            try:
                for batch in plan.batches:
                    point = {**network, "batch": batch, "sides": [OURS, *plan.against]}
                    machine = machine or bench.machine()
                    found = done.get(measurements.key(point | machine))
                    if found is None:
                        if plan.seconds is not None and time.monotonic() - start > plan.seconds:
                            if not over:
                                bar.line("time limit reached; repeat the command for the rest")
                            over = True
                            continue
                        bar.advance(count, f"{network['model']} x{batch} {network['precision']}")
                        found = bench.measure(batch, command)
                        if output:
                            measurements.append(output, found)
                        done[measurements.key(found)] = found
                        bar.line(_line(found))
                    rows.append(found)
                    count += 1
                    bar.advance(count)
            finally:
                bench.end()
    return rows


class _Network:
    """One network at one precision, on all sides."""

    def __init__(self, plan: Plan, network: dict[str, Any]):
        self.plan, self.network = plan, network
        self.sides: dict[str, Side] = {}
        self.said: dict[str, dict[str, Any]] = {}  # by side, its answer to "network"
        self.broken: dict[str, str] = {}  # by side, its error for any batch
        self.folder = tempfile.TemporaryDirectory()

    def machine(self) -> dict[str, Any]:
        """Return the fields of a row that name the device, the processor and the versions.

        Raises:
          UserError: our side cannot create the network.
        """
        self._open(OURS)
        if OURS in self.broken:
            raise UserError(f"{self.network['model']}: {self.broken[OURS]}")
        said = self.said[OURS]
        named = {name: said[name] for name in ("device", "processor") if name in said}
        return named | {"versions": {"segjax": segjax.__version__, **said["versions"]}}

    def _open(self, name):
        """Create the network on a side, once; ours must be first, since it writes the weights."""
        if name in self.sides:
            return
        command = [sys.executable, "-m", "segjax.benchmark.worker"]
        if name != OURS:
            command = [self.plan.torch_python, str(PEERS)]
            command += ["--compile"] if name == "torch.compile" else []
        self.sides[name] = Side(command)
        shared = self.folder.name if self.plan.against else None
        try:
            self.said[name] = self.sides[name].ask("network", folder=shared, **self.network)
        except Failed as error:
            self.broken[name] = str(error)

    def measure(self, batch: int, command: str) -> Row:
        """Measure a row; if a side fails, the row holds its error.

        Raises:
          UserError: our side cannot create the network.
        """
        machine = self.machine()
        names = (OURS, *self.plan.against)
        errors, prepared = dict.fromkeys(names), {}
        for name in names:
            self._open(name)
            errors[name] = self.broken.get(name)
            if not errors[name]:
                try:
                    prepared[name] = self.sides[name].ask("batch", batch=batch)
                except Failed as error:
                    errors[name] = str(error)
        samples: dict[str, dict[str, list[float]]]
        samples = {name: {program: [] for program in PROGRAMS} for name in names}
        peaks: dict[str, list[float]] = {"flops_per_second": [], "bytes_per_second": []}
        for turn in range(self.plan.repeats):
            # The first side in one turn is the last in the next.
            for name in names[:: 1 if turn % 2 == 0 else -1]:
                try:
                    for program in PROGRAMS:
                        if not errors[name]:
                            answer = self.sides[name].ask("time", program=program)
                            samples[name][program].append(answer["ms"])
                    if name == OURS and not errors[name]:
                        for rate, found in self.sides[name].ask("peaks").items():
                            peaks[rate].append(found)
                except Failed as error:
                    errors[name] = str(error)
        for name in names:
            if errors[name] and not self.broken.get(name):
                self._close(name)  # it may still hold memory
        ours = prepared.get(OURS, {})
        measured = all(peaks.values())
        return {
            "schema": measurements.SCHEMA,
            "kind": measurements.KIND,
            "command": command,
            **self.network,
            "batch": batch,
            "parameters": self.said[OURS]["parameters"],
            "macs": ours.get("macs"),
            "peaks": {k: float(np.median(v)) for k, v in peaks.items()} if measured else None,
            "sides": {
                name: self._side(name, errors[name], prepared.get(name), samples[name])
                for name in names
            },
            **machine,
            "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }

    def _side(self, name, error, prepared, samples):
        said = self.said.get(name, {})
        fields = {key: said.get(key) for key in ("device", "versions", "idle", "logits")}
        measured = dict.fromkeys(("ms", "compile_seconds", "memory", "bytes"))
        if not error:
            measured = {key: prepared.get(key) for key in measured}
            measured["ms"] = {program: _quartiles(found) for program, found in samples.items()}
        return {"error": error, **fields, **measured}

    def _close(self, name):
        self.sides.pop(name).end()

    def end(self) -> None:
        """End the processes of all sides."""
        for name in list(self.sides):
            self._close(name)
        self.folder.cleanup()


def _quartiles(samples):
    low, middle, high = np.quantile(samples, (0.25, 0.5, 0.75))
    return {
        "median": float(middle),
        "lower_quartile": float(low),
        "upper_quartile": float(high),
        "samples": len(samples),
    }


def _line(row):
    """Return a summary of a row in one line."""
    facts = measurements.Facts(row)
    texts = [f"{row['model']} x{row['batch']} {row['precision']}:"]
    if facts.error:
        return f"{texts[0]} {facts.error}"
    texts.append(f"forward {facts.ms('forward'):.2f} ms, step {facts.ms('training_step'):.2f} ms")
    for name, side in row["sides"].items():
        if name != OURS and side["error"]:
            texts.append(f"; {name}: {side['error']}")
        elif name != OURS:
            ratios = [tables.against(row, name, program) for program in PROGRAMS[:2]]
            texts.append(f"; {name} takes " + " and ".join(f"{r:.2f}" for r in ratios) + " of that")
    return " ".join(texts).replace(" ;", ";")
