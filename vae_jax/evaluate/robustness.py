"""Does the classifier hold where images are worse than in training, or made to mislead it?"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from vae_jax.evaluate import generative
from vae_jax.models import Model
from vae_jax.objectives.labels import cross_entropy
from vae_jax.train import program as compile_lib

# Five strengths, in units of the grey scale (noise, attacks) or of the side (blur, occlusion).
NOISE = (0.1, 0.2, 0.3, 0.4, 0.5)
BLUR = (0.02, 0.04, 0.06, 0.08, 0.1)
OCCLUSION = (0.2, 0.3, 0.4, 0.5, 0.6)
EPSILON = (0.02, 0.05, 0.1, 0.2, 0.3)

LogP = Callable[[dict, jax.Array, jax.Array], jax.Array]  # params, x_BxHxWxC, key → BxY


def noise(x_NxHxWxC: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """x + N(0, strength²) in each value."""
    return x_NxHxWxC + strength * rng.standard_normal(x_NxHxWxC.shape)


def blur(x_NxHxWxC: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """A Gaussian of standard deviation strength · side, edges repeated."""
    from scipy.ndimage import gaussian_filter

    side = strength * x_NxHxWxC.shape[1]
    return gaussian_filter(x_NxHxWxC, (0, side, side, 0), mode="nearest")


def occlusion(x_NxHxWxC: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """A grey (½) square of side strength · side, at a random place of each image."""
    n, height, width, _ = x_NxHxWxC.shape
    side = round(strength * min(height, width))
    top = rng.integers(0, height - side + 1, n)[:, None]
    left = rng.integers(0, width - side + 1, n)[:, None]
    rows = np.arange(height)
    columns = np.arange(width)
    inside_NxH = (rows >= top) & (rows < top + side)
    inside_NxW = (columns >= left) & (columns < left + side)
    inside = inside_NxH[:, :, None] & inside_NxW[:, None, :]
    return np.where(inside[..., None], 0.5, x_NxHxWxC)


CORRUPTIONS = {"noise": (noise, NOISE), "blur": (blur, BLUR), "occlusion": (occlusion, OCCLUSION)}


def corrupted(
    image_NxHxWxC: np.ndarray, levels: int, name: str, strength: float, seed: int = 0
) -> np.ndarray:
    """uint8 images of the same grey levels, corrupted; the same noise for the same seed."""
    x = np.asarray(image_NxHxWxC, np.float64) / (levels - 1)
    x = CORRUPTIONS[name][0](x, strength, np.random.default_rng(seed))
    return np.rint((levels - 1) * np.clip(x, 0, 1)).astype(np.uint8)


def log_probabilities(model: Model, samples: int = 0, bayes: bool = False) -> LogP:
    r"""log p(y|x) as a function (params, x_BxHxWxC, key) → BxY of what the model classifies by.

    ``samples`` = 0: at the posterior mean (or q(y|x) of a conditional model): what evaluation
    reports. Else of a classifier that draws its code (:func:`drawing`), the mean over S draws; z is
    a where the model has one:

    .. math:: p(y|x) = \tfrac1S \sum_s p(y|z_s), \qquad z_s = \mu(x) + \sigma(x) \epsilon_s

    With ``bayes``, of a conditional model, Bayes' rule on the importance-weighted bound of S draws
    for each label (``generative.label_bounds``). Gradients go through μ and σ (the
    reparameterisation), so an attack that averages over draws is expectation over transformation
    (Athalye et al. 2018, arXiv:1707.07397): noise hides no gradient.
    """

    def run(params: dict, x: jax.Array, key: jax.Array) -> jax.Array:
        keys = jax.random.split(key, (samples, len(x))) if samples else None
        if bayes:
            return jax.nn.log_softmax(generative.label_bounds(model, params, x, keys))
        log_p = jax.nn.log_softmax(model.classify(params, x, keys))
        if log_p.ndim == 2:  # nothing was drawn
            return log_p
        return jax.nn.logsumexp(log_p, axis=0) - np.log(samples)

    return run


def drawing(model: Model) -> bool:
    """Whether the classifier can draw its input: z, or an auxiliary a. A q(y|x) of x cannot."""
    return model.decode is not None and (not model.spec.labelled or model.spec.auxiliary)


def attacks(log_p: LogP) -> Callable[..., tuple[jax.Array, jax.Array]]:
    r"""run(params, x_BxHxWxC, label_B, key, epsilon, steps=20) → (FGSM's images, PGD's images).

    .. math:: x' = \Pi\big(x + \epsilon\, \mathrm{sign} \nabla_x (-\log p(y|x))\big), \qquad
              x_{t+1} = \Pi\big(x_t + \alpha\, \mathrm{sign} \nabla_x (-\log p(y|x_t))\big)

    Π clips to at most ε from x in each value, and to [0, 1]. FGSM: Goodfellow et al. 2015
    (arXiv:1412.6572), eq. 2. PGD: Madry et al. 2018 (arXiv:1706.06083), section 2.1, with
    α = 2.5 ε / steps; half of the steps from x, and where these did not mislead, half from FGSM's
    image. An image stays where it first misleads, so PGD misleads wherever FGSM does, if ``log_p``
    draws nothing. Draws are fresh at each step. Of binarised data x is what the nets see, and
    attacked values lie between black and white.
    """

    @compile_lib.simple
    def move(
        params: dict,
        x: jax.Array,
        clean: jax.Array,
        label: jax.Array,
        key: jax.Array,
        sizes: tuple[float, float],
    ) -> tuple[jax.Array, jax.Array]:
        step, epsilon = sizes

        def loss(x: jax.Array) -> tuple[jax.Array, jax.Array]:
            ce, hit = cross_entropy(log_p(params, x, key), label)
            return ce.sum(), hit

        grad, hit = jax.grad(loss, has_aux=True)(x)
        moved = jnp.clip(x + step * jnp.sign(grad), clean - epsilon, clean + epsilon)
        correct_Bx1x1x1 = hit[:, None, None, None] > 0
        return jnp.where(correct_Bx1x1x1, jnp.clip(moved, 0, 1), x), correct_Bx1x1x1

    def run(
        params: dict,
        x_BxHxWxC: jax.Array,
        label_B: jax.Array,
        key: jax.Array,
        epsilon: float,
        steps: int = 20,
    ) -> tuple[jax.Array, jax.Array]:
        clean = jnp.asarray(x_BxHxWxC, jnp.float32)
        keys = iter(jax.random.split(key, steps + 2))
        fgsm, _ = move(params, clean, clean, label_B, next(keys), (epsilon, epsilon))
        x = clean
        for i in range(steps):  # no loop on the device: XLA's convolutions are slow in it on CPU
            if i == steps // 2:
                _, correct = move(params, x, clean, label_B, next(keys), (0.0, epsilon))
                x = jnp.where(correct, fgsm, x)
            x, _ = move(params, x, clean, label_B, next(keys), (2.5 * epsilon / steps, epsilon))
        return fgsm, x

    return run
