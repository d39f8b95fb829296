"""Pictures: reconstructions, samples from the prior, interpolations; as arrays in [0, 1]."""

import jax
import jax.numpy as jnp
import numpy as np

from vae_jax import compile as compile_lib


def pictures(model, params, x_NxHxWxC, key, *, samples=64, rows=6, columns=10):
    """Means of p(x|z) for z the posterior means of x, for prior samples, and on straight lines between
    the posterior means of pairs; a dict of arrays.

    A conditional model is given the most probable labels of q(y|x), prior samples of each label in turn, and
    for a line the label of its beginning.
    """

    rows = max(1, min(rows, len(x_NxHxWxC) // 2))

    def program(params, x, key):
        mean = lambda z, y: model.likelihood.mean(model.decode(params, z, *y))  # noqa: E731
        y = model.guess(params, x)
        turns, first = [jnp.arange(samples) % model.classes for _ in y], [jnp.repeat(a[:rows], columns) for a in y]
        mu = model.encode(params, x, *y).mu
        z = model.prior(params).sample(key, (samples,))
        t = jnp.linspace(0, 1, columns)[None, :, None]
        line = (1 - t) * mu[:rows, None] + t * mu[-rows:, None]
        return {
            "reconstructions": mean(mu, y),
            "samples": mean(z, turns),
            "interpolations": mean(line.reshape(-1, mu.shape[1]), first).reshape(rows, columns, *model.shape),
        }

    out = compile_lib.simple(program)(params, x_NxHxWxC, key)
    return {"originals": np.asarray(x_NxHxWxC)} | jax.tree.map(np.asarray, out)
