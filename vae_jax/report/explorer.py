"""What the page's script lets a reader touch: points of the latent map with their images.

:func:`collect` asks the model, :func:`view` packs the answer for the page: images as sprites (one
PNG of many tiles), codes and weights in half precision.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vae_jax.data import evaluation
from vae_jax.report import decoder as decoder_lib
from vae_jax.report import pictures, plots, strips
from vae_jax.report.decoder import Decoder
from vae_jax.report.strips import Levels, Range, Source
from vae_jax.train import program

POINTS = 2000  # images on the map at most
CHUNK = 250  # images that the model sees at once
# Of sprites and weights together: a third more as base64, so 2 MB of a page of 3 MB at most.
BYTES = 1_500_000
COLUMNS = 40  # tiles in a row of a sprite
MISTAKES = 24  # of the gallery of errors
FEATURES = 30  # principal components of the codes that t-SNE reads, at most


class Explorer(NamedTuple):
    """Test images with what the model makes of them, errors first.

    P images, D latent dimensions. Images are bytes.
    """

    rows: np.ndarray  # P, places in the test set
    images: np.ndarray  # PxHxWxC
    codes: np.ndarray  # PxD, means of q(z|x)
    reconstructions: np.ndarray | None = None  # PxHxWxC; None without a decoder
    labels: np.ndarray | None = None  # P; a negative one is "no label"
    predicted: np.ndarray | None = None  # P; None without a classifier
    confidence: np.ndarray | None = None  # P, the probability of the predicted class
    decoder: Decoder | None = None
    ranges: tuple[Range, ...] = ()  # of the sliders, the most active dimension first
    traversals: np.ndarray | None = None  # RxSxHxWxC, a row for each range
    levels: Levels | None = None  # of a hierarchy


def choose(errors: np.ndarray, labels_N: np.ndarray | None, n: int, most: int) -> np.ndarray:
    """At most ``most`` of ``n`` rows: errors as they come, up to half, then classes in turn."""
    errors = errors[: most // 2]
    rest = np.setdiff1d(np.arange(n), errors)
    count = min(most - len(errors), len(rest))
    if labels_N is None:
        turns = np.arange(count) * len(rest) // max(count, 1)  # an even stride
    else:
        turns = pictures.first_images(labels_N[rest], count)
    return np.concatenate([errors, rest[turns]])


def _confident_errors(
    labels_N: np.ndarray | None, predicted_N: np.ndarray, confidence_N: np.ndarray
) -> np.ndarray:
    """Rows of the labelled images whose predicted class is wrong, the most confident first."""
    if labels_N is None:
        return np.arange(0)
    wrong = np.flatnonzero((labels_N >= 0) & (predicted_N != labels_N))
    return wrong[np.argsort(-confidence_N[wrong], kind="stable")]


def collect(source: Source, logits_NxY: np.ndarray | None) -> Explorer:
    """Images of the test set with their codes, reconstructions and classes.

    ``logits_NxY``: of every test image; None without a classifier.
    """
    test = source.dataset.test
    labels = None if test.label is None else np.asarray(test.label)
    errors = np.arange(0)
    if logits_NxY is not None:
        probability = np.asarray(jax.nn.softmax(jnp.asarray(logits_NxY, jnp.float32)))
        predicted = probability.argmax(1)
        confidence = probability.max(1)
        errors = _confident_errors(labels, predicted, confidence)
    rows = choose(errors, labels, len(test.image), POINTS)
    ask = _asker(source)
    answers = ask(source.params, rows)
    parts: dict[str, Any] = {"rows": rows, "codes": answers["code"]}
    parts["images"] = strips.to_bytes(answers["image"])
    if labels is not None:
        parts["labels"] = labels[rows]
    if logits_NxY is not None:
        parts["predicted"] = predicted[rows]
        parts["confidence"] = confidence[rows]
    if source.model.decode is None:
        return Explorer(**parts)
    parts["reconstructions"] = strips.to_bytes(answers["mean"])
    packed = decoder_lib.pack(source.config, source.params, source.model.spec)
    if packed is not None:
        half = decoder_lib.rounded(source.params)
        if _moved(answers["mean"][:CHUNK], ask(half, rows[:CHUNK])["mean"]) <= 1:
            parts["decoder"] = packed
    if source.config.posterior.name != "von_mises_fisher":  # a straight line leaves the sphere
        start = min(len(errors), POINTS // 2, len(rows) - 1)  # the first that is no error
        kl_D = answers["kl"].mean(0) if "kl" in answers else None
        parts["ranges"] = strips.ranges(answers["code"], kl_D)
        parts["traversals"] = strips.traversals(source, int(rows[start]), parts["ranges"])
    if source.model.complete is not None:
        shown = pictures.first_images(labels, min(strips.IMAGES, len(test.image)))
        parts["levels"] = strips.levels(source, shown)
    return Explorer(**parts)


def _asker(source: Source) -> Callable[[dict[str, Any], np.ndarray], dict[str, np.ndarray]]:
    """``ask(params, rows)`` → {"image": PxHxWxC, "code": PxD, "mean": PxHxWxC with a decoder}."""
    model = source.model
    to_x = evaluation.seen(source.config, source.dataset.levels)

    @program.simple
    def run(params: dict[str, Any], batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        x = to_x(batch)
        y = model.map_label(params, x)
        q = model.encode(params, x, y)
        mu = q.mu
        answers = {"image": x, "code": mu[:, : model.spec.code]}
        kl = strips.kl_of(model, params, q)
        if kl is not None:
            answers["kl"] = kl
        if model.decode is not None:
            answers["mean"] = model.likelihood.mean(model.decode(params, mu, y))
        return answers

    def ask(params: dict[str, Any], rows: np.ndarray) -> dict[str, np.ndarray]:
        parts = []
        size = min(CHUNK, len(source.dataset.test.image))
        for start in range(0, len(rows), size):
            some = np.resize(rows[start : start + size], size)  # the last ones again: one shape
            answers = jax.tree.map(np.asarray, run(params, strips.batch_of(source, some)))
            parts.append({name: a[: len(rows) - start] for name, a in answers.items()})
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    return ask


def _moved(exact: np.ndarray, rounded: np.ndarray) -> float:
    """The largest difference of two stacks of images, in grey levels of 255."""
    return float(255 * np.abs(np.clip(exact, 0, 1) - np.clip(rounded, 0, 1)).max())


# --- for the page --------------------------------------------------------------------------------


def _numbers(array: np.ndarray, digits: int) -> list[float]:
    return np.round(np.asarray(array, np.float64), digits).tolist()


def plane(e: Explorer, count: int) -> dict[str, Any]:
    """The first points in the plane of most variance: {"axes", "x", "y"}."""
    points, axes = plots.plane(e.codes)
    x, y = points[:count].T
    return {"axes": list(axes), "x": _numbers(x, 3), "y": _numbers(y, 3)}


def features(e: Explorer) -> np.ndarray | None:
    """What t-SNE reads: the codes, PxD, or their first principal components where they are many.

    Scaled to a standard deviation of 1 over all numbers: t-SNE takes any scale for the same. None
    for codes of two dimensions, which are a map already.
    """
    z = np.nan_to_num(np.asarray(e.codes, np.float64))
    if z.shape[1] <= 2:
        return None
    z = z - z.mean(0)
    if z.shape[1] > FEATURES:
        _, _, axes = np.linalg.svd(z, full_matrices=False)
        z = z @ axes[:FEATURES].T
    return z / (z.std() or 1.0)


def fitting(e: Explorer, taken: int = 0) -> int:
    """How many images fit into :data:`BYTES` beside the decoder's weights, by those of the first.

    Other sprites have ``taken`` so many of the bytes. With the decoder in the page reconstructions
    need no sprite.
    """
    probe = min(200, len(e.images))
    size = len(strips.sprite(e.images[:probe], COLUMNS)) / probe
    room = BYTES - taken
    if e.decoder is not None:
        room -= e.decoder.weights.nbytes
        size += 2 * e.codes.shape[1]
    elif e.reconstructions is not None:
        size += len(strips.sprite(e.reconstructions[:probe], COLUMNS)) / probe
    size += 2 * min(e.codes.shape[1], FEATURES)
    return int(np.clip(room / size, min(20, probe), len(e.images)))


def _strips(e: Explorer) -> dict[str, Any]:
    """Sprites of the sliders; the decoder in the page needs none of the traversals."""
    result = {}
    if e.decoder is None and e.traversals is not None:
        result["traversals"] = strips.view_traversals(e.ranges, e.traversals)
    if e.levels is not None:
        result["levels"] = strips.view_levels(e.levels)
    return result


def view(e: Explorer, classes: Sequence[str]) -> dict[str, Any]:
    """The explorer as JSON for the page's script."""
    moved = _strips(e)
    taken = sum(3 * len(one["image"]) // 4 for one in moved.values())  # of base64
    count = fitting(e, taken)
    packed: dict[str, Any] = moved | {
        "count": count,
        "height": e.images.shape[1],
        "width": e.images.shape[2],
        "columns": COLUMNS,
        "rows": e.rows[:count].tolist(),
        "images": pictures.uri(strips.sprite(e.images[:count], COLUMNS), "png"),
        "plane": plane(e, count),
        "classes": list(map(str, classes)),
        "colours": list(pictures.CLASS_COLOURS),
    }
    rows = features(e)
    if rows is not None:
        packed["features"] = decoder_lib.text_of(rows[:count])
    if e.labels is not None:
        packed["labels"] = e.labels[:count].tolist()
    if e.predicted is not None:
        packed["predicted"] = e.predicted[:count].tolist()
        packed["confidence"] = _numbers(e.confidence[:count], 4)
    if e.decoder is not None:
        packed["decoder"] = e.decoder.view()
        packed["codes"] = decoder_lib.text_of(e.codes[:count])
        packed["sliders"] = [one._asdict() for one in e.ranges]
    elif e.reconstructions is not None:
        png = strips.sprite(e.reconstructions[:count], COLUMNS)
        packed["reconstructions"] = pictures.uri(png, "png")
    return packed


def mistakes(e: Explorer, classes: Sequence[str]) -> list[dict[str, Any]]:
    """The most confident errors, for a gallery that needs no script."""
    if e.labels is None or e.predicted is None:
        return []
    result = []
    for i in _confident_errors(e.labels, e.predicted, e.confidence)[:MISTAKES]:
        tile = pictures.png(pictures.grid([e.images[i : i + 1] / 255], 1))
        one = {"uri": pictures.uri(tile, "png"), "row": int(e.rows[i])}
        one["true"] = pictures.class_name(classes, e.labels[i])
        one["taken"] = pictures.class_name(classes, e.predicted[i])
        one["confidence"] = f"{e.confidence[i]:.1%}"
        result.append(one)
    return result
