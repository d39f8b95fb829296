r"""Detection without a box label: the VAE of each class slides over a scene.

    python train.py --config=configs/per_class_mnist.py --data_dir=~/data --workdir=runs/per_class
    python -m vae_jax.evaluate.sliding --workdir=runs/per_class --data=scenes:mnist+boxes

A window of the scene is resampled to the size of the images that the VAEs know. Its score for the
class y is a log-odds against a background of pixels of one unknown rate r:

.. math:: \log p(x|y)\, p(y) - \log \int_0^1 \prod_i r^{x_i} (1 - r)^{1 - x_i}\, dr

The first is a bound of K samples (``generative.label_bounds``), the second a Beta function. Both
are of Bernoulli pixels, grey ones by their expected log p. Of the windows of an image the
best-scored ones are kept after non-maximum suppression over all classes; the box is that of the lit
pixels of the class's reconstruction. Beyond the canvas a window is black. Writes sliding.json into
the run's folder: AP as ``eval.py --tasks=scenes`` has it.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from vae_jax import cli as flags_lib
from vae_jax import data
from vae_jax.config import UserError
from vae_jax.data import evaluation, scenes
from vae_jax.distributions import example_keys, sample_keys
from vae_jax.evaluate import command, likelihood
from vae_jax.evaluate.average_precision import (
    Boxes,
    average_precision,
    true_boxes,
    without_classes,
)
from vae_jax.evaluate.generative import label_bounds
from vae_jax.evaluate.scenes import count_accuracies
from vae_jax.evaluate.subject import Subject
from vae_jax.mesh import layout
from vae_jax.mesh import rules as sharding
from vae_jax.models import boxes as boxes_lib
from vae_jax.train import step

KEPT = 64  # windows of an image that suppression looks at
OVERLAP = 0.3  # IoU above which the lower-scored of two boxes goes
LIT = 0.25  # grey level from which a reconstructed pixel belongs to the object
TURNS = 8  # canvases of a device in one call, at most
STEP = 0.1  # between two windows, in units of a window's side


class Windows(NamedTuple):
    """The N square windows of one size: every pair of P places along both sides."""

    corner_P: np.ndarray  # pixels of the canvas
    side: float
    read_PxGxS: np.ndarray  # resamples a row of the canvas to G pixels


def windows(size: int, pixels: int, side: float, margin: float) -> Windows:
    """Windows of this ``side`` on a canvas of ``size`` pixels, read as ``pixels`` pixels.

    Their corners lie at most ``margin`` outside, and :data:`STEP` sides apart or less.
    """
    length = size - side + 2 * margin
    count = 1 + max(0, math.ceil(length / (STEP * side)))
    corner_P = np.linspace(-margin, size - side + margin, count)
    zoom = pixels / side
    read = [scenes.resampling(pixels, size, -x * zoom, size * zoom) for x in corner_P]
    return Windows(corner_P, side, np.stack(read).astype(np.float32))


def scales(image_NxGxGxC: np.ndarray, size: int, count: int) -> list[Windows]:
    """Windows for objects of half an image to a whole one, as the scenes have them.

    An object is as large in its window as the median one is in a training image.
    """
    pixels = image_NxGxGxC.shape[1]
    sides = [max(scenes.tight_box(one)[2:]) for one in image_NxGxGxC if one.any()]
    share = float(np.median(sides)) / pixels
    found = []
    for length in np.geomspace(pixels / 2, pixels, count):
        side = length / share
        found.append(windows(size, pixels, side, side * (1 - share) / 2))
    return found


def log_background(x_NxGxGxC: jax.Array) -> jax.Array:
    """log ∫ Π r^x (1 − r)^(1 − x) dr of each image, shape N: log B(k + 1, P − k + 1), k = Σ x."""
    pixels = math.prod(x_NxGxGxC.shape[1:])
    lit_N = jnp.sum(x_NxGxGxC, axis=(1, 2, 3))
    lgamma = jax.scipy.special.gammaln
    return lgamma(lit_N + 1) + lgamma(pixels - lit_N + 1) - lgamma(pixels + 2.0)


def lit_box(mean_NxGxGxC: jax.Array) -> jax.Array:
    """x, y, w, h, in units of the image, of the pixels above :data:`LIT`; Nx4.

    The whole image where there are none.
    """
    lit_NxGxG = jnp.max(mean_NxGxGxC, axis=-1) > LIT
    pixels = lit_NxGxG.shape[1]

    def extent(lit_NxG: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(first, length); argmax of all False is 0."""
        first = jnp.argmax(lit_NxG, axis=1)
        return first, pixels - jnp.argmax(lit_NxG[:, ::-1], axis=1) - first

    x, width = extent(lit_NxGxG.any(1))
    y, height = extent(lit_NxGxG.any(2))
    return jnp.stack([x, y, width, height], axis=1) / pixels


@dataclasses.dataclass(frozen=True)
class Slider:
    """The search of one canvas: ``table`` has windows of several sizes; K samples for a bound."""

    subject: Subject
    table: list[Windows]
    samples: int

    def scores(self, params: dict, x_NxGxGxC: jax.Array, key: jax.Array) -> jax.Array:
        """log p(x|y) p(y) − log p(background) of windows, NxY."""
        model = self.subject.model
        keys_N = example_keys(key, jnp.arange(len(x_NxGxGxC)))
        keys_KxN = sample_keys(keys_N, jnp.arange(self.samples))
        log_pxy = label_bounds(model, params, x_NxGxGxC, keys_KxN) - math.log(model.classes)
        return log_pxy - log_background(x_NxGxGxC)[:, None]

    def boxes(self, params: dict, x_NxGxGxC: jax.Array, label_N: jax.Array) -> jax.Array:
        """The lit box of each window's reconstruction by the VAE of its label, Nx4."""
        model = self.subject.model
        z = model.encode(params, x_NxGxGxC, label_N).mu
        return lit_box(model.likelihood.mean(model.decode(params, z, label_N)))

    def search(self, params: dict, x_SxSxC: jax.Array, key: jax.Array) -> dict[str, jax.Array]:
        """box KEPTx4, label, score and keep of the best windows of all sizes."""
        parts = []
        for number, w in enumerate(self.table):
            x = jnp.einsum("pgs,stc,qht->pqghc", w.read_PxGxS, x_SxSxC, w.read_PxGxS)
            x = jnp.clip(x.reshape(-1, *self.subject.model.shape), 0, 1)
            score_NxY = self.scores(params, x, jax.random.fold_in(key, number))
            best, index = jax.lax.top_k(score_NxY.max(1), min(KEPT, len(x)))
            label = jnp.argmax(score_NxY[index], axis=1)
            inside = self.boxes(params, x[index], label) * w.side
            corner_P = jnp.asarray(w.corner_P, jnp.float32)
            places = len(w.corner_P)
            corner = jnp.stack([corner_P[index % places], corner_P[index // places]], axis=1)
            box = jnp.concatenate([corner + inside[:, :2], inside[:, 2:]], axis=1)
            parts.append({"box": box, "label": label, "score": best})
        every = jax.tree.map(lambda *a: jnp.concatenate(a), *parts)
        _, index = jax.lax.top_k(every["score"], min(KEPT, len(every["score"])))
        out = jax.tree.map(lambda a: a[index], every)
        one_class = jnp.zeros_like(out["label"])
        out["keep"] = boxes_lib.suppress(out["box"], out["score"], one_class, OVERLAP)
        return out


def detect(slider: Slider, canvases: data.Split) -> dict[str, np.ndarray]:
    """box NxMx4, label NxM, score NxM and keep NxM of every canvas."""
    subject = slider.subject
    to_x = evaluation.seen(subject.config, subject.levels)
    root = step.stream(subject.config.seed, "test")
    devices = sharding.ways(subject.mesh)

    def program(params: dict, batch: dict) -> dict[str, jax.Array]:
        """One canvas after another on each device."""
        inputs = (to_x(batch), example_keys(root, batch["id"]))
        turns = len(batch["id"]) // devices

        def of_devices(turn: tuple[jax.Array, jax.Array]) -> dict[str, jax.Array]:
            return jax.vmap(lambda x, key: slider.search(params, x, key))(*turn)

        found = jax.lax.map(of_devices, layout.microbatches(inputs, turns))
        return jax.tree.map(lambda a: jnp.swapaxes(a, 0, 1).reshape(-1, *a.shape[2:]), found)

    return likelihood.over_split(subject, program, canvases, TURNS * devices)


def measure(subject: Subject, canvases: data.Split, *, count: int, samples: int) -> dict:
    """AP at 0.5 and on average, by class and of all classes together, and the counts' accuracy."""
    table = scales(subject.data.train.image[:2000], canvases.image.shape[1], count)
    out = detect(Slider(subject, table, samples), canvases)
    keep = out["keep"] > 0
    found = []
    for i, mine in enumerate(keep):
        found.append(Boxes(out["box"][i][mine], out["label"][i][mine], out["score"][i][mine]))
    truth = [true_boxes(one) for one in canvases.objects]
    by_class = average_precision(found, truth)
    any_class = average_precision(without_classes(found), without_classes(truth))
    metrics = count_accuracies((keep & (out["score"] > 0)).sum(1), canvases.label)
    metrics |= {"ap50": by_class[0], "ap": by_class.mean()}
    metrics |= {"ap50_any_class": any_class[0], "ap_any_class": any_class.mean()}
    number = sum(len(w.corner_P) ** 2 for w in table)
    numbers = {name: float(value) for name, value in metrics.items()}
    return {"images": len(canvases.label), "windows": number, "metrics": numbers}


def scenes_of(subject: Subject, name: str, images: int) -> data.Split:
    """The first test canvases of the scenes ``name``.

    Raises:
      UserError: the run has no VAE for each class, or the scenes are not of its images.
    """
    config = subject.config
    if config.model.name != "per_class":
        why = "has no VAE for each class; want a run of model.name=per_class"
        raise UserError(f"model.name={config.model.name}: {why}")
    if subject.model.likelihood.name != "bernoulli":
        have = subject.model.likelihood.name
        raise UserError(f"likelihood.name={have}: the background has Bernoulli pixels; want such")
    if not name.startswith(scenes.PREFIX):
        raise UserError(f"data={name}: want scenes, such as scenes:{config.data.name}+boxes")
    if scenes.parse(name)[0] != config.data.name:
        right = f"scenes:{config.data.name}+boxes"
        raise UserError(f"data={name}: not of the run's images; want scenes of them, {right}")
    c = config.data.copy_and_resolve_references()
    c.name = name
    for field, value in {"shift": 0, "flip": False, "labels": 0, "labelled_batch": 0}.items():
        c[field] = value
    dataset = data.load(c)
    have = (dataset.shape[2], dataset.levels)
    if have != (subject.model.shape[2], subject.levels):
        why = f"{have[0]} channels of {have[1]} levels are not what the run learnt"
        raise UserError(f"data={name}: {why}; want scenes of {config.data.name}")
    return data.some(dataset.test, images)


def define(values: flags.FlagValues) -> None:
    """Declare the flags of this script."""
    command.define(values)
    flags.DEFINE_string("data", "", "scenes, such as scenes:mnist+boxes", flag_values=values)
    numbers = {
        "images": (200, "test canvases, at most"),
        "scales": (5, "sizes of windows"),
        "samples": (1, "importance samples of a bound"),
    }
    for name, (default, words) in numbers.items():
        flags.DEFINE_integer(name, default, words, lower_bound=1, flag_values=values)


def run(argv: list[str]) -> int:
    """Measure the run that the flags name; the exit code."""
    values = flags_lib.parse_fixed(argv, define)
    subject = command.subject_of(values, "sliding.json")
    canvases = scenes_of(subject, values.data, values.images)
    content = measure(subject, canvases, count=values.scales, samples=values.samples)
    command.write(values, "sliding.json", {"data": values.data} | content)
    return 0


if __name__ == "__main__":
    flags_lib.main(run)
