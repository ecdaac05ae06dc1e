"""Ways of running a training step: all of them compute the same step; their rows."""

import jax
import levers
import numpy as np
import pytest
import timings

from segjax import models
from support.runs import OneLayer

pytestmark = pytest.mark.slow


def test_every_way_takes_the_same_step(monkeypatch):
    monkeypatch.setitem(models.MODELS, "one_layer", OneLayer)
    monkeypatch.setattr(levers.worker, "LEARNING_RATE", 0.1)
    bench = levers.Lever()
    bench.network(
        None,
        model="one_layer",
        model_options={},
        num_classes=11,
        resolution=[12, 16],
        precision="float32",
    )
    bytes_of = bench.place(2)
    assert list(bytes_of) == list(timings.KINDS["levers"][1])

    before = jax.tree.leaves(bench.state.variables["params"])
    results = {name: program(*given) for name, (program, given, _) in bench.programs.items()}
    plain = jax.tree.leaves(results["plain"][0].variables["params"])
    assert any(np.any(new != old) for new, old in zip(plain, before, strict=True))
    for name in ("recompute", "recompute_all", "seeds"):
        for found, expected in zip(
            jax.tree.leaves(results[name][0].variables["params"]), plain, strict=True
        ):
            for one in found if name == "seeds" else [found]:
                np.testing.assert_allclose(one, expected, rtol=1e-5, atol=1e-6)
    state, metrics = results["dispatch"]
    assert int(state.step) == levers.STEPS == len(metrics["loss"])
    assert metrics["loss"][0] == pytest.approx(float(results["plain"][1]["loss"][0]), rel=1e-6)


def test_a_row_of_each_network(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(models.MODELS, "one_layer", OneLayer)
    path = tmp_path / "levers.jsonl"
    given = ["--output", str(path), "--resolution", "12x16", "--models", "one_layer"]
    assert levers.main([*given, "--batch", "1", "--turns", "2"]) == 0
    (row,) = timings.read([path])
    assert row["setting"]["model"] == "one_layer"
    assert all(len(found) == 2 for found in row["samples"].values())
    assert row["bytes"]["seeds"] > row["bytes"]["plain"] > 0
    assert "one_layer seeds:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--models", "segnets"], "unknown model 'segnets'"),
        (["--options", "depth=3"], "none of segnet_basic has an option 'depth'"),
        (["--turns", "0"], "--turns"),
    ],
)
def test_an_error_says_what_cannot_be_measured(given, said, tmp_path, capsys):
    assert levers.main(["--output", str(tmp_path / "rows.jsonl"), *given]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1
