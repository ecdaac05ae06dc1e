"""Test that whatever config a training accepts can be read back from its config.json."""

import dataclasses
import json
import types
from unittest import mock

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from ml_collections import config_dict

from segjax import config as configs
from segjax.config import loading
from segjax.config.fields import CHOICES, GROUPS
from segjax.data import camvid
from segjax.data.datasets import DatasetInfo, SplitInfo
from segjax.errors import UserError
from segjax.runs import experiment
from segjax.runs.experiment import Description, Experiment
from segjax.training import losses
from support.errors import refusal
from support.runs import change, tiny_config

SPLIT = SplitInfo(1, (5, 4), 0, (9, 9), (0.5,), (0.5,))
SPLITS = dict.fromkeys(("train", "val", "test"), SPLIT)
INFO = DatasetInfo("tiny", ("a", "b"), (), (0.5,), (0.5,), SPLITS, (24, 32))
DESCRIPTION = Description("tiny", "tiny", {}, "segjax train")

FIELDS = (*configs.flat(configs.default()), *GROUPS)
OWN = ("model.options.width", "model.options.foo", "model.options.a.b", "foo", "optimizer.foo")


def builtins():
    return st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)


def scalars():
    """Whatever one may write into a field by mistake, and what is right by chance."""
    return st.one_of(
        builtins(),
        st.sampled_from((0, 1, 2, 3, 0.5, 1.0, 10**400, 1e300, "", "adam", "None", "\udc80")),
        st.integers(-3, 300).map(np.int64),
        st.floats(width=32).map(np.float32),
        st.floats().map(np.float64),
        st.booleans().map(np.bool_),
        st.sampled_from(
            (
                *(np.float64(0.5), np.str_("sgd"), np.longdouble(1), np.datetime64("2026-01-01")),
                *(config_dict.placeholder(int), config_dict.required_placeholder(float)),
                *(b"x", np.arange(3), np.arange(1000), {1, 2}, 1j, print),
            )
        ),
    )


def values():
    nested = st.recursive(
        scalars(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.lists(inner, max_size=2).map(tuple)
            | st.dictionaries(st.sampled_from(("a", "b")), inner, max_size=2)
        ),
        max_leaves=4,
    )
    return scalars() | nested


def plausible():
    """A field and a value of its type, which is often allowed."""
    kinds = {bool: st.booleans(), int: st.integers(1, 300), float: st.floats(0, 0.9)}

    def value(field):
        default = configs.flat(configs.default())[field]
        if field in CHOICES:
            return st.sampled_from(CHOICES[field])
        return kinds.get(type(default), st.just(default))

    fields = st.sampled_from(tuple(configs.flat(configs.default())))
    return fields.flatmap(lambda field: st.tuples(st.just(field), value(field)))


def written(changes, frozen):
    """Return a config as a file with these assignments makes it, whether the field allows them."""
    config = configs.default().unlock()
    for name, value in changes:
        *parents, field = name.split(".")
        owner = config
        for parent in parents:
            owner = owner[parent] if parent in owner else owner.setdefault(parent, {})
        with owner.ignore_type():
            owner[field] = value
    return config_dict.FrozenConfigDict(config) if frozen else config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("run")


@given(
    changes=st.lists(plausible(), max_size=3)
    | st.lists(st.tuples(st.sampled_from(FIELDS + OWN), values()), max_size=3),
    frozen=st.booleans(),
)
@example(changes=[("optimizer.weight_decay", 1)], frozen=True)
@example(changes=[("model.options.foo", {})], frozen=False)
@example(changes=[("model.options.foo", [np.int64(1), [2]])], frozen=False)
@example(changes=[("steps", config_dict.required_placeholder(int))], frozen=False)
def test_config_is_refused_in_one_line_or_survives_its_config_json(folder, changes, frozen):
    module = types.SimpleNamespace(get_config=lambda: written(changes, frozen))
    with mock.patch.object(loading, "load_module", return_value=(module, None)):
        try:
            config = configs.load("mine.py", {})
        except UserError as refused:
            config, said = None, str(refused)
    if config is None:
        assert "\n" not in said
        return
    experiment.write_description(folder, Experiment(config, INFO, [], None), DESCRIPTION)
    again, _, _ = experiment.read_description(folder)
    assert configs.flat(again) == configs.flat(config)
    assert configs.digest(again) == configs.digest(config)
    assert configs.difference(config, again) is None
    experiment.claim(folder, config).close()  # a restart accepts it
    try:
        run = experiment.create(config, INFO)
    except UserError as refused:  # of a training, before its first step
        run, said = None, str(refused)
    if run is None:
        assert "\n" not in said
        return
    opened, _ = experiment.open_run(folder, None)  # by evaluate and predict
    assert opened.model.clone(axis_name=None) == run.model.clone(axis_name=None)


def stored(folder, **changed):
    """Write a config.json with these fields of the config changed, or left out if None."""
    run = Experiment(configs.default(), INFO, [], None)
    experiment.write_description(folder, run, DESCRIPTION)
    path = folder / "config.json"
    content = json.loads(path.read_text())
    for name, value in changed.items():
        content["config"][name] = value
        if value is None:
            del content["config"][name]
    del content["checksum"]  # as a run of long ago has it
    path.write_text(json.dumps(content))
    return path


def test_default_of_a_missing_field_is_said_once(tmp_path, caplog):
    path = stored(tmp_path, **{"data.patches": None, "steps": None})
    for _ in range(2):
        config, _, _ = experiment.read_description(tmp_path)
        assert (config.data.patches, config.steps) == (0, 1000)
    said = f"{path} lacks fields, which are set to defaults: data.patches=0, steps=1000"
    assert caplog.messages == [said]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"steps": 0}, "config.json: config field 'steps' must be at least 1, found 0"),
        ({"steps": "7"}, "config.json: config field 'steps' is of type int"),
        ({"stepz": 7}, "config.json: config has no field 'stepz'"),
    ],
)
def test_wrong_config_json_is_named(tmp_path, changed, said):
    stored(tmp_path, **changed)
    with pytest.raises(UserError, match=said):
        experiment.read_description(tmp_path)
    (tmp_path / "config.json").write_text('{"config": 3, "data": {"splits": {}}}')
    with pytest.raises(UserError, match="cannot be read"):
        experiment.read_description(tmp_path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"batch_size": 8', '"batch_size": 9'),
        ('"seed": 0', '"seed": 1'),
        ("0.5", "0.4"),
        ('"segjax train"', '"segjax trail"'),
    ],
)
def test_a_config_json_that_was_changed_is_refused(tmp_path, old, new):
    experiment.write_description(
        tmp_path, Experiment(configs.default(), INFO, [], None), DESCRIPTION
    )
    path = tmp_path / "config.json"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    assert refusal(experiment.read_description, tmp_path) == (
        f"{path} cannot be read: it was changed after it was written; undo that, or delete its "
        "checksum to accept the change"
    )
    # Another layout, as jq or an editor writes it, is no change.
    path.write_text(json.dumps(json.loads(text), indent=8).replace("0.0,", "0,"))
    assert experiment.read_description(tmp_path)[2] == INFO


def test_config_made_without_load_is_checked_before_it_is_written(tmp_path):
    config = configs.default()
    config.steps = None
    with pytest.raises(UserError, match="'steps' is of type int, such as 1000, found None"):
        experiment.write_description(tmp_path, Experiment(config, INFO, [], None), DESCRIPTION)
    assert not (tmp_path / "config.json").exists()


def test_training_labels_that_are_all_void_are_refused():
    info = dataclasses.replace(
        INFO, splits={"train": SplitInfo(1, (0, 0), 9, (0, 0), (0.5,), (0.5,))}
    )
    run = Experiment(configs.default(), info, [], None)
    assert refusal(run.open_training).endswith("no pixel of any class, its labels are all void")


def test_fields_that_do_not_suit_the_dataset_are_refused_before_training():
    def said(info, **changed):
        config = change(configs.default(), **changed)
        return refusal(Experiment(config, info, [], None).open_training)

    weights = {"loss__class_weights": "segnet"}
    counts = dataclasses.replace(SPLIT, pixel_counts=(1,) * 11)
    splits = dict.fromkeys(("train", "val", "test"), counts)
    info = dataclasses.replace(INFO, class_names=camvid.CLASS_NAMES[::-1], splits=splits)
    assert "is for CamVid's 11 classes in their order, but" in said(info, **weights)
    assert "are a, b" in said(INFO, **weights)
    gray = said(INFO, augment__saturation=0.5)
    assert gray == (
        "config field 'augment.saturation' is 0.5, but the images of streetscenes are gray"
    )
    for split in ("train", "val", "test"):
        void = dataclasses.replace(SPLIT, pixel_counts=(0, 0))
        info = dataclasses.replace(INFO, splits={**SPLITS, split: void})
        assert said(info).startswith(f"the {split} split of streetscenes has no pixel of any class")
    # A test split that is not used may be void, as that of Cityscapes is.
    assert "test" not in said(info, test_split="val", augment__saturation=0.5)


def test_border_weights_in_training_are_those_of_the_config(scenes_data_dir):
    config = tiny_config(scenes_data_dir, loss__border_weight=7.0, loss__border_sigma=2.0)
    run = experiment.create(config)
    source, weights = run.open_training()
    assert (weights == 1).all()  # the maps include the class weights
    counts = run.info.splits["train"]
    own = losses.class_weights("enet", counts.pixel_counts, counts.present_pixel_counts)
    example = source[0]
    expected = losses.border_weights(example["label"], w0=7.0, sigma=2.0, class_weights=own)
    np.testing.assert_array_equal(example["weight"], expected)
