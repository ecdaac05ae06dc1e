"""Concatenation of maps along their channels."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from segjax.ops.platform import on_cpu


def concatenate(maps: Sequence[jax.Array]) -> jax.Array:
    """Concatenate (..., C1), (..., C2), ... of one dtype to (..., C1 + C2 + ...)."""
    if maps[0].dtype == jnp.bfloat16 and on_cpu():
        return _by_bits(tuple(maps))
    return jnp.concatenate(maps, -1)


# Copy as integers: XLA's CPU backend converts bfloat16 to float32 and back when it copies it.
@jax.custom_vjp
def _by_bits(maps):
    return _numbers(jnp.concatenate([_bits(x) for x in maps], -1))


def _forward(maps):
    return _by_bits(maps), maps  # the maps for their sizes alone


def _backward(maps, dy):
    bits, parts, first = _bits(dy), [], 0
    for x in maps:
        parts.append(_numbers(bits[..., first : first + x.shape[-1]]))
        first += x.shape[-1]
    return (tuple(parts),)


_by_bits.defvjp(_forward, _backward)


def _bits(x):
    return lax.bitcast_convert_type(x, jnp.uint16)


def _numbers(x):
    return lax.bitcast_convert_type(x, jnp.bfloat16)
