"""Frames of training: the same validation images and the same noise at each validation.

    WORKDIR/film/STEP.npy   uint8 2xNxHxWxC: N reconstructions, N samples

The report shows them behind a slider over the steps.
"""

import io
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from vae_jax import config as config_lib
from vae_jax.data import evaluation
from vae_jax.mesh import hosts
from vae_jax.train import log, step
from vae_jax.train import program as program_lib
from vae_jax.train.run import Setup

FOLDER = "film"
IMAGES = 6  # reconstructions in a frame, and as many samples
FRAMES = 16  # on the page at most


class Frames(NamedTuple):
    """F frames: the steps, and images F x 2N x H x W x C (reconstructions, then samples)."""

    steps: list[int]
    images: np.ndarray  # uint8


class Film:
    """Write a frame; it does nothing without a decoder, with replicas or several processes."""

    def __init__(self, setup: Setup, workdir: str) -> None:
        self._folder = os.path.join(workdir, FOLDER)
        several = config_lib.replica_count(setup.c) or hosts.several()
        self._draw = None
        if setup.model.decode is not None and not several:
            self._draw = _frame_of(setup)

    def __call__(self, at: int, state: Any) -> None:
        if self._draw is None:
            return
        images = np.asarray(self._draw(step.averaged(state)))
        file = io.BytesIO()
        np.save(file, np.rint(255 * np.clip(np.nan_to_num(images), 0, 1)).astype(np.uint8))
        log.replace(os.path.join(self._folder, f"{at}.npy"), file.getvalue())


def _frame_of(setup: Setup) -> Any:
    """``draw(params)`` → 2xNxHxWxC in [0, 1], a compiled program."""
    model = setup.model
    split = setup.dataset.validation
    count = min(IMAGES, len(split.image))
    rows = np.arange(count) * len(split.image) // count  # an even stride: all classes, mostly
    batch = {"image": jnp.asarray(split.image[rows]), "id": jnp.asarray(rows)}
    x = evaluation.seen(setup.c, setup.dataset.levels)(batch)
    keys = jax.random.split(step.stream(setup.c.seed, "film"), count)

    def mean(params: Any, z: jax.Array, y: jax.Array | None) -> jax.Array:
        return model.likelihood.mean(model.decode(params, z, y))

    @program_lib.simple
    def draw(params: Any) -> jax.Array:
        y = model.map_label(params, x)
        turns = model.label_turns(count)
        reconstructions = mean(params, model.encode(params, x, y).mu, y)
        samples = mean(params, model.sample(params, keys, turns), turns)
        return jnp.stack([reconstructions, samples])

    return draw


def read(workdir: str, steps: Sequence[int]) -> Frames | None:
    """The frames of these steps, :data:`FRAMES` at most, evenly; None for less than two.

    A damaged frame, or one of another shape than the last, is left out.
    """
    frames = {}
    for at in sorted(set(steps)):
        try:
            blob = epath.Path(workdir, FOLDER, f"{at}.npy").read_bytes()
            images = np.load(io.BytesIO(blob), allow_pickle=False)
        except (OSError, ValueError, EOFError):
            continue
        if images.ndim == 5 and images.dtype == np.uint8:
            frames[at] = images.reshape(-1, *images.shape[2:])
    if not frames:
        return None
    shape = frames[max(frames)].shape
    alike = [at for at in frames if frames[at].shape == shape]
    if len(alike) < 2:
        return None
    places = np.unique(np.linspace(0, len(alike) - 1, FRAMES).round().astype(int))
    kept = [alike[place] for place in places]
    return Frames(kept, np.stack([frames[at] for at in kept]))
