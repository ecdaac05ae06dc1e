"""Variables that tests give to models instead of initializing them."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from golden.seeded import array


def shapes(model, channels=3, side=32):
    """Return {path: shape} of the parameters, without computing anything."""
    return {path: leaf.shape for path, leaf in _flat(abstract(model, channels, side)["params"])}


def abstract(model, channels=3, side=32):
    image = jax.ShapeDtypeStruct((1, side, side, channels), jnp.float32)
    return jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), image)


def count(model, **options):
    """Count the parameters."""
    return sum(math.prod(shape) for shape in shapes(model, **options).values())


def lit(height, first, last):
    """Return columns of pixels, lit in the rows before first, to first, after last, from last."""
    row = np.arange(height)
    rows = [row < first, row <= first, row > last, row >= last]
    return np.broadcast_to(np.stack(rows)[:, :, None, None], (4, height, 1, 3)).astype(np.float32)


def assert_sees(logits, what=""):
    """Assert that all logits (4, ...) of `lit` columns see the rows from first to last alone."""
    seen = (np.asarray(logits) > 0).reshape(4, -1)
    for found in (seen.all(-1), seen.any(-1)):
        np.testing.assert_array_equal(found, [False, True, False, True], err_msg=what)


def seeded(model, **options):
    """Return the variables that the golden files are made with."""
    return _made(model, array, **options)


def positive(model):
    """Return positive weights and biases of 0: a logit is 0 exactly if it sees only zeros."""

    def make(path, shape):
        kernel = path.endswith("kernel")
        return np.full(shape, 1 / math.prod(shape[:-1]) if kernel else 0, np.float32)

    return _made(model, make)


def _made(model, make, **options):
    def fill(path, leaf):
        return jnp.asarray(make(_name(path), leaf.shape))

    return {
        collection: jax.tree.map_with_path(fill, tree)
        for collection, tree in abstract(model, **options).items()
    }


def _flat(tree):
    return [(_name(path), leaf) for path, leaf in jax.tree.leaves_with_path(tree)]


def _name(path):
    return "/".join(key.key for key in path)
