r"""Prints the Kubernetes manifests of a grid: an Indexed Job a run.

python launch/kubernetes.py --config experiments/quickstart.py --workdir /mnt/runs/quickstart \
    --image IMAGE --claim runs --hosts 2 --devices 4 > jobs.yaml
kubectl apply --filename jobs.yaml
"""

import shlex
import sys

from segjax.cli import arguments, command_line
from segjax.sweep import grids, kubernetes


def main(given: list[str]) -> int:
    parser = command_line.grid_parser(
        "Prints the Kubernetes manifests of a grid, for kubectl apply."
    )
    add, default = parser.add_argument, kubernetes.Cluster(image="", claim="")
    add("--image", required=True, help="with segjax, and its experiments/ in the working directory")
    add("--claim", required=True, help="the PersistentVolumeClaim that the workdir is on")
    add("--mount", default=default.mount, help=f"where it is mounted (default: {default.mount})")
    add("--accelerator", default="gpu", choices=("gpu", "tpu"), help="(default: gpu)")
    add("--hosts", type=arguments.count, default=1, metavar="N", help="pods of a run (default: 1)")
    add(
        "--devices",
        type=arguments.count,
        metavar="N",
        help="GPUs or TPU chips of each host (default: 1 GPU, 4 chips)",
    )
    add("--tpu", default="", metavar="KIND", help="of GKE's nodes, such as tpu-v5-lite-podslice")
    add("--topology", default="", help="of the slice in chips, such as 2x4")
    add_setting = {"action": "append", "default": [], "type": arguments.setting}
    add("--node", **add_setting, metavar="LABEL=VALUE", help="that the nodes have")
    add("--request", **add_setting, metavar="NAME=QUANTITY", help="of each pod, such as cpu=8")
    add("--env", **add_setting, metavar="NAME=VALUE", help="a variable of the runs")
    add("--secret", default="", metavar="NAME", help="its keys become variables: WANDB_API_KEY")
    add("--queue", default="", metavar="NAME", help="of Kueue: all pods of a run start, or none")
    add(
        "--grace",
        type=arguments.count,
        default=default.grace,
        metavar="SECONDS",
        help=f"to save in, when a pod is told to stop (default: {default.grace})",
    )
    add(
        "--restarts",
        type=arguments.number,
        default=default.restarts,
        metavar="N",
        help=f"of a run after crashes; disruptions are not counted (default: {default.restarts})",
    )

    def act(options):
        cluster = kubernetes.Cluster(
            image=options.image,
            claim=options.claim,
            mount=options.mount,
            accelerator=options.accelerator,
            hosts=options.hosts,
            devices=options.devices or {"gpu": 1, "tpu": 4}[options.accelerator],
            tpu=options.tpu,
            topology=options.topology,
            nodes=dict(options.node),
            requests=dict(options.request),
            environment=dict(options.env),
            secret=options.secret,
            queue=options.queue,
            grace=options.grace,
            restarts=options.restarts,
        )
        grid = grids.asked(options.config, options.overrides, options.seeds, options.only)
        documents = kubernetes.manifests(options.config, grid, options.workdir, cluster)
        shell = shlex.join(["python", "launch/kubernetes.py", *given])
        sys.stdout.write(kubernetes.render(documents, shell))

    return command_line.run(parser, act, given)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
