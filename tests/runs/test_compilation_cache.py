"""Test the compilation cache shared by the runs of a sweep."""

import os

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache as jax_cache

from segjax.runs import compilation_cache
from segjax.sweep import grids
from support import toy_grid
from support.runs import arrays, assert_same_bits

DIRECTORY = "jax_compilation_cache_dir"
MIN_COMPILE_SECONDS = "jax_persistent_cache_min_compile_time_secs"


@pytest.fixture
def point_jax_at():
    """Return a function that sets the cache folder of JAX, as the environment variable would."""
    former = jax.config.values[MIN_COMPILE_SECONDS]

    def point(folder):
        jax_cache.reset_cache()
        jax.config.update(DIRECTORY, folder and str(folder))

    yield point
    point(None)
    jax.config.update(MIN_COMPILE_SECONDS, former)


def entries(folder):
    """Return {name: (time written, size)} of the entries of a cache."""
    found = folder.glob("*-cache")
    return {path.name: (path.stat().st_mtime_ns, path.stat().st_size) for path in found}


@pytest.mark.slow
def test_sweep_compiles_once_and_survives_damaged_entries(tmp_path, scenes_data_dir):
    spec = toy_grid.write(tmp_path, scenes_data_dir, [0.1], [3, 4])
    point, _ = grids.load_points(spec, {})
    status, _, error = toy_grid.sweep(spec, tmp_path / "sweep")
    assert status == 0, error
    folder = tmp_path / "sweep" / "compiled"
    kept = entries(folder)
    programs = [name.split("-")[0] for name in kept]
    for name in ("jit_train_steps", "jit_eval_step"):
        assert programs.count(name) == 1  # although there are two seeds

    def train(name, **environment):
        """Repeat the run of the sweep with its cache; return its standard error."""
        command = grids.train_command(spec, point, tmp_path / name)[1:]
        environment["JAX_COMPILATION_CACHE_DIR"] = str(folder)
        process = toy_grid.start(command, **environment)
        _, said = process.communicate()
        assert process.returncode == 0, said
        assert_same_bits(bits(name), bits("sweep"))
        return said

    def bits(name):
        return arrays(tmp_path / name / point.name, "latest")

    train("again")
    assert entries(folder) == kept

    for name, (_, size) in kept.items():  # as a kill during the write leaves them
        os.truncate(folder / name, size // 2)
    said = train("damaged", PYTHONWARNINGS="error::UserWarning")
    assert "Error reading persistent compilation cache entry for 'jit_train_steps'" in said


def test_unwritable_cache_folder_is_a_warning(tmp_path, point_jax_at):
    (tmp_path / "file").touch()
    point_jax_at(tmp_path / "file")
    compilation_cache.enable()
    with pytest.warns(UserWarning, match="persistent compilation cache entry"):
        assert float(jax.jit(lambda x: 3 * x)(2.0)) == 6.0


def test_environment_variables_of_the_user_win(tmp_path, point_jax_at, monkeypatch):
    variable = "JAX_COMPILATION_CACHE_DIR"
    own = {variable: str(tmp_path / "runs" / "compiled")}
    assert compilation_cache.share(tmp_path / "runs", {}) == own
    assert compilation_cache.share(tmp_path / "runs", {variable: ""}) == {}
    jax.config.update(MIN_COMPILE_SECONDS, 0.5)  # which an earlier test may have set to 0
    monkeypatch.setenv(MIN_COMPILE_SECONDS.upper(), "7")
    compilation_cache.enable()
    assert jax.config.values[MIN_COMPILE_SECONDS] == 0.5
    monkeypatch.delenv(MIN_COMPILE_SECONDS.upper())
    compilation_cache.enable()
    assert jax.config.values[MIN_COMPILE_SECONDS] == 0
