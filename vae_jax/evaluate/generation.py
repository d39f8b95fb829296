"""Pictures: reconstructions, samples from the prior, interpolations and more; as arrays in [0, 1]."""

import jax
import jax.numpy as jnp
import numpy as np

from vae_jax.evaluate.recognition import NEIGHBOURS
from vae_jax.train import program as compile_lib

TEMPERATURES = (0.0, 0.5, 0.7, 0.85, 1.0)
ROUNDS = 20  # of inpainting
SHOWN = 10  # images in a row of the smaller pictures


def pictures(model, params, x_NxHxWxC, key, *, samples=64, rows=6, columns=10):
    """Means of p(x|z) for z the posterior means of x, for prior samples, and on straight lines between
    the posterior means of pairs; x with its lower half made up; a dict of arrays.

    A conditional model is given the most probable labels of q(y|x), prior samples of each label in turn, and
    for a line the label of its beginning. A hierarchy has :func:`hierarchy`'s pictures too.
    """

    rows = max(1, min(rows, len(x_NxHxWxC) // 2))

    def program(params, x, key):
        def mean(z, y):
            return model.likelihood.mean(model.decode(params, z, y))

        y = model.map_label(params, x)
        turns = model.label_turns(samples)
        first = None if y is None else jnp.repeat(y[:rows], columns)
        mu = model.encode(params, x, y).mu
        z = model.sample(params, jax.random.split(key, samples), turns)
        t = jnp.linspace(0, 1, columns)[None, :, None]
        line = (1 - t) * mu[:rows, None] + t * mu[-rows:, None]
        return {
            "reconstructions": mean(mu, y),
            "samples": mean(z, turns),
            "interpolations": mean(line.reshape(-1, mu.shape[1]), first).reshape(
                rows, columns, *model.shape
            ),
        }

    out = compile_lib.simple(program)(params, x_NxHxWxC, key)
    shown = x_NxHxWxC[:SHOWN]
    out["inpainting"] = [*inpainted(model, params, shown, jax.random.fold_in(key, 1))]
    if model.levels > 1:
        out |= hierarchy(model, params, shown, jax.random.fold_in(key, 2))
    return {"originals": np.asarray(x_NxHxWxC)} | jax.tree.map(np.asarray, out)


def hierarchy(model, params, x_NxHxWxC, key):
    """``levels``: [x, then its reconstructions with the first 0, …, L levels from q (seven numbers at most) and the
    others at the prior's means]; ``temperatures``: samples at each of :data:`TEMPERATURES`, from the same noise."""
    n, counts = len(x_NxHxWxC), np.unique(np.linspace(0, model.levels, 7).round().astype(int))

    def program(params, x, y, first, temperature):
        z = model.complete(
            params, x, jax.random.split(key, n), y, first=first, temperature=temperature
        )
        return model.likelihood.mean(model.decode(params, z, y))

    run = compile_lib.simple(program)
    y = compile_lib.simple(model.map_label)(params, x_NxHxWxC)
    parts = [run(params, x_NxHxWxC, y, int(first), 0.0) for first in counts]
    turns = model.label_turns(n)
    return {
        "levels": [x_NxHxWxC, *parts],
        "temperatures": [run(params, x_NxHxWxC, turns, 0, t) for t in TEMPERATURES],
    }


def inpainted(model, params, x_NxHxWxC, key, rounds=ROUNDS):
    """(x with its lower half grey, x with that half made up).

    A Markov chain between z ~ q(z|x̂) and the missing half ~ p(x|z), from noise; what is shown at its end is the mean
    (Rezende et al. 2014, arXiv:1401.4082, appendix F). Of a hierarchy, whose fine levels would keep the noise for ever,
    a round takes only the first levels from q, at their means, and the others from the prior: none at first, in the
    end all.
    """
    known = (jnp.arange(model.shape[0]) < model.shape[0] // 2)[:, None, None]

    def program(params, x, guess, key, first):
        y = model.map_label(params, guess)
        if model.levels > 1:
            z = model.complete(params, guess, jax.random.split(key, len(x)), y, first=first)
        else:
            z = model.draw(params, guess, jax.random.split(key, len(x)), y).z
        out = model.decode(params, z, y)
        drawn = jnp.clip(model.likelihood.sample(jax.random.fold_in(key, 1), out), 0, 1)
        return jnp.where(known, x, drawn), jnp.where(known, x, model.likelihood.mean(out))

    run, noise = compile_lib.simple(program), jax.random.uniform(key, x_NxHxWxC.shape)
    guess = jnp.where(
        known, x_NxHxWxC, (noise > 0.5) if model.likelihood.data == "binary" else noise
    )
    for i in range(rounds):
        first = i * (model.levels + 1) // rounds
        guess, shown = run(params, x_NxHxWxC, guess, jax.random.fold_in(key, i), first)
    return jnp.where(known, x_NxHxWxC, 0.5), shown


def nearest(images_NxHxWxC, train_MxHxWxC, levels, chunk=5000):
    """The training image (uint8) that is nearest to each of N images by squared distance of pixels; in [0, 1].

    Of a set of more than :data:`recognition.NEIGHBOURS` images those an even stride apart are looked at.
    """
    a = np.asarray(images_NxHxWxC, np.float32).reshape(len(images_NxHxWxC), -1)
    every = -(-len(train_MxHxWxC) // NEIGHBOURS)
    best, found = np.full(len(a), np.inf), np.zeros(images_NxHxWxC.shape, np.float32)
    for start in range(0, len(train_MxHxWxC), chunk * every):
        rows = np.asarray(
            train_MxHxWxC[np.arange(start, min(start + chunk * every, len(train_MxHxWxC)), every)]
        )
        b = rows.reshape(len(rows), -1).astype(np.float32) / (levels - 1)
        squares = (b**2).sum(1) - 2 * a @ b.T
        i, here = squares.argmin(1), squares.min(1)
        found[here < best] = b[i[here < best]].reshape(-1, *found.shape[1:])
        best = np.minimum(best, here)
    return found
