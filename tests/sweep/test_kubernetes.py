"""Kubernetes manifests, checked against the published schemas and the needs of `segjax train`.

No API server takes part.
"""

import copy
import re
import shlex
from pathlib import Path

import jax
import kubernetes_validate
import pytest
import yaml

from segjax.cli.main import main
from segjax.errors import UserError
from segjax.runs import processes
from segjax.sweep import grids, kubernetes
from support import ROOT
from support.errors import command_refusal

QUICKSTART = "--config experiments/quickstart.py --workdir /mnt/runs/quickstart"
GPU = f"{QUICKSTART} --image segjax --claim runs"
TPU = f"{GPU} --accelerator tpu --tpu tpu-v5-lite-podslice --topology 2x4 --hosts 2"
EVERYTHING = (
    f"{GPU} --hosts 4 --devices 2 --node cloud.google.com/gke-spot=true --request cpu=8 "
    "--request memory=32Gi --env XLA_FLAGS=--xla_gpu_deterministic_ops=true --secret wandb "
    "--queue research --grace 300 --restarts 3 --config.steps=70"
)
DNS_LABEL = "[a-z]([a-z0-9-]*[a-z0-9])?"


@pytest.fixture
def manifests(monkeypatch, capsys):
    """Return a function that runs `segjax sweep` and parses the manifests that it prints."""
    monkeypatch.chdir(ROOT)

    def read(arguments):
        assert main(["sweep", "--launcher", "kubernetes", *shlex.split(arguments)]) == 0
        return list(yaml.safe_load_all(capsys.readouterr().out))

    return read


def validate(documents, version="1.37"):
    """Validate as `kubernetes-validate --strict` does, and raise where a schema is missing."""
    for document in documents:
        kubernetes_validate.validate(document, version, strict=True)


def pod_of(job):
    return job["spec"]["template"]["spec"]


def variables(job):
    return {entry["name"]: entry for entry in pod_of(job)["containers"][0]["env"]}


@pytest.mark.parametrize("arguments", [GPU, EVERYTHING, TPU], ids=["one host", "GPUs", "slice"])
def test_manifests_are_valid(manifests, arguments):
    documents = manifests(arguments)
    jobs = [document for document in documents if document["kind"] == "Job"]
    assert len(jobs) == 2
    assert len(documents) == (2 if arguments == GPU else 4)
    validate(documents)


def test_the_help_tells_the_defaults_of_a_cluster(capsys):
    with pytest.raises(SystemExit):
        main(["sweep", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    default = kubernetes.Cluster(image="segjax", claim="runs")
    for option, value in (
        ("--mount DIR mount point of the claim", default.mount),
        ("--accelerator {gpu,tpu} kind of device", default.accelerator),
        ("--hosts N pods per run", default.hosts),
        ("--grace SECONDS time to save when a pod is told to stop", default.grace),
        ("--restarts N restarts per run after crashes; disruptions do not count", default.restarts),
    ):
        assert f"{option} (default: {value})" in said


def test_invalid_manifests_fail_the_validation(manifests):
    service, job = manifests(f"{TPU} --only loss.class_weights=none,seed=0")
    broken = [copy.deepcopy(job) for _ in range(3)]
    pod_of(broken[0])["restartPolcy"] = pod_of(broken[0]).pop("restartPolicy")
    broken[1]["spec"]["completions"] = "four"
    broken[2]["spec"]["podFailurePolicy"]["rules"][0]["onPodCondition"] = []
    for document in broken:
        with pytest.raises(kubernetes_validate.ValidationError):
            validate([document])
    with pytest.raises(kubernetes_validate.SchemaNotFoundError):
        validate([{**service, "kind": "Sirvice"}])


@pytest.mark.parametrize("name", ["gpu", "tpu"])
def test_the_command_in_an_example_prints_the_example(name, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    example = (ROOT / "launch" / "kubernetes" / f"{name}.yaml").read_text()
    made_by = example.splitlines()[0].removeprefix("# Made by: segjax ")
    assert main(shlex.split(made_by)) == 0
    assert capsys.readouterr().out == example
    for version in ("1.31", "1.37"):  # the oldest with every field, and the newest known
        validate(yaml.safe_load_all(example), version)


def test_the_pods_of_a_run_find_each_other(manifests):
    documents = manifests(EVERYTHING)
    for service, job in zip(documents[::2], documents[1::2], strict=True):
        name = job["metadata"]["name"]
        assert service["spec"]["clusterIP"] == "None"
        # The Job controller labels pods with the name of the Job, and names them by their index.
        assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": name}
        assert pod_of(job)["subdomain"] == service["metadata"]["name"]
        found = variables(job)
        host, _, port = found["JAX_COORDINATOR_ADDRESS"]["value"].rpartition(":")
        assert host == f"{name}-0.{service['metadata']['name']}"
        assert port.isdigit()
        assert found["JAX_NUM_PROCESSES"]["value"] == "4"
        index = found["JAX_PROCESS_ID"]["valueFrom"]["fieldRef"]["fieldPath"]
        assert index == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
        spec = job["spec"]
        assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == (
            *("Indexed", 4, 4),
        )


def test_a_process_joins_by_the_variables_of_its_pod(manifests, monkeypatch):
    _, job = manifests(f"{EVERYTHING} --only loss.class_weights=none,seed=0")
    joined = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *given, **_: joined.append(given))
    found = variables(job)
    processes.join({name: entry.get("value", "3") for name, entry in found.items()})
    assert joined == [(found["JAX_COORDINATOR_ADDRESS"]["value"], 4, 3)]


def test_a_run_on_one_host_sets_no_variables_for_others(manifests):
    for job in manifests(GPU):
        assert job["spec"]["completions"] == 1
        assert not [name for name in variables(job) if name.startswith("JAX_NUM")]
        assert "subdomain" not in pod_of(job)


def test_a_tpu_slice_has_one_job_and_the_variables_of_gke(manifests):
    service, job = manifests(f"{TPU} --only loss.class_weights=none,seed=0")
    pod, name = pod_of(job), job["metadata"]["name"]
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "2x4",
    }
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"google.com/tpu": "4"}
    # GKE requires these before it sets TPU_WORKER_HOSTNAMES and TPU_WORKER_ID.
    assert (job["spec"]["completionMode"], job["spec"]["parallelism"]) == ("Indexed", 2)
    assert pod["subdomain"] == service["metadata"]["name"]
    assert "JAX_NUM_PROCESSES" not in variables(job)
    assert container["command"][-1] == "--distributed"
    together, apart = (
        pod["affinity"][kind]["requiredDuringSchedulingIgnoredDuringExecution"][0]
        for kind in ("podAffinity", "podAntiAffinity")
    )
    assert together["labelSelector"]["matchExpressions"][0]["values"] == [name]
    assert apart["labelSelector"]["matchExpressions"][1]["operator"] == "NotIn"
    assert together["topologyKey"] == apart["topologyKey"] == "cloud.google.com/gke-nodepool"


def test_failed_pods_are_replaced_and_disruptions_do_not_count(manifests):
    _, job = manifests(f"{EVERYTHING} --only loss.class_weights=none,seed=0")
    spec = job["spec"]
    assert spec["backoffLimit"] == 3 * 4
    assert "backoffLimitPerIndex" not in spec
    assert spec["podReplacementPolicy"] == "Failed"
    assert spec["successPolicy"] == {"rules": [{"succeededIndexes": "0"}]}
    assert pod_of(job)["restartPolicy"] == "Never"
    assert pod_of(job)["terminationGracePeriodSeconds"] == 300
    (container,) = pod_of(job)["containers"]
    statuses = {}
    for rule in spec["podFailurePolicy"]["rules"]:
        if "onExitCodes" in rule:
            assert rule["onExitCodes"]["containerName"] == container["name"]
            assert rule["onExitCodes"]["operator"] == "In"
            statuses |= dict.fromkeys(rule["onExitCodes"]["values"], rule["action"])
        else:
            assert rule["action"] == "Ignore"
            assert rule["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert statuses == {143: "Ignore", 2: "FailJob"}
    assert spec["suspend"] is True
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "research"


def test_pods_run_the_command_of_the_sweep_on_the_claim(manifests):
    jobs = [document for document in manifests(EVERYTHING) if document["kind"] == "Job"]
    grid = grids.load_points("experiments/quickstart.py", {"steps": "70"})
    for job, point in zip(jobs, grid, strict=True):
        (container,) = pod_of(job)["containers"]
        workdir = Path("/mnt/runs/quickstart")
        assert container["command"] == grids.train_command(
            "experiments/quickstart.py", point, workdir
        )
        assert job["metadata"]["annotations"]["segjax/run"] == point.name
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        claims = {
            volume["name"]: volume["persistentVolumeClaim"]["claimName"]
            for volume in pod_of(job)["volumes"]
            if "persistentVolumeClaim" in volume
        }
        assert [(mounts[name], claim) for name, claim in claims.items()] == [("/mnt/runs", "runs")]
        assert container["resources"] == {
            "limits": {"nvidia.com/gpu": "2"},
            "requests": {"cpu": "8", "memory": "32Gi"},
        }
        assert variables(job)["XLA_FLAGS"]["value"] == "--xla_gpu_deterministic_ops=true"


@pytest.mark.parametrize(
    ("experiment", "run"),
    [
        ("quickstart", "loss.class_weights=none,seed=0"),
        ("quickstart", "loss.class_weights=none,seed=00"),
        ("Skip_Strides", "a" * 200),
        ("Skip_Strides", "a" * 201),
        ("8_bits", "+,="),
        ("8_bits", "+,=="),
        ("___", "default"),
        ("ü", "é"),
    ],
)
def test_job_names_are_dns_labels_with_room_for_the_index(experiment, run):
    name = kubernetes.job_name(experiment, run, ["segjax", experiment, run])
    assert re.fullmatch(DNS_LABEL, name)
    assert len(f"{name}-{kubernetes.MOST_HOSTS - 1}") <= 63
    assert name != kubernetes.job_name(experiment, run, ["segjax", experiment, run, "--config.a=1"])
    assert name == kubernetes.job_name(experiment, run, ["segjax", experiment, run])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (f"{GPU} --hosts 0", "argument --hosts: expected an integer >= 1, found '0'"),
        (f"{GPU} --hosts 1001", "--hosts 1001, expected at most 1000"),
        (f"{GPU} --hosts 3", "batch_size / micro_batches is 8, which 3 hosts do not divide"),
        (f"{GPU} --topology 2x4", "--accelerator gpu does not take --topology"),
        (f"{GPU} --accelerator tpu --topology 2x4", "--accelerator tpu needs --tpu"),
        (f"{TPU} --devices 8", "--topology 2x4 has 8 chips, but --hosts 2 of --devices 8 have 16"),
        (TPU.replace("2x4", "2by4"), "--topology 2by4, expected chips such as 2x4"),
        (GPU.replace("/mnt/", ""), "--workdir runs/quickstart is not below /mnt/runs"),
        (f"{GPU} --request memory=lots", "--request memory=lots, expected a quantity"),
        (f"{GPU} --env PATH", "argument --env: expected NAME=VALUE, found 'PATH'"),
        (f"{GPU} --jobs 2", "--jobs does nothing without --launcher local or slurm"),
        (f"{GPU} --partition gpu", "--partition does nothing without --launcher slurm"),
        (QUICKSTART, "--launcher kubernetes needs --image"),
    ],
)
def test_a_mistake_gives_a_one_line_error(arguments, said, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    command = ["sweep", "--launcher", "kubernetes", *shlex.split(arguments)]
    assert said in command_refusal(capsys, command)


def test_variables_in_a_command_are_not_expanded():
    cluster = kubernetes.Cluster(image="segjax", claim="runs")
    (point,) = grids.load_points(str(ROOT / "experiments/segnet.py"), {}, seeds=[0])
    odd = grids.Point(point.name, {"model.pretrained": "$(HOME)/vgg.npz"}, point.config)
    (job,) = kubernetes.build_manifests("f.py", [odd], Path("/mnt/runs/x"), cluster)
    # Kubernetes expands $(NAME), and turns $$(NAME) into a literal $(NAME).
    assert "--config.model.pretrained=$$(HOME)/vgg.npz" in pod_of(job)["containers"][0]["command"]
    with pytest.raises(UserError, match="is not an absolute path"):
        kubernetes.check_cluster(kubernetes.Cluster(image="segjax", claim="runs", mount="runs"))
    assert shlex.split(kubernetes.render([job], "a 'b c'").splitlines()[0])[-1] == "b c"


def test_a_line_break_in_the_command_stays_in_the_comment(manifests):
    jobs = manifests(f"{GPU} --env 'A=x\ny: [z'")
    assert variables(jobs[0])["A"]["value"] == "x\ny: [z"


def test_labels_are_ascii():
    assert kubernetes._label("straße_1.x") == "stra-e_1.x"
