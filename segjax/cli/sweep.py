"""`segjax sweep`: train the runs of a grid, on this machine or on a cluster."""

import argparse
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from segjax.cli.arguments import (
    OVERRIDES,
    add_choice,
    add_config,
    add_machine,
    count,
    number,
    setting,
)
from segjax.errors import UserError

SUMMARY = "Train the grid of a config"
DETAILS = (
    "Finished runs are skipped and failed ones retried, so it may be killed and started again. "
    f"{OVERRIDES}"
)

# Options of a cluster -> the fields that they set: of slurm_script.Options, of kubernetes.Cluster.
SLURM = {
    name: name
    for name in (
        *("partition", "account", "qos", "nodes", "processes_per_node", "gpus_per_node"),
        *("cpus_per_task", "memory", "constraint", "container_image", "container_mounts"),
        *("python", "setup", "sbatch", "most_requeues", "warning"),
    )
}
KUBERNETES = {
    **{name: name for name in ("image", "claim", "mount", "accelerator", "hosts", "devices")},
    **{name: name for name in ("tpu", "topology", "secret", "queue", "grace", "restarts")},
    "node": "nodes",
    "request": "requests",
    "env": "environment",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    parser.add_argument(
        "--workdir", required=True, type=Path, help="its run directories are made below"
    )
    add_choice(parser)
    add_machine(parser)
    parser.add_argument(
        "--launcher",
        choices=("local", "slurm", "kubernetes", "wandb"),
        default="local",
        help="local (default): on this machine; slurm: submit one job array; kubernetes, wandb: "
        "print manifests for kubectl, or a sweep definition for wandb",
    )

    instead = parser.add_mutually_exclusive_group()
    for flag, text in (
        ("--dry-run", "print the runs, their parameters, MACs and status, and the Slurm script"),
        ("--commands", "print the command of each run"),
        ("--status", "print how far the runs are"),
        ("--cancel", "cancel the runs' jobs on Slurm; running ones save first"),
        ("--resubmit", "submit the Slurm script again, with what was edited in it, for the rest"),
    ):
        instead.add_argument(flag, action="store_true", help=f"{text}, and stop")
    _add_slurm(parser.add_argument_group("with --launcher slurm"))
    _add_kubernetes(parser.add_argument_group("with --launcher kubernetes"))


def _add_slurm(group: argparse._ArgumentGroup) -> None:
    from segjax.sweep.slurm_script import Options

    again: dict[str, Any] = {"action": "append"}
    add = group.add_argument
    add("--partition", metavar="NAME")
    add("--account", metavar="NAME")
    add("--qos", metavar="NAME")
    add("--nodes", type=count, metavar="N", help="of each run (default: 1)")
    add("--processes-per-node", type=count, metavar="N", help="(default: 1, with all its GPUs)")
    add("--gpus-per-node", metavar="[TYPE:]N")
    add("--cpus-per-task", type=count, metavar="N", help="of each process")
    add("--memory", metavar="SIZE", help="of each node, such as 64G")
    add("--constraint", metavar="FEATURES", help="that the nodes have")
    add("--container-image", metavar="IMAGE", help="run in it (Pyxis and Enroot)")
    text = "beside the working directory and the workdir; may be repeated"
    add("--container-mounts", metavar="FROM:TO", help=text, **again)
    add("--python", help="one that has segjax (default: this one; in a container: python3)")
    text = "shell line before the run, such as 'module load cuda'; may be repeated"
    add("--setup", metavar="LINE", help=text, **again)
    text = "any other, such as --sbatch=--exclude=node7; may be repeated"
    add("--sbatch", metavar="OPTION", help=text, **again)
    text = f"of a run that had to stop (default: {Options.most_requeues})"
    add("--most-requeues", type=number, metavar="N", help=text)
    text = f"to save in, before the time limit (default: {Options.warning})"
    add("--warning", type=count, metavar="SECONDS", help=text)


def _add_kubernetes(group: argparse._ArgumentGroup) -> None:
    again: dict[str, Any] = {"action": "append", "type": setting}
    add = group.add_argument
    add("--image", help="with segjax, and its experiments/ in the working directory")
    add("--claim", metavar="NAME", help="the PersistentVolumeClaim that the workdir is on")
    add("--mount", metavar="DIR", help="where it is mounted (default: /mnt/runs)")
    add("--accelerator", choices=("gpu", "tpu"), help="(default: gpu)")
    add("--hosts", type=count, metavar="N", help="pods of a run (default: 1)")
    text = "GPUs or TPU chips of each host (default: 1 GPU, 4 chips)"
    add("--devices", type=count, metavar="N", help=text)
    add("--tpu", metavar="KIND", help="of GKE's nodes, such as tpu-v5-lite-podslice")
    add("--topology", metavar="CHIPS", help="of the slice, such as 2x4")
    add("--node", metavar="LABEL=VALUE", help="a label of the nodes; may be repeated", **again)
    add("--request", metavar="NAME=QUANTITY", help="of each pod, such as cpu=8", **again)
    add("--env", metavar="NAME=VALUE", help="an environment variable of the runs", **again)
    add("--secret", metavar="NAME", help="its keys become variables: WANDB_API_KEY")
    add("--queue", metavar="NAME", help="of Kueue: all pods of a run start, or none")
    text = "to save in, when a pod is told to stop (default: 120)"
    add("--grace", type=count, metavar="SECONDS", help=text)
    text = "of a run after crashes, disruptions not counted (default: 10)"
    add("--restarts", type=number, metavar="N", help=text)


def run(options: argparse.Namespace) -> int | None:
    from segjax import config
    from segjax.sweep import display, grids, local, status

    launcher = options.launcher
    slurm_fields = given(options, SLURM, "slurm")
    cluster_fields = given(options, KUBERNETES, "kubernetes")
    for flag, asked, launchers in (
        ("--cancel", options.cancel, ("slurm",)),
        ("--resubmit", options.resubmit, ("slurm",)),
        ("--jobs", options.jobs, ("local", "slurm")),
        ("--time-limit", options.time_limit, ("local", "slurm")),
    ):
        if asked and launcher not in launchers:
            raise UserError(f"{flag} does nothing without --launcher {' or '.join(launchers)}")

    spec, workdir = options.config, options.workdir
    overrides = config.parse_overrides(options.rest)
    if launcher == "wandb":  # W&B would hand out a run again that it does not hear of
        overrides.setdefault("wandb.mode", "online")
    points = grids.asked(spec, overrides, options.seeds, options.only)

    if options.commands:
        for point in points:
            print(shlex.join(grids.command(spec, point, workdir)))
    elif launcher == "slurm":
        print(_slurm(options, points, slurm_fields))
    elif options.dry_run:
        print(display.plan(points, status.snapshot(points, workdir)))
    elif options.status:
        print(display.report(points, status.snapshot(points, workdir)))
    elif launcher == "kubernetes":
        _print_manifests(options, points, cluster_fields)
    elif launcher == "wandb":
        _print_definition(options, points, overrides)
    else:
        jobs = local.default_jobs(options.jobs, os.environ)
        return local.run(spec, points, workdir, jobs, time_limit=options.time_limit)
    return None


def given(options: argparse.Namespace, fields: Mapping[str, str], launcher: str) -> dict[str, Any]:
    """Return the options of a cluster that were given, by the fields that they set."""
    found = {name: value for name in fields if (value := getattr(options, name)) is not None}
    if found and options.launcher != launcher:
        flag = "--" + next(iter(found)).replace("_", "-")
        raise UserError(f"{flag} does nothing without --launcher {launcher}")
    return {fields[name]: value for name, value in found.items()}


def _slurm(options: argparse.Namespace, points: Sequence[Any], fields: dict[str, Any]) -> str:
    from segjax.sweep import display, slurm, slurm_script, status

    if options.jobs == "gpus":
        raise UserError("--jobs gpus is for one machine, expected a number with --launcher slurm")
    asked = slurm_script.Options(time=options.time_limit, **fields)
    what = options.config, points, options.workdir, asked, options.jobs
    names = [point.name for point in points]
    if options.status:
        return slurm.report(points, options.workdir)
    if options.cancel:
        return slurm.cancel(options.workdir, names)
    if options.resubmit:
        return slurm.resubmit(options.workdir, names)
    if options.dry_run:
        plan = display.plan(points, status.snapshot(points, options.workdir))
        return f"{plan}\n\n{slurm.script(*what)}"
    return slurm.submit(*what)


def _print_manifests(options: argparse.Namespace, points: Any, fields: dict[str, Any]) -> None:
    from segjax.sweep import kubernetes

    for name in ("image", "claim"):
        if name not in fields:
            raise UserError(f"--launcher kubernetes needs --{name}")
    fields.setdefault("devices", {"gpu": 1, "tpu": 4}[fields.get("accelerator", "gpu")])
    for name in ("nodes", "requests", "environment"):
        fields[name] = dict(fields.get(name, ()))
    cluster = kubernetes.Cluster(**fields)
    documents = kubernetes.manifests(options.config, points, options.workdir, cluster)
    sys.stdout.write(kubernetes.render(documents, options.shell))


def _print_definition(options: argparse.Namespace, points: Any, overrides: Any) -> None:
    from segjax.sweep import wandb

    points = wandb.unfinished(points, options.workdir)
    content = wandb.definition(options.config, points, overrides, options.seeds, options.workdir)
    sys.stdout.write(wandb.render(content, options.shell))
