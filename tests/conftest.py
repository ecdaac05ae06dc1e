"""Two virtual CPU devices, strict JAX, and the datasets that tests share."""

import fcntl
import gc
import os
from pathlib import Path

# Before JAX is imported; inherited by the commands that tests start.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "2"
os.environ["TERM"] = "xterm"  # for the live table of a sweep
os.environ["OMP_NUM_THREADS"] = "1"  # for two test workers, or processes of one test
# Optimizing programs of such sizes takes far longer than running them: this quarters it. Results
# differ in the last bits only; test_train.py compares those with the optimizations of users.
os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"

import hypothesis
import jax
import pytest

from segjax import models
from segjax.data import datasets, streetscenes

os.chdir(Path(__file__).parents[1])  # for the configs and pages that tests name

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# A slow machine must not fail a property test, nor must chance.
hypothesis.settings.register_profile(
    "segjax",
    deadline=None,
    derandomize=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("segjax")


# The longest tests start first, so that no worker ends long after the others.
LONGEST = (
    "test_the_commands_run_in_their_order",
    "test_kills_leave_no_trace",
    "test_the_published_camvid_as_a_folder",
    "test_disturbed_runs_end_with_the_same_bits",
)


PUBLISHED = {"camvid_data_dir", "isbi2012_data_dir"}  # prepared from a folder of the user


@pytest.hookimpl(tryfirst=True)  # before the slow tests are deselected
def pytest_collection_modifyitems(items):
    for item in items:
        if PUBLISHED & set(item.fixturenames):
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: not item.name.startswith(LONGEST))


@pytest.fixture
def collected():
    """Collect a test's garbage while its own warning filters are active."""
    yield
    gc.collect()


@pytest.fixture(autouse=True)
def _known_models(monkeypatch):
    """Undo what a test adds to the models."""
    monkeypatch.setattr(models, "MODELS", dict(models.MODELS))


TINY_RESOLUTION = (24, 32)
TINY_SPLITS = {"train": range(10), "val": range(10, 15), "test": range(15, 20)}


def _shared(tmp_path_factory):
    """Return a folder that all workers of this test run share."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(scope="session")
def scenes_data_dir(tmp_path_factory):
    """Prepare streetscenes of 24x32 in a data directory: 10, 5 and 5 in their splits."""
    shared = _shared(tmp_path_factory)
    with (shared / "scenes.lock").open("w") as lock, pytest.MonkeyPatch.context() as patch:
        fcntl.flock(lock, fcntl.LOCK_EX)
        patch.setattr(streetscenes, "SPLITS", TINY_SPLITS)
        datasets.prepare("streetscenes", data_dir=shared / "scenes", resolution=TINY_RESOLUTION)
    return shared / "scenes"


def _prepare_published(tmp_path_factory, name, variable):
    """Prepare a published dataset in a data directory, once for all workers.

    The test is skipped unless the environment variable names the published folder.
    """
    published = os.environ.get(variable)
    if not published:
        pytest.skip(f"{variable} is unset, which would name the published folder of {name}")
    shared = _shared(tmp_path_factory)
    with (shared / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        datasets.prepare(name, data_dir=shared / "tfds", source=published)
    return shared / "tfds"


@pytest.fixture(scope="session")
def camvid_data_dir(tmp_path_factory):
    """Prepare the real CamVid in a data directory."""
    return _prepare_published(tmp_path_factory, "camvid", "SEGJAX_CAMVID")


@pytest.fixture(scope="session")
def isbi2012_data_dir(tmp_path_factory):
    """Prepare the real ISBI 2012 slices in a data directory."""
    return _prepare_published(tmp_path_factory, "isbi2012", "SEGJAX_ISBI2012")
