"""Every config of experiments/ runs in its smoke form, and says how it is run."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from segjax import config as configs
from segjax import models, results, sweep
from segjax.cli import main

FOLDER = Path(__file__).parents[1] / "experiments"
SCRIPTS = {"overfit"}
FILES = sorted(path for path in FOLDER.glob("*.py") if path.stem not in SCRIPTS)
PARAMETERS = {
    "bayesian_segnet": 29_449_355,
    "camvid_small": 357_067,
    "decoder_variants": 1_416_587,
    "deconvnet": 81_917_259,
    "deeplab_aspp": 37_836_652,
    "deeplab_largefov": 20_495_179,
    "dilation8": 134_313_443,
    "fc_densenet103": 9_322_091,
    "fcn16s": 134_311_254,
    "fcn32s": 134_305_611,
    "fcn8s": 134_314_081,
    "patch_cnn": 222_635,
    "quickstart": 90_731,
    "segnet": 29_449_355,
    "segnet_basic": 1_416_587,
    "unet": 31_032_395,
    "unet_isbi": 31_032_395,
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
        assert len(sweep.points(str(path), {})) > 1


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_smoke_form_trains_and_tests(path, tmp_path, request):
    config = configs.load(f"{path}:smoke", {})
    fixture = {
        "camvid": "camvid_data_dir",
        "isbi2012": "isbi2012_data_dir",
        "streetscenes": "scenes_data_dir",
    }
    arguments, dataset = [], config.data.dataset
    if dataset == "camvid" and path.stem != "camvid_small" and config.data.resolution == (24, 32):
        dataset = "streetscenes"  # of the same classes, and only twenty
        arguments.append("--config.data.dataset=streetscenes")
    data_dir = request.getfixturevalue(fixture[dataset])
    arguments += ["--config", f"{path}:smoke", "--workdir", str(tmp_path / "run")]
    if path.stem != "segnet_basic":  # bfloat16 takes the CPU's compiler half as long again
        arguments.append("--config.precision=float32")
    # Flax's batch normalisation in bfloat16 mixes types, which strict promotion forbids.
    with jax.numpy_dtype_promotion("standard"):
        assert main(["train", *arguments, f"--config.data.data_dir={data_dir}"]) == 0
    (row,) = results.read([tmp_path / "run"])
    assert (row["experiment"], row["steps"], row["split"]) == (path.stem, 2, "test")


def test_committed_rows_are_whole_and_of_configs_that_are_here():
    found = sorted((FOLDER / "results").glob("*.jsonl"))
    files = [path for path in found if path.stem not in SCRIPTS]
    assert files
    for row in results.read(files):
        if row["experiment"] == "floors":
            continue
        overrides = dict(row["overrides"])
        words = row["command"].split()
        spec = words[words.index("--config") + 1]
        assert spec.partition(":")[0] == f"experiments/{row['experiment']}.py"
        assert (
            configs.digest(configs.load(str(FOLDER.parent / spec), overrides))
            == row["config_digest"]
        )
        assert " /" not in row["command"].replace("=", " ")  # a place of one machine
