"""``sprites``: white shapes on black, each image a function of five factors.

3 shapes, 6 scales, 40 orientations, 32 x 32 positions: 737,280 images, as in dSprites (Matthey et
al. 2017), in 32x32 pixels, or with ``data.size=64`` in 64x64. The images are drawn here and are not
those of dSprites. In 32x32 pixels neighbouring positions are 0.54 pixels apart.
"""

import hashlib

import numpy as np

from vae_jax.data.sources import Source, Sources

NAME = "sprites"
SHAPES = ("square", "ellipse", "heart")
FACTORS = ("shape", "scale", "orientation", "x", "y")
SIZES = (len(SHAPES), 6, 40, 32, 32)
ORDERED = (False, True, True, True, True)  # whether the values of a factor are numbers
COUNT = int(np.prod(SIZES))
RADIUS = 0.2  # of the circle around the largest shape, where the image's side is 1
MARGIN = 0.24  # least distance of a centre from the image's border
CHUNK = 2048  # images that are drawn at a time
VERSION = hashlib.sha256(b"sprites 1").hexdigest()  # changes whenever a pixel does


def factors_of(place_N: np.ndarray) -> np.ndarray:
    """The values of the five factors of the images at these places, NxF, from 0."""
    return np.stack(np.unravel_index(place_N, SIZES), axis=-1)


def draw_factors(rng: np.random.Generator, n: int) -> np.ndarray:
    """n uniform draws of all factors, NxF."""
    return np.stack([rng.integers(0, size, n) for size in SIZES], axis=-1)


def render(factors_NxF: np.ndarray, size: int = 32) -> np.ndarray:
    """Images of 0 and 1, uint8 [N, size, size, 1], of factors NxF."""
    factors = np.asarray(factors_NxF)
    image = np.empty((len(factors), size, size, 1), np.uint8)
    for start in range(0, len(factors), CHUNK):
        rows = slice(start, start + CHUNK)
        image[rows, ..., 0] = _inside(factors[rows], size)
    return image


def _inside(factors_NxF: np.ndarray, size: int) -> np.ndarray:
    """Whether the centre of each pixel lies in the shape, bool [N, size, size]."""
    shape, scale, orientation, x, y = factors_NxF.astype(np.float32).T[..., None, None]
    centre = (np.arange(size, dtype=np.float32) + 0.5) / size
    radius = RADIUS * (0.5 + 0.5 * scale / (SIZES[1] - 1))
    angle = 2 * np.pi * orientation / SIZES[2]
    right = (centre[None, None, :] - _position(x, SIZES[3])) / radius
    down = (centre[None, :, None] - _position(y, SIZES[4])) / radius
    u = np.cos(angle) * right + np.sin(angle) * down
    v = np.cos(angle) * down - np.sin(angle) * right
    square = np.maximum(np.abs(u), np.abs(v)) < 0.7
    ellipse = u**2 + (2 * v) ** 2 < 1
    a = 1.4 * u
    b = 0.2 - 1.4 * v  # so that tip and shoulders are as far from the centre
    heart = (a**2 + b**2 - 1) ** 3 < a**2 * b**3
    return np.where(shape == 0, square, np.where(shape == 1, ellipse, heart))


def _position(index: np.ndarray, count: int) -> np.ndarray:
    """The place of the centre, in [MARGIN, 1 − MARGIN]."""
    return MARGIN + (1 - 2 * MARGIN) * index / (count - 1)


def sources(size: int) -> Sources:
    """The data set in ``size`` x ``size`` pixels; 0 is 32. The label is the shape."""
    size = size or 32

    def images(places: list[int]) -> list[np.ndarray]:
        return list(render(factors_of(np.array(places)), size))

    def labels(places: list[int]) -> list[int]:
        return factors_of(np.array(places))[:, 0].tolist()

    splits = {"train": Source(COUNT, images, labels)}
    return Sources((size, size, 1), SHAPES, splits, key=(size,), version=VERSION)
