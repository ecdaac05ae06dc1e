"""Every config of experiments/ runs in its smoke size, and documents its command."""

import functools
import hashlib
import itertools
import json
import math
import shlex
from fnmatch import fnmatchcase
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from segjax import config as configs
from segjax import models, results
from segjax.cli.main import main
from segjax.config import loading
from segjax.models import flops
from segjax.runs import weights
from segjax.sweep import grids
from support.folders import make_folder

FOLDER = Path(__file__).parents[1] / "experiments"
SCRIPTS = {"overfit"}
FILES = sorted(path for path in FOLDER.glob("*.py") if path.stem not in SCRIPTS)
PARAMETERS = {
    "augmentation": 1_416_587,
    "bayesian_segnet": 29_449_355,
    "camvid_small": 357_067,
    "camvid_table": 29_449_355,
    "camvid_tuning": 29_449_355,
    "decoder_variants": 1_416_587,
    "deconvnet": 81_917_259,
    "deeplab_aspp": 37_836_652,
    "deeplab_largefov": 20_495_179,
    "deeplab_v2": 43_311_212,
    "deeplab_v3": 58_038_091,
    "dilation8": 134_313_443,
    "dilation_rates": 20_495_179,
    "fc_densenet103": 9_322_091,
    "fcn16s": 134_311_254,
    "fcn32s": 134_305_611,
    "fcn8s": 134_314_081,
    "folder": 7_766_315,
    "going_deeper": 63_693_899,
    "loss_weighting": 1_416_587,
    "patch_cnn": 222_635,
    "pretraining": 134_338_913,
    "quickstart": 1_944_219,
    "segnet": 29_449_355,
    "segnet_basic": 1_416_587,
    "skip_strides": 134_314_081,
    "unet": 31_032_395,
    "unet_isbi": 31_032_395,
    "upsampling": 1_416_587,
}


def test_all_configs_are_known():
    assert {path.stem for path in FILES} == set(PARAMETERS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_docstring_has_the_command_and_the_full_config_its_parameters(path):
    module, _ = configs.load_module(str(path))
    assert f"--config experiments/{path.name} --workdir runs/{path.stem}" in module.__doc__
    config = configs.load(str(path), {})
    model = models.create(config.model.name, 11, **config.model.options)
    image = jnp.zeros((1, *config.data.resolution, 3))
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), image)
    count = sum(x.size for x in jax.tree.leaves(variables["params"]))
    assert count == PARAMETERS[path.stem]
    if hasattr(module, "sweep"):
        assert len(grids.load_points(str(path), {})) > 1


ON_CROPS = [path for path in FILES if "recipes.camvid(size)" in path.read_text()]


@pytest.mark.parametrize("path", ON_CROPS, ids=lambda path: path.stem)
def test_crops_train_the_whole_network(path):
    full, crops, short = (configs.load(f"{path}:{size}", {}) for size in ("full", "crops", "short"))
    assert full.model.options.get("width") == crops.model.options.get("width")
    assert (crops.data.resolution, crops.augment.crop) == ((360, 480), (180, 240))
    crops.steps = short.steps
    assert short == crops


GRIDS = [path for path in FILES if "\ndef sweep(" in path.read_text()]


@pytest.mark.slow
@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)
def test_every_network_of_a_grid_accepts_its_images(path):
    sizes = [":small" if "`small`" in path.read_text() else ""]
    sizes += [":crops"] if path in ON_CROPS else []
    seen = set()
    for point in itertools.chain(*(grids.load_points(f"{path}{size}", {}) for size in sizes)):
        config = point.config
        size = config.augment.crop or config.data.resolution
        key = config.model.name, repr(config.model.options), size
        if key not in seen:
            seen.add(key)
            model = models.create(config.model.name, 11, **config.model.options)
            image = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
            init = functools.partial(model.init_with_output, jax.random.key(0), train=False)
            logits, _ = jax.eval_shape(init, image)
            assert logits.shape == (1, *size, 11)


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_smoke_size_trains_and_tests(path, tmp_path, request):
    config = configs.load(f"{path}:smoke", {})
    fixture = {
        "camvid": "camvid_data_dir",
        "isbi2012": "isbi2012_data_dir",
        "streetscenes": "scenes_data_dir",
    }
    arguments, dataset = [], config.data.dataset
    if dataset == "camvid" and config.data.resolution[1] == 32:
        dataset = "streetscenes"  # with the same classes, and only twenty images
        arguments += ["--config.data.dataset=streetscenes", "--config.data.resolution=24,32"]
    if dataset == "folder":
        data_dir = tmp_path / "prepared"
        arguments.append(f"--config.data.folder={make_folder(tmp_path / 'photos')}")
    else:
        data_dir = request.getfixturevalue(fixture[dataset])
    arguments += ["--config", f"{path}:smoke", "--workdir", str(tmp_path / "run")]
    arguments.append("--config.num_devices=1")  # a program for two takes 1.5 times as long
    if path.stem != "segnet_basic":  # bfloat16 compiles 1.5 times as long on a CPU
        arguments.append("--config.precision=float32")
    # Flax's batch normalization in bfloat16 mixes types, which strict promotion forbids.
    with jax.numpy_dtype_promotion("standard"):
        assert main(["train", *arguments, f"--config.data.data_dir={data_dir}"]) == 0
    (row,) = results.read([tmp_path / "run"])
    split = "val" if path.stem == "camvid_tuning" else "test"
    assert (row["experiment"], row["steps"], row["split"]) == (path.stem, 2, split)


@pytest.mark.slow
def test_a_staged_network_starts_from_the_stage_before(scenes_data_dir, tmp_path, capsys):
    small = [f"--config.data.data_dir={scenes_data_dir}", "--config.data.dataset=streetscenes"]
    small += ["--config.data.resolution=24,32", "--config.num_devices=1", "--config.steps=2"]
    small += ["--config.precision=float32", "--config.model.options.width=2"]
    small += ["--config.model.options.fc_width=4"]

    def train(name, size, *arguments):
        config = ["--config", f"{FOLDER}/{name}.py:{size}", "--workdir", str(tmp_path / name)]
        assert main(["train", *config, *arguments, *small]) == 0
        said = capsys.readouterr().err
        assert "data.normalization" not in said
        return said

    train("fcn32s", "smoke", "--config.data.normalization=imagenet")  # as from VGG-16
    for before, name, pool in (
        ("fcn32s", "fcn16s", "score_pool4"),
        ("fcn16s", "fcn8s", "score_pool3"),
    ):
        said = train(name, "staged", f"--config.model.init_from={tmp_path / before}")
        assert f"{tmp_path / before}: {pool} keep their initialization\n" in said


def test_committed_rows_are_valid_and_belong_to_existing_configs():
    found = sorted((FOLDER / "results").glob("*.jsonl"))
    files = [path for path in found if path.stem not in SCRIPTS]
    assert files
    for row in results.read(files):
        if row["experiment"] == "baselines":
            continue
        members = []
        for command in row["command"].split(" && "):  # several of an ensemble
            words = shlex.split(command)
            spec = words[words.index("--config") + 1]
            assert spec.partition(":")[0] == f"experiments/{row['experiment']}.py"
            overrides = loading.parse_overrides([x for x in words if x.startswith("--config.")])
            config = configs.load(str(FOLDER.parent / spec), overrides)
            members.append((configs.digest(config), config.seed))
        digest = members[0][0]
        if len(members) > 1:
            digest = hashlib.sha256(json.dumps(sorted(members)).encode()).hexdigest()[:16]
        else:
            config = configs.load(str(FOLDER.parent / spec), row["overrides"])
            assert configs.digest(config) == digest
        assert row["config_digest"] == digest
        assert " /" not in row["command"].replace("=", " ")  # no path of one machine


def factors(name):
    """Return {path: factor of the learning rate} of the network of a config at its full size."""
    config = configs.load(f"experiments/{name}.py", {})
    model = models.create(config.model.name, 11, **config.model.options)
    paths = weights.flatten(flops.abstract(model, (65, 65, 3))["params"])
    rates = config.optimizer.rates
    return {path: math.prod(rates[x] for x in rates if fnmatchcase(path, x)) for path in paths}


def test_learning_rates_are_the_authors():
    found = factors("deeplab_v2")
    frozen = [path for path, factor in found.items() if factor == 0]
    assert len(frozen) == 208  # scale and shift of each of 104 normalizations
    assert all(path.startswith("trunk/") for path in frozen)
    heads = {path: factor for path, factor in found.items() if not path.startswith("trunk/")}
    assert set(heads.values()) == {10.0, 20.0}
    assert all((factor == 20) == path.endswith("/bias") for path, factor in heads.items())
    found = factors("deeplab_v3")
    assert [path for path, factor in found.items() if factor != 1] == ["logits/bias"]
    assert found["logits/bias"] == 2


@pytest.mark.parametrize("size", ["full", "authors"])
def test_the_decay_of_fc_densenet_is_that_of_a_penalty_without_a_half(size):
    config = configs.load(f"experiments/fc_densenet103.py:{size}", {})
    assert config.optimizer.weight_decay == 2e-4
