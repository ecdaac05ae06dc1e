r"""Prints a grid as a W&B sweep definition, each of whose agents trains one run at a time.

python launch/wandb_sweep.py --config experiments/quickstart.py --workdir runs/quickstart \
    > sweep.yaml
wandb sweep sweep.yaml
wandb agent --forward-signals ENTITY/PROJECT/SWEEP   # on each machine, or for each GPU of one
"""

import shlex
import sys

from segjax.cli import command_line
from segjax.sweep import grids, wandb


def main(given: list[str]) -> int:
    parser = command_line.grid_parser("Prints a grid as a W&B sweep definition, for wandb sweep.")

    def act(options):
        # An agent's run that W&B does not hear of would be handed out again.
        options.overrides.setdefault("wandb.mode", "online")
        grid = wandb.unfinished(
            grids.asked(options.config, options.overrides, options.seeds, options.only),
            options.workdir,
        )
        content = wandb.definition(
            options.config, grid, options.overrides, options.seeds, options.workdir
        )
        shell = shlex.join(["python", "launch/wandb_sweep.py", *given])
        sys.stdout.write(wandb.render(content, shell))

    return command_line.run(parser, act, given)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
