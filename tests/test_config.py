"""Test loading, overriding, checking and digesting of configs."""

import functools
import json
import operator

import pytest

from segjax import config as configs
from segjax.errors import UserError

FILE = """
from segjax.config import default

def get_config(arg="full"):
    if arg not in ("full", "small"):
        raise ValueError(f"no variant {arg!r}")
    config = default()
    config.steps = 100 if arg == "small" else 1000
    config.model.options.width = 8
    return config
"""


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(FILE)
    return str(file)


def test_argument_after_colon_reaches_get_config(path):
    assert configs.load(path, {}).steps == 1000
    assert configs.load(f"{path}:small", {}).steps == 100


def test_text_is_parsed_to_the_type_of_the_field(path):
    config = configs.load(
        path,
        configs.parse_overrides(
            [
                "--config.steps=7",
                "--config.optimizer.learning_rate=1",
                "--config.augment.flip=true",
                "--config.augment.scale=(0.5,2)",
                "--config.augment.crop=64,48",
                "--config.model.name=segnet",
                "--config.data.data_dir=7",
                "--config.model.options.width=4",
                "--config.model.options.dropout=0.5",
            ]
        ),
    )
    assert config.steps == 7
    assert config.optimizer.learning_rate == 1.0
    assert type(config.optimizer.learning_rate) is float
    assert config.augment.flip is True
    assert config.augment.scale == (0.5, 2)
    assert config.augment.crop == (64, 48)
    assert config.model.name == "segnet"
    assert config.data.data_dir == "7"
    assert config.model.options.to_dict() == {"width": 4, "dropout": 0.5}


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("--config.optimizer.lerning_rate=1", "did you mean 'optimizer.learning_rate'"),
        ("--config.stepz=1", "did you mean 'steps'"),
        ("--config.steps=many", "'steps' is of type int"),
        ("--config.steps=None", "'steps' is of type int"),
        ("--config.num_devices=-1", "'num_devices' must be at least 0"),
        ("--config.augment.scale=(1,'a')", "'augment.scale' must be"),
        ("--config.steps=1.5", "'steps' is of type int"),
        ("--config.steps=True", "'steps' is of type int"),
        ("--config.augment.flip=3", "'augment.flip' is of type bool"),
        ("--config.optimizer=sgd", "group of fields"),
        ("--config.steps", "needs a value"),
        ("--steps=3", "unknown argument '--steps=3'"),
        ("--config.steps=0", "'steps' must be at least 1, found 0"),
        ("--config.steps_per_dispatch=3", "multiple of steps_per_dispatch (3)"),
        ("--config.micro_batches=3", "multiple of micro_batches (3)"),
        ("--config.seed=-1", "'seed' must be"),
        ("--config.ema_decay=1.0", "'ema_decay' must be"),
        ("--config.precision=float16", "float32 or bfloat16"),
        ("--config.data.resolution=(96,)", "height and width"),
        ("--config.data.resolution=(0,96)", "height and width"),
        ("--config.augment.crop=(96,)", "height and width"),
        ("--config.augment.scale=(2.0,1.0)", "'augment.scale' must be"),
        ("--config.augment.brightness=2.0", "in [0, 1]"),
        ("--config.augment.elastic=-1.0", "'augment.elastic' must be finite and not negative"),
        ("--config.augment.shift=inf", "of type float"),
        ("--config.augment.rotation=181.0", "'augment.rotation' must be in [0, 180]"),
        ("--config.augment.outside=gray", "void or mirror"),
        ("--config.loss.border_weight=-1.0", "'loss.border_weight' must be finite"),
        ("--config.loss.border_sigma=0.0", "'loss.border_sigma' must be positive"),
        ("--config.data.placement=ram", "auto or device or stream"),
        ("--config.data.normalization=zca", "mean_std or local_response or none"),
        ("--config.optimizer.weight_decay=-1.0", "not negative"),
        ("--config.best_metric=loss", "mean_iou or"),
        ("--config.wandb.mode=on", "disabled or offline"),
    ],
)
def test_invalid_override_is_one_line_that_names_it(path, argument, said):
    with pytest.raises(UserError) as error:
        configs.load(path, configs.parse_overrides([argument]))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = (", "SyntaxError"),
        ("raise RuntimeError('no')", "RuntimeError: no"),
        ("x = 1", "has no get_config"),
        ("def get_config(): return {}", "expected a ConfigDict"),
        (
            "from segjax.config import default\n"
            "def get_config():\n    config = default()\n    config.stepz = 3\n    return config",
            "stepz",
        ),
    ],
)
def test_broken_config_file_is_a_user_error(tmp_path, text, said):
    file = tmp_path / "broken.py"
    file.write_text(text)
    with pytest.raises(UserError, match=said):
        configs.load(str(file), {})


def test_missing_file_and_unknown_variant_are_named(path):
    with pytest.raises(UserError, match=r"nowhere\.py does not exist"):
        configs.load("nowhere.py", {})
    with pytest.raises(UserError, match="no variant 'huge'"):
        configs.load(f"{path}:huge", {})


def test_digest_covers_only_the_experiment(path):
    def digest(**overrides):
        return configs.digest(configs.load(path, overrides))

    base = digest()
    assert digest(seed=5) == base
    assert digest(**{"data.data_dir": "elsewhere"}) == base
    assert digest(**{"wandb.mode": "offline"}) == base
    assert digest(log_every=1) == base
    assert digest(steps=999) != base
    assert digest(**{"loss.name": "dice"}) != base
    assert digest(**{"model.options.width": 9}) != base


def test_later_fields_at_defaults_leave_digest_unchanged(path, monkeypatch):
    config = configs.load(path, {})
    with config.unlocked():
        for field in [name for name in configs.flat(config) if name in configs.OMITTED_AT_DEFAULT]:
            *groups, name = field.split(".")
            del functools.reduce(operator.getitem, groups, config)[name]
    assert configs.digest(config) == configs.digest(configs.load(path, {}))
    monkeypatch.setattr(configs, "OMITTED_AT_DEFAULT", ())
    assert configs.digest(config) != configs.digest(configs.load(path, {}))


def test_config_survives_json_and_difference_names_field(path):
    config = configs.load(path, {"augment.crop": (3, 4)})
    stored = json.loads(json.dumps(configs.flat(config)))
    again = configs.default()
    configs.override(again, stored)
    assert configs.flat(again) == configs.flat(config)
    assert configs.difference(config, again) is None
    configs.override(again, {"log_every": 3})
    assert configs.difference(config, again) is None
    configs.override(again, {"steps": 3})
    assert configs.difference(config, again) == "steps is 1000, was 3"
