"""Pictures: reconstructions, samples from the prior, interpolations and more, in [0, 1]."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vae_jax.evaluate.recognition import NEIGHBOURS
from vae_jax.models import Model
from vae_jax.train import program as compile_lib

TEMPERATURES = (0.0, 0.5, 0.7, 0.85, 1.0)
ROUNDS = 20  # of inpainting
SHOWN = 10  # images in a row of the smaller pictures


def pictures(
    model: Model,
    params: dict,
    x_NxHxWxC: jax.Array,
    key: jax.Array,
    *,
    samples: int = 64,
    rows: int = 6,
    columns: int = 10,
) -> dict[str, Any]:
    """Means of p(x|z): reconstructions, samples, interpolations and inpainting; a dict of arrays.

    z is the posterior mean of x, a draw from the prior, or on the straight line between the
    posterior means of a pair. A conditional model gets the most probable labels of q(y|x), prior
    samples of each label in turn, and for a line the label of its beginning. A hierarchy has
    :func:`hierarchy`'s pictures too.
    """
    rows = max(1, min(rows, len(x_NxHxWxC) // 2))

    def program(params: dict, x: jax.Array, key: jax.Array) -> dict:
        def mean(z: jax.Array, y: jax.Array | None) -> jax.Array:
            return model.likelihood.mean(model.decode(params, z, y))

        y = model.map_label(params, x)
        turns = model.label_turns(samples)
        first = None if y is None else jnp.repeat(y[:rows], columns)
        mu = model.encode(params, x, y).mu
        z = model.sample(params, jax.random.split(key, samples), turns)
        t = jnp.linspace(0, 1, columns)[None, :, None]
        line = (1 - t) * mu[:rows, None] + t * mu[-rows:, None]
        between = mean(line.reshape(-1, mu.shape[1]), first)
        return {
            "reconstructions": mean(mu, y),
            "samples": mean(z, turns),
            "interpolations": between.reshape(rows, columns, *model.shape),
        }

    out = compile_lib.simple(program)(params, x_NxHxWxC, key)
    shown = x_NxHxWxC[:SHOWN]
    out["inpainting"] = list(inpainted(model, params, shown, jax.random.fold_in(key, 1)))
    if model.levels > 1:
        out |= hierarchy(model, params, shown, jax.random.fold_in(key, 2))
    return {"originals": np.asarray(x_NxHxWxC)} | jax.tree.map(np.asarray, out)


def hierarchy(
    model: Model, params: dict, x_NxHxWxC: jax.Array, key: jax.Array
) -> dict[str, list[jax.Array]]:
    """``levels`` and ``temperatures``, lists of rows of images.

    ``levels``: x, then its reconstructions with the first 0, …, L levels from q (seven numbers at
    most) and the others at the prior's means. ``temperatures``: samples at each of
    :data:`TEMPERATURES`, from the same noise.
    """
    n = len(x_NxHxWxC)
    counts = np.unique(np.linspace(0, model.levels, 7).round().astype(int))

    @compile_lib.simple
    def run(
        params: dict, x: jax.Array, y: jax.Array | None, first: int, temperature: float
    ) -> jax.Array:
        keys = jax.random.split(key, n)
        z = model.complete(params, x, keys, y, first=first, temperature=temperature)
        return model.likelihood.mean(model.decode(params, z, y))

    y = compile_lib.simple(model.map_label)(params, x_NxHxWxC)
    parts = [run(params, x_NxHxWxC, y, int(first), 0.0) for first in counts]
    turns = model.label_turns(n)
    return {
        "levels": [x_NxHxWxC, *parts],
        "temperatures": [run(params, x_NxHxWxC, turns, 0, t) for t in TEMPERATURES],
    }


def inpainted(
    model: Model, params: dict, x_NxHxWxC: jax.Array, key: jax.Array, rounds: int = ROUNDS
) -> tuple[jax.Array, jax.Array]:
    """(x with its lower half grey, x with that half made up).

    A Markov chain between z ~ q(z|x̂) and the missing half ~ p(x|z), from noise; its last mean is
    the picture (Rezende et al. 2014, arXiv:1401.4082, appendix F). The fine levels of a hierarchy
    would keep the noise for ever: a round takes only the first levels from q, at their means, and
    the others from the prior: none at first, in the end all.
    """
    known = (jnp.arange(model.shape[0]) < model.shape[0] // 2)[:, None, None]

    @compile_lib.simple
    def run(
        params: dict, x: jax.Array, guess: jax.Array, key: jax.Array, first: int
    ) -> tuple[jax.Array, jax.Array]:
        y = model.map_label(params, guess)
        keys = jax.random.split(key, len(x))
        if model.levels > 1:
            z = model.complete(params, guess, keys, y, first=first)
        else:
            z = model.draw(params, guess, keys, y).z
        out = model.decode(params, z, y)
        drawn = jnp.clip(model.likelihood.sample(jax.random.fold_in(key, 1), out), 0, 1)
        return jnp.where(known, x, drawn), jnp.where(known, x, model.likelihood.mean(out))

    noise = jax.random.uniform(key, x_NxHxWxC.shape)
    if model.likelihood.data == "binary":
        noise = noise > 0.5
    guess = jnp.where(known, x_NxHxWxC, noise)
    for i in range(rounds):
        first = i * (model.levels + 1) // rounds
        guess, mean = run(params, x_NxHxWxC, guess, jax.random.fold_in(key, i), first)
    return jnp.where(known, x_NxHxWxC, 0.5), mean


def nearest(
    images_NxHxWxC: np.ndarray, train_MxHxWxC: np.ndarray, levels: int, chunk: int = 5000
) -> np.ndarray:
    """The training image nearest to each of N images by squared distance of pixels; in [0, 1].

    Of more than :data:`recognition.NEIGHBOURS` training images (uint8) those an even stride apart
    are compared.
    """
    a = np.asarray(images_NxHxWxC, np.float32).reshape(len(images_NxHxWxC), -1)
    count = len(train_MxHxWxC)
    every = -(-count // NEIGHBOURS)
    best = np.full(len(a), np.inf)
    near = np.zeros(images_NxHxWxC.shape, np.float32)
    for start in range(0, count, chunk * every):
        index = np.arange(start, min(start + chunk * every, count), every)
        rows = np.asarray(train_MxHxWxC[index])
        b = rows.reshape(len(rows), -1).astype(np.float32) / (levels - 1)
        squares = (b**2).sum(1) - 2 * a @ b.T
        i = squares.argmin(1)
        distance = squares.min(1)
        closer = distance < best
        near[closer] = b[i[closer]].reshape(-1, *near.shape[1:])
        best = np.minimum(best, distance)
    return near
