import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from segjax import config as configs
from segjax.errors import UserError
from segjax.training.optimizers import (
    OPTIMIZERS,
    SCHEDULES,
    create_optimizer,
    create_schedule,
    decayed,
)

PARAMS = {
    "conv": {"kernel": jnp.array([[1.0, -2.0]]), "bias": jnp.array([3.0, 0.5])},
    "bn": {"scale": jnp.array([1.0, 4.0]), "bias": jnp.array([-1.0, 2.0])},
}


@pytest.fixture(autouse=True)
def lenient_promotion():
    """Allow optax to mix integer step counts with floats."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def options(**changes):
    """Return the `optimizer` part of a config."""
    part = configs.default().optimizer
    part.update(learning_rate=0.1, **changes)
    return part


def steps(part, gradients, params=PARAMS, total=10):
    """Return the parameters after each of the given gradients."""
    optimizer = create_optimizer(part, create_schedule(part, total))
    state, trail, update = optimizer.init(params), [], jax.jit(optimizer.update)
    for gradient in gradients:
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        trail.append(params)
    return trail


def constant(value, params=PARAMS):
    return jax.tree.map(lambda p: jnp.full_like(p, value), params)


def test_only_kernels_decay():
    assert decayed(PARAMS) == {
        "conv": {"kernel": True, "bias": False},
        "bn": {"scale": False, "bias": False},
    }


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_without_gradient_moves_kernels_alone(name):
    (moved,) = steps(options(name=name, weight_decay=0.01), [constant(0.0)])
    kernel = moved["conv"].pop("kernel")
    before = {"conv": {"bias": PARAMS["conv"]["bias"]}, "bn": PARAMS["bn"]}
    jax.tree.map(np.testing.assert_array_equal, moved, before)
    assert (np.abs(kernel) < np.abs(PARAMS["conv"]["kernel"])).all()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_without_decay_and_gradient_nothing_moves(name):
    (moved,) = steps(options(name=name), [constant(0.0)])
    jax.tree.map(np.testing.assert_array_equal, moved, PARAMS)


def test_sgd_by_hand():
    # m <- 0.9 m + g + 0.5 w (kernels alone), w <- w - 0.1 m.
    part = options(name="sgd", momentum=0.9, weight_decay=0.5)
    trail = steps(part, [constant(1.0), constant(-2.0)])
    # Kernel 1: m 1.5, w .85; m 1.35 - 2 + .425 = -.225, w .8725.
    # Kernel -2: m 0, w -2; m -3, w -1.7.
    np.testing.assert_allclose(trail[0]["conv"]["kernel"], [[0.85, -2.0]], rtol=1e-6)
    np.testing.assert_allclose(trail[1]["conv"]["kernel"], [[0.8725, -1.7]], rtol=1e-6)
    # Biases: m 1, w - .1; m .9 - 2 = -1.1, w + .11.
    np.testing.assert_allclose(trail[0]["conv"]["bias"], [2.9, 0.4], rtol=1e-6)
    np.testing.assert_allclose(trail[1]["conv"]["bias"], [3.01, 0.51], rtol=1e-6)


def test_sgd_without_momentum():
    trail = steps(options(name="sgd", momentum=0.0), [constant(1.0), constant(1.0)])
    np.testing.assert_allclose(trail[1]["bn"]["scale"], [0.8, 3.8], rtol=1e-6)


def test_the_learning_rate_follows_the_schedule():
    part = options(name="sgd", momentum=0.0, schedule="poly", power=1.0, warmup_steps=2)
    trail = steps(part, [constant(1.0)] * 6, total=6)
    rates = [0.1 / 3, 0.2 / 3, 0.1, 0.075, 0.05, 0.025]
    path = [float(params["bn"]["bias"][0]) for params in trail]
    np.testing.assert_allclose(path, -1 - np.cumsum(rates), rtol=1e-6)


def test_clipping_is_by_the_global_norm_and_before_the_decay():
    gradient = constant(1.5)  # 8 numbers: norm sqrt(18)
    part = options(name="sgd", momentum=0.0, clip_norm=2.0, weight_decay=0.5)
    (moved,) = steps(part, [gradient])
    clipped = 1.5 * 2 / np.sqrt(18)
    expected = np.array([[1.0, -2.0]]) * (1 - 0.1 * 0.5) - 0.1 * clipped
    np.testing.assert_allclose(moved["conv"]["kernel"], expected, rtol=1e-6)
    np.testing.assert_allclose(moved["bn"]["bias"], [-1 - 0.1 * clipped, 2 - 0.1 * clipped])


def test_a_small_gradient_is_not_clipped():
    part = options(name="sgd", momentum=0.0, clip_norm=2.0)
    (moved,) = steps(part, [constant(0.5)])  # norm sqrt(2)
    np.testing.assert_allclose(moved["bn"]["bias"], [-1.05, 1.95], rtol=1e-6)


def adam_reference(w, gradients, rate, l2=0.0, decoupled=0.0):
    """Run algorithm 1 of arXiv 1412.6980 in float64; decoupled decay as in arXiv 1711.05101."""
    w = np.asarray(w, np.float64)
    m, v = np.zeros_like(w), np.zeros_like(w)
    for t, gradient in enumerate(gradients, start=1):
        g = gradient + l2 * w
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        direction = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        w = w - rate * (direction + decoupled * w)
    return w


@pytest.mark.parametrize(("name", "decay"), [("adam", "l2"), ("adamw", "decoupled")])
def test_adam_with_l2_and_adamw_decoupled(name, decay):
    gradients = [0.5, -0.25, 2.0]
    trail = steps(options(name=name, weight_decay=0.2), [constant(g) for g in gradients])
    kernel = adam_reference(PARAMS["conv"]["kernel"], gradients, 0.1, **{decay: 0.2})
    np.testing.assert_allclose(trail[-1]["conv"]["kernel"], kernel, rtol=1e-5)
    spared = adam_reference(PARAMS["bn"]["scale"], gradients, 0.1)
    np.testing.assert_allclose(trail[-1]["bn"]["scale"], spared, rtol=1e-5)


def test_rmsprop_by_hand():
    # v <- 0.9 v + 0.1 g^2 from zero, w <- w - 0.1 g / sqrt(v + 1e-6), g with 0.5 w for kernels.
    trail = steps(options(name="rmsprop", weight_decay=0.5), [constant(2.0), constant(-1.0)])
    # Biases: v .4, w - .2 / sqrt(.4); v .36 + .1, w + .1 / sqrt(.46). Kernel 1: g 2.5, v .625.
    bias = 3 - 0.2 / np.sqrt(0.4 + 1e-6)
    np.testing.assert_allclose(trail[0]["conv"]["bias"][0], bias, rtol=1e-6)
    bias += 0.1 / np.sqrt(0.46 + 1e-6)
    np.testing.assert_allclose(trail[1]["conv"]["bias"][0], bias, rtol=1e-6)
    kernel = 1 - 0.25 / np.sqrt(0.625 + 1e-6)
    np.testing.assert_allclose(trail[0]["conv"]["kernel"][0, 0], kernel, rtol=1e-6)


def test_adam_scales_decay_away_and_adamw_does_not():
    # Without gradient: Adam takes a whole step of the rate whatever the decay; AdamW shrinks by
    # rate * decay.
    (l2,) = steps(options(name="adam", weight_decay=0.01), [constant(0.0)])
    (decoupled,) = steps(options(name="adamw", weight_decay=0.01), [constant(0.0)])
    np.testing.assert_allclose(l2["conv"]["kernel"], [[0.9, -1.9]], rtol=1e-5)
    np.testing.assert_allclose(decoupled["conv"]["kernel"], [[0.999, -1.998]], rtol=1e-6)


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        # Warm-up over 9 steps, then T = 100: half at 59, a quarter of the way at 34.
        ("constant", {9: 0.1, 34: 0.1, 59: 0.1, 108: 0.1, 109: 0.1}),
        # A half every 40 steps.
        ("step", {9: 0.1, 48: 0.1, 49: 0.05, 88: 0.05, 89: 0.025, 108: 0.025, 129: 0.0125}),
        # 0.1 * (1 - t / 100)^0.9
        ("poly", {9: 0.1, 34: 0.07718890, 59: 0.05358867, 108: 0.1 * 0.01**0.9, 109: 0.0}),
        # 0.05 * (1 + cos(pi t / 100))
        ("cosine", {9: 0.1, 34: 0.08535534, 59: 0.05, 84: 0.01464466, 109: 0.0}),
    ],
)
def test_schedules_by_hand(schedule, values):
    part = options(schedule=schedule, power=0.9, step_every=40, step_factor=0.5, warmup_steps=9)
    rate = jax.jit(create_schedule(part, 109))
    for step, expected in ({0: 0.01, 1: 0.02, 5: 0.06, 8: 0.09} | values).items():
        np.testing.assert_allclose(rate(jnp.int32(step)), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_without_warm_up_the_first_step_has_the_whole_rate(schedule):
    rate = create_schedule(options(schedule=schedule), 50)
    np.testing.assert_allclose(rate(0), 0.1, rtol=1e-6)
    last = {"constant": 0.1, "step": 0.1}.get(schedule, 0.0)  # a step is after 1000
    np.testing.assert_allclose(rate(50), last, atol=1e-7)


def test_unknown_names_are_refused():
    known = "sgd, rmsprop, adam, adamw"
    with pytest.raises(UserError, match=f"unknown optimizer.name 'lion'; known: {known}$"):
        steps(options(name="lion"), [])
    known = "constant, step, poly, cosine"
    with pytest.raises(UserError, match=f"unknown optimizer.schedule 'linear'; known: {known}$"):
        create_schedule(options(schedule="linear"), 10)


def by_hand(params, gradients, factor):
    """Run optax with one factor for all: clipped to 0.5, decay 0.5, momentum 0.9, rate 0.1."""
    optimizer = optax.chain(
        optax.clip_by_global_norm(0.5),
        optax.add_decayed_weights(0.5, mask=decayed),
        optax.trace(0.9),
        optax.scale(-0.1 * factor),
    )
    state = optimizer.init(params)
    for gradient in gradients:
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return params


def test_rates_are_factors_of_groups_and_freeze():
    gradients = [constant(1.0), constant(-2.0), constant(0.3)]
    params = PARAMS | {"bn": {"scale": jnp.array([-0.0, 4.0]), "bias": jnp.array([0.0, -1.0])}}
    part = options(name="sgd", momentum=0.9, weight_decay=0.5, clip_norm=0.5)
    part.rates.update({"*/bias": 2.0, "conv/*": 5.0, "bn/*": 0.0})
    moved = steps(part, gradients, params)[-1]

    # What is frozen has no share in the norm. The gradients do not depend on the parameters, so
    # each leaf can be followed alone.
    trained = [{"conv": gradient["conv"]} for gradient in gradients]
    for leaf, factor in (("kernel", 5.0), ("bias", 10.0)):
        expected = by_hand({"conv": params["conv"]}, trained, factor)["conv"][leaf]
        np.testing.assert_allclose(moved["conv"][leaf], expected, rtol=1e-6)
    for leaf, value in params["bn"].items():
        assert np.asarray(moved["bn"][leaf]).tobytes() == np.asarray(value).tobytes()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_frozen_parameters_keep_their_bits_and_have_no_state(name):
    part = options(name=name, weight_decay=0.1)
    part.rates.update({"*/kernel": 0.0})
    optimizer = create_optimizer(part, create_schedule(part, 10))
    state = jax.eval_shape(optimizer.init, PARAMS)
    assert PARAMS["conv"]["kernel"].shape not in [x.shape for x in jax.tree.leaves(state)]
    moved = steps(part, [constant(1.0), constant(-3.0)])[-1]
    assert moved["conv"]["kernel"].tobytes() == PARAMS["conv"]["kernel"].tobytes()
    assert (moved["conv"]["bias"] != PARAMS["conv"]["bias"]).all()


def test_without_rates_the_state_is_that_of_the_optimizer_alone():
    part = options(name="adam")
    schedule = create_schedule(part, 10)
    state = create_optimizer(part, schedule).init(PARAMS)  # that of checkpoints from before
    assert jax.tree.structure(state) == jax.tree.structure(
        optax.chain(optax.adam(schedule)).init(PARAMS)
    )


def test_a_pattern_without_a_parameter_is_refused():
    part = options()
    part.rates.update({"*/bias": 2.0, "fc8*": 10.0})
    said = r"^config field 'optimizer\.rates\.fc8\*' matches no parameter, .* such as bn/bias$"
    with pytest.raises(UserError, match=said):
        steps(part, [])
