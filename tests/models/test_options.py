"""The options of models: what annotations allow, and models from outside the package."""

import json
import math
import re
import sys
from typing import Annotated, Any, Literal

import jax.numpy as jnp
import optax
import pytest
from flax import linen as nn

from segjax import models
from segjax.cli.main import main
from segjax.models.options import NotNegative, Positive, Positives, Probability, allows, describe
from segjax.training import steps
from support.errors import refusal
from support.runs import OneLayer, tiny_config

TOY = '''
import jax.numpy as jnp
from flax import linen as nn


class Toy(nn.Module):
    """A convolution of every pixel, scaled and shifted."""

    num_classes: int
    slope: float = 2.5
    offset: int = -1
    dtype: object = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, image, *, train):
        x = image.astype(self.dtype) * self.slope + self.offset
        return nn.Conv(self.num_classes, (1, 1), dtype=self.dtype)(x).astype(jnp.float32)
'''

CONFIG = """
from segjax.config import default


def get_config():
    config = default()
    config.model.name = "toy_model:Toy"
    config.model.options.slope = -3.5
    config.data.data_dir = {data_dir!r}
    config.data.resolution = (24, 32)
    config.num_devices = 1
    config.batch_size = config.eval_batch_size = 5
    config.steps = config.eval_every = config.checkpoint_every = 2
    return config
"""


@pytest.mark.parametrize(
    ("kind", "good", "bad", "words"),
    [
        (int, [-3, 0, 7], [1.0, True, "1", None], "an integer"),
        (float, [-0.5, 0, 12.5, math.inf], [True, "1", None], "a number"),
        (bool, [True, False], [0, 1, "True"], "True or False"),
        (str, ["", "a"], [1, None], "a string"),
        (Positive, [1, 64], [0, -1, 1.0, True], "an integer of at least 1"),
        (NotNegative, [0, 0.0, 3.5], [-0.1, math.nan, "0"], "a number of at least 0"),
        (Probability, [0, 0.0, 0.99], [1, 1.0, -0.1, math.nan], r"a number in [0, 1)"),
        (
            Positives,
            [(1,), (3, 4)],
            [(), (0, 1), [1], 1],
            "a tuple of one or more integers of at least 1",
        ),
        (tuple[float, ...], [(), (1, -2.5)], [("a",), [1.0]], "tuple[float, ...]"),
        (tuple[int, int], [(1, 2)], [1], "tuple[int, int]"),
        (Literal["a", "b"], ["a", "b"], ["c", 1], "one of 'a', 'b'"),
        (Literal[8, 16], [8], [8.0, 4, True], "one of 8, 16"),
        (int | None, [None, 3], ["3", 0.5], "an integer or NoneType"),
        (Annotated[int, "a remark"], [0], [0.5], "an integer"),
        (Any, [1, "a", None], [], "Any"),
    ],
)
def test_a_type_allows_its_values_and_says_so(kind, good, bad, words):
    assert [value for value in good if not allows(kind, value)] == []
    assert [value for value in bad if allows(kind, value)] == []
    assert describe(kind) == words


def test_a_refusal_names_the_model_the_option_and_the_bound():
    said = refusal(models.create, "unet", num_classes=11, dropout=1.5)
    assert said == "option 'dropout' of model unet is 1.5, expected a number in [0, 1)"


def test_a_number_that_is_no_probability_may_exceed_1():
    assert models.create("dilation8", 11, noise=1.5).noise == 1.5


def test_a_model_elsewhere_trains_and_evaluates_by_its_name(
    scenes_data_dir, tmp_path, monkeypatch, capsys
):
    (tmp_path / "toy_model.py").write_text(TOY)
    config = tmp_path / "toy.py"
    config.write_text(CONFIG.format(data_dir=str(scenes_data_dir)))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "toy_model", raising=False)
    workdir = tmp_path / "run"

    assert main(["train", "--config", str(config), "--workdir", str(workdir)]) == 0
    assert main(["evaluate", "--workdir", str(workdir), "--split", "val"]) == 0

    row = json.loads((workdir / "result.json").read_text())
    assert (row["model"], row["model_options"]) == ("toy_model:Toy", {"slope": -3.5})
    assert row["parameters"] == 3 * 11 + 11
    capsys.readouterr()

    # A fault of the network is one line, in training and where its run is read.
    (tmp_path / "toy_model.py").write_text(TOY.replace("return ", "return 0, "))
    monkeypatch.delitem(sys.modules, "toy_model")
    for command in (["train", "--config", str(config)], ["evaluate"]):
        where = tmp_path / "other" if command[0] == "train" else workdir
        assert main([*command, "--workdir", str(where)]) == 2
        assert capsys.readouterr().err.endswith(
            "segjax: model toy_model:Toy gives tuple for images of (1, 24, 32, 3), expected logits "
            "of (1, 24, 32, 11)\n"
        )


@pytest.mark.parametrize(
    ("output", "found"),
    [
        (lambda x: x[:, ::2, ::2], "(1, 12, 16, 5)"),
        (lambda x: x[..., :3], "(1, 24, 32, 3)"),
        (lambda x: x[0], "(24, 32, 5)"),
        (lambda x: [x, x], "list"),
    ],
)
def test_logits_of_a_wrong_size_are_one_line(output, found):
    class Wrong(OneLayer):
        @nn.compact
        def __call__(self, image, *, train):
            return output(super().__call__(image, train=train))

    config = tiny_config("", model__name="net:Wrong")
    for state in (steps.create_state, steps.abstract_state):
        assert refusal(state, Wrong(5), optax.sgd(0.1), config) == (
            f"model net:Wrong gives {found} for images of (1, 24, 32, 3), expected logits of "
            "(1, 24, 32, 5)"
        )


def test_the_error_for_an_option_of_a_model_without_options():
    models.MODELS["toy"] = OneLayer
    said = refusal(models.create, "toy", 5, depth=3)
    assert said == "unknown option 'depth' of model toy; known: none"


def test_a_model_elsewhere_is_added_by_one_line():
    models.MODELS["toy"] = OneLayer  # conftest.py removes it again
    model = models.create(name="toy", num_classes=5, dtype=jnp.bfloat16)
    assert (type(model), model.num_classes, model.dtype) == (OneLayer, 5, jnp.bfloat16)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no_such_module:Toy", ": No module named 'no_such_module'"),
        ("flax.linen:Toy", ": the module flax.linen has no Toy"),
        ("flax.linen:", ": the module flax.linen has no class"),
        (":Toy", ": Empty module name"),
        (".toy:Toy", ": TypeError: "),
        ("json:dumps", "is <function dumps"),
        ("flax.linen:Dense", "has no field 'axis_name', expected num_classes, dtype, axis_name"),
    ],
)
def test_the_error_for_an_invalid_model_is_one_line(name, said):
    assert said in refusal(models.create, name, 11)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("def f(:", r": SyntaxError: invalid syntax \(broken_net\.py, line 1\)$"),
        ("import numpy\nx = nothing", r": NameError: .* \(/.*/broken_net\.py, line 2\)$"),
        ("import no_such_thing", r": ModuleNotFoundError: No module named 'no_such_thing'"),
    ],
)
def test_a_module_that_fails_is_one_line_with_the_place(tmp_path, monkeypatch, source, said):
    (tmp_path / "broken_net.py").write_text(source)
    monkeypatch.setattr("sys.path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    assert re.search(said, refusal(models.create, "broken_net:Net", 11))


def test_a_model_is_found_in_the_current_folder(tmp_path, monkeypatch):
    source = "from segjax.models.unet import UNet\nclass Mine(UNet):\n    pass\n"
    (tmp_path / "net_of_a_user.py").write_text(source)
    monkeypatch.setattr("sys.path", [path for path in sys.path if path])
    monkeypatch.chdir(tmp_path)
    assert type(models.create("net_of_a_user:Mine", 3)).__name__ == "Mine"
