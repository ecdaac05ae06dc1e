"""Growth of cost: the measured points, equal losses for any number of devices, the figure."""

import copy

import devices
import growth
import pytest
import timings

from segjax import models
from segjax.benchmark import measurements, run
from segjax.report import figures
from support import workers
from support.runs import OneLayer

pytestmark = pytest.mark.slow

NETWORK = {
    "model": "one_layer",
    "model_options": {},
    "resolution": [24, 32],
    "precision": "float32",
}
ARGUMENTS = ["--models", "segnet_basic", "--options", "width=2", "--batch", "1", "2", "4"]
SIZES = ["--resolution", "24x32", "48x64", "96x128", "--devices", "1", "2"]


def test_a_step_has_the_same_loss_on_any_number_of_devices(monkeypatch):
    monkeypatch.setitem(models.MODELS, "one_layer", OneLayer)
    one, two = (devices.measure(count, 2, batch=4, **NETWORK) for count in (1, 2))
    assert two["loss"] == pytest.approx(one["loss"], rel=growth.TOLERANCE)
    assert len(one["ms"]) == len(two["ms"]) == 2
    # Each holds half of the images, and the weights.
    assert one["bytes"] / 4 < two["bytes"] < one["bytes"]


@pytest.fixture
def asked(monkeypatch):
    """Return the requests (beside PyTorch, name, fields) of stand-ins for the worker processes."""
    fake = workers.replace(monkeypatch)

    def ask(request, count):
        fake.asked.append((False, "measure", {"devices": count}))
        return {"ms": [9.0 / count], "bytes": 64, "loss": 2.5 + 1e-3 * (count > 2), "device": "cpu"}

    monkeypatch.setattr(run, "check", lambda plan: None)  # it traces the networks
    monkeypatch.setattr(growth, "_ask", ask)
    return fake.asked


def test_each_point_is_measured_once_and_all_are_drawn(asked, tmp_path, capsys):
    command = [*ARGUMENTS, *SIZES, "--repeats", "1", "--output", str(tmp_path)]
    assert growth.main(command) == 0
    rows = measurements.read([tmp_path / growth.ROWS])
    points = [(row["resolution"], row["batch"]) for row in rows]
    assert points == [*(([48, 64], n) for n in (1, 2, 4)), ([24, 32], 2), ([96, 128], 2)]
    shown = timings.read([tmp_path / growth.OF_DEVICES])
    assert [(row["devices"], row["setting"]["batch"]) for row in shown] == [(1, 4), (2, 4)]
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")
    drawn = (tmp_path / "growth.svg").read_text()
    for text in ("segnet_basic (width 2)", "batch of 48x64", "96x128", "devices, batch 4 of 48x64"):
        assert f">{text}<" in drawn

    # The second time nothing is measured, and the figure is the same.
    asked.clear()
    assert growth.main(command) == 0
    assert {do for _, do, _ in asked} == {"network", "end"}  # for the name of the device
    assert (tmp_path / "growth.svg").read_text() == drawn

    # A loss that depends on the number of devices is an error, and adds no row.
    capsys.readouterr()
    place = command.index("--devices") + 1
    command[place : place + 2] = ["4"]
    assert growth.main(command) == 2
    assert "growth.py: segnet_basic: loss 2.5010000 on 4, 2.5000000 on 1" in capsys.readouterr().err
    assert timings.read([tmp_path / growth.OF_DEVICES]) == shown


def test_networks_have_distinct_names(asked, tmp_path):
    command = [*ARGUMENTS, *SIZES, "--repeats", "1", "--output", str(tmp_path)]
    assert growth.main(command) == 0
    rows = measurements.read([tmp_path / growth.ROWS])
    others = copy.deepcopy(rows)
    for row in others:
        row["model"] = "unet"
    figure = growth.draw([*rows, *others], timings.read([tmp_path / growth.OF_DEVICES]))
    first, second, _ = figure.axes[0].get_lines()
    assert (first.get_color(), second.get_color()) == figures.COLORS[:2]
    assert first.get_marker() != second.get_marker()
    assert first.get_linestyle() != second.get_linestyle()
