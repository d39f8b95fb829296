"""Random keys of examples: noise has the shape of the keys that it is drawn with.

Every example has a key of its own, ``keys_B``; K samples of each have ``keys_KxB``. A function that
draws noise takes keys and draws as many times as it is given keys. Which device or microbatch holds
an example then changes no number, and two examples never share their noise:
``jax.random.normal(keys_B)`` is JAX's own error, which asks for ``jax.vmap``.
"""

import jax
import jax.numpy as jnp


def example_keys(key: jax.Array, number_B: jax.Array) -> jax.Array:
    """The key of each example, keys_B: ``key`` with the example's number folded in.

    The number is the example's place in the global batch in training, and its id in evaluation.
    """
    return jax.vmap(jax.random.fold_in, (None, 0))(key, number_B)


def sample_keys(keys_B: jax.Array, number_K: jax.Array) -> jax.Array:
    """Keys of K samples of each example, keys_KxB; the samples are told apart by their numbers."""
    of_batch = jax.vmap(jax.random.fold_in, (0, None))
    return jax.vmap(of_batch, (None, 0))(keys_B, number_K)


def split_keys(keys: jax.Array, n: int) -> jax.Array:
    """n independent keys in the place of each key, which is used up; a new axis n comes first.

    One key in its place is the key itself: a hash of every key is felt in a small model's step.
    """
    if n == 1:
        return keys[None]
    flat = jax.vmap(lambda key: jax.random.split(key, n), out_axes=1)(keys.reshape(-1))
    return flat.reshape(n, *keys.shape)


def fold_keys(keys: jax.Array, number: int) -> jax.Array:
    """Each key with a number folded in, shape as ``keys``: a stream of its own for one purpose."""
    flat = jax.vmap(jax.random.fold_in, (0, None))(keys.reshape(-1), number)
    return flat.reshape(keys.shape)


def standard_normal(keys: jax.Array, d: int, dtype: jnp.dtype = jnp.float32) -> jax.Array:
    """ε ~ N(0, I) of d dimensions for each key; shape (*keys.shape, d)."""
    flat = jax.vmap(lambda key: jax.random.normal(key, (d,), dtype))(keys.reshape(-1))
    return flat.reshape(*keys.shape, d)
