"""Images with a share of their values replaced by noise: what is left is their background.

Training data of the second model of a likelihood ratio (``ood_scores.likelihood_ratio``). The
functions without parameters are data sets for ``data.name=vae_jax/data/mutated.py:mnist``.
"""

import numpy as np

from vae_jax import config, data

RATE = 0.2  # Ren et al. take 0.1 to 0.3


def mutated(image_NxHxWxC: np.ndarray, levels: int, rate: float, seed: int = 0) -> np.ndarray:
    """Images whose values are replaced, each with probability ``rate``, by uniform grey levels.

    Ren et al. 2019 (arXiv:1906.02845), section 3.2. Image i depends on (seed, i) only.
    """
    out = []
    for i, image in enumerate(image_NxHxWxC):
        rng = np.random.default_rng((seed, i))
        fresh = rng.integers(0, levels, image.shape)
        out.append(np.where(rng.random(image.shape) < rate, fresh, image))
    return np.stack(out).astype(np.uint8)


def arrays(name: str, rate: float = RATE, data_dir: str = "") -> dict[str, np.ndarray]:
    """All splits of a data set, mutated, in 256 levels; labels stay."""
    c = config.default().data
    c.name = name
    c.dir = data_dir
    dataset = data.load(c)
    out = {"classes": np.array(dataset.classes)}
    for seed, split in enumerate(("train", "validation", "test")):
        part = getattr(dataset, split)
        image = np.rint(part.image[:] * (255 / (dataset.levels - 1))).astype(np.uint8)
        out[f"{split}_images"] = mutated(image, 256, rate, seed)
        if part.label is not None:
            out[f"{split}_labels"] = part.label
    return out


def digits() -> dict[str, np.ndarray]:
    return arrays("digits")


def mnist() -> dict[str, np.ndarray]:
    return arrays("mnist")


def fashion_mnist() -> dict[str, np.ndarray]:
    return arrays("fashion_mnist")
