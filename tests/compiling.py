"""Compiling programs that tests run once or twice."""

import functools

import jax

# Compiling well takes many times longer than such a program runs. Not for tests of exact bits:
# the kernels differ in the last ones.
jit_once = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
