"""Cross entropy over pixels, and the class weights that go with it."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from segjax.errors import UserError

# SegNet-Tutorial, Models/segnet_train.prototxt, Sky to Bicyclist. They cannot be recomputed from
# the released labels: the authors made them from another label mapping (SignSymbol is off 2.7x).
SEGNET_CLASS_WEIGHTS = (
    *(0.2595, 0.1826, 4.5640, 0.1417, 0.9051, 0.3826),
    *(9.6446, 1.8418, 0.6823, 6.2478, 7.3614),
)
CLASS_WEIGHTS = ("none", "median_frequency", "segnet", "enet")


def num_valid(labels: jax.Array, num_classes: int) -> jax.Array:
    """The number of pixels whose label is a class (not VOID), as a float32 scalar."""
    return jnp.sum(labels < num_classes).astype(jnp.float32)


def cross_entropy(
    logits: jax.Array,
    labels: jax.Array,
    class_weights: jax.Array,
    *,
    pixel_weights: jax.Array | None = None,
    normalizer: jax.Array | None = None,
) -> jax.Array:
    """Weighted cross entropy divided by the number of valid pixels.

    loss = sum_i v_i w[y_i] * -log softmax(z_i)[y_i] / N over the N pixels that are not void, as in
    Caffe's SoftmaxWithLoss. (A weighted mean that divides by the sum of the weights, as PyTorch's,
    is another effective learning rate.)

    Args:
      logits: z, floating (..., K).
      labels: y, integers (...); values of K and above, VOID among them, are ignored.
      class_weights: w, float32 (K,).
      pixel_weights: v, float32 (...); none: ones.
      normalizer: N, if it is not that of these pixels alone (shards and micro-batches).

    Returns:
      float32 scalar; 0 where no pixel is valid.
    """
    num_classes = logits.shape[-1]
    valid = labels < num_classes
    target = jnp.where(valid, labels, 0).astype(jnp.int32)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), target)
    weights = jnp.where(valid, class_weights[target], 0.0)
    if pixel_weights is not None:
        weights = weights * pixel_weights
    if normalizer is None:
        normalizer = num_valid(labels, num_classes)
    return jnp.sum(weights * losses) / jnp.maximum(normalizer, 1.0)


def class_weights(
    kind: str, pixel_counts: Sequence[int], present_pixel_counts: Sequence[int]
) -> np.ndarray:
    """Weights per class from the pixel counts of the training split.

    - none: ones.
    - median_frequency: median(f) / f, f = pixels of the class / pixels of the images that have it
      (Eigen and Fergus, arXiv 1411.4734; SegNet). 0 for a class that never occurs.
    - segnet: the eleven numbers of the SegNet authors' files.
    - enet: 1 / ln(1.02 + p), p the class's share of the labelled pixels (ENet, arXiv 1606.02147).

    Args:
      kind: one of `CLASS_WEIGHTS`.
      pixel_counts: pixels of each class, (K,).
      present_pixel_counts: pixels of the images that contain each class, (K,).

    Returns:
      float32 (K,).

    Raises:
      UserError: an unknown kind, or `segnet` for other than eleven classes.
    """
    counts = np.asarray(pixel_counts, np.float64)
    if kind == "none":
        return np.ones(len(counts), np.float32)
    if kind == "segnet":
        if len(counts) != len(SEGNET_CLASS_WEIGHTS):
            raise UserError(
                f"loss.class_weights='segnet' is for CamVid's 11 classes, found {len(counts)}"
            )
        return np.array(SEGNET_CLASS_WEIGHTS, np.float32)
    if kind == "median_frequency":
        occurs = counts > 0
        frequency = counts / np.maximum(np.asarray(present_pixel_counts, np.float64), 1)
        weights = np.zeros(len(counts))
        weights[occurs] = np.median(frequency[occurs]) / frequency[occurs]
        return weights.astype(np.float32)
    if kind == "enet":
        return (1 / np.log(1.02 + counts / counts.sum())).astype(np.float32)
    raise UserError(f"unknown loss.class_weights {kind!r}; known: {', '.join(CLASS_WEIGHTS)}")
