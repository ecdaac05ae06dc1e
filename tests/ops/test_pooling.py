"""Pooling and unpooling against a double loop and PyTorch's values, and their properties."""

import functools
import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from segjax.models.layers import ConvBlock
from segjax.ops.platform import shapes_only
from segjax.ops.pooling import max_pool, max_pool_with_indices, max_unpool

# Compiled, because calling each operation separately is far slower. That the results are the same
# is tested by `test_jit_is_eager_and_vmap_is_a_loop`.
pool = jax.jit(max_pool_with_indices, static_argnums=1)
unpool = jax.jit(max_unpool, static_argnums=(2, 3))


@functools.partial(jax.jit, static_argnums=1)
def there_and_back(x, window=2):
    y, indices = max_pool_with_indices(x, window)
    return y, indices, max_unpool(y, indices, x.shape, window)


GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "unpooling.npz")
CASES = sorted({name.partition("/")[0] for name in GOLDEN.files})


def loop_pool(x, window):
    """Pool (..., H, W, C) window by window: maxima, and their positions as (row, column) of x."""
    *lead, height, width, channels = x.shape
    h, w = -(-height // window), -(-width // window)
    y = np.zeros((*lead, h, w, channels), x.dtype)
    places = np.zeros((*y.shape, 2), np.int64)
    for *n, i, j, c in np.ndindex(*y.shape):
        at = (*n, slice(i * window, (i + 1) * window), slice(j * window, (j + 1) * window), c)
        patch = x[at]
        row, column = np.unravel_index(np.argmax(patch), patch.shape)  # first; NaN is the greatest
        y[*n, i, j, c] = patch[row, column]
        places[*n, i, j, c] = i * window + row, j * window + column
    return y, places


def loop_unpool(y, places, shape):
    """Return zeros of `shape` with each value of y at its position."""
    x = np.zeros(shape, y.dtype)
    for *n, i, j, c in np.ndindex(*y.shape):
        x[*n, *places[*n, i, j, c], c] = y[*n, i, j, c]
    return x


def positions(places, window):
    """Convert places in the map to row-major positions in their windows."""
    return (places % window) @ np.array([window, 1])


def check_against_loop(x, window):
    y, places = loop_pool(x, window)
    found, indices, full = there_and_back(x, window)
    assert indices.dtype == jnp.uint8
    np.testing.assert_array_equal(np.asarray(found), y, strict=True)
    np.testing.assert_array_equal(indices, positions(places, window))
    np.testing.assert_array_equal(np.asarray(full), loop_unpool(y, places, x.shape), strict=True)


def random(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.fixture
def golden(request):
    """Load a case of PyTorch's values, NHWC, its indices as positions in the windows."""
    arrays = {
        name.partition("/")[2]: GOLDEN[name]
        for name in GOLDEN.files
        if name.startswith(f"{request.param}/")
    }
    window = int(arrays.pop("window"))
    arrays = {name: np.moveaxis(array, 1, -1) for name, array in arrays.items()}
    row, column = np.divmod(arrays["indices"], arrays["x"].shape[-2])
    arrays["indices"] = row % window * window + column % window
    return arrays | {"window": window}


@pytest.mark.parametrize("golden", CASES, indirect=True)
def test_pooling_and_its_gradient_are_pytorchs(golden):
    x, window = golden["x"], golden["window"]
    y, transpose, indices = jax.vjp(lambda x: pool(x, window), x, has_aux=True)
    np.testing.assert_array_equal(y, golden["pooled"])
    np.testing.assert_array_equal(indices, golden["indices"])
    (gradient,) = transpose(jnp.asarray(golden["pooled_cotangent"]))
    np.testing.assert_array_equal(gradient, golden["x_gradient"])


@pytest.mark.parametrize("golden", CASES, indirect=True)
def test_unpooling_and_its_gradient_are_pytorchs(golden):
    shape, window = golden["x"].shape, golden["window"]
    indices = golden["indices"].astype(np.uint8)
    unpooled, transpose = jax.vjp(lambda y: unpool(y, indices, shape, window), golden["pooled"])
    np.testing.assert_array_equal(unpooled, golden["unpooled"])
    (gradient,) = transpose(jnp.asarray(golden["unpooled_cotangent"]))
    np.testing.assert_array_equal(gradient, golden["pooled_gradient"])


def test_the_golden_cases_cover_their_conditions():
    windows = {int(GOLDEN[f"{case}/window"]) for case in CASES}
    assert windows == {2, 3, 5}
    assert any(GOLDEN[f"{case}/x"].shape[-1] % GOLDEN[f"{case}/window"] for case in CASES)
    assert np.isneginf(GOLDEN["infinite/pooled"]).any()
    assert np.isnan(GOLDEN["not_a_number/pooled"]).sum() == 4
    windows = GOLDEN["even/x"].reshape(2, 2, 2, 3, 2)  # channel, row, its row, column, its column
    equals = (windows == windows.max((2, 4), keepdims=True)).sum((2, 4))
    assert (equals > 1).sum() >= 4


FLOATS = st.sampled_from([-np.inf, -3.5, -1.0, -0.5, 0.0, 0.5, 2.0, np.inf, np.nan])
SHAPES = st.tuples(
    st.integers(1, 2), st.integers(1, 7), st.integers(1, 7), st.integers(1, 2)
)  # (B, H, W, C)


@settings(max_examples=30)
@given(data=st.data(), shape=SHAPES, window=st.integers(1, 4))
def test_any_map_is_pooled_and_unpooled_as_by_the_loop(data, shape, window):
    check_against_loop(data.draw(hnp.arrays(np.float32, shape, elements=FLOATS)), window)


def test_the_largest_window_is_pooled_and_unpooled_as_by_the_loop():
    check_against_loop(np.asarray(random((2, 16, 17, 3))), 16)


def test_the_first_of_equal_maxima_is_taken():
    x = jnp.array([[1.0, 2.0], [2.0, 2.0]])[..., None]
    y, indices = pool(x)
    assert (y.item(), indices.item()) == (2.0, 1)
    y, indices = pool(jnp.full((3, 3, 1), -jnp.inf), 3)
    assert (y.item(), indices.item()) == (-np.inf, 0)


def test_camvids_sizes_down_and_back():
    sizes = [(360, 480), (180, 240), (90, 120), (45, 60), (23, 30), (12, 15)]
    y, pools = random((1, *sizes[0], 1)), []
    for above, below in itertools.pairwise(sizes):
        x = y
        y, indices = pool(x)
        pools.append((indices, x.shape))
        assert (x.shape[1:3], y.shape[1:3]) == (above, below)
        assert (indices.dtype, indices.shape) == (jnp.uint8, y.shape)
    values = np.sort(np.asarray(y).ravel())
    for indices, shape in reversed(pools):
        y = unpool(y, indices, shape)
        assert y.shape == shape
    assert y.shape == (1, 360, 480, 1)
    np.testing.assert_array_equal(np.sort(np.asarray(y)[np.asarray(y) != 0]), values)


def test_unpooling_takes_the_size_or_the_whole_shape():
    y, indices, full = there_and_back(random((2, 5, 7, 3)))
    np.testing.assert_array_equal(unpool(y, indices, (5, 7)), full, strict=True)


def test_gradient_of_equals_reaches_the_first_alone():
    gradient = jax.grad(lambda x: jnp.sum(pool(x)[0]))(jnp.ones((3, 3, 1)))
    expected = [[1, 0, 1], [0, 0, 0], [1, 0, 1]]
    np.testing.assert_array_equal(gradient[..., 0], expected)


def both(x, window=2):
    y, indices = max_pool_with_indices(x, window)
    return y, indices, max_unpool(y * 2, indices, x.shape, window)


def gradient_of_both(x, window=2):
    def loss(x):
        y, indices, full = both(x, window)
        return jnp.sum(jnp.square(y)) + jnp.sum(full * jnp.square(x)), (y, indices, full)

    return jax.grad(loss, has_aux=True)(x)


def test_jit_is_eager_and_vmap_is_a_loop():
    def same(found, expected):
        np.testing.assert_array_equal(np.asarray(found), np.asarray(expected), strict=True)

    x = random((3, 2, 7, 5, 2))
    loop = [jax.jit(gradient_of_both)(part) for part in x]
    jax.tree.map(same, gradient_of_both(x[0]), loop[0])
    stacked = jax.tree.map(lambda *parts: np.stack(parts), *loop)
    for axis in (0, 3):
        mapped = jax.jit(jax.vmap(gradient_of_both, in_axes=axis))(jnp.moveaxis(x, 0, axis))
        jax.tree.map(same, mapped, stacked)


def test_leading_axes_are_free():
    x = random((2, 3, 5, 4, 2))
    for whole, part in zip(there_and_back(x), there_and_back(x[1, 2]), strict=True):
        assert whole.ndim == 5
        np.testing.assert_array_equal(whole[1, 2], part, strict=True)


def test_bfloat16_throughout():
    x = random((2, 7, 5, 2)).astype(jnp.bfloat16)
    y, indices, full = there_and_back(x)
    gradient, _ = jax.jit(gradient_of_both)(x)
    assert (y.dtype, full.dtype, gradient.dtype) == (jnp.bfloat16,) * 3
    # Every bfloat16 is a float32, so that comparisons agree exactly.
    wide = there_and_back(x.astype(jnp.float32))
    for found, expected in zip((y, indices, full), wide, strict=True):
        np.testing.assert_array_equal(found.astype(expected.dtype), expected)


def by_xla(function):
    """Return the function without our CPU kernels, traced anew."""

    def traced(*arguments):
        with shapes_only():
            return function(*arguments)

    return traced


def program(function, *arguments):
    """Return the text of a function as jaxpr, as lowered and as compiled."""
    function = by_xla(function)
    lowered = jax.jit(function).lower(*arguments)
    return str(jax.make_jaxpr(function)(*arguments)), lowered.as_text(), lowered.compile().as_text()


@pytest.mark.parametrize("shape", [(2, 8, 6, 3), (2, 7, 5, 3)])
@pytest.mark.parametrize("function", [both, gradient_of_both])
def test_no_program_writes_by_index(function, shape):
    for text in program(function, random(shape)):
        assert "scatter" not in text
        assert "gather" not in text


def test_a_scatter_would_be_detected():
    texts = program(lambda x, i: x.at[i].add(1.0), random((4,)), jnp.zeros(2, jnp.int32))
    assert all("scatter" in text for text in texts[:2])


def comparisons(jaxpr):
    """Return the dtypes that a traced function compares for equality, in its calls too."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "eq":
            yield equation.invars[0].aval.dtype
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from comparisons(inner)


@pytest.mark.parametrize("function", [both, gradient_of_both])
def test_no_maximum_is_looked_up_by_its_value(function):
    # Under jit the map and its maximum may each be computed anew, rounded another way.
    found = set(comparisons(jax.make_jaxpr(jax.jit(by_xla(function)))(random((2, 7, 5, 3))).jaxpr))
    assert found == {jnp.dtype(jnp.uint8)}


def test_the_gradient_through_a_block_and_its_pool_is_the_same_compiled():
    block, x = ConvBlock(8, 3), random((2, 25, 30, 3))
    variables = block.init(jax.random.key(0), x, train=False)
    weight = random((2, 13, 15, 8), seed=1)

    def loss(params, x):
        changed = variables | {"params": params}
        y, _ = block.apply(changed, x, train=True, mutable=["batch_stats"])
        pooled, indices = max_pool_with_indices(y)
        unpooled = max_unpool(jnp.square(pooled) * weight, indices, y.shape)
        return jnp.sum(unpooled * y), indices

    gradient = jax.grad(loss, argnums=(0, 1), has_aux=True)
    (eager, places), (compiled, same) = (
        run(variables["params"], x) for run in (gradient, jax.jit(gradient))
    )
    np.testing.assert_array_equal(same, places)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(eager))
    for expected, found in zip(jax.tree.leaves(eager), jax.tree.leaves(compiled), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5 * largest)


def test_a_second_derivative():
    x = random((4, 4, 1))

    def loss(x):
        return jnp.sum(jnp.square(max_pool_with_indices(x)[0]))

    kept = np.asarray(there_and_back(x)[2] != 0).ravel()
    for hessian in (jax.jacrev(jax.jacrev(loss)), jax.hessian(by_xla(loss))):
        found = jax.jit(hessian)(x).reshape(16, 16)
        np.testing.assert_array_equal(found, np.diag(2.0 * kept))


@pytest.mark.parametrize(
    ("shape", "window", "found"),
    [
        ((9, 8), 2, "9x8 map pools to 5x4 with window 2"),
        ((8, 10), 2, "8x10 map pools to 4x5 with window 2"),
        ((1, 8, 6, 2), 2, "8x6 map pools to 4x3 with window 2"),
        ((8, 8), 3, "8x8 map pools to 3x3 with window 3"),
    ],
)
def test_a_shape_that_does_not_pool_to_the_map_is_refused(shape, window, found):
    y, indices = jnp.zeros((1, 4, 4, 2)), jnp.zeros((1, 4, 4, 2), jnp.uint8)
    with pytest.raises(ValueError, match=f"a {found}, but the map to unpool is 4x4"):
        max_unpool(y, indices, shape, window)


@pytest.mark.parametrize("window", [0, -1, 17])
def test_a_window_too_large_for_a_byte_is_refused(window):
    with pytest.raises(ValueError, match=f"window must be from 1 to 16, found {window}"):
        max_pool_with_indices(jnp.zeros((1, 4, 4, 1)), window)


@pytest.mark.parametrize("where", [lambda function: function, by_xla])
def test_indices_may_be_of_another_type_or_shared_by_a_batch(where):
    x, y = random((1, 5, 6, 2)), random((3, 3, 3, 2), seed=1)
    indices = np.asarray(pool(x)[1])
    expected = np.stack([loop_unpool_of(each, indices[0], x.shape[1:]) for each in y])
    shared = where(lambda y: max_unpool(y, jnp.asarray(indices, jnp.int32), x.shape))
    np.testing.assert_array_equal(jax.jit(shared)(y), expected)


def loop_unpool_of(y, indices, shape):
    """Unpool (h, w, C) by indices in windows of 2."""
    corner = np.stack(np.meshgrid(*map(np.arange, y.shape[:2]), indexing="ij"), -1)[:, :, None] * 2
    places = corner + np.stack(np.divmod(indices.astype(np.int64), 2), -1)
    return loop_unpool(np.asarray(y), places, shape)


@pytest.mark.parametrize("where", [lambda function: function, by_xla])
@pytest.mark.parametrize(
    ("window", "padding", "said"),
    [
        (20, ((0, 0), (0, 0)), "window must be from 1 to 16, found 20"),
        (0, ((0, 0), (0, 0)), "window must be from 1 to 16, found 0"),
        (2, ((2, 0), (0, 0)), "a window of 2 at stride 2 sees no pixel of a 4x4 map"),
        (2, ((0, 0), (0, 2)), "sees no pixel"),
        (6, ((0, 0), (0, 0)), "sees no pixel"),
    ],
)
def test_a_window_that_sees_no_pixel_is_refused(where, window, padding, said):
    x = jnp.ones((1, 4, 4, 1))
    with pytest.raises(ValueError, match=said):
        where(lambda x: max_pool(x, window, 2, padding))(x)
