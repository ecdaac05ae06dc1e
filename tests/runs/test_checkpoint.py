"""Test that checkpoints restore bit for bit and survive kills and damage."""

import logging
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from segjax.errors import UserError
from segjax.runs import checkpoint
from segjax.runs.checkpoint import Checkpoints, restore_template
from segjax.training import parallel
from segjax.training.steps import TrainState
from support.errors import refusal
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
        assert checkpoints.path("latest", before=5) == tmp_path / "checkpoints" / "latest" / "4"
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
        said = refusal(checkpoints.restore, "latest", like)
    path = tmp_path / "checkpoints" / "latest" / "4"
    assert said.startswith(f"checkpoint {path} is damaged, or not of this model: ")


@pytest.mark.parametrize(
    ("file", "read"),
    [
        ("state/_METADATA", lambda checkpoints: checkpoints.restore("latest", like_one())),
        ("facts/metadata", lambda checkpoints: checkpoints.facts("latest")),
    ],
    ids=["state", "facts"],
)
def test_damaged_checkpoint_is_one_line(tmp_path, file, read):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save("latest", 4, make_state(), FACTS)
    path = tmp_path / "checkpoints" / "latest" / "4"
    damaged = path / file
    damaged.write_bytes(damaged.read_bytes()[: damaged.stat().st_size // 2])
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert refusal(read, checkpoints).startswith(f"checkpoint {path} is damaged")


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


@pytest.mark.parametrize("name", ["exp [lr=0.1]", "a*b?", "%41 #h|k:q", "{0}~"])
def test_folders_whose_names_look_like_patterns(tmp_path, name, monkeypatch):
    for workdir in (tmp_path / name, tmp_path / name / "run"):
        with Checkpoints(workdir) as checkpoints:
            for step in range(3):
                checkpoints.save("latest", step, make_state(step), FACTS)
        monkeypatch.chdir(workdir)
        with Checkpoints(workdir.relative_to(workdir), read_only=True) as checkpoints:
            assert_same_bits(bits(checkpoints.restore("latest", like_one())), bits(make_state(2)))


def test_a_backslash_in_the_path_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"a\\b/checkpoints has a backslash in its path"):
        Checkpoints(tmp_path / "a\\b")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("file", ["state/manifest.ocdbt", "state/_METADATA", "facts/metadata"])
def test_former_checkpoint_survives_if_the_new_one_is_not_whole(tmp_path, file, monkeypatch):
    seal = Checkpoints._seal

    def lose_a_file(self, kind):
        (path,) = (self._root / kind).glob("*orbax-checkpoint-tmp")
        (path / file).unlink()
        seal(self, kind)

    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2):
            checkpoints.save("best", step, make_state(step), FACTS)
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "_seal", lose_a_file)
        match = r"^checkpoint .*best/3 was not written whole, and those before it are kept: "
        with pytest.raises(UserError, match=match) as error, Checkpoints(tmp_path) as checkpoints:
            checkpoints.save("best", 3, make_state(3), FACTS)
        assert "\n" not in str(error.value)
    assert saved_steps(tmp_path, "best") == [2]
    with Checkpoints(tmp_path) as checkpoints:
        assert_same_bits(bits(checkpoints.restore("best", like_one())), bits(make_state(2)))


def flip_a_bit(workdir, kind, step):
    """Flip a bit of a weight in a checkpoint, as a failing disk may."""
    with Checkpoints(workdir) as checkpoints:
        state = checkpoints.restore(kind, like_one())
    kernel = np.array(state.variables["params"]["conv"]["kernel"])
    kernel.view(np.uint8)[3] ^= 1
    params = {"conv": state.variables["params"]["conv"] | {"kernel": kernel}}
    path = workdir / "checkpoints" / kind / str(step)
    with Checkpoints(workdir / "flipped") as checkpoints:
        changed = state.replace(variables=state.variables | {"params": params})
        checkpoints.save(kind, step, changed, FACTS)
    shutil.rmtree(path / "state")
    shutil.move(workdir / "flipped" / "checkpoints" / kind / str(step) / "state", path)


def test_a_flipped_bit_is_noticed(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save("latest", 4, make_state(), FACTS)
    flip_a_bit(tmp_path, "latest", 4)
    path = tmp_path / "checkpoints" / "latest" / "4"
    match = r"latest/4 is damaged.*: variables/params/conv/kernel has changed since it was saved$"
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        with pytest.raises(UserError, match=match):
            checkpoints.restore("latest", like_one())
        assert checkpoints.facts("latest") == FACTS

    facts = path / "facts" / "metadata"
    facts.write_text(facts.read_text().replace('"seconds": 1.5', '"seconds": 9.5'))
    match = r"latest/4 is damaged.*: facts has changed since"
    with pytest.raises(UserError, match=match), Checkpoints(tmp_path, read_only=True) as opened:
        opened.facts("latest")

    (path / "facts" / "checksums.json").unlink()  # as in a checkpoint of an older version
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.facts("latest")["seconds"] == 9.5
        checkpoints.restore("latest", like_one())


@pytest.fixture
def survivors(tmp_path, caplog, monkeypatch):
    """Return f(latest, best, damaged) -> the steps that `resume` starts from and leaves.

    `damaged` holds (kind, step): a manifest cut, or of a negative step half of its files gone.
    """

    def resume(latest, best, damaged):
        with Checkpoints(tmp_path) as checkpoints, monkeypatch.context() as patch:
            for kind, steps in (("latest", latest), ("best", best)):
                patch.setitem(checkpoint.KINDS, kind, 9)  # keep those that a kill would leave
                for step in steps:
                    former = max((each for each in best if each <= step), default=0)
                    facts = FACTS | {"steps": step, "best_step": former, "config": "c"}
                    checkpoints.save(kind, step, make_state(step), facts)
        for kind, step in damaged:
            path = tmp_path / "checkpoints" / kind / str(abs(step))
            if step < 0:
                shutil.rmtree(path / "state" / "d")
            else:
                manifest = path / "state" / "manifest.ocdbt"
                manifest.write_bytes(manifest.read_bytes()[: manifest.stat().st_size // 2])
        caplog.clear()
        with Checkpoints(tmp_path) as checkpoints, caplog.at_level(logging.WARNING, "segjax"):
            found = checkpoints.resume(like_one(), "c")
        if found:
            state, facts = found
            assert_same_bits(bits(state), bits(make_state(facts["steps"])))
        said = [r.getMessage() for r in caplog.records if r.name == checkpoint.__name__]
        left = [saved_steps(tmp_path, kind) for kind in ("latest", "best")]
        return found and found[1]["steps"], *left, said

    return resume


def test_checkpoints_about_to_be_deleted_are_deleted(survivors):
    damaged = [("latest", -5), ("best", -3)]
    assert survivors([5, 6, 7], [3, 6], damaged) == (7, [6, 7], [6], [])


def test_older_best_serves_if_the_newest_is_lost(survivors):
    start, *left, said = survivors([6, 7], [3, 6], [("best", 6)])
    assert (start, *left, len(said)) == (7, [6, 7], [3], 1)
    assert said[0].endswith("; resuming from step 7")


def test_lost_best_is_made_again_where_a_latest_came_before_it(survivors):
    start, *left, said = survivors([5, 6], [3, 6], [("best", 6)])
    assert (start, *left, len(said)) == (5, [5], [3], 1)
    assert said[0].endswith("; resuming from step 5")


def test_newest_latest_stands_in_for_a_lost_best(survivors, tmp_path):
    damaged = [("best", -3), ("best", 6)]
    start, *left, said = survivors([6, 7], [3, 6], damaged)
    assert (start, *left) == (7, [6, 7], [7])
    assert ["best/6 is damaged" in said[0], "best/3 is damaged" in said[1]] == [True] * 2
    for line in said:
        assert line.endswith("; resuming from step 7, which stands in for the best")
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        facts = checkpoints.facts("best")
        assert (facts["best_step"], facts["best_value"]) == (7, -math.inf)
        assert_same_bits(bits(checkpoints.restore("best", like_one())), bits(make_state(7)))


def test_a_kill_before_the_stand_in_is_saved(survivors, tmp_path):
    assert survivors([6, 7], [6], []) == (7, [6, 7], [6], [])
    shutil.rmtree(tmp_path / "checkpoints" / "best" / "6")
    start, *left, said = survivors([], [], [])
    assert (start, *left) == (7, [6, 7], [7])
    assert said == [
        f"checkpoint {tmp_path}/checkpoints/best/6 is missing; resuming from step 7, which stands "
        "in for the best"
    ]


def test_best_serves_if_no_latest_is_intact(survivors, tmp_path):
    start, *left, said = survivors([6, 7], [3], [("latest", 6), ("latest", 7)])
    assert (start, *left, len(said)) == (3, [3], [3], 2)
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.facts("latest") == checkpoints.facts("best")


def test_no_intact_checkpoint_is_an_error(survivors, tmp_path):
    with pytest.raises(UserError, match=r"latest/7 is damaged.*; none is intact, delete .*"):
        survivors([6, 7], [3], [("latest", 6), ("latest", 7), ("best", 3)])
    assert saved_steps(tmp_path, "latest") == [6, 7]


def test_no_latest_starts_over(survivors):
    assert survivors([], [3], [])[:3] == (None, [], [])  # no score of the former start stays
    start, *left, said = survivors([], [3], [("best", 3)])
    assert (start, *left) == (None, [], [])
    assert said[0].endswith("; starting over")
