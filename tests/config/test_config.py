"""Test loading, overriding, checking and digesting of configs."""

import functools
import json
import operator
from pathlib import Path

import numpy as np
import pytest

from segjax import config as configs
from segjax.config import fields
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
                "--config.optimizer.rates.*/bias=2",
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
    assert config.data.data_dir == str(Path("7").absolute())
    assert config.model.options.to_dict() == {"width": 4, "dropout": 0.5}
    assert repr(config.optimizer.rates.to_dict()) == "{'*/bias': 2.0}"


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
        ("--config.steps=0", "'steps' must be at least 1, found 0"),
        ("--config.steps_per_dispatch=3", "multiple of steps_per_dispatch (3)"),
        ("--config.micro_batches=3", "multiple of micro_batches (3)"),
        ("--config.seed=-1", "'seed' must be"),
        ("--config.ema_decay=1.0", "'ema_decay' must be"),
        ("--config.precision=float16", "float32 or bfloat16"),
        ("--config.data.resolution=(96,)", "height and width"),
        ("--config.data.resolution=(0,96)", "height and width"),
        ("--config.augment.crop=(96,)", "height and width"),
        ("--config.augment.crop=(361,480)", "at most data.resolution, (360, 480), times the"),
        ("--config.data.resolution=24x32", "such as (360, 480), given as 360,480, found '24x32'"),
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
        ("--config.optimizer.step_every=0", "'optimizer.step_every' must be at least 1, found 0"),
        ("--config.optimizer.step_factor=0.0", "'optimizer.step_factor' must be positive"),
        ("--config.optimizer.rates.*/bias=two", "'optimizer.rates.*/bias' is of type float"),
        ("--config.optimizer.rates.*/bias=-2", "'optimizer.rates.*/bias' must be a factor >= 0"),
        ("--config.optimizer.rates=2", "group of fields"),
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
        ("raise RuntimeError('no\\nline')", "RuntimeError: no line"),
        ("x = 1", "has no get_config"),
        ("def get_config(): return {}", "returns a dict, not a ConfigDict"),
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


def write(folder, body, returned="config"):
    file = folder / "mine.py"
    file.write_text(
        "import numpy as np\n"
        "from ml_collections import ConfigDict, FrozenConfigDict, config_dict\n"
        "from segjax.config import default\n\n"
        f"def get_config():\n    config = default()\n    {body}\n    return {returned}\n"
    )
    return str(file)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("config.steps = None", "'steps' is of type int, such as 1000, found None"),
        ("config.steps = True", "'steps' is of type int, such as 1000, found True"),
        ("config.steps = config_dict.placeholder(int)", "'steps' is of type int"),
        ("config.steps = config_dict.required_placeholder(int)", "'steps' is of type int"),
        ("config.steps = 2**31", "'steps' must be below 2^31 / batch_size"),
        ("config.unlock().stepz = 3", "config has no field 'stepz'; did you mean 'steps'?"),
        ("del config.unlock()['seed']", "lacks field 'seed' of segjax.config.default()"),
        ("config.model = {'name': 'unet'}", "lacks field 'model.init_from'"),
        ("config.model = None", "lacks field 'model.init_from'"),
        ("config.model.options.foo = {}", "'model.options.foo' is a number, a truth value, text"),
        ("config.model.options.foo = {'a': 1}", "'model.options.foo' is a number"),
        ("config.model.options.foo = float('nan')", "'model.options.foo' must be finite"),
        ("config.model.options.foo = 10**5000", "'model.options.foo' must be below 2^63"),
        ("config.model.options.foo = np.arange(1000)", "found array([ 0, 1, 2, 3,"),
        ("config.augment.scale = (1.0, float('inf'))", "'augment.scale' must be finite"),
        ("config.augment.scale = (1.0, None)", "'augment.scale' is a number"),
        ("config.optimizer.learning_rate = float('nan')", "must be finite, found nan"),
        ("config.optimizer.learning_rate = 10**400", "OverflowError"),
    ],
)  # fmt: skip
def test_value_that_config_json_cannot_keep_is_refused(tmp_path, body, said):
    with pytest.raises(UserError) as error:
        configs.load(write(tmp_path, body), {})
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("body", "returned", "field", "value"),
    [
        ("config.steps = 7", "FrozenConfigDict(config)", "steps", 7),
        ("config.augment.elastic = 3", "config", "augment.elastic", 3.0),
        ("config.augment.crop = [np.int64(3), 4]", "config", "augment.crop", (3, 4)),
        ("config.optimizer.power = np.float64(2)", "config", "optimizer.power", 2.0),
        ("config.model.options.width = np.int64(8)", "config", "model.options.width", 8),
        ("config.model.options.rates = [[6], [np.int8(12)]]", "config", "model.options.rates",
         ((6,), (12,))),
        ("config.eval_every = config.get_ref('steps')", "config", "eval_every", 1000),
    ],
)  # fmt: skip
def test_value_of_another_type_is_kept_as_config_json_keeps_it(
    tmp_path, body, returned, field, value
):
    config = configs.load(write(tmp_path, body, returned), {})
    found = configs.flat(config)[field]
    assert found == value
    assert type(found) is type(value)
    again = configs.restore(json.loads(json.dumps(configs.flat(config), allow_nan=False)))
    assert configs.flat(again) == configs.flat(config)
    assert configs.digest(again) == configs.digest(config)


def test_override_fills_a_placeholder_and_a_reference_follows_it(tmp_path):
    unset = write(tmp_path, "config.steps = config_dict.required_placeholder(int)")
    assert configs.load(unset, {"steps": "70"}).steps == 70
    follows = write(tmp_path, "config.eval_every = config.get_ref('steps')")
    assert configs.load(follows, {"steps": "70"}).eval_every == 70


@pytest.mark.parametrize(
    ("void", "used", "said"),
    [
        ({"augment.outside": "mirror"}, {"augment.shift": 1.0}, "augment.shift is above 0"),
        ({"loss.border_sigma": 4.0}, {"loss.border_weight": 9.0}, "loss.border_weight is above 0"),
        (
            {"optimizer.momentum": 0.5, "optimizer.name": "adam"},
            {"optimizer.name": "sgd"},
            "is sgd",
        ),
        ({"optimizer.power": 2.0}, {"optimizer.schedule": "poly"}, "optimizer.schedule is poly"),
        (
            {"optimizer.step_every": 50},
            {"optimizer.schedule": "step"},
            "optimizer.schedule is step",
        ),
        (
            {"optimizer.step_factor": 0.5},
            {"optimizer.schedule": "step"},
            "optimizer.schedule is step",
        ),
        (
            {"data.normalization": "mean_std", "model.pretrained": "a/b"},
            {"model.pretrained": ""},
            "'data.normalization' must be imagenet where model.pretrained is set, found 'mean_std'",
        ),
        (
            {"model.options.noise": 0.1, "model.options.context": "none"},
            {"model.options.context": "large"},
            "where model.options.context is basic or large",
        ),
        (
            {
                "model.options.dropout": 0.2,
                "model.options.head": "none",
                "model.name": "deeplab_v3",
            },
            {"model.options.head": "aspp"},
            "where model.options.head is aspp",
        ),
    ],
)
def test_override_that_other_fields_make_void_is_refused(path, void, used, said):
    name = next(iter(void))
    with pytest.raises(UserError) as error:
        configs.load(path, void)
    assert repr(name) in str(error.value)
    assert said in str(error.value)
    fields = configs.flat(configs.load(path, {**void, **used}))
    assert fields[name] == void[name]


def test_config_file_may_set_fields_beside_each_other(tmp_path):
    config = configs.load(write(tmp_path, "config.optimizer.power = 2.0"), {})
    assert config.optimizer.power == 2.0


def test_warmup_must_end_before_the_steps(path):
    assert configs.load(path, {"optimizer.warmup_steps": 999}).optimizer.warmup_steps == 999
    said = r"'optimizer.warmup_steps' must be below steps \(1000\), found 1000"
    with pytest.raises(UserError, match=said):
        configs.load(path, {"optimizer.warmup_steps": 1000})


@pytest.mark.parametrize("value", [np.int64(7), 7, "7"])
def test_override_of_a_sweep_may_be_a_numpy_scalar(path, value):
    config = configs.load(path, {"steps": value, "model.options.width": value})
    assert [type(config.steps), type(config.model.options.width)] == [int, int]
    with pytest.raises(UserError, match=r"such as 1000, found 7\.5"):
        configs.load(path, {"steps": np.float64(7.5)})


def test_missing_file_and_unknown_variant_are_named(path):
    with pytest.raises(UserError, match=r"nowhere\.py does not exist"):
        configs.load("nowhere.py", {})
    with pytest.raises(UserError, match="no variant 'huge'"):
        configs.load(f"{path}:huge", {})


def test_field_given_twice_is_refused():
    twice = ["--config.steps=3", "--config.steps=3"]
    assert configs.parse_overrides(twice) == {"steps": "3"}
    with pytest.raises(UserError, match=r"--config\.steps is given twice, as '3' and as '4'"):
        configs.parse_overrides([*twice, "--config.steps=4"])


def test_config_file_may_have_a_colon_in_its_path(path, tmp_path, monkeypatch):
    folder = tmp_path / "exp:1"
    folder.mkdir()
    Path(path).rename(folder / "mine.py")
    assert configs.load(f"{folder}/mine.py", {}).steps == 1000
    assert configs.load(f"{folder}/mine.py:small", {}).steps == 100
    assert configs.experiment_name(f"{folder}/mine.py:small") == "mine"
    monkeypatch.setenv("HOME", str(folder))
    assert configs.load("~/mine.py:small", {}).steps == 100


@pytest.mark.parametrize("spec", ["", "gs://bucket/segnet.py:small", "None"])
def test_config_that_is_no_path_is_refused(spec):
    with pytest.raises(UserError, match="config file: expected a path"):
        configs.load(spec, {})


def test_data_dir_is_kept_absolute(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    for given, kept in (("", ""), ("data", str(tmp_path / "data")), ("~/data", "/home/me/data")):
        assert configs.load(path, {"data.data_dir": given}).data.data_dir == kept
    for wrong in ("gs://bucket/data", "None"):
        with pytest.raises(UserError, match=r"'data\.data_dir'.*found"):
            configs.load(path, {"data.data_dir": wrong})


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
    assert digest(**{"optimizer.rates.*/bias": 2.0}) != base
    assert digest(**{"model.init_from": "hf:a/b"}) != base


def test_later_fields_at_defaults_leave_digest_unchanged(path, monkeypatch):
    config = configs.load(path, {})
    with config.unlocked():
        for field in [name for name in configs.flat(config) if name in fields.OMITTED_AT_DEFAULT]:
            *groups, name = field.split(".")
            del functools.reduce(operator.getitem, groups, config)[name]
    assert configs.digest(config) == configs.digest(configs.load(path, {}))
    monkeypatch.setattr(fields, "OMITTED_AT_DEFAULT", ())
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


def test_a_stored_whole_number_keeps_its_digest(path):
    config = configs.load(path, {"augment.scale": "0.5,2"})
    stored = json.loads(json.dumps(configs.flat(config)))
    assert json.dumps(stored["augment.scale"]) == "[0.5, 2]"
    assert configs.digest(configs.restore(stored)) == configs.digest(config)


def test_a_number_that_changes_the_digest_is_named(path):
    zero, none = (configs.load(path, {"model.options.dropout": x}) for x in ("0", "0.0"))
    assert configs.digest(zero) != configs.digest(none)  # committed digests stay as they are
    assert configs.difference(zero, none) == "model.options.dropout is 0, was 0.0"


def test_config_json_of_a_run_is_a_config_file(tmp_path):
    config = configs.load("experiments/unet.py", {"augment.crop": (48, 64), "seed": 3})
    path = tmp_path / "config.json"
    content = {"experiment": "unet", "config": configs.flat(config)}
    path.write_text(json.dumps(content))
    again = configs.load(str(path), {"steps": 7})
    assert configs.experiment_name(str(path)) == "unet"
    assert again.steps == 7
    again.unlock()
    again.steps = config.steps
    assert configs.flat(again) == configs.flat(config)


def test_a_seed_of_a_run_stays_with_it_in_tables(tmp_path):
    given = {"optimizer.learning_rate": 0.01, "seed": 0}
    config = configs.load("experiments/unet.py", given)
    path = tmp_path / "config.json"
    content = {"experiment": "unet", "overrides": given, "config": configs.flat(config)}
    path.write_text(json.dumps(content))
    again = configs.load(str(path), {"seed": 1})
    named = configs.recorded(str(path), {"seed": 1, "log_every": 5}, again)
    assert named == {"optimizer.learning_rate": 0.01, "seed": 1}
    assert configs.recorded("experiments/unet.py", given, config) == given
    assert configs.recorded(config, given, config) == given


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"experiment": "a", "config": 1}', "[" * 100_000]
)
def test_other_json_is_refused_as_a_config(tmp_path, text):
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"other\.json is not the config\.json of a run"):
        configs.load(str(path), {})
    with pytest.raises(UserError, match=r"none\.json does not exist"):
        configs.load(str(tmp_path / "none.json"), {})
