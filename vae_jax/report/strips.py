"""Images that Python computes ahead, for the page's sliders: traversals, levels, temperatures.

A slider shows one of the images of a sprite, so that any decoder can have one, however large.
Letters: R latent dimensions of S stops; J numbers of levels, T temperatures, N images.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from vae_jax import distributions
from vae_jax.data import Dataset, evaluation
from vae_jax.models import Model
from vae_jax.report import pictures
from vae_jax.train import program

DIMENSIONS = 12  # with a slider or a row of the traversals, at most
STOPS = 9  # images along one dimension
SPAN = 2.0  # standard deviations of the test set's codes, on both sides of their mean
COUNTS = 7  # numbers of levels from the image, at most
TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
IMAGES = 10  # of the levels, at most
BYTES = 400_000  # of the sprite of the levels: fewer images where they are large


class Source(NamedTuple):
    """The model and the data that the page's images are of."""

    config: ConfigDict
    model: Model
    params: dict[str, Any]
    dataset: Dataset


class Range(NamedTuple):
    """Where a slider begins and ends, and the dimension's mean KL(q ‖ p) where it is known."""

    dim: int
    low: float
    high: float
    kl: float | None = None  # nats


class Levels(NamedTuple):
    """Images whose first levels are q's means and whose others are from the prior. Bytes."""

    counts: tuple[int, ...]  # J, how many levels are q's
    temperatures: tuple[float, ...]  # T, of the others: the prior's deviations times this
    originals: np.ndarray  # NxHxWxC
    images: np.ndarray  # JxTxNxHxWxC, means of p(x|z)


def to_bytes(images: np.ndarray) -> np.ndarray:
    """Images in [0, 1] as uint8."""
    return np.rint(255 * np.clip(np.nan_to_num(images), 0, 1)).astype(np.uint8)


def batch_of(source: Source, rows: np.ndarray) -> dict[str, jax.Array]:
    """Test images as evaluation reads them."""
    image = jnp.asarray(source.dataset.test.image[rows])
    return {"image": image, "id": jnp.asarray(rows)}


def kl_of(model: Model, params: dict[str, Any], q: Any) -> jax.Array | None:
    """KL(q(z_d|x) ‖ p(z_d)) of each dimension in nats, BxD; None but of diagonal Gaussians."""
    prior = None
    if model.levels == 1 and isinstance(q, distributions.Normal):
        prior = model.prior(params)
    if not isinstance(prior, distributions.Normal):
        return None
    parts = [leaf[..., None] for leaf in (*q, *prior)]
    return distributions.kl_normal(*parts)


def ranges(codes_PxD: np.ndarray, kl_D: np.ndarray | None = None) -> tuple[Range, ...]:
    """Of the dimensions with the most KL: the codes' mean ± :data:`SPAN` standard deviations.

    Without ``kl_D`` these are the dimensions whose codes vary most.
    """
    centre = codes_PxD.mean(0)
    spread = codes_PxD.std(0)
    order = spread if kl_D is None else kl_D
    result = []
    for dim in np.argsort(-order, kind="stable")[:DIMENSIONS].tolist():
        low = float(centre[dim] - SPAN * spread[dim])
        high = float(centre[dim] + SPAN * spread[dim])
        kl = None if kl_D is None else float(kl_D[dim])
        result.append(Range(dim, low, high, kl))
    return tuple(result)


def stops(one: Range) -> np.ndarray:
    """The S values along a range, in equal steps."""
    return np.linspace(one.low, one.high, STOPS)


def traversals(source: Source, row: int, along: tuple[Range, ...]) -> np.ndarray:
    """RxSxHxWxC bytes: decodings of one test image's code, along each range in S steps."""
    model = source.model
    to_x = evaluation.seen(source.config, source.dataset.levels)
    dims_R = jnp.asarray([one.dim for one in along])
    values_RxS = jnp.asarray([stops(one) for one in along])

    @program.simple
    def run(params: dict[str, Any], batch: dict[str, jax.Array]) -> jax.Array:
        x = to_x(batch)
        y = model.map_label(params, x)
        mu = model.encode(params, x, y).mu
        moved = jnp.tile(mu, (len(along), STOPS, 1))
        moved = moved.at[jnp.arange(len(along)), :, dims_R].set(values_RxS)
        label = None if y is None else y[0]
        out = model.decode(params, moved.reshape(-1, mu.shape[1]), label)
        return model.likelihood.mean(out).reshape(len(along), STOPS, *model.shape)

    return to_bytes(np.asarray(run(source.params, batch_of(source, np.array([row])))))


def levels(source: Source, rows: np.ndarray) -> Levels:
    """:class:`Levels` of some test images, with the same noise at every setting.

    With no level from q and a label-free model they are samples of the prior. Images too large
    for :data:`BYTES` are fewer.
    """
    model = source.model
    to_x = evaluation.seen(source.config, source.dataset.levels)
    counts = np.unique(np.linspace(0, model.levels, COUNTS).round().astype(int)).tolist()
    rows = rows[:IMAGES]

    @program.simple
    def run(
        params: dict[str, Any], batch: dict[str, jax.Array], first: int, temperature: float
    ) -> jax.Array:
        x = to_x(batch)
        y = model.map_label(params, x)
        keys_N = distributions.example_keys(jax.random.key(source.config.seed), batch["id"])
        z = model.complete(params, x, keys_N, y, first=first, temperature=temperature)
        return model.likelihood.mean(model.decode(params, z, y))

    batch = batch_of(source, rows)
    images = []
    for first in counts:
        for temperature in TEMPERATURES:
            images.append(to_bytes(np.asarray(run(source.params, batch, first, temperature))))
    images_JxTxN = np.stack(images).reshape(len(counts), len(TEMPERATURES), *images[0].shape)
    originals = to_bytes(np.asarray(to_x(batch)))
    size = sum(len(pictures.png(tile)) for tile in _tiles(images_JxTxN[-1, -1]))
    fit = int(BYTES * len(rows) / (size * len(images)))
    n = int(np.clip(fit, 1, len(rows)))
    return Levels(tuple(counts), TEMPERATURES, originals[:n], images_JxTxN[:, :, :n])


# --- for the page --------------------------------------------------------------------------------


def _tiles(images_PxHxWxC: np.ndarray) -> np.ndarray:
    """Images with one channel, PxHxW, or three: any other number is averaged."""
    if images_PxHxWxC.shape[-1] == 3:
        return images_PxHxWxC
    return np.rint(images_PxHxWxC.mean(-1)).astype(np.uint8)


def sprite(images_PxHxWxC: np.ndarray, columns: int) -> bytes:
    """One PNG of all images, ``columns`` in a row, a pixel for a pixel.

    Three channels are RGB; any other number is averaged.
    """
    tiles = _tiles(images_PxHxWxC)
    n, height, width = tiles.shape[:3]
    rows = -(-n // columns)
    sheet = np.zeros((rows * columns, *tiles.shape[1:]), np.uint8)
    sheet[:n] = tiles
    sheet = sheet.reshape(rows, columns, *tiles.shape[1:]).swapaxes(1, 2)
    return pictures.png(sheet.reshape(rows * height, columns * width, *tiles.shape[3:]))


def view_traversals(along: tuple[Range, ...], images_RxS: np.ndarray) -> dict[str, Any]:
    """A row of the sprite for each dimension, a column for each stop."""
    sliders = []
    for one in along:
        values = [round(value, 3) for value in stops(one).tolist()]
        sliders.append({"dim": one.dim, "kl": one.kl, "values": values})
    png = sprite(images_RxS.reshape(-1, *images_RxS.shape[2:]), STOPS)
    return {"image": pictures.uri(png, "png"), "sliders": sliders}


def view_levels(one: Levels) -> dict[str, Any]:
    """A row of the sprite for each setting, its first row being the test images."""
    n = len(one.originals)
    tiles = one.images.reshape(-1, *one.images.shape[3:])
    png = sprite(np.concatenate([one.originals, tiles]), n)
    view = {"counts": one.counts, "temperatures": one.temperatures, "columns": n}
    return view | {"image": pictures.uri(png, "png")}
