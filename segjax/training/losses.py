"""Segmentation losses, and weights of classes and pixels.

Each loss is a sum over terms divided by `num_terms`: pixels for cross entropy and focal loss,
images for Dice and Lovász. If every device and micro-batch divides by the number of terms of the
whole batch, their losses add up to that of the whole batch. A label outside [0, K) is void: VOID,
and the -1 and -100 of other libraries.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy import ndimage

from segjax.data.datasets import VOID
from segjax.errors import UserError

# SegNet-Tutorial, Models/segnet_train.prototxt, Sky to Bicyclist. They do not follow from the
# released labels: the authors used another label mapping (SignSymbol differs by 2.7x).
SEGNET_CLASS_WEIGHTS = (
    *(0.2595, 0.1826, 4.5640, 0.1417, 0.9051, 0.3826),
    *(9.6446, 1.8418, 0.6823, 6.2478, 7.3614),
)
CLASS_WEIGHTS = ("none", "median_frequency", "segnet", "enet")

LOSSES = ("cross_entropy", "focal", "dice", "lovasz")
PIXEL_LOSSES = ("cross_entropy", "focal")  # that take weights of pixels

FOCAL_GAMMA = 2.0


def is_valid(labels: jax.Array, num_classes: int) -> jax.Array:
    """Return whether each label is a class, in [0, K), and not void: bool, the shape of labels."""
    return (labels >= 0) & (labels < num_classes)


def num_valid(labels: jax.Array, num_classes: int) -> jax.Array:
    """Count the pixels whose label is a class, not void: float32 scalar."""
    return jnp.sum(is_valid(labels, num_classes)).astype(jnp.float32)


def num_terms(name: str, labels: jax.Array, num_classes: int) -> jax.Array:
    """Count the terms of a loss: valid pixels, or images with a valid pixel; float32 scalar.

    Args:
      name: one of `LOSSES`.
      labels: integers (B, H, W).
      num_classes: K.
    """
    if name in PIXEL_LOSSES:
        return num_valid(labels, num_classes)
    return jnp.sum(jnp.any(is_valid(labels, num_classes), (1, 2))).astype(jnp.float32)


def loss(
    name: str,
    logits: jax.Array,
    labels: jax.Array,
    class_weights: jax.Array,
    *,
    pixel_weights: jax.Array | None = None,
    normalizer: jax.Array | None = None,
) -> jax.Array:
    """Compute the loss `name` of logits (B, H, W, K) and labels (B, H, W).

    The other arguments are those of `cross_entropy`; `normalizer` is the whole batch's `num_terms`,
    at least 1, or that divided by the number of devices over which the losses are averaged.
    Dice and Lovász ignore the weights of pixels; `segjax.config.check` refuses the combination.
    """
    if name in PIXEL_LOSSES:
        function = cross_entropy if name == "cross_entropy" else focal
        return function(
            logits, labels, class_weights, pixel_weights=pixel_weights, normalizer=normalizer
        )
    if normalizer is None:
        normalizer = jnp.maximum(num_terms(name, labels, logits.shape[-1]), 1.0)
    overlap = dice if name == "dice" else lovasz
    return jnp.sum(overlap(logits, labels, class_weights)) / normalizer


def cross_entropy(
    logits: jax.Array,
    labels: jax.Array,
    class_weights: jax.Array,
    *,
    pixel_weights: jax.Array | None = None,
    normalizer: jax.Array | None = None,
) -> jax.Array:
    """Compute the weighted cross entropy, divided by the number of valid pixels.

    loss = sum_i v_i w[y_i] * -log softmax(z_i)[y_i] / N over the N pixels that are not void, as in
    Caffe's SoftmaxWithLoss. (PyTorch divides by the sum of the weights instead, which changes the
    effective learning rate.)

    Args:
      logits: z, floating (..., K).
      labels: y, integers (...); values outside [0, K), VOID among them, are ignored.
      class_weights: w, float32 (K,).
      pixel_weights: v, float32 (...); None for ones.
      normalizer: N > 0 of the whole batch, if these pixels are a part of it; None counts them.

    Returns:
      float32 scalar; 0 where no pixel is valid.
    """
    return _weighted_mean(
        _nll(logits, labels), logits, labels, class_weights, pixel_weights, normalizer
    )


def focal(
    logits: jax.Array,
    labels: jax.Array,
    class_weights: jax.Array,
    *,
    pixel_weights: jax.Array | None = None,
    normalizer: jax.Array | None = None,
) -> jax.Array:
    """Compute the focal loss: `cross_entropy` times (1 - p)^2, p the softmax of the true class.

    Lin et al., arXiv 1708.02002, gamma = 2, over softmax instead of their sigmoid.
    """
    nll = _nll(logits, labels)
    focused = (-jnp.expm1(-nll)) ** FOCAL_GAMMA * nll
    return _weighted_mean(focused, logits, labels, class_weights, pixel_weights, normalizer)


def _nll(logits, labels):
    """Return -log softmax at the true class, or at class 0 where the label is void."""
    target = jnp.where(is_valid(labels, logits.shape[-1]), labels, 0).astype(jnp.int32)
    return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), target)


def _weighted_mean(losses, logits, labels, class_weights, pixel_weights, normalizer):
    num_classes = logits.shape[-1]
    valid = is_valid(labels, num_classes)
    weights = jnp.where(valid, class_weights[jnp.where(valid, labels, 0).astype(jnp.int32)], 0.0)
    if pixel_weights is not None:
        weights = weights * pixel_weights
    if normalizer is None:
        normalizer = jnp.maximum(num_valid(labels, num_classes), 1.0)
    return jnp.sum(weights * losses) / normalizer


def dice(logits: jax.Array, labels: jax.Array, class_weights: jax.Array) -> jax.Array:
    """Compute the soft Dice loss of each image, the weighted mean of 1 - Dice over all classes.

    Dice_c = (sum p t + 1) / ((sum p + sum t) / 2 + 1) over the valid pixels of the image, p the
    softmax of class c and t 1 where it is the truth (Milletari et al., arXiv 1606.04797, with the
    smoothing of `optax.losses.dice_loss`). Predicting a class that the image lacks is penalized.

    Args:
      logits: floating (B, H, W, K).
      labels: integers (B, H, W); values outside [0, K) are ignored.
      class_weights: float32 (K,).

    Returns:
      float32 (B,), in [0, 1); 0 for an image without a valid pixel.
    """
    num_classes = logits.shape[-1]
    valid = is_valid(labels, num_classes)[..., None]
    # optax has no void: make it one more class, predicted exactly where it is, and drop its loss.
    logits = jnp.where(valid, logits.astype(jnp.float32), -jnp.inf)
    logits = jnp.concatenate([logits, jnp.where(valid, -jnp.inf, 0.0)], -1)
    target = jnp.where(valid[..., 0], labels, num_classes).astype(jnp.int32)
    each = optax.losses.dice_loss(
        logits, jax.nn.one_hot(target, num_classes + 1), reduction="none", axis=(1, 2)
    )[:, :-1]
    return jnp.sum(each * class_weights[None], -1) / jnp.sum(class_weights)


def lovasz(logits: jax.Array, labels: jax.Array, class_weights: jax.Array) -> jax.Array:
    """Compute the Lovász-softmax loss of each image: the weighted mean of a smooth 1 - IoU.

    It is the Lovász extension of the Jaccard loss, at the errors |t - p| of each class over the
    valid pixels of the image: sum_i e_i (J_i - J_{i-1}), e the errors in descending order and J_i
    the Jaccard loss if the first i pixels were wrong (Berman et al., arXiv 1705.08790; over the
    classes present, and per image, which is an option of their code and not its default).

    Args:
      logits: floating (B, H, W, K).
      labels: integers (B, H, W); values outside [0, K) are ignored.
      class_weights: float32 (K,).

    Returns:
      float32 (B,), in [0, 1]; 0 for an image without a valid pixel.
    """
    batch, num_classes = labels.shape[0], logits.shape[-1]
    labels = labels.reshape(batch, -1).astype(jnp.int32)
    shares = jax.nn.softmax(logits.astype(jnp.float32).reshape(batch, -1, num_classes))
    valid = is_valid(labels, num_classes)
    truth = jnp.moveaxis(jax.nn.one_hot(labels, num_classes), -1, 1)  # (B, K, pixels)
    errors = jnp.where(valid[:, None], jnp.abs(truth - jnp.moveaxis(shares, -1, 1)), 0.0)
    # Void pixels come last, with errors of 0, so they do not change the steps before them.
    order = jnp.argsort(jnp.where(valid[:, None], -errors, 1.0))
    errors, truth = (jnp.take_along_axis(x, order, -1) for x in (errors, truth))
    total = jnp.sum(truth, -1, keepdims=True)
    intersection = total - jnp.cumsum(truth, -1)
    jaccard = 1 - intersection / (total + jnp.cumsum(1 - truth, -1))
    steps = jnp.diff(jaccard, prepend=0.0)
    weights = jnp.where(total[..., 0] > 0, class_weights[None], 0.0)
    each = jnp.sum(errors * steps, -1)
    return jnp.sum(weights * each, -1) / jnp.maximum(jnp.sum(weights, -1), 1e-12)


def border_weights(
    labels: np.ndarray,
    w0: float = 10,
    sigma: float = 5,
    *,
    class_weights: Sequence[float] | np.ndarray | None = None,
    background: int | None = 0,
) -> np.ndarray:
    """Compute U-Net's weight map: w(x) = w_c(x) + w0 exp(-(d1 + d2)^2 / (2 sigma^2)).

    d1 and d2 are the distances, in pixels, from x to the closest pixel of the nearest and of the
    second nearest object; d1 is 0 inside an object. Objects are the connected components (by edges,
    not corners) of each class except the background, which is the membrane between cells. The
    background between two objects weighs most where it is thinnest (Ronneberger et al.,
    arXiv 1505.04597, equation 2).

    Args:
      labels: integers (H, W); VOID and negative labels are void and belong to no object.
      w0: factor of the border term.
      sigma: width of the border term, in pixels.
      class_weights: w_c of each class, (K,); None for ones.
      background: the class without objects; None if every class has objects.

    Returns:
      float32 (H, W); 0 where the label is void. The border term is omitted where it is below
      1e-9 w0, and everywhere if there are fewer than two objects.
    """
    labels = np.asarray(labels)
    # Farther away than this an object does not change the float32 result.
    reach = int(np.ceil(sigma * np.sqrt(2 * np.log(1e9))))
    nearest = np.full(labels.shape, np.inf)
    second = np.full(labels.shape, np.inf)
    valid = (labels != VOID) & (labels >= 0)
    for value in np.setdiff1d(labels[valid], [] if background is None else [background]):
        components, _ = ndimage.label(labels == value)
        for number, box in enumerate(ndimage.find_objects(components), start=1):
            around = tuple(slice(max(s.start - reach, 0), s.stop + reach) for s in box)
            distance = ndimage.distance_transform_edt(components[around] != number)
            near, next_near = nearest[around], second[around]
            second[around] = np.minimum(next_near, np.maximum(near, distance))
            nearest[around] = np.minimum(near, distance)
    if class_weights is None:
        weights = np.ones(labels.shape)
    else:
        weights = np.asarray(class_weights, np.float64)[np.where(valid, labels, 0)]
    border = w0 * np.exp(-((nearest + second) ** 2) / (2 * sigma**2))
    return np.where(valid, weights + border, 0).astype(np.float32)


def class_weights(
    kind: str, pixel_counts: Sequence[int], present_pixel_counts: Sequence[int]
) -> np.ndarray:
    """Return the weights of the classes, from the pixel counts of the training split.

    - none: ones.
    - median_frequency: median(f) / f, f = pixels of the class / pixels of the images that have it
      (Eigen and Fergus, arXiv 1411.4734; SegNet). 0 for a class that never occurs.
    - segnet: the eleven numbers in the SegNet authors' files.
    - enet: 1 / ln(1.02 + p), p the class's share of the labeled pixels (ENet, arXiv 1606.02147).

    Args:
      kind: one of `CLASS_WEIGHTS`.
      pixel_counts: pixels of each class, (K,).
      present_pixel_counts: pixels of the images that contain each class, (K,).

    Returns:
      float32 (K,).

    Raises:
      UserError: the kind is unknown, or it is `segnet` and there are not eleven classes.
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
