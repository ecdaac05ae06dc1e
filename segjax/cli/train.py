"""`segjax train`: train, test and resume one run."""

import argparse
import os
from collections.abc import Iterator, Mapping

from segjax.cli.arguments import OVERRIDES, add_config, path
from segjax.errors import Diverged, Stopped, UserError, say, warn

SUMMARY = "Train and test one run, or resume it"
DETAILS = OVERRIDES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add_config(parser)
    add("--workdir", required=True, type=path, help="the run directory")
    add("--name", help="name of the run (default: the name of the config)")
    add(
        "--distributed",
        action="store_true",
        help="join the other processes of the run, as on a slice of TPU VMs; automatic under Slurm "
        "and from JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID",
    )


def run(options: argparse.Namespace) -> int:
    from segjax import config, train
    from segjax.runs import compilation_cache, processes
    from segjax.runs.experiment import Description

    compilation_cache.enable()
    processes.join(always=options.distributed)

    overrides = config.parse_overrides(options.rest)
    loaded = config.load(options.config, overrides)
    experiment = config.experiment_name(options.config)
    kept = config.recorded(options.config, overrides, loaded)
    description = Description(experiment, options.name or experiment, kept, options.shell)
    if processes.is_first():
        for line in _ignored(loaded.wandb.mode, overrides):
            warn(line)

    try:
        row = train.train(loaded, options.workdir, description)
    except Stopped as stopped:
        if processes.is_first():
            say(str(stopped))
        return stopped.status
    except Diverged as diverged:
        say(str(diverged))
        return 1
    except BrokenPipeError:  # an OSError, but no error
        raise
    except (UserError, OSError) as error:
        processes.exit_with_error(error)

    if processes.is_first():
        print(
            f"{row['split']} G {row['global_accuracy']:.1%}  C {row['class_accuracy']:.1%}  "
            f"mIoU {row['mean_iou']:.1%}, written to {options.workdir / 'result.json'}"
        )
    return 0


def _ignored(mode: str, overrides: Mapping[str, str]) -> Iterator[str]:
    """Yield what is asked of W&B without an effect, because of the config's wandb.mode."""
    asked = os.environ.get("WANDB_MODE", mode)
    if asked != mode:
        yield (
            f"WANDB_MODE={asked} has no effect, wandb.mode of the config is {mode}; use "
            f"--config.wandb.mode={asked}"
        )
    for name in ("wandb.project", "wandb.group", "wandb.artifact"):
        if name in overrides and mode == "disabled":
            yield f"--config.{name} has no effect while wandb.mode is disabled"
