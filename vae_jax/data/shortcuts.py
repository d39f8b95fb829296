"""Data sets with a shortcut: a cue that names the class in training, and in the test set does not.

The cue of an image is a colour or the place of a small patch, one for each class. In training and
validation it agrees with the label at a stated rate, and in the test set at chance. Which cue image
i of a split has depends on (seed, split, i) only. The functions without parameters are data sets,
such as ``data.name=vae_jax/data/shortcuts.py:coloured_mnist_999``: MNIST whose colours agree with
99.9 % of the training labels.
"""

import colorsys

import numpy as np

from vae_jax import config, data
from vae_jax.config import UserError

Arrays = dict[str, np.ndarray]
SPLITS = ("train", "validation", "test")
SIDE = 1 / 9  # of a patch, in sides of the image


def cues(label_N: np.ndarray, classes: int, agreement: float, seed: int, split: str) -> np.ndarray:
    """The class that each image's cue names, shape N.

    It is the label with probability ``agreement``, else one of the other classes, all equally
    likely; ``agreement`` = 1 / classes makes it independent of the label.
    """
    place = SPLITS.index(split)
    cue = np.array(label_N)
    for i, label in enumerate(label_N):
        rng = np.random.default_rng((seed, place, i))
        if rng.random() >= agreement:
            cue[i] = (label + rng.integers(1, classes)) % classes
    return cue


def coloured(image_NxHxWxC: np.ndarray, cue_N: np.ndarray, classes: int, levels: int) -> np.ndarray:
    """Grey images as shades of one colour each: hue cue / classes, fully saturated; NxHxWx3."""
    colours = np.array([colorsys.hsv_to_rgb(y / classes, 1, 1) for y in range(classes)])
    shade = image_NxHxWxC[..., :1] * colours[cue_N][:, None, None]
    return np.rint(np.clip(shade, 0, levels - 1)).astype(np.uint8)


def patched(image_NxHxWxC: np.ndarray, cue_N: np.ndarray, classes: int, levels: int) -> np.ndarray:
    """Images with a white square at one of ``classes`` places along the border."""
    height, width = image_NxHxWxC.shape[1:3]
    side = max(1, round(SIDE * min(height, width)))
    out = np.array(image_NxHxWxC)
    for y, (top, left) in enumerate(places(classes, height - side, width - side)):
        rows = np.flatnonzero(cue_N == y)
        out[rows, top : top + side, left : left + side] = levels - 1
    return out


def places(classes: int, bottom: int, right: int) -> list[tuple[int, int]]:
    """(row, column) of each class's patch: at equal distances along the border, clockwise."""
    spots = []
    for step in np.arange(classes) * 2 * (bottom + right) / classes:
        if step < right:
            spot = (0, step)
        elif step < right + bottom:
            spot = (step - right, right)
        elif step < 2 * right + bottom:
            spot = (bottom, 2 * right + bottom - step)
        else:
            spot = (2 * (right + bottom) - step, 0)
        spots.append((round(spot[0]), round(spot[1])))
    return spots


KINDS = {"coloured": coloured, "patched": patched}


def arrays(name: str, kind: str, agreement: float, seed: int = 0, data_dir: str = "") -> Arrays:
    """The data set ``name`` with the cues of ``kind``, as ``data.name=file:function`` takes it.

    ``agreement``: of training and validation; the test set's cues are independent of the label.
    Images come in 256 levels.

    Raises:
      UserError: there is no such kind, or the data set has no labels.
    """
    if kind not in KINDS:
        raise UserError(f"kind={kind}: want one of {', '.join(KINDS)}")
    c = config.default().data
    c.name = name
    c.dir = data_dir
    dataset = data.load(c)
    classes = len(dataset.classes)
    if not classes:
        raise UserError(f"data.name={name}: has no labels for a cue to agree with")
    out = {"classes": np.array(dataset.classes)}
    for split in SPLITS:
        part = getattr(dataset, split)
        image = np.rint(part.image[:] * (255 / (dataset.levels - 1))).astype(np.uint8)
        rate = 1 / classes if split == "test" else agreement
        cue = cues(part.label, classes, rate, seed, split)
        out[f"{split}_images"] = KINDS[kind](image, cue, classes, 256)
        out[f"{split}_labels"] = part.label
    return out


def coloured_digits_99() -> Arrays:
    return arrays("digits", "coloured", 0.99)


def coloured_digits_100() -> Arrays:
    return arrays("digits", "coloured", 1.0)


def coloured_mnist_99() -> Arrays:
    return arrays("mnist", "coloured", 0.99)


def coloured_mnist_999() -> Arrays:
    return arrays("mnist", "coloured", 0.999)


def coloured_mnist_100() -> Arrays:
    return arrays("mnist", "coloured", 1.0)


def patched_digits_99() -> Arrays:
    return arrays("digits", "patched", 0.99)


def patched_digits_100() -> Arrays:
    return arrays("digits", "patched", 1.0)


def patched_mnist_99() -> Arrays:
    return arrays("mnist", "patched", 0.99)


def patched_mnist_999() -> Arrays:
    return arrays("mnist", "patched", 0.999)


def patched_mnist_100() -> Arrays:
    return arrays("mnist", "patched", 1.0)
