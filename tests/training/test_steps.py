"""The training step: what its numbers depend on."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from hypothesis import example, given, settings
from hypothesis import strategies as st

from segjax.data import datasets, loader
from segjax.errors import UserError
from segjax.models.layers import Dropout
from segjax.runs import experiment
from segjax.training import losses, optimizers, parallel, steps
from support.runs import OneLayer, assert_same_bits, tiny_config

TWO = jax.devices()[:2]

# Compiles in a third of the time, for tests that augmentation has no part in.
PLAIN = {
    "augment__flip": False,
    "augment__scale": (1.0, 1.0),
    "augment__brightness": 0.0,
    "augment__contrast": 0.0,
}


class Pixelwise(nn.Module):
    """A network of single pixels, whose result does not depend on how a batch is split."""

    num_classes: int
    axis_name: str | None = None

    @nn.compact
    def __call__(self, image, *, train):
        self.variable("batch_stats", "unused", jnp.zeros, (1,))
        return nn.Conv(self.num_classes, (1, 1), name="classifier")(image)


class Dropped(Pixelwise):
    """A network that drops half of its inputs."""

    @nn.compact
    def __call__(self, image, *, train):
        image = Dropout(0.5, deterministic=not train, axis_name=self.axis_name)(image)
        return super().__call__(image, train=train)


def leaves(tree):
    return {jax.tree_util.keystr(p): np.array(x) for p, x in jax.tree.leaves_with_path(tree)}


def assert_close(ours, theirs, tolerance):
    """Compare arrays by an absolute error, relative to the largest value."""
    ours, theirs = leaves(ours), leaves(theirs)
    assert ours.keys() == theirs.keys()
    for name, x in ours.items():
        scale = 1 + np.abs(x).max(initial=0)
        np.testing.assert_allclose(x, theirs[name], rtol=0, atol=tolerance * scale, err_msg=name)


class Setup:
    """A config with everything that its training step needs; `state()` is always the same."""

    def __init__(self, config, model=None):
        self.run = experiment.create(config)
        self.config, self.devices = config, self.run.devices
        self.model = model or self.run.model
        schedule = optimizers.create_schedule(config.optimizer, config.steps)
        self.optimizer = optimizers.create_optimizer(config.optimizer, schedule)
        counts = self.run.info.splits["train"]
        self.class_weights = jnp.asarray(
            losses.class_weights(
                config.loss.class_weights, counts.pixel_counts, counts.present_pixel_counts
            )
        )
        self.data = loader.in_memory(self.run.open_split("train"))

    @functools.cached_property
    def _initial(self):
        return jax.device_get(steps.create_state(self.model, self.optimizer, self.config))

    def state(self):
        # Copies, since the steps donate their arguments.
        return parallel.place(jax.tree.map(np.copy, self._initial), self.devices)

    def steps(self, num_steps=1):
        return steps.build_train_steps(
            self.model,
            self.optimizer,
            self.config,
            self.run.info,
            self.class_weights,
            num_steps=num_steps,
            resident=True,
            axis_name=self.run.axis_name,
        )

    @functools.cached_property
    def step(self):
        """Take one step on an augmented batch; compiled once."""

        def step(state, batch):
            return steps.train_step(
                state,
                batch,
                self.model,
                self.optimizer,
                self.config,
                self.class_weights,
                seed=self.config.seed,
                axis_name=self.run.axis_name,
            )

        return parallel.parallelize(step, self.devices)

    def shared(self):
        return np.uint32(self.config.seed), self.data

    def train(self, calls, num_steps=1, state=None):
        """Return the state after each call, on the host, and the metrics of all steps."""
        step = parallel.parallelize(self.steps(num_steps), self.devices, donate=True)
        shared = parallel.place(self.shared(), self.devices)
        state, states, metrics = self.state() if state is None else state, [], []
        for _ in range(calls):
            state, outputs = step(state, shared, {})
            states.append(jax.tree.map(np.array, state))
            metrics.append(jax.device_get(outputs))
        return states, jax.tree.map(lambda *x: np.concatenate(x), *metrics)


@pytest.mark.slow
def test_two_devices_train_as_one_and_as_vmap(scenes_data_dir):
    changed = {"augment__scale": (1.0, 1.25), "optimizer__learning_rate": 0.01}
    one = Setup(tiny_config(scenes_data_dir, **changed))
    two = Setup(tiny_config(scenes_data_dir, num_devices=2, **changed))
    # Where an image is flat (a saturated sky, the fill beside it) all values of a pooling window
    # are equal in exact arithmetic, and rounding decides which is the maximum: noise has no ties.
    noise = np.random.default_rng(0).integers(60, 190, one.data["image"].shape, np.uint8)
    one.data["image"] = two.data["image"] = noise
    assert (one.run.axis_name, two.run.axis_name) == (None, "batch")
    ours, our_metrics = one.train(4)
    theirs, their_metrics = two.train(4)
    assert_close(ours, theirs, 1e-5)
    for name in ("loss", "gradient_norm"):
        np.testing.assert_allclose(our_metrics[name], their_metrics[name], rtol=1e-5)
    np.testing.assert_array_equal(our_metrics["global_accuracy"], their_metrics["global_accuracy"])
    assert our_metrics["loss"][-1] != our_metrics["loss"][0]

    mapped = jax.jit(
        jax.vmap(
            lambda state, shared, _: two.steps()(state, shared, {}),
            axis_name=parallel.AXIS,
            axis_size=2,
            in_axes=(None, None, None),
        )
    )
    state = one.state()
    for number in range(2):
        both, _ = mapped(state, jax.tree.map(jnp.asarray, two.shared()), ())
        first, second = (jax.tree.map(lambda x, k=k: x[k], both) for k in range(2))
        assert_same_bits(leaves(first), leaves(second))
        assert_close(first, theirs[number], 1e-5)
        state = first


CUTS = [(1, 1), (2, 1), (4, 1), (1, 2), (2, 2)]


@pytest.mark.parametrize(("micro_batches", "num_devices"), CUTS)
def test_neither_devices_nor_micro_batches_change_the_loss(
    scenes_data_dir, micro_batches, num_devices
):
    setup = Setup(
        tiny_config(
            scenes_data_dir,
            micro_batches=micro_batches,
            num_devices=num_devices,
            optimizer__learning_rate=1.0,
            optimizer__momentum=0.0,
            ema_decay=0.0,
        ),
        Pixelwise(11),
    )
    rng = np.random.default_rng(0)
    image = rng.normal(size=(4, 6, 8, 3)).astype(np.float32)
    label = rng.integers(0, 11, (4, 6, 8)).astype(np.uint8)
    # As many valid pixels as 48, 24, 5 and 0: means of means come out another way.
    label[1, :3], label[2].flat[5:], label[3] = datasets.VOID, datasets.VOID, datasets.VOID
    state = setup.state()
    params = jax.tree.map(np.array, state.variables["params"])

    kernel, bias = params["classifier"]["kernel"][0, 0], params["classifier"]["bias"]
    valid = label < 11
    pixels, truth = image[valid].astype(np.float64), label[valid]
    logits = pixels @ kernel.astype(np.float64) + bias
    shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    weights = np.asarray(setup.class_weights, np.float64)[truth]
    count = len(truth)
    loss = -(weights * np.log(shares[np.arange(count), truth])).sum() / count
    slope = weights[:, None] * (shares - np.eye(11)[truth]) / count
    gradient = {"classifier": {"kernel": (pixels.T @ slope)[None, None], "bias": slope.sum(0)}}

    batch = parallel.split({"image": image, "label": label}, setup.devices)
    state, metrics = setup.step(state, batch)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-6)
    np.testing.assert_allclose(
        metrics["global_accuracy"], (logits.argmax(-1) == truth).mean(), rtol=1e-6
    )
    made = jax.tree.map(lambda a, b: a - np.array(b), params, state.variables["params"])
    assert_close(made, gradient, 1e-6)
    norm = np.sqrt(sum((x**2).sum() for x in jax.tree.leaves(gradient)))
    np.testing.assert_allclose(metrics["gradient_norm"], norm, rtol=1e-6)


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "name", ["lovasz", pytest.param("focal", marks=SLOW), pytest.param("dice", marks=SLOW)]
)
def test_no_loss_changes_with_devices_or_micro_batches(scenes_data_dir, name):
    rng = np.random.default_rng(0)
    label = rng.integers(0, 11, (4, 6, 8)).astype(np.uint8)
    label[1, :3], label[2] = datasets.VOID, datasets.VOID  # three images have a valid pixel
    batch = {"image": rng.normal(size=(4, 6, 8, 3)).astype(np.float32), "label": label}
    if name == "focal":
        batch["weight"] = rng.uniform(0, 5, label.shape).astype(np.float32)
    found = []
    for micro_batches, num_devices in ((1, 1), (2, 2)):
        changed = {"micro_batches": micro_batches, "num_devices": num_devices}
        setup = Setup(tiny_config(scenes_data_dir, loss__name=name, **changed), Pixelwise(11))
        state, metrics = setup.step(setup.state(), parallel.split(batch, setup.devices))
        found.append((state.variables["params"], metrics))
    assert_close(*found, 1e-6)
    logits = setup.model.apply(setup.state().variables, batch["image"], train=True)
    weights = batch.get("weight")
    whole = losses.loss(name, logits, label, setup.class_weights, pixel_weights=weights)
    np.testing.assert_allclose(found[0][1]["loss"], whole, rtol=1e-5)


@functools.cache  # compiled once for all examples
def pixelwise(data_dir, name, micro_batches, num_devices):
    changed = {"micro_batches": micro_batches, "num_devices": num_devices}
    return Setup(tiny_config(data_dir, loss__name=name, **changed), Pixelwise(11))


@settings(max_examples=12)
@given(
    name=st.sampled_from(losses.LOSSES),
    valid=st.lists(st.integers(0, 4), min_size=4, max_size=4),  # valid pixels of each image
    void=st.sampled_from([datasets.VOID, 11]),
    seed=st.integers(0, 99),
)
@example(name="dice", valid=[48, 0, 0, 0], void=datasets.VOID, seed=0)
@example(name="cross_entropy", valid=[1, 0, 0, 0], void=datasets.VOID, seed=0)
@example(name="lovasz", valid=[0, 0, 0, 0], void=datasets.VOID, seed=0)
@pytest.mark.slow
def test_void_shares_change_no_loss(scenes_data_dir, name, valid, void, seed):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 11, (4, 6, 8)).astype(np.uint8)
    for each, count in zip(label, valid, strict=True):
        each.flat[count:] = void
    image = rng.normal(size=(4, 6, 8, 3)).astype(np.float32)
    found = []
    for micro_batches, num_devices in ((1, 1), (1, 2), (2, 2), (4, 1)):
        setup = pixelwise(scenes_data_dir, name, micro_batches, num_devices)
        batch = parallel.split({"image": image, "label": label}, setup.devices)
        state, metrics = setup.step(setup.state(), batch)
        found.append((state.variables["params"], metrics))
    for other in found[1:]:
        assert_close(found[0], other, 1e-6)
    logits = setup.model.apply(setup.state().variables, image, train=True)
    whole = losses.loss(name, logits, label, setup.class_weights)
    np.testing.assert_allclose(found[0][1]["loss"], whole, rtol=1e-5, atol=1e-6)


def test_micro_batches_sum_their_gradients_and_normalize_one_after_the_other(scenes_data_dir):
    config = tiny_config(
        scenes_data_dir,
        micro_batches=2,
        optimizer__learning_rate=1.0,
        optimizer__momentum=0.0,
        ema_decay=0.0,
    )
    setup = Setup(config, OneLayer(11))
    state = setup.state()
    rng = np.random.default_rng(1)
    image = rng.normal(size=(4, 6, 8, 3)).astype(np.float32)
    label = rng.integers(0, 11, (4, 6, 8)).astype(np.uint8)
    label[0, :5] = datasets.VOID

    def loss_of(params, batch_stats, part):
        logits, updated = setup.model.apply(
            {"params": params, "batch_stats": batch_stats},
            image[list(part)],
            train=True,
            mutable=["batch_stats"],
        )
        count = jnp.float32((label < 11).sum())
        loss = losses.cross_entropy(
            logits, label[list(part)], setup.class_weights, normalizer=count
        )
        return loss, updated["batch_stats"]

    gradient_of = jax.jit(jax.grad(loss_of, has_aux=True), static_argnums=2)
    params, batch_stats = state.variables["params"], state.variables["batch_stats"]
    expected = params
    for part in ((0, 2), (1, 3)):
        gradient, batch_stats = gradient_of(params, batch_stats, part)
        expected = jax.tree.map(jnp.subtract, expected, gradient)

    after, _ = setup.step(state, {"image": image, "label": label})
    assert_close(after.variables, {"params": expected, "batch_stats": batch_stats}, 1e-6)


def test_micro_batches_are_of_the_same_images_on_any_number_of_devices(scenes_data_dir):
    """Batch normalization would show it: each image has a brightness of its own."""
    rng = np.random.default_rng(2)
    image = rng.normal(size=(4, 6, 8, 3)) * np.array([1, 2, 4, 8]).reshape(4, 1, 1, 1)
    label = rng.integers(0, 11, (4, 6, 8)).astype(np.uint8)
    found = []
    for count in (1, 2):
        config = tiny_config(scenes_data_dir, num_devices=count, micro_batches=2, ema_decay=0.0)
        setup = Setup(config)
        setup.model = OneLayer(11, axis_name=setup.run.axis_name)
        batch = {"image": image.astype(np.float32), "label": label}
        after, metrics = setup.step(setup.state(), parallel.split(batch, setup.devices))
        found.append({**after.variables, **metrics})
    assert_close(*found, 1e-6)


def test_averaged_variables_by_hand(scenes_data_dir):
    setup = Setup(tiny_config(scenes_data_dir, ema_decay=0.19, **PLAIN), OneLayer(11))
    before = leaves(setup.state().variables)
    states, _ = setup.train(3)
    expected = before
    # (1 + step) / (10 + step) is 1 / 10, 2 / 11 and 3 / 12: the last is above the config's.
    for decay, state in zip((0.1, 2 / 11, 0.19), states, strict=True):
        now = leaves(state.variables)
        expected = {name: decay * x + (1 - decay) * now[name] for name, x in expected.items()}
    averaged = leaves(states[-1].evaluated())
    assert averaged.keys() == expected.keys()
    for name, x in expected.items():
        np.testing.assert_allclose(averaged[name], x, rtol=1e-5, atol=1e-7, err_msg=name)
        assert not np.array_equal(now[name], before[name]), name


def test_without_averaging_the_variables_themselves_are_evaluated(scenes_data_dir):
    state = Setup(tiny_config(scenes_data_dir, ema_decay=0.0), OneLayer(11)).state()
    assert state.evaluated() is state.variables


@pytest.mark.parametrize("num_devices", [1, 2])
def test_three_steps_in_one_dispatch_are_three_dispatches(scenes_data_dir, num_devices):
    setup = Setup(tiny_config(scenes_data_dir, num_devices=num_devices, **PLAIN))
    setup.model = OneLayer(11, axis_name=setup.run.axis_name)
    singles, single_metrics = setup.train(6)
    triples, triple_metrics = setup.train(2, num_steps=3)
    for name, x in single_metrics.items():
        assert x.shape == (6,)
        np.testing.assert_allclose(x, triple_metrics[name], rtol=1e-6, err_msg=name)
    assert triples[0].step == 3
    assert_close(singles[2], triples[0], 1e-6)
    assert_close(singles[5], triples[1], 1e-6)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_bfloat16_computes_but_is_never_kept(scenes_data_dir, name):
    changed = PLAIN | {"optimizer__name": name, "optimizer__weight_decay": 1e-4}
    full = Setup(tiny_config(scenes_data_dir, **changed), OneLayer(11))
    half = Setup(
        tiny_config(scenes_data_dir, precision="bfloat16", **changed),
        OneLayer(11, dtype=jnp.bfloat16),
    )
    # flax's batch normalization mixes bfloat16 and float32, which strict promotion forbids.
    with jax.numpy_dtype_promotion("standard"):
        (state,), metrics = half.train(1)
        logits = half.model.apply(half.state().variables, jnp.zeros((1, 4, 4, 3)), train=False)
    for path, x in leaves(state).items():
        assert x.dtype in (np.float32, np.int32), path
    (_,), full_metrics = full.train(1)
    assert metrics["loss"] != full_metrics["loss"]
    np.testing.assert_allclose(metrics["loss"], full_metrics["loss"], rtol=0.02)
    assert logits.dtype == np.float32


def test_the_config_chooses_the_compute_dtype(scenes_data_dir):
    run = experiment.create(tiny_config(scenes_data_dir, precision="bfloat16"))
    assert run.model.dtype == jnp.bfloat16


@pytest.mark.parametrize("num_devices", [1, 2])
def test_a_step_depends_on_the_state_alone(scenes_data_dir, num_devices):
    setup = Setup(tiny_config(scenes_data_dir, num_devices=num_devices))
    setup.model = OneLayer(11, axis_name=setup.run.axis_name)
    states, metrics = setup.train(3)
    # From a state that went through the host, in a step that was built anew, after other steps.
    again, metrics_again = setup.train(2, state=parallel.place(states[0], setup.devices))
    for ours, theirs in zip(states[1:], again, strict=True):
        assert_same_bits(leaves(ours), leaves(theirs))
    for name, x in metrics.items():
        np.testing.assert_array_equal(x[1:], metrics_again[name])


def test_another_step_or_seed_has_another_batch(scenes_data_dir):
    seen = []
    for seed in (0, 1):
        # A batch of the whole set, from the same parameters: only augmentation can differ.
        changed = PLAIN | {"augment__brightness": 0.2, "batch_size": 10, "ema_decay": 0.0}
        setup = Setup(tiny_config(scenes_data_dir, **changed), OneLayer(11))
        state = setup.state()
        setup.config.seed = seed
        step = jax.jit(setup.steps())
        for number in (0, 5):
            _, metrics = step(state.replace(step=jnp.int32(number)), setup.shared(), {})
            seen.append(float(metrics["loss"][0]))
    assert len(set(seen)) == 4


@pytest.mark.parametrize("micro_batches", [pytest.param(1, marks=SLOW), 2])
def test_dropout_follows_the_step_and_the_image_on_any_number_of_devices(
    scenes_data_dir, micro_batches
):
    rng = np.random.default_rng(0)
    image = np.broadcast_to(rng.normal(size=(1, 6, 8, 3)), (4, 6, 8, 3)).astype(np.float32)
    label = np.ones((4, 6, 8), np.uint8)
    found = {}
    for count in (1, 2):
        changed = {"num_devices": count, "micro_batches": micro_batches}
        setup = Setup(tiny_config(scenes_data_dir, **changed))
        setup.model = Dropped(11, axis_name=setup.run.axis_name)
        for step in (0, 1):
            state = setup.state().replace(step=jnp.int32(step))
            batch = parallel.split({"image": image, "label": label}, setup.devices)
            state, metrics = setup.step(state, batch)
            found[count, step] = {**state.variables["params"], **metrics}
    for step in (0, 1):
        assert_close(found[1, step], found[2, step], 1e-6)
    assert found[1, 0]["loss"] != found[1, 1]["loss"]


def test_images_of_a_batch_have_different_masks():
    layer = Dropout(0.5, deterministic=False)
    kept = layer.apply({}, jnp.ones((3, 64, 64, 2)), rngs={"dropout": jax.random.key(0)})
    assert set(np.unique(kept)) == {0.0, 2.0}
    kept = np.asarray(kept > 0)
    np.testing.assert_allclose(kept.mean((1, 2)), 0.5, atol=0.03)
    for a, b in itertools.combinations(kept, 2):
        np.testing.assert_allclose((a == b).mean(), 0.5, atol=0.03)


def test_devices_are_those_that_divide_the_batches():
    assert parallel.pick_devices(0, {"batch": 4, "eval": 6}) == TWO
    assert parallel.pick_devices(0, {"batch": 4, "eval": 5}) == TWO[:1]
    assert parallel.pick_devices(1, {"batch": 4}) == TWO[:1]
    with pytest.raises(UserError, match="num_devices=3, but this host has 2"):
        parallel.pick_devices(3, {"batch": 6})
    with pytest.raises(UserError, match="batch is 5, which 2 devices do not divide"):
        parallel.pick_devices(2, {"batch": 5})


def test_the_optimizer_gets_the_schedule_of_its_own_steps(scenes_data_dir):
    changed = PLAIN | {"optimizer__momentum": 0.0, "optimizer__schedule": "poly"}
    config = tiny_config(scenes_data_dir, steps=2, **changed)
    setup = Setup(config, OneLayer(11))
    states, _ = setup.train(3)
    updates = [
        optax.tree.norm(optax.tree.sub(b.variables["params"], a.variables["params"]))
        for a, b in itertools.pairwise(states)
    ]
    assert updates[0] > 0
    assert updates[1] == 0  # the schedule has ended at 0
