"""Textures of our own making: images without objects, far from every set of photographs or digits.

Each is a pure function of (seed, index), so that a set needs no file and no list of its images.
"""

import numpy as np

KINDS = ("stripes", "checks", "clouds", "dots")  # image i is of kind i mod 4


def textures(n: int, shape: tuple[int, int, int], levels: int, seed: int = 0) -> np.ndarray:
    """n uint8 images of ``shape`` in grey levels 0 … levels − 1; the first ones of any larger n."""
    images = []
    for i in range(n):
        rng = np.random.default_rng((seed, i))
        pattern = _PATTERNS[KINDS[i % len(KINDS)]](shape[0], shape[1], rng)
        images.append(_coloured(pattern, shape[2], rng))
    return np.rint((levels - 1) * np.stack(images)).astype(np.uint8)


def _coloured(pattern_HxW: np.ndarray, channels: int, rng: np.random.Generator) -> np.ndarray:
    """A pattern in [0, 1] between two random colours at least 0.4 of the scale apart."""
    low = rng.uniform(0, 0.3, channels)
    high = rng.uniform(0.7, 1, channels)
    return low + (high - low) * pattern_HxW[..., None]


def _turned(height: int, width: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates of the pixels in a frame that is turned by a random angle, in sides."""
    angle = rng.uniform(0, np.pi)
    rows, columns = np.mgrid[:height, :width] / max(height, width)
    along = np.cos(angle) * rows + np.sin(angle) * columns
    across = np.cos(angle) * columns - np.sin(angle) * rows
    return along, across


def _stripes(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    along, _ = _turned(height, width, rng)
    waves = rng.uniform(2, 7)
    return 0.5 + 0.5 * np.sin(2 * np.pi * (waves * along + rng.random()))


def _checks(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    along, across = _turned(height, width, rng)
    waves = rng.uniform(2, 5)
    product = np.sin(2 * np.pi * waves * along) * np.sin(2 * np.pi * waves * across)
    return (product > 0).astype(np.float64)


def _clouds(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Noise whose power falls with the square of the frequency, its ranks spread over [0, 1]."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    frequency[0, 0] = 1
    spectrum = np.fft.fft2(rng.normal(size=(height, width))) / frequency
    noise = np.fft.ifft2(spectrum).real
    return np.argsort(np.argsort(noise.ravel())).reshape(noise.shape) / (noise.size - 1)


def _dots(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    along, across = _turned(height, width, rng)
    waves = rng.uniform(2, 5)
    bumps = np.cos(2 * np.pi * waves * along) + np.cos(2 * np.pi * waves * across)
    return np.clip(bumps, 0, 2) / 2


_PATTERNS = {"stripes": _stripes, "checks": _checks, "clouds": _clouds, "dots": _dots}
