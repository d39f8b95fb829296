"""Scores of images, one function each; every score is higher for an out-of-distribution image.

Those of a classifier read its logits or the code of the image; those of a VAE read bounds on
log p(x), in nats. The scores of :mod:`vae_jax.evaluate.ood` come beside these.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from vae_jax import data
from vae_jax.data import evaluation
from vae_jax.distributions import Likelihood, example_keys, split_keys
from vae_jax.evaluate import classification, recognition
from vae_jax.evaluate.subject import Subject
from vae_jax.models import Model
from vae_jax.models.hierarchy import Levels
from vae_jax.report import anomaly
from vae_jax.train import program, step

Score = Callable[[dict, jax.Array], jax.Array]  # params, x_BxHxWxC → B


# --- scores of a classifier ---


def max_softmax(logits_NxY: np.ndarray) -> np.ndarray:
    """−max_y p(y|x). Hendrycks & Gimpel 2017 (arXiv:1610.02136), section 2."""
    return -np.exp(classification.log_softmax(logits_NxY).max(1))


def energy(logits_NxY: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    r"""The free energy :math:`-T \log \sum_y \exp(l_y / T)` of the logits l.

    Liu et al. 2020 (arXiv:2010.03759), section 2.
    """
    scaled = np.asarray(logits_NxY, np.float64) / temperature
    return -temperature * np.logaddexp.reduce(scaled, axis=1)


def knn_distance(gallery_NxD: np.ndarray, code_MxD: np.ndarray, k: int = 50) -> np.ndarray:
    """Distance to the k-th nearest training code, all codes scaled to length 1.

    Sun et al. 2022 (arXiv:2204.06507), section 3; k = 50 is theirs for CIFAR-10. A gallery of fewer
    than k codes has its farthest one.
    """

    def unit(v: np.ndarray) -> np.ndarray:
        v = np.asarray(v, np.float64)
        return v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-12)

    gallery = unit(gallery_NxD)
    code = unit(code_MxD)
    last = recognition.neighbours(gallery, code, k)[:, -1]
    return np.linalg.norm(code - gallery[last], axis=1)


def odin(model: Model, temperature: float = 1000.0, epsilon: float = 0.0014) -> Score:
    r"""−log S(x̃) as a function (params, x_BxHxWxC) → B, by the classifier of the model:

    .. math:: S(x) = \max_y \mathrm{softmax}(l(x) / T)_y, \qquad
              \tilde x = x - \epsilon\, \mathrm{sign}(-\nabla_x \log S(x))

    Liang et al. 2018 (arXiv:1706.02690), eqs. 1-2. T and ε are OpenOOD's; no OOD image chose them.
    """

    def log_top(params: dict, x: jax.Array) -> jax.Array:
        return jax.nn.log_softmax(model.classify(params, x) / temperature).max(-1)

    def score(params: dict, x_BxHxWxC: jax.Array) -> jax.Array:
        gradient = jax.grad(lambda x: log_top(params, x).sum())(x_BxHxWxC)
        return -log_top(params, x_BxHxWxC + epsilon * jnp.sign(gradient))

    return score


# --- scores of a VAE ---


def batch_typicality(nats_N: np.ndarray, reference_M: np.ndarray, size: int) -> np.ndarray:
    r"""Typicality of batches of ``size`` images, in their order; the last, smaller one is left out.

    .. math:: \Big| \tfrac1M \sum_{m=1}^{M} -\log p(x_m) - H \Big|

    H is the mean of −log p over ``reference`` (training or validation). Nalisnick et al. 2019
    (arXiv:1906.02994), eq. 5; with M = 1 it is ``ood.typicality``.
    """
    batches = len(nats_N) // size
    means = np.reshape(nats_N[: batches * size], (batches, size)).mean(1)
    return np.abs(means - np.mean(reference_M))


def likelihood_ratio(nats_N: np.ndarray, background_N: np.ndarray) -> np.ndarray:
    """log p₀(x) − log p(x), from −log p of the model and of one of the background, p₀.

    Ren et al. 2019 (arXiv:1906.02845), section 3.1. The second model is trained on images of
    ``data.mutated``, which keep the statistics of the background only.
    """
    return np.asarray(nats_N) - np.asarray(background_N)


def contrast_stretched(image_NxHxWxC: np.ndarray, levels: int, percent: float = 5.0) -> np.ndarray:
    """Each image with its 5th percentile of grey at black, its 95th at white, linear between.

    Where the two are equal the extremes take their place; an image of one grey stays as it is.
    Chauhan et al. 2022 (arXiv:2108.08760).
    """
    x = np.asarray(image_NxHxWxC, np.float64)
    axes = (1, 2, 3)
    low, high = np.percentile(x, (percent, 100 - percent), axis=axes, keepdims=True)
    flat = low == high
    low = np.where(flat, x.min(axes, keepdims=True), low)
    high = np.where(flat, x.max(axes, keepdims=True), high)
    width = np.where(low == high, 1, high - low)
    stretched = np.clip((x - low) / width, 0, 1) * (levels - 1)
    return np.rint(np.where(low == high, x, stretched)).astype(np.uint8)


def pixel_log_px(likelihood: Likelihood, out_BxHxWxO: jax.Array, x_BxHxWxC: jax.Array) -> jax.Array:
    """log p of each pixel, its channels together, BxHxW: of a likelihood of independent pixels."""

    def pixels(a: jax.Array) -> jax.Array:
        return a.reshape(-1, 1, 1, a.shape[-1])

    log_px = likelihood.log_prob(pixels(out_BxHxWxO), pixels(x_BxHxWxC))
    return log_px.reshape(x_BxHxWxC.shape[:3])


def level_corrections(log_px_NxP: np.ndarray, level_NxP: np.ndarray, levels: int) -> np.ndarray:
    r"""How well the decoder gives each grey level v, from images of training; nats, shape V.

    .. math:: C(v) = \log \operatorname{mean}_{n:\, v \in x_n}
              \operatorname{mean}_{d:\, x_{nd} = v} p(x_{nd} | \mu(x_n))

    Chauhan et al. 2022, section 3.2 (the algorithmic correction). A level that no image has takes
    the value between its neighbours.
    """
    sums = np.zeros(levels)
    images = np.zeros(levels)
    p_NxP = np.exp(np.asarray(log_px_NxP, np.float64))
    for p_P, level_P in zip(p_NxP, level_NxP, strict=True):
        count = np.bincount(level_P, minlength=levels)
        present = count > 0
        total = np.bincount(level_P, p_P, levels)
        sums[present] += total[present] / count[present]
        images += present
    known = np.flatnonzero((images > 0) & (sums > 0))
    log_mean = np.log(sums[known] / images[known])
    return np.interp(np.arange(levels), known, log_mean)


def bias_corrected(
    nats_N: np.ndarray, level_NxP: np.ndarray, corrections_V: np.ndarray
) -> np.ndarray:
    """−log p(x) + Σ_d C(x_d): the likelihood without its preference for some grey levels.

    Chauhan et al. 2022, section 3; ``corrections`` are :func:`level_corrections`.
    """
    return np.asarray(nats_N) + corrections_V[level_NxP].sum(1)


def class_scores(
    model: Model, params: dict, x_BxHxWxC: jax.Array, keys_KxB: jax.Array
) -> dict[str, jax.Array]:
    r"""How far x is from its predicted class ŷ, and how ill it is reconstructed, in nats, B each.

    .. math:: \mathrm{class\_kl} = KL(q(z|x, \hat y) \,\|\, p(z|\hat y)), \qquad
              \mathrm{reconstruction} = -E_q \log p(x|z, \hat y)

    Means over the K draws. Sun et al. 2020 (arXiv:2003.08823): an image is unknown
    where either is large. Wants a model of labels with a decoder.
    """
    d = model.draw(params, x_BxHxWxC, keys_KxB, model.map_label(params, x_BxHxWxC))
    return {"class_kl": d.kl.sum(-1).mean(0), "reconstruction": -d.log_px.mean(0)}


def _level(q: object, p: object, given: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, tuple]:
    """z ~ q at a level that is drawn from q, else z ~ p; with its log p and log q."""
    from_q, keys_B = given
    z = jnp.where(from_q, q.sample(keys_B), p.sample(keys_B))
    return z, (z, p.log_prob(z), q.log_prob(z), None)


def terms_above(
    model: Model, params: dict, x_BxHxWxC: jax.Array, keys_KxB: jax.Array, k: int | jax.Array
) -> tuple[jax.Array, jax.Array]:
    r"""(log p(x|z) KxB, log p/q of each level KxBxL) with the k lowest levels from the prior.

    .. math:: L^{>k} = \log p(x|z) + \sum_{l \le L - k} \log \frac{p(z_l|z_{<l})}{q(z_l|z_{<l},x)},
              \quad z_l \sim q \text{ for } l \le L - k, \text{ else } z_l \sim p

    Levels count from the top, as ours do; the terms of the k lowest are 0. Havtorn et al. 2021
    (arXiv:2102.08248), section 4, who count from the bottom; k = 0 is the ordinary bound. The same
    keys give the upper levels the same noise whatever k is.
    """
    levels = Levels(model.spec, model.nets)
    features = model.nets.features(params, x_BxHxWxC)
    from_q_L = jnp.arange(model.levels) < model.levels - k

    def one(keys_B: jax.Array) -> tuple[jax.Array, jax.Array]:
        given = levels.split((from_q_L, split_keys(keys_B, model.levels)))
        way = levels.run(params, features, _level, given, len(keys_B), None)
        log_px = model.likelihood.log_prob(way.out, x_BxHxWxC)
        return log_px, jnp.where(from_q_L, way.log_pz - way.log_qz, 0)

    return jax.vmap(one)(keys_KxB)


def level_ratio(
    model: Model, params: dict, x_BxHxWxC: jax.Array, keys_KxB: jax.Array, k: int | jax.Array
) -> jax.Array:
    """LLR^{>k} = L − L^{>k} in nats, B: what the k lowest levels know of x beyond the prior.

    Both bounds are importance-weighted over the K samples of :func:`terms_above`. Havtorn et al.
    2021, section 4: an OOD image is coded by low levels, which describe any image, and its score is
    high. Wants a hierarchy of more than k levels without labels.
    """

    def bound(k: int | jax.Array) -> jax.Array:
        log_px, log_ratio = terms_above(model, params, x_BxHxWxC, keys_KxB, k)
        return jax.nn.logsumexp(log_px + log_ratio.sum(-1), axis=0)

    return bound(0) - bound(k)


def anomaly_maps(model: Model) -> Callable[[dict, jax.Array, jax.Array], dict[str, jax.Array]]:
    r"""Maps of where an image is unusual: a function (params, x_BxHxWxC, keys_B) → {name: BxHxW}.

    .. math:: r = \textstyle\sum_c |x - \hat x|, \qquad
              g = \sum_c |\partial (-L) / \partial x|, \qquad r \cdot g

    as ``reconstruction`` (x̂ is p(x|z)'s mean at q's), ``gradient`` (L is the ELBO of one draw) and
    ``combined``. Zimmerer et al. 2019 (arXiv:1907.02796). A likelihood of grey levels rounds x, so
    that its gradient comes through q alone.
    """

    def maps(params: dict, x_BxHxWxC: jax.Array, keys_B: jax.Array) -> dict[str, jax.Array]:
        y = model.map_label(params, x_BxHxWxC)
        mu = model.encode(params, x_BxHxWxC, y).mu
        mean = model.likelihood.mean(model.decode(params, mu, y))

        def loss(x: jax.Array) -> jax.Array:
            draw = model.draw(params, x, keys_B, y)
            return jnp.sum(draw.kl) - jnp.sum(draw.log_px)

        reconstruction = jnp.abs(x_BxHxWxC - mean).sum(-1)
        gradient = jnp.abs(jax.grad(loss)(x_BxHxWxC)).sum(-1)
        combined = reconstruction * gradient
        return {"reconstruction": reconstruction, "gradient": gradient, "combined": combined}

    return maps


def shown_maps(subject: Subject, splits: Mapping[str, data.Split]) -> anomaly.Maps:
    """{name: (a few images in [0, 1], their ``combined`` maps)} of each split, for the report."""
    to_x = evaluation.inputs(subject.config, subject.levels)
    key = step.stream(subject.config.seed, "ood")
    maps = anomaly_maps(subject.model)

    @program.simple
    def run(params: dict, batch: dict) -> tuple[jax.Array, jax.Array]:
        x = to_x(batch)
        return x, maps(params, x, example_keys(key, batch["id"]))["combined"]

    shown = {}
    for name, split in splits.items():
        few = np.asarray(data.some(split, anomaly.SHOWN).image)
        x, map_NxHxW = run(subject.params, {"image": few, "id": np.arange(len(few))})
        shown[name] = (np.asarray(x), np.asarray(map_NxHxW))
    return shown
