"""A grid as Kubernetes manifests: each run an Indexed Job, with a headless Service for its pods.

A run of several hosts is N pods of one Job, one process each. They find each other by the Service:
with GPUs at JAX_COORDINATOR_ADDRESS, on a slice of TPUs by what GKE puts into the environment of
pods that ask for TPUs, have a subdomain and belong to an Indexed Job of more than one.

How a run survives. `segjax train` saves on SIGTERM and exits with 143, and a start goes on. One
process cannot be replaced alone: what JAX has set up is bound to the processes that set it up. So
all must end when one does, and they do by themselves:

- one is told to stop (a node is drained, a pod preempted): JAX tells the others, all save at the
  same step, all exit with 143;
- one dies (out of memory, a node is lost): the others miss its heartbeat and end with an error.

Each pod that ends in failure is replaced, index for index, and the new ones wait for each other.
What Kubernetes counts are pods, not incidents, so `backoffLimit` is the restarts times the hosts;
disruptions and 143 are not counted. (`backoffLimitPerIndex` would be wrong: when one index had
spent its share, the others would wait for it.) A mistake of the user, 2, fails the Job at once.

A replacement waits until its predecessor is gone, `podReplacementPolicy: Failed`: the predecessor
holds the lock of the workdir. Process 0 writes the result, so its success is that of the Job.
"""

import dataclasses
import hashlib
import json
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from segjax import config as configs
from segjax.errors import UserError
from segjax.runs import compilation_cache
from segjax.sweep import grids

PORT = 55527  # of the coordinator, process 0; the one that JAX takes for Kubernetes
MOST_HOSTS = 1000
_LONGEST_NAME = 63 - len("-999")  # of a DNS label, with the pod's index after it
_DIGITS = 8  # of the digest in a name

_JOB_LABEL = "batch.kubernetes.io/job-name"
_INDEX = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
_RESOURCES = {"gpu": "nvidia.com/gpu", "tpu": "google.com/tpu"}
# The first is asked for, so that a pod without it fails rather than computes on its CPU.
_PLATFORMS = {"gpu": "cuda,cpu", "tpu": "tpu,cpu"}
_QUANTITY = re.compile(r"\d+(\.\d+)?([numkMGTPE]|[KMGTPE]i)?")


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Settings that the pods of all runs share."""

    image: str
    claim: str  # a PersistentVolumeClaim; of access mode ReadWriteMany, if several pods mount it
    mount: str = "/mnt/runs"  # where it is mounted
    accelerator: str = "gpu"  # gpu or tpu
    hosts: int = 1  # pods of a run
    devices: int = 1  # GPUs or TPU chips of each host
    tpu: str = ""  # the kind of GKE's TPU nodes, such as tpu-v5-lite-podslice
    topology: str = ""  # of the slice in chips, such as 2x4
    nodes: Mapping[str, str] = dataclasses.field(default_factory=dict)  # labels that they must have
    requests: Mapping[str, str] = dataclasses.field(default_factory=dict)  # such as cpu: 8
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    secret: str = ""  # a Secret whose keys become variables, such as WANDB_API_KEY
    queue: str = ""  # of Kueue, which starts all pods of a Job or none
    grace: int = 120  # seconds between SIGTERM and SIGKILL, in which a run saves
    restarts: int = 10  # after crashes


def manifests(
    spec: str, grid: Sequence[grids.Point], workdir: Path, cluster: Cluster
) -> list[dict[str, Any]]:
    """A Service and a Job for each run, or the Job alone where it has one host.

    Raises:
      UserError: the cluster is not one, or its hosts do not divide the batch of a run.
    """
    check(cluster)
    if not PurePosixPath(workdir).is_relative_to(cluster.mount):
        raise UserError(f"--workdir {workdir} is not below {cluster.mount}, where the claim is")
    cache = compilation_cache.share(workdir, cluster.environment)
    cluster = dataclasses.replace(cluster, environment={**cache, **cluster.environment})
    found = []
    for point in grid:
        _check_batches(point, cluster.hosts)
        command = grids.command(spec, point, workdir)
        if cluster.accelerator == "tpu" and cluster.hosts > 1:
            # Without GKE's variables each host would take itself for the whole.
            command.append("--distributed")
        name = job_name(configs.experiment_name(spec), point.name, command)
        metadata = {
            "name": name,
            "labels": {
                "app.kubernetes.io/name": "segjax",
                "app.kubernetes.io/part-of": _label(configs.experiment_name(spec)),
            },
            "annotations": {"segjax/run": point.name, "segjax/workdir": str(workdir / point.name)},
        }
        if cluster.hosts > 1:
            found.append(_service(metadata))
        found.append(_job(metadata, command, cluster))
    return found


def render(documents: Sequence[Mapping[str, Any]], shell: str) -> str:
    """A file for `kubectl apply --filename`, headed by the command that made it."""
    plain = json.loads(json.dumps(documents))  # else YAML names what occurs twice, &id001
    body = yaml.safe_dump_all(plain, sort_keys=False, width=math.inf)
    return f"# Made by: {shell}\n# Why it is so: segjax/sweep/kubernetes.py\n---\n{body}"


def job_name(experiment: str, run: str, command: Sequence[str]) -> str:
    """A DNS label of its own for what is run and where it is written: `skips-seed-0-5d41402a`."""
    slug = re.sub("[^a-z0-9]+", "-", f"{experiment}-{run}".lower()).strip("-")
    if not slug[:1].isalpha():  # which the name of a Service must begin with
        slug = f"run-{slug}"
    digest = hashlib.sha256(shlex.join(command).encode()).hexdigest()[:_DIGITS]
    return f"{slug[: _LONGEST_NAME - _DIGITS - 1].rstrip('-')}-{digest}"


def check(cluster: Cluster) -> None:
    """Refuses a cluster that Kubernetes would refuse, or that no slice of TPUs is like."""
    if cluster.hosts > MOST_HOSTS:
        raise UserError(f"--hosts {cluster.hosts}, expected at most {MOST_HOSTS}")
    if not PurePosixPath(cluster.mount).is_absolute():
        raise UserError(f"--mount {cluster.mount} is not an absolute path")
    for name, quantity in cluster.requests.items():
        if not _QUANTITY.fullmatch(quantity):
            raise UserError(f"--request {name}={quantity}: expected a quantity such as 8 or 32Gi")
    tpu = cluster.accelerator == "tpu"
    for flag, value in (("--tpu", cluster.tpu), ("--topology", cluster.topology)):
        if tpu != bool(value):
            found = "needs" if tpu else "does without"
            raise UserError(f"--accelerator {cluster.accelerator} {found} {flag}")
    if tpu:
        sides = cluster.topology.split("x")
        if not all(side.isdigit() and int(side) for side in sides):
            raise UserError(f"--topology {cluster.topology}, expected chips such as 2x4 or 2x2x4")
        chips, asked = math.prod(map(int, sides)), cluster.hosts * cluster.devices
        if chips != asked:
            raise UserError(
                f"--topology {cluster.topology} has {chips} chips, but --hosts {cluster.hosts} of "
                f"--devices {cluster.devices} have {asked}"
            )


def _check_batches(point, hosts):
    config = point.config
    for field, share in (
        ("batch_size / micro_batches", config.batch_size // config.micro_batches),
        ("eval_batch_size", config.eval_batch_size),
    ):
        if share % hosts:
            raise UserError(
                f"run {point.name}: {field} is {share}, which {hosts} hosts do not divide"
            )


def _label(text):
    """A label's value."""
    return re.sub(r"[^\w.-]+", "-", text)[:63].strip("-_.")


def _service(metadata):
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {
            "clusterIP": "None",  # headless: a name for each pod
            "selector": {_JOB_LABEL: metadata["name"]},
            "publishNotReadyAddresses": True,  # the processes meet before any is ready
        },
    }


def _job(metadata, command, cluster):
    container = "train"
    spec = {
        "completionMode": "Indexed",
        "completions": cluster.hosts,
        "parallelism": cluster.hosts,
        "backoffLimit": cluster.restarts * cluster.hosts,
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": {
            "rules": [
                {
                    "action": "Ignore",
                    "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
                },
                _on_exit("Ignore", container, 143),
                _on_exit("FailJob", container, 2),
            ]
        },
        "successPolicy": {"rules": [{"succeededIndexes": "0"}]},
        "template": {
            "metadata": {"labels": metadata["labels"], "annotations": metadata["annotations"]},
            "spec": _pod(metadata["name"], container, command, cluster),
        },
    }
    if cluster.queue:
        queued = metadata["labels"] | {"kueue.x-k8s.io/queue-name": cluster.queue}
        metadata = metadata | {"labels": queued}
        spec = {"suspend": True, **spec}  # until Kueue has room for all of it
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec}


def _on_exit(action, container, status):
    return {
        "action": action,
        "onExitCodes": {"containerName": container, "operator": "In", "values": [status]},
    }


def _pod(name, container, command, cluster):
    environment = {
        "JAX_PLATFORMS": _PLATFORMS[cluster.accelerator],
        "TFDS_DATA_DIR": f"{cluster.mount}/tensorflow_datasets",
        **cluster.environment,
    }
    variables = [{"name": key, "value": value} for key, value in environment.items()]
    if cluster.hosts > 1 and cluster.accelerator == "gpu":
        variables += [
            {"name": "JAX_COORDINATOR_ADDRESS", "value": f"{name}-0.{name}:{PORT}"},
            {"name": "JAX_NUM_PROCESSES", "value": str(cluster.hosts)},
            {"name": "JAX_PROCESS_ID", "valueFrom": {"fieldRef": {"fieldPath": _INDEX}}},
        ]
    resources: dict[str, Any] = {
        "limits": {_RESOURCES[cluster.accelerator]: str(cluster.devices)},
    }
    if cluster.requests:
        resources["requests"] = dict(cluster.requests)
    volumes = [{"name": "runs", "persistentVolumeClaim": {"claimName": cluster.claim}}]
    mounts = [{"name": "runs", "mountPath": cluster.mount}]
    if cluster.accelerator == "gpu":
        # The 64 MiB that a container has of its own are too few for NCCL between GPUs.
        volumes.append({"name": "shared-memory", "emptyDir": {"medium": "Memory"}})
        mounts.append({"name": "shared-memory", "mountPath": "/dev/shm"})
    pod: dict[str, Any] = {
        "restartPolicy": "Never",  # podFailurePolicy wants it: pods are replaced, not restarted
        "terminationGracePeriodSeconds": cluster.grace,
        # Then the training is not process 1, which a SIGTERM before its handler would pass by.
        "shareProcessNamespace": True,
    }
    if cluster.hosts > 1:
        pod["subdomain"] = name
    nodes = dict(cluster.nodes)
    if cluster.accelerator == "tpu":
        nodes = {
            "cloud.google.com/gke-tpu-accelerator": cluster.tpu,
            "cloud.google.com/gke-tpu-topology": cluster.topology,
            **nodes,
        }
        if cluster.hosts > 1:
            pod["affinity"] = _one_slice(name)
    if nodes:
        pod["nodeSelector"] = nodes
    source = {"envFrom": [{"secretRef": {"name": cluster.secret}}]} if cluster.secret else {}
    pod["containers"] = [
        {
            "name": container,
            "image": cluster.image,
            "command": [word.replace("$(", "$$(") for word in command],  # not a variable's place
            **source,
            "env": variables,
            "resources": resources,
            "volumeMounts": mounts,
        }
    ]
    pod["volumes"] = volumes
    return pod


def _one_slice(job):
    """All pods of a Job in one node pool, which is one slice, and those of no other Job there.

    Two Jobs with half a slice each would wait for ever.
    """
    pool = "cloud.google.com/gke-nodepool"
    mine = {"key": _JOB_LABEL, "operator": "In", "values": [job]}
    others = [
        {"key": _JOB_LABEL, "operator": "Exists"},
        {"key": _JOB_LABEL, "operator": "NotIn", "values": [job]},
    ]

    def where(expressions, **rest):
        term = {"labelSelector": {"matchExpressions": expressions}, "topologyKey": pool, **rest}
        return {"requiredDuringSchedulingIgnoredDuringExecution": [term]}

    return {
        "podAffinity": where([mine]),
        "podAntiAffinity": where(others, namespaceSelector={}),
    }
