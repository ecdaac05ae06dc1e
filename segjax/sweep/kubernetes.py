"""Write a grid as Kubernetes manifests: an Indexed Job for each run, and a Service for its pods.

A run on several hosts is N pods of one Job, one process each. They find each other by the headless
Service: with GPUs at JAX_COORDINATOR_ADDRESS, on a TPU slice by the variables that GKE sets in the
pods of an Indexed Job of more than one pod that request TPUs and have a subdomain.

How a run survives. `segjax train` saves on SIGTERM and exits with 143, and a new start resumes. A
single process cannot be replaced, because JAX binds its setup to the processes that took part in
it. So when one process ends, all must end, and they do so by themselves:

- one is told to stop (a node is drained, a pod preempted): JAX tells the others, all save at the
  same step, all exit with 143;
- one dies (out of memory, a node is lost): the others miss its heartbeat and exit with an error.

Each pod that fails is replaced under the same index, and the new pods wait for each other, at most
five minutes.
Kubernetes counts failed pods, not incidents, so `backoffLimit` is restarts times hosts; disruptions
and exit status 143 do not count. (`backoffLimitPerIndex` would be wrong: once an index had used up
its limit, the others would wait for it.) Exit status 2, a mistake of the user, fails the Job at
once.

A replacement waits until its predecessor is gone, `podReplacementPolicy: Failed`, because the
predecessor holds the lock of the run directory. Process 0 writes the result, so the Job succeeds
when that process does.
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

PORT = 55527  # of the coordinator, process 0; JAX's own choice on Kubernetes
MOST_HOSTS = 1000
_LONGEST_NAME = 63 - len("-999")  # characters: a DNS label less the pod's index
_DIGITS = 8  # hexadecimal digits of the digest in a name

_JOB_LABEL = "batch.kubernetes.io/job-name"
_INDEX = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
_RESOURCES = {"gpu": "nvidia.com/gpu", "tpu": "google.com/tpu"}
# The accelerator comes first: a pod without one must fail, not compute on its CPU.
_PLATFORMS = {"gpu": "cuda,cpu", "tpu": "tpu,cpu"}
_QUANTITY = re.compile(r"\d+(\.\d+)?([numkMGTPE]|[KMGTPE]i)?")


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Settings that the pods of all runs share."""

    image: str
    claim: str  # PersistentVolumeClaim of access mode ReadWriteMany if several pods mount it
    mount: str = "/mnt/runs"  # absolute path at which the claim is mounted
    accelerator: str = "gpu"  # gpu or tpu
    hosts: int = 1  # pods per run
    devices: int = 1  # GPUs or TPU chips per host
    tpu: str = ""  # type of GKE's TPU nodes, such as tpu-v5-lite-podslice
    topology: str = ""  # chips along each side of the slice, such as 2x4
    nodes: Mapping[str, str] = dataclasses.field(default_factory=dict)  # required node labels
    requests: Mapping[str, str] = dataclasses.field(default_factory=dict)  # per pod, such as cpu: 8
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    secret: str = ""  # Secret whose keys become variables, such as WANDB_API_KEY
    queue: str = ""  # queue of Kueue, which starts all pods of a Job or none
    grace: int = 120  # seconds to save, between SIGTERM and SIGKILL
    restarts: int = 10  # per run after crashes; disruptions do not count


def build_manifests(
    spec: str, grid: Sequence[grids.Point], workdir: Path, cluster: Cluster
) -> list[dict[str, Any]]:
    """Return a Job for each run, preceded by its Service if the run has several hosts.

    Raises:
      UserError: the settings of the cluster are invalid, the workdir is outside the mount, or the
        hosts do not divide the batch of a run.
    """
    check_cluster(cluster)
    if not PurePosixPath(workdir).is_relative_to(cluster.mount):
        raise UserError(f"--workdir {workdir} is not below {cluster.mount}, the mount of the claim")
    cache = compilation_cache.share(workdir, cluster.environment)
    cluster = dataclasses.replace(cluster, environment={**cache, **cluster.environment})
    experiment = configs.experiment_name(spec)
    found = []
    for point in grid:
        _check_batches(point, cluster.hosts)
        command = grids.train_command(spec, point, workdir)
        if cluster.accelerator == "tpu" and cluster.hosts > 1:
            # Without this flag each host would train alone where GKE's variables are missing.
            command.append("--distributed")
        name = job_name(experiment, point.name, command)
        metadata = {
            "name": name,
            "labels": {
                "app.kubernetes.io/name": "segjax",
                "app.kubernetes.io/part-of": _label(experiment),
            },
            "annotations": {"segjax/run": point.name, "segjax/workdir": str(workdir / point.name)},
        }
        if cluster.hosts > 1:
            found.append(_service(metadata))
        found.append(_job(metadata, command, cluster))
    return found


def render(documents: Sequence[Mapping[str, Any]], shell: str) -> str:
    """Return manifests as YAML for `kubectl apply`, headed by the command that made it."""
    # As copies: for a part that occurs twice YAML would write an anchor such as &id001.
    copies = json.loads(json.dumps(documents))
    body = yaml.safe_dump_all(copies, sort_keys=False, width=math.inf)
    shell = shell.replace("\n", "\n# ")
    return f"# Made by: {shell}\n# Explained in segjax/sweep/kubernetes.py\n---\n{body}"


def job_name(experiment: str, run: str, command: Sequence[str]) -> str:
    """Return a DNS label that is unique to a command: `skips-seed-0-5d41402a`."""
    slug = re.sub("[^a-z0-9]+", "-", f"{experiment}-{run}".lower()).strip("-")
    if not slug[:1].isalpha():  # the name of a Service must begin with a letter
        slug = f"run-{slug}"
    digest = hashlib.sha256(shlex.join(command).encode()).hexdigest()[:_DIGITS]
    return f"{slug[: _LONGEST_NAME - _DIGITS - 1].rstrip('-')}-{digest}"


def check_cluster(cluster: Cluster) -> None:
    """Raise a UserError if Kubernetes would reject the settings, or no TPU slice matches them."""
    if cluster.hosts > MOST_HOSTS:
        raise UserError(f"--hosts {cluster.hosts}, expected at most {MOST_HOSTS}")
    if not PurePosixPath(cluster.mount).is_absolute():
        raise UserError(f"--mount {cluster.mount} is not an absolute path")
    for name, quantity in cluster.requests.items():
        if not _QUANTITY.fullmatch(quantity):
            raise UserError(f"--request {name}={quantity}, expected a quantity such as 8 or 32Gi")
    tpu = cluster.accelerator == "tpu"
    for flag, value in (("--tpu", cluster.tpu), ("--topology", cluster.topology)):
        if tpu != bool(value):
            verb = "needs" if tpu else "does not take"
            raise UserError(f"--accelerator {cluster.accelerator} {verb} {flag}")
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
    """Return text as a valid label value."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text)[:63].strip("-_.")


def _service(metadata):
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {
            "clusterIP": "None",  # headless: a DNS name for each pod
            "selector": {_JOB_LABEL: metadata["name"]},
            "publishNotReadyAddresses": True,  # processes must connect before any is ready
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
        spec = {"suspend": True, **spec}  # Kueue unsuspends the Job when all its pods fit
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
    resources = {"limits": {_RESOURCES[cluster.accelerator]: str(cluster.devices)}}
    if cluster.requests:
        resources["requests"] = dict(cluster.requests)
    volumes = [{"name": "runs", "persistentVolumeClaim": {"claimName": cluster.claim}}]
    mounts = [{"name": "runs", "mountPath": cluster.mount}]
    if cluster.accelerator == "gpu":
        # The default 64 MiB of shared memory are too little for NCCL between GPUs.
        volumes.append({"name": "shared-memory", "emptyDir": {"medium": "Memory"}})
        mounts.append({"name": "shared-memory", "mountPath": "/dev/shm"})
    pod: dict[str, Any] = {
        "restartPolicy": "Never",  # as podFailurePolicy requires: pods are replaced, not restarted
        "terminationGracePeriodSeconds": cluster.grace,
        # Process 1 ignores a SIGTERM before its handler is set, so training must not be process 1.
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
            # Otherwise Kubernetes would expand $(NAME).
            "command": [word.replace("$(", "$$(") for word in command],
            **source,
            "env": variables,
            "resources": resources,
            "volumeMounts": mounts,
        }
    ]
    pod["volumes"] = volumes
    return pod


def _one_slice(job):
    """Return the affinity that gives a Job one node pool, which is one TPU slice, to itself.

    Otherwise two Jobs with half a slice each could wait for each other forever.
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
