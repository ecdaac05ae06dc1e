"""`segjax sweep`: train the runs of a grid, on this machine or on a cluster."""

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from segjax.cli.arguments import (
    OVERRIDES,
    add_choice,
    add_config,
    add_machine,
    count,
    number,
    path,
    refuse_ignored,
    setting,
)
from segjax.errors import UserError

SUMMARY = "Train the grid of runs of a config, on this machine or a cluster"
DETAILS = (
    "The same command resumes: finished runs are skipped, stopped ones resume, failed ones are "
    f"retried. {OVERRIDES}"
)

# Option of a launcher: field that it sets, of slurm_script.Options or kubernetes.Cluster.
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
        "--workdir", required=True, type=path, help="folder for the run directories"
    )
    add_choice(parser)
    add_machine(parser)
    parser.add_argument(
        "--launcher",
        choices=("local", "slurm", "kubernetes", "wandb"),
        default="local",
        help="local (default): train here; slurm: submit a job array; kubernetes: print manifests "
        "for kubectl; wandb: print a sweep definition for `wandb sweep`",
    )

    instead = parser.add_argument_group("instead of training").add_mutually_exclusive_group()
    for flag, text in (
        ("--dry-run", "print the runs with parameters, MACs and status, and the Slurm script"),
        ("--commands", "print the `segjax train` command of each run"),
        ("--status", "print the progress of the runs"),
        ("--cancel", "cancel the Slurm jobs of the runs; running ones save first"),
        ("--resubmit", "submit the Slurm script, with your edits, for the missing runs"),
    ):
        instead.add_argument(flag, action="store_true", help=text)
    _add_slurm(parser.add_argument_group("with --launcher slurm"))
    _add_kubernetes(parser.add_argument_group("with --launcher kubernetes"))


def _add_slurm(group: argparse._ArgumentGroup) -> None:
    from segjax.sweep.slurm_script import Options

    again: dict[str, Any] = {"action": "append"}
    add = group.add_argument
    add("--partition", metavar="NAME", help="partition of the jobs")
    add("--account", metavar="NAME", help="account to charge")
    add("--qos", metavar="NAME", help="quality of service")
    add("--nodes", type=count, metavar="N", help="nodes per run (default: 1)")
    add(
        "--processes-per-node",
        type=count,
        metavar="N",
        help="processes per node (default: 1, with all GPUs of the node)",
    )
    add("--gpus-per-node", metavar="[TYPE:]N", help="GPUs per node, such as 4 or a100:4")
    add("--cpus-per-task", type=count, metavar="N", help="CPU cores per process")
    add("--memory", metavar="SIZE", help="memory per node, such as 64G")
    add("--constraint", metavar="FEATURES", help="required node features")
    add(
        "--container-image",
        metavar="IMAGE",
        help="container image to run in (with Pyxis and Enroot)",
    )
    text = "mount besides the current directory and the workdir; may be repeated"
    add("--container-mounts", metavar="FROM:TO", help=text, **again)
    text = "interpreter with segjax installed (default: this one; python3 in a container)"
    add("--python", help=text)
    text = "shell line before the run, such as 'module load cuda'; may be repeated"
    add("--setup", metavar="LINE", help=text, **again)
    text = "any other sbatch option, such as --sbatch=--exclude=node7; may be repeated"
    add("--sbatch", metavar="OPTION", help=text, **again)
    text = f"times that a stopped run is requeued (default: {Options.most_requeues})"
    add("--most-requeues", type=number, metavar="N", help=text)
    text = f"time to save before the time limit (default: {Options.warning})"
    add("--warning", type=count, metavar="SECONDS", help=text)


def _add_kubernetes(group: argparse._ArgumentGroup) -> None:
    again: dict[str, Any] = {"action": "append", "type": setting}
    add = group.add_argument
    add("--image", help="container image with segjax, and experiments/ in its working directory")
    add("--claim", metavar="NAME", help="PersistentVolumeClaim that holds the workdir")
    add("--mount", metavar="DIR", help="mount point of the claim (default: /mnt/runs)")
    add("--accelerator", choices=("gpu", "tpu"), help="kind of device (default: gpu)")
    add("--hosts", type=count, metavar="N", help="pods per run (default: 1)")
    text = "GPUs or TPU chips per host (default: 1 GPU, 4 chips)"
    add("--devices", type=count, metavar="N", help=text)
    add("--tpu", metavar="KIND", help="GKE's TPU type, such as tpu-v5-lite-podslice")
    add("--topology", metavar="CHIPS", help="chips of the TPU slice, such as 2x4")
    add("--node", metavar="LABEL=VALUE", help="required node label; may be repeated", **again)
    add(
        "--request",
        metavar="NAME=QUANTITY",
        help="resource request per pod, such as cpu=8; may be repeated",
        **again,
    )
    add("--env", metavar="NAME=VALUE", help="environment variable; may be repeated", **again)
    add(
        "--secret", metavar="NAME", help="Secret whose keys become variables, such as WANDB_API_KEY"
    )
    add("--queue", metavar="NAME", help="Kueue queue, which starts all pods of a run or none")
    text = "time to save when a pod is told to stop (default: 120)"
    add("--grace", type=count, metavar="SECONDS", help=text)
    text = "restarts per run after crashes; disruptions do not count (default: 10)"
    add("--restarts", type=number, metavar="N", help=text)


def run(options: argparse.Namespace) -> int | None:
    from segjax import config
    from segjax.sweep import display, grids, local, status

    launcher = options.launcher
    slurm_fields = given_options(options, SLURM, "slurm")
    cluster_fields = given_options(options, KUBERNETES, "kubernetes")
    for flag, given, launchers in (
        ("--cancel", options.cancel, ("slurm",)),
        ("--resubmit", options.resubmit, ("slurm",)),
        ("--jobs", options.jobs, ("local", "slurm")),
        ("--time-limit", options.time_limit, ("local", "slurm")),
    ):
        if given and launcher not in launchers:
            raise UserError(f"{flag} does nothing without --launcher {' or '.join(launchers)}")

    for instead in ("status", "cancel"):
        if getattr(options, instead):
            ignored = (*SLURM, *KUBERNETES, "jobs", "time_limit")
            refuse_ignored(options, f"with --{instead}", *ignored)

    spec, workdir = options.config, options.workdir
    overrides = config.parse_overrides(options.rest)
    if launcher == "wandb":  # W&B hands out a run again unless the run reports to it
        overrides.setdefault("wandb.mode", "online")
    points = grids.load_selection(spec, overrides, options.seeds, options.only)

    if options.commands:
        for point in points:
            print(shlex.join(grids.train_command(spec, point, workdir)))
    elif launcher == "slurm":
        print(_slurm(options, points, slurm_fields))
    elif options.dry_run:
        print(display.render_plan(points, status.read_statuses(points, workdir)))
    elif options.status:
        print(display.render_progress(points, status.read_statuses(points, workdir)))
    elif launcher == "kubernetes":
        _print_manifests(options, points, cluster_fields)
    elif launcher == "wandb":
        _print_definition(options, points, overrides)
    else:
        return local.run(spec, points, workdir, options.jobs, time_limit=options.time_limit)
    return None


def given_options(
    options: argparse.Namespace, fields: Mapping[str, str], launcher: str
) -> dict[str, Any]:
    """Return the options of a launcher that were given, keyed by the fields that they set.

    Raises:
      UserError: options of another launcher were given.
    """
    found = {name: value for name in fields if (value := getattr(options, name)) is not None}
    if found and options.launcher != launcher:
        flag = "--" + next(iter(found)).replace("_", "-")
        raise UserError(f"{flag} does nothing without --launcher {launcher}")
    return {fields[name]: value for name, value in found.items()}


def _slurm(options: argparse.Namespace, points: Sequence[Any], fields: dict[str, Any]) -> str:
    from segjax.sweep import display, slurm, slurm_script, status

    if options.jobs == "gpus":
        raise UserError("--jobs is gpus, expected a number with --launcher slurm")
    if options.container_mounts and not options.container_image:
        raise UserError("--container-mounts does nothing without --container-image")
    resources = slurm_script.Options(time=options.time_limit, **fields)
    sweep = options.config, points, options.workdir, resources, options.jobs
    names = [point.name for point in points]
    if options.status:
        return slurm.render_progress(points, options.workdir)
    if options.cancel:
        return slurm.cancel(options.workdir, names)
    if options.resubmit:
        why = "with --resubmit, which submits the script as it is"
        refuse_ignored(options, why, *SLURM, "jobs", "time_limit")
        if options.rest:
            slurm.refuse_other_commands(options.config, points, options.workdir)
        return slurm.resubmit(options.workdir, names)
    if options.dry_run:
        plan = display.render_plan(points, status.read_statuses(points, options.workdir))
        return f"{plan}\n\n{slurm.render_script(*sweep)}"
    return slurm.submit(*sweep)


def _print_manifests(options: argparse.Namespace, points: Any, fields: dict[str, Any]) -> None:
    from segjax.sweep import kubernetes

    for name in ("image", "claim"):
        if name not in fields:
            raise UserError(f"--launcher kubernetes needs --{name}")
    fields.setdefault("devices", {"gpu": 1, "tpu": 4}[fields.get("accelerator", "gpu")])
    for name in ("nodes", "requests", "environment"):
        fields[name] = dict(fields.get(name, ()))
    cluster = kubernetes.Cluster(**fields)
    documents = kubernetes.build_manifests(options.config, points, options.workdir, cluster)
    sys.stdout.write(kubernetes.render(documents, options.shell))


def _print_definition(options: argparse.Namespace, points: Any, overrides: Any) -> None:
    from segjax.sweep import wandb

    points = wandb.unfinished_points(points, options.workdir)
    content = wandb.build_definition(
        options.config, points, overrides, options.seeds, options.workdir
    )
    sys.stdout.write(wandb.render(content, options.shell))
