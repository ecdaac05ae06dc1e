"""`segjax benchmark`: counts, rows, tables, and PyTorch if it is installed."""

import copy
import csv
import dataclasses
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from segjax import models
from segjax.benchmark import measurements, process, run, tables, worker
from segjax.benchmark.measurements import Facts
from segjax.cli.main import main
from segjax.errors import UserError
from segjax.report import table
from support import ROOT, workers
from support.errors import command_refusal
from support.runs import OneLayer

pytestmark = pytest.mark.slow

NETWORK = {
    "model": "segnet_basic",
    "model_options": {"width": 2},
    "num_classes": 11,
    "resolution": [24, 32],
    "precision": "float32",
}
PLAN = run.Plan(("segnet_basic",), {"width": 2}, (24, 32), (1, 4), ("float32",), repeats=2)


@pytest.fixture
def fake(monkeypatch):
    return workers.replace(monkeypatch)


def make_row(**changed):
    row = {
        "schema": 1,
        "kind": "benchmark",
        "command": "segjax benchmark",
        **copy.deepcopy(NETWORK),
        "batch": 1,
        "parameters": 1747,
        "macs": {"forward": 1000, "training_step": 2900},
        "peaks": {"flops_per_second": 1e6, "bytes_per_second": 1e7},
        "sides": {},
        "device": "abacus",
        "versions": {},
        "finished": "2026-01-01",
    }
    programs = worker.PROGRAMS
    row["sides"]["segjax"] = {
        "error": None,
        "device": "abacus",
        "versions": {},
        "idle": None,
        "ms": {
            name: {
                "median": ms,
                "lower_quartile": 0.9 * ms,
                "upper_quartile": 1.1 * ms,
                "samples": 20,
            }
            for name, ms in workers.TIMES.items()
        },
        "compile_seconds": dict.fromkeys(programs, 1.5),
        "memory": {
            name: dict.fromkeys(programs, 3_000_000 if name == "compiled" else None)
            for name in measurements.MEMORY
        },
        "bytes": dict.fromkeys(programs, 5000.0),
        "logits": None,
    }
    return row | changed


@pytest.fixture(scope="module")
def bench():
    """A network of two convolutions, 3x3 to 4 features and 1x1 to the classes, at batch 2."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.MODELS, "one_layer", OneLayer)
        patch.setattr(worker, "MATRIX_SIDE", {"cpu": 64})
        patch.setattr(worker, "COPIED_BYTES", {"cpu": 2**12})
        patch.setattr(process, "SAMPLE_SECONDS", 0.001)
        bench = worker.Bench()
        network = NETWORK | {"model": "one_layer", "model_options": {}}
        said = bench.network(folder=None, **network)
        yield bench, said, bench.batch(2)


def test_macs_are_those_counted_by_hand(bench):
    _, said, prepared = bench
    first, last = 24 * 32 * 9 * 3 * 4, 24 * 32 * 4 * 11
    assert prepared["macs"]["forward"] == 2 * (first + last)
    # Both kernels have a gradient, and the map between them; the image has none.
    assert prepared["macs"]["training_step"] == 2 * (2 * (first + last) + last)
    assert said["parameters"] == 9 * 3 * 4 + 4 + 2 * 4 + 4 * 11 + 11


def test_the_planned_memory_holds_at_least_the_arguments(bench):
    _, said, prepared = bench
    planned = prepared["memory"]["compiled"]
    image, logits = 4 * 2 * 24 * 32 * 3, 4 * 2 * 24 * 32 * 11
    assert planned["forward"] >= image + logits + 4 * said["parameters"]
    # Momentum is added to the parameters, which are updated in place.
    assert planned["training_step"] >= 8 * said["parameters"] + image // 4
    assert all(seconds > 0 for seconds in prepared["compile_seconds"].values())


def test_programs_cycle_through_the_batches_and_keep_the_weights(bench):
    bench, _, _ = bench
    before = _host_params(bench)
    seen = []
    inputs = bench.inputs["training_step"]
    assert len({x["image"].tobytes() for x in map(_host, inputs)}) == worker.DISTINCT
    for _ in range(worker.DISTINCT):
        _, _, raw = bench._arguments("training_step", bench.count)
        seen.append(next(k for k, x in enumerate(inputs) if x is raw))
        bench._run("training_step")
    assert sorted(seen) == list(range(worker.DISTINCT))
    for program in worker.PROGRAMS:
        assert bench.time(program)["ms"] > 0
    for path, leaf in before:
        np.testing.assert_allclose(dict(_host_params(bench))[path], leaf, atol=1e-6)
    assert all(rate > 0 for rate in bench.peaks().values())


def _host_params(bench):
    leaves = jax.tree.leaves_with_path(bench.state.variables["params"])
    return [(jax.tree_util.keystr(path), np.asarray(leaf)) for path, leaf in leaves]


def _host(raw):
    return {name: np.asarray(x) for name, x in raw.items()}


def test_reference_values_for_others_are_written_to_the_folder(bench, tmp_path):
    bench, _, _ = bench
    model = models.create("one_layer", 11)
    variables = worker.seeded_variables(model, (24, 32))
    bench._share(tmp_path, variables, model)
    weights = np.load(tmp_path / "weights.npz")
    assert sorted(x.shape for path, x in weights.items() if path.endswith("kernel")) == [
        (1, 1, 4, 11),
        (3, 3, 3, 4),
    ]
    assert all(x.min() > 0 for path, x in weights.items() if path.endswith("var"))
    assert np.load(tmp_path / "logits.npy").shape == (1, 24, 32, 11)
    assert np.abs(np.load(tmp_path / "logits.npy")).max() > 0.1


def test_rates_shares_and_backward_follow_from_a_row():
    facts = Facts(make_row(batch=8))
    assert facts.flops("forward") == 2000
    assert facts.arithmetic_ms("forward") == pytest.approx(2.0)
    assert facts.share("forward") == pytest.approx(0.5)
    assert facts.traffic_ms("forward") == pytest.approx(0.5)
    assert facts.ms("backward") == pytest.approx(5.0)
    assert facts.images_per_second("training_step") == pytest.approx(800)
    assert facts.spread("forward") == pytest.approx(0.2)
    assert facts.memory_mb("forward", "compiled") == pytest.approx(3.0)
    assert facts.memory_mb("forward", "device") is None


def test_rows_are_written_when_measured_and_not_measured_twice(fake, tmp_path):
    output = tmp_path / "rows.jsonl"
    rows = run.run(PLAN, "segjax benchmark", output)
    assert [row["batch"] for row in rows] == [1, 4]
    assert measurements.read([output]) == rows
    assert rows[0]["sides"]["segjax"]["ms"]["forward"]["samples"] == 2
    fake.asked.clear()
    assert run.run(PLAN, "another command", output) == rows
    assert [do for _, do, _ in fake.asked] == ["network", "end"]  # for the name of the device
    # A row beside PyTorch is another one.
    beside = dataclasses.replace(PLAN, against=("torch",))
    rows = run.run(beside, "segjax benchmark", output)
    assert len(measurements.read([output])) == 4
    assert tables.against(rows[0], "torch", "forward") == pytest.approx(3.0)
    assert tables.memory_against(rows[0], "torch", "training_step") == pytest.approx(2.0)


def test_a_kill_loses_only_the_row_being_measured(fake, monkeypatch, tmp_path):
    output = tmp_path / "rows.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr(fake, "ask", _interrupted(fake.ask))
        with pytest.raises(KeyboardInterrupt):
            run.run(PLAN, "segjax benchmark", output)
    assert fake.asked[-1][1] == "end"
    assert [row["batch"] for row in measurements.read([output])] == [1]
    assert len(run.run(PLAN, "segjax benchmark", output)) == 2


def _interrupted(ask):
    def interrupted(self, do, **request):
        if request.get("batch") == 4:
            raise KeyboardInterrupt
        return ask(self, do, **request)

    return interrupted


@pytest.mark.parametrize("changed", [{"processor": "another"}, {"versions": {"onednn": "3.2.0"}}])
def test_rows_of_another_processor_or_without_onednn_are_not_this_machines(changed):
    row = make_row(processor="Abacus, avx2")
    assert measurements.key(row) == measurements.key(row | {"finished": "later"})
    assert measurements.key(row) != measurements.key(row | changed)


@pytest.mark.parametrize(
    ("changed", "devices"),
    [
        ({}, ["cpu", "cpu"]),
        ({"processor": "another"}, ["cpu, Abacus, avx2", "cpu, another"]),
        ({"versions": {"onednn": "3.2.0"}}, ["cpu, oneDNN off", "cpu, oneDNN 3.2.0"]),
        ({"device": "abacus"}, ["cpu, oneDNN off", "abacus"]),
    ],
)
def test_rows_of_another_processor_or_onednn_are_told_apart(changed, devices):
    row = make_row(processor="Abacus, avx2", device="cpu", batch=4)
    rows = [row, row | changed]
    assert [record["device"] for record in tables.listing(rows).records] == devices
    if changed:
        drawn = table.draw(tables.paper(rows))
        assert all(f"float32 on {device} at 24x32" in drawn for device in devices)


def test_a_network_named_twice_is_measured_once(fake, tmp_path):
    plan = dataclasses.replace(PLAN, models=PLAN.models * 2)
    assert len(run.run(plan, "segjax benchmark", tmp_path / "rows.jsonl")) == 2 * len(PLAN.batches)
    assert len(measurements.read([tmp_path / "rows.jsonl"])) == len(PLAN.batches)


def test_sides_take_turns_and_alternate_in_being_first(fake):
    run.run(dataclasses.replace(PLAN, against=("torch",)), "", None)
    timed = [torch for torch, do, _ in fake.asked if do == "time"]
    assert timed == [*(3 * [False]), *(6 * [True]), *(3 * [False])] * 2


def test_out_of_memory_is_in_the_row_and_does_not_end_the_run(fake, tmp_path):
    fake.failing["batch"] = "out of memory"
    output = tmp_path / "rows.jsonl"
    rows = run.run(PLAN, "segjax benchmark", output)
    assert [row["sides"]["segjax"]["error"] for row in rows] == [None, "out of memory"]
    assert measurements.read([output]) == rows
    assert Facts(rows[1]).ms("forward") is None
    text = table.draw(tables.listing(rows))
    assert "segnet_basic (width 2) at batch 4 in float32, segjax: out of memory." in text
    # It is not part of the total, and the table shows its error.
    assert "segnet_basic (width 2)" in table.draw(tables.paper(rows))


def test_a_network_that_cannot_be_created_is_named(fake, monkeypatch):
    ask = fake.ask

    def without_unet(self, do, **request):
        if request.get("model") == "unet":
            raise process.Failed("out of memory")
        return ask(self, do, **request)

    monkeypatch.setattr(fake, "ask", without_unet)
    for names in (("unet",), ("segnet_basic", "unet")):
        with pytest.raises(UserError, match="unet: out of memory"):
            run.run(dataclasses.replace(PLAN, models=names), "", None)


def test_no_row_is_measured_after_the_time_limit(fake):
    assert run.run(dataclasses.replace(PLAN, seconds=-1.0), "", None) == []


def test_rows_that_are_there_are_shown_after_the_time_limit(fake, tmp_path):
    output = tmp_path / "rows.jsonl"
    later = run.run(dataclasses.replace(PLAN, batches=(4,)), "segjax benchmark", output)
    assert run.run(dataclasses.replace(PLAN, seconds=-1.0), "", output) == later


def test_the_error_of_a_dead_process_names_the_cause():
    script = "import os, sys; sys.stdin.readline(); {}"
    for end, said in (
        ("os.kill(os.getpid(), 9)", "out of memory (killed)"),
        ("sys.exit('no such thing')", "ended with status 1: no such thing"),
    ):
        side = process.Side([sys.executable, "-c", script.format(end)])
        with pytest.raises(process.Failed) as failed:
            side.ask("network")
        assert str(failed.value) == said
        with pytest.raises(process.Failed):
            side.ask("network")
        side.end()


def test_other_output_of_a_process_does_not_mix_with_its_answers():
    script = (
        "from segjax.benchmark import process\n"
        "def double(x):\n"
        "    print('by the way')\n"
        "    if x < 0: raise MemoryError\n"
        "    return {'x': 2 * x}\n"
        "process.serve({'double': double}, ValueError)"
    )
    side = process.Side([sys.executable, "-c", script])
    assert side.ask("double", x=3) == {"x": 6}
    with pytest.raises(process.Failed, match="out of memory"):
        side.ask("double", x=-1)
    assert side.ask("double", x=4) == {"x": 8}
    side.end()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cut", "rows.jsonl:1: damaged at column"),
        ("", "empty, expected rows of segjax benchmark"),
        ("[]", "rows.jsonl:1: found [], expected a benchmark row (an object)"),
        ({"kind": "result"}, "kind is \"result\", expected 'benchmark'"),
        ({"batch": 0}, "batch is 0, expected greater than or equal to 1"),
        ({"macs": {"forward": 1}}, "macs.training_step is missing"),
        ({"sides": {}}, "sides are [], expected segjax among them"),
        ({"sides": {"caffe": {}}}, "'segjax', 'torch' or 'torch.compile'"),
        ({"sides": {"segjax": {}}}, "sides.segjax.error is missing"),
    ],
)
def test_an_incomplete_row_is_refused(tmp_path, text, said, capsys):
    path = tmp_path / "rows.jsonl"
    whole = json.dumps(make_row())
    if text == "cut":
        text = whole[: len(whole) // 2]
    path.write_text(text if isinstance(text, str) else json.dumps(make_row() | text))
    assert said in command_refusal(capsys, ["table", "cost", "--results", str(path)])


def test_a_side_has_an_error_or_times():
    row = make_row()
    row["sides"]["segjax"]["error"] = "out of memory"
    with pytest.raises(UserError, match="both or neither of error and ms"):
        measurements.append(Path("nowhere"), row)


def test_the_papers_table_has_ours_beside_it_and_sums(tmp_path, capsys):
    rows = [
        make_row(model=model, model_options=options, batch=batch, resolution=[360, 480])
        for model, options in (
            ("segnet", {}),
            ("deconvnet", {"fc_width": 1024}),
            ("fcn8s", {}),  # not the paper's, whose upsampling is learned
        )
        for batch in (1, 4, 16)
    ]
    for row in rows:
        measurements.append(tmp_path / "rows.jsonl", row)
    arguments = ["table", "cost", "--results", str(tmp_path / "rows.jsonl"), "--format"]
    assert main([*arguments, "json"]) == 0
    lines = {row["network"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
    assert list(lines) == [
        *("SegNet", "DeepLab-LargeFOV", "FCN (learnt deconv)", "DeconvNet"),
        *("fcn8s", "total of both"),
    ]
    assert lines["SegNet"]["paper_forward_ms"] == 422.5
    assert lines["SegNet"]["ours_forward_ms"] == 4.0
    assert lines["SegNet"]["ours_backward_ms"] == 5.0
    assert lines["SegNet"]["ratio_forward_ms"] == pytest.approx(422.5 / 4)
    assert lines["FCN (learnt deconv)"]["ours_forward_ms"] is None
    assert lines["fcn8s"]["paper_forward_ms"] is None
    assert lines["total of both"]["paper_forward_ms"] == pytest.approx(422.5 + 474.65)
    assert lines["total of both"]["ours_training_mb"] == pytest.approx(2 * 3.0)
    assert lines["total of both"]["ratio_training_mb"] == pytest.approx((6803 + 9731) / 6)
    assert main([*arguments, "csv"]) == 0
    text = csv.DictReader(io.StringIO(capsys.readouterr().out.strip()))
    assert [line["network"] for line in text] == list(lines)
    for format in ("markdown", "latex"):
        assert main([*arguments, format]) == 0
        assert "float32 on abacus at 360x480" in capsys.readouterr().out


def test_rows_at_another_resolution_have_no_ratio_to_the_paper(tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    measurements.append(path, make_row(model="segnet", model_options={}, batch=1))
    assert main(["table", "cost", "--results", str(path), "--format", "json"]) == 0
    lines = {row["network"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
    assert lines["SegNet"]["ours_forward_ms"] == 4.0
    for name in ("SegNet", "total of both"):
        assert lines[name].get("ratio_forward_ms") is None


def test_the_command_of_a_row_names_no_local_folder(monkeypatch, capsys):
    commands = []

    def fake(plan, command, output):
        commands.append((command, plan.torch_python))
        raise UserError("enough")

    monkeypatch.setattr(run, "check", lambda plan: None)
    monkeypatch.setattr(run, "run", fake)
    assert main(["benchmark", "--against", "torch", "--torch-python", "/opt/torch/python3"]) == 2
    command = "segjax benchmark --against torch --torch-python python3"
    assert commands == [(command, "/opt/torch/python3")]


def test_all_rows_are_listed(tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    for batch in (1, 4):
        measurements.append(path, make_row(batch=batch))
    columns = ["--columns", "batch", "forward ms"]
    assert main(["table", "benchmark", "--results", str(path), *columns]) == 0
    assert capsys.readouterr().out.count("segnet_basic") == 2
    assert "needs --results" in command_refusal(capsys, ["table", "benchmark"])


def test_two_rows_for_one_line_are_refused(tmp_path):
    with pytest.raises(UserError, match="two rows have segnet_basic"):
        tables.paper([make_row(), make_row()])
    with pytest.raises(UserError, match="no row has batch 1 or 4"):
        tables.paper([make_row(batch=2)])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--models", "segnat"], "unknown model 'segnat'; did you mean 'segnet'?; known: "),
        (["--models", "segnet", "--options", "fc_width=3"], "has an option 'fc_width'"),
        (["--models", "segnet", "--options", "width=x"], "option 'width' of model segnet is 'x'"),
        (["--models", "segnet", "--options", "width"], "--options 'width', expected OPTION=VALUE"),
        (["--models", "deconvnet", "--resolution", "24x32"], "24x32 is too small for deconvnet"),
        (["--models", "segnet", "--against", "tensor"], "invalid choice: 'tensor'"),
        (
            ["--models", "segnet", "--against", "torch", "--torch-python", "/no/python"],
            "--torch-python /no/python: No such file",
        ),
    ],
)
def test_an_error_is_one_line_and_status_2(capsys, arguments, said):
    assert said in command_refusal(capsys, ["benchmark", *arguments])


def test_a_python_without_torch_is_named(monkeypatch, capsys):
    def fake(command, **_):
        return subprocess.CompletedProcess(command, 1, "", "ModuleNotFoundError: No module 'torch'")

    monkeypatch.setattr(run.subprocess, "run", fake)
    arguments = ["benchmark", "--models", "segnet", "--against", "torch"]
    assert "--against needs PyTorch in" in command_refusal(capsys, arguments)


def test_options_go_to_the_networks_that_have_them():
    options = run.read_options(["width=4", "fc_width=8", "deconvnet.fc_width=16"])
    plan = run.Plan(("segnet", "fcn8s", "deconvnet"), options, (1, 1), (1,), ("float32",))
    assert [network["model_options"] for network in plan.networks()] == [
        {"width": 4},
        {"width": 4, "fc_width": 8},
        {"width": 4, "fc_width": 16},
    ]


def _torch_python():
    """Return a Python that has torch: SEGJAX_TORCH_PYTHON, or this one."""
    python = os.environ.get("SEGJAX_TORCH_PYTHON") or sys.executable
    if subprocess.run([python, "-c", "import torch"], capture_output=True).returncode:
        return None
    return python


def test_the_command_for_a_gpu_runs_to_its_end_on_a_cpu(tmp_path):
    """At minimal size: one network, beside PyTorch if it is installed."""
    python = _torch_python()
    output = tmp_path / "rows.jsonl"
    done = subprocess.run(
        [
            *("bash", ROOT / "experiments/speed/gpu.sh", "--models", "segnet_basic"),
            *("--resolution", "24x32", "--options", "width=2", "--batch", "1", "--repeats", "1"),
            *("--precision", "float32"),
        ],
        env=os.environ
        | {"SEGJAX": str(Path(sys.executable).with_name("segjax")), "OUTPUT": str(output)}
        | ({"TORCH_PYTHON": python} if python else {})
        | {"AGAINST": "torch" if python else "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    (row,) = measurements.read([output])  # the second round has found it there
    assert done.stdout.count("segnet_basic x1 float32: forward") == 1
    assert "float32 on cpu at 24x32" in done.stdout
    assert row["sides"]["segjax"]["ms"]["training_step"]["median"] > 0
    if python:
        assert row["sides"]["torch"]["logits"]["greatest_difference"] < 1e-4


SMALL = {
    "segnet": {"width": 2},
    "segnet_basic": {"width": 4},
    "fcn32s": {"width": 2, "fc_width": 6},
    "fcn16s": {"width": 2, "fc_width": 6, "upsampling": "learnt"},
    "fcn8s": {"width": 2, "fc_width": 6, "padding": "same", "batch_norm": True},
    "deconvnet": {"width": 2, "fc_width": 6, "fc_kernel": 2},
    "unet": {"width": 2},
    "deeplab_largefov": {"width": 2, "fc_width": 6},
    "deeplab_aspp": {"width": 2, "fc_width": 6, "batch_norm": True},
    "dilation8": {"width": 2, "fc_width": 6},
}


@pytest.mark.parametrize("name", SMALL)
def test_a_peer_in_pytorch_computes_the_same(name, tmp_path):
    python = _torch_python()
    if python is None:
        pytest.skip("no PyTorch: SEGJAX_TORCH_PYTHON is unset and this Python has none")
    bench = worker.Bench()
    size = [33, 43] if name != "deconvnet" else [40, 45]
    network = NETWORK | {"model": name, "model_options": SMALL[name], "resolution": size}
    said = bench.network(folder=str(tmp_path), **network)
    peers = process.Side([python, str(run.PEERS)])
    theirs = peers.ask("network", folder=str(tmp_path), **network)
    peers.end()
    assert theirs["parameters"] == said["parameters"]
    assert theirs["logits"]["greatest"] > 0.01
    assert theirs["logits"]["greatest_difference"] < 1e-4 * max(1, theirs["logits"]["greatest"])
