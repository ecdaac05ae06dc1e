"""Local response normalisation."""

import jax
import jax.numpy as jnp


def local_response_normalization(
    x: jax.Array, size: int = 5, alpha: float = 1e-4, beta: float = 0.75
) -> jax.Array:
    """Divides by the energy of the neighbouring channels: x / (1 + alpha / size * sum x^2)^beta.

    The sum runs over the `size` channels centred on each (Caffe's LRN, ACROSS_CHANNELS, k = 1). The
    defaults are the first layer of SegNet-Basic, which sees raw RGB values of 0 to 255.

    Args:
      x: floating (..., C).
      size: channels in the window; odd.
    """
    side = size // 2
    padding = [(0, 0)] * (x.ndim - 1) + [(side, side)]
    squares = jnp.pad(jnp.square(x), padding)
    channels = x.shape[-1]
    energy = sum(squares[..., k : k + channels] for k in range(size))
    return x / (1 + alpha / size * energy) ** beta
