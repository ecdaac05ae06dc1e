"""Test that checkpoints restore bit for bit and survive kills and damage."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from segjax.errors import UserError
from segjax.runs.checkpoint import Checkpoints, restore_template
from segjax.training import parallel
from segjax.training.steps import TrainState
from support.runs import arrays, assert_same_bits, saved_steps

# A failed restore leaves Orbax coroutines behind, whose warnings at garbage collection belong to no
# later test.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.usefixtures("collected"),
]


FACTS = {"best_value": 0.1 + 0.2, "best_step": 3, "seconds": 1.5}


def make_state(value=0.0, size=5):
    """Return a state with values that a careless copy would change, such as NaN and -0.0."""
    odd = np.array([np.nan, -np.inf, -0.0, 1e-45, 1 / 3], np.float32)
    params = {"conv": {"kernel": np.resize(odd, size) + np.float32(value), "bias": odd[:2]}}
    opt_state = optax.sgd(0.1, momentum=0.9).init(jax.tree.map(jnp.asarray, params))
    variables = {"params": params, "batch_stats": {"bn": {"mean": odd[2:4]}}}
    return TrainState(np.int32(2**31 - 1), variables, opt_state, {})


def bits(state):
    return {
        jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree.leaves_with_path(state)
    }


def like_one():
    return restore_template(parallel.place(make_state(), jax.devices()[:1]))


@pytest.fixture(params=[1, 2])
def devices(request):
    return jax.devices()[: request.param]


def test_state_is_restored_bit_for_bit(tmp_path, devices):
    state = parallel.place(make_state(), devices)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save("latest", 7, state, FACTS)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.step("latest") == 7
        assert checkpoints.step("best") is None
        assert checkpoints.facts("latest") == FACTS
        restored = checkpoints.restore("latest", restore_template(state))
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert_same_bits(bits(restored), bits(state))
    for x in jax.tree.leaves(restored):
        assert set(x.devices()) == set(devices)


@pytest.mark.parametrize("saved_on", [1, 2])
def test_number_of_devices_may_change(tmp_path, saved_on):
    with Checkpoints(tmp_path) as checkpoints:
        state = parallel.place(make_state(), jax.devices()[:saved_on])
        checkpoints.save("latest", 1, state, FACTS)
    others = jax.devices()[: 3 - saved_on]
    like = restore_template(parallel.place(make_state(1.0), others))
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore("latest", like)
    assert_same_bits(bits(restored), bits(make_state()))
    for x in jax.tree.leaves(restored):
        assert set(x.devices()) == set(others)


def test_donated_buffers_do_not_corrupt_a_pending_save(tmp_path, devices):
    step = parallel.parallelize(lambda state, share: state + 1.0, devices, donate=True)
    share = parallel.split(np.zeros(2, np.float32), devices)
    # Large enough that the first steps run while the save does.
    first = step(parallel.place(np.arange(2**22, dtype=np.float32), devices), share)
    state = step(first, share)
    assert first.is_deleted()  # the buffer is donated, otherwise this test proves nothing
    with Checkpoints(tmp_path) as checkpoints:
        for number in range(3):
            before = {"x": np.array(state)}
            checkpoints.save("latest", number, {"x": state}, FACTS)
            for _ in range(20):
                state = step(state, share)
            restored = checkpoints.restore("latest", {"x": restore_template(state)})
            assert_same_bits({"x": np.asarray(restored["x"])}, before)


def test_newest_checkpoints_are_kept(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        for step in range(1, 6):
            for kind in ("latest", "best", "final"):
                checkpoints.save(kind, step, make_state(step), FACTS | {"best_step": step})
    kept = {kind: saved_steps(tmp_path, kind) for kind in ("latest", "best", "final")}
    assert kept == {"latest": [4, 5], "best": [5], "final": [5]}
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.facts("best")["best_step"] == 5
        assert checkpoints.path("latest") == tmp_path / "checkpoints" / "latest" / "5"
        assert checkpoints.path("latest", before=5) == checkpoints.path("latest").with_name("4")
        assert checkpoints.path("latest", before=4) is None


def test_existing_step_is_not_overwritten(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save("latest", 1, make_state(1), FACTS)
        checkpoints.save("latest", 1, make_state(2), FACTS)
        restored = checkpoints.restore("latest", like_one())
    assert_same_bits(bits(restored), bits(make_state(1)))


def another_model(change):
    kernel, bias = np.zeros(5, np.float32), np.zeros(2, np.float32)
    params = {
        "name": {"convolution": {"kernel": kernel, "bias": bias}},
        "shape": {"conv": {"kernel": np.zeros(6, np.float32), "bias": bias}},
        "more": {"conv": {"kernel": kernel, "bias": bias, "gain": bias}},
        "fewer": {"conv": {"kernel": kernel}},
    }[change]
    state = make_state()
    return state.replace(variables={**state.variables, "params": params})


@pytest.mark.parametrize("change", ["name", "shape", "more", "fewer"])
def test_checkpoint_of_another_model_is_one_line(tmp_path, change):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save("latest", 4, make_state(), FACTS)
        like = restore_template(parallel.place(another_model(change), jax.devices()[:1]))
        with pytest.raises(
            UserError, match=r"checkpoint .*latest/4 is damaged, or not of this model: "
        ) as caught:
            checkpoints.restore("latest", like)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("item", "file"), [("state", "_METADATA"), ("facts", "metadata")])
def test_damaged_checkpoint_is_one_line(tmp_path, item, file):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save("latest", 4, make_state(), FACTS)
    path = tmp_path / "checkpoints" / "latest" / "4" / item / file
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    match = r"^checkpoint .*latest/4 is damaged[^\n]*$"
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        if item == "state":
            with pytest.raises(UserError, match=match):
                checkpoints.restore("latest", like_one())
        else:
            with pytest.raises(UserError, match=match):
                checkpoints.facts("latest")


@pytest.fixture
def half_written(tmp_path):
    """Return a workdir as left by kills during the write of step 2 and the deletion of step 0."""
    with Checkpoints(tmp_path) as checkpoints:
        for step in (0, 1):
            checkpoints.save("latest", step, make_state(step), FACTS)
    folder = tmp_path / "checkpoints" / "latest"
    shutil.copytree(folder / "1", folder / "2.orbax-checkpoint-tmp-123")
    shutil.rmtree(folder / "2.orbax-checkpoint-tmp-123" / "facts")
    shutil.rmtree(folder / "0" / "state")
    return tmp_path


def test_incomplete_checkpoints_are_deleted_on_opening(half_written):
    folder = half_written / "checkpoints" / "latest"
    with Checkpoints(half_written) as checkpoints:
        assert checkpoints.step("latest") == 1
        assert_same_bits(bits(checkpoints.restore("latest", like_one())), bits(make_state(1)))
        for step in (2, 3):
            checkpoints.save("latest", step, make_state(step), FACTS)
    assert sorted(path.name for path in folder.iterdir()) == ["2", "3"]
    saved = arrays(half_written, "latest")["['variables']['params']['conv']['kernel']"]
    assert_same_bits({"": saved}, {"": make_state(3).variables["params"]["conv"]["kernel"]})


def test_read_only_changes_nothing(half_written):
    folder = half_written / "checkpoints" / "latest"
    before = sorted(str(path) for path in folder.rglob("*"))
    with Checkpoints(half_written, read_only=True) as checkpoints:
        assert checkpoints.step("latest") == 1
        assert checkpoints.step("final") is None
        assert checkpoints.facts("latest") == FACTS
        assert_same_bits(bits(checkpoints.restore("latest", like_one())), bits(make_state(1)))
    assert sorted(str(path) for path in folder.rglob("*")) == before
    assert [path.name for path in folder.parent.iterdir()] == ["latest"]
