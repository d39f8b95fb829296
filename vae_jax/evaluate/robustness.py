"""Does the classifier hold where images are worse than in training, or made to mislead it?"""

import jax
import jax.numpy as jnp
import numpy as np

from vae_jax.evaluate import generative
from vae_jax.objectives.labels import cross_entropy
from vae_jax.train import program as compile_lib

# Five strengths of each, in units of the grey scale (noise, attacks), of the image's side (blur, occlusion).
NOISE = (0.1, 0.2, 0.3, 0.4, 0.5)
BLUR = (0.02, 0.04, 0.06, 0.08, 0.1)
OCCLUSION = (0.2, 0.3, 0.4, 0.5, 0.6)
EPSILON = (0.02, 0.05, 0.1, 0.2, 0.3)


def noise(x_NxHxWxC, strength, rng):
    """x + N(0, strength²) in each value."""
    return x_NxHxWxC + strength * rng.standard_normal(x_NxHxWxC.shape)


def blur(x_NxHxWxC, strength, rng):
    """A Gaussian of standard deviation strength · side, edges repeated."""
    from scipy.ndimage import gaussian_filter

    side = strength * x_NxHxWxC.shape[1]
    return gaussian_filter(x_NxHxWxC, (0, side, side, 0), mode="nearest")


def occlusion(x_NxHxWxC, strength, rng):
    """A grey (½) square of side strength · side, somewhere else on each image."""
    n, height, width, _ = x_NxHxWxC.shape
    side = round(strength * min(height, width))
    top, left = (rng.integers(0, size - side + 1, n)[:, None] for size in (height, width))
    rows, columns = np.arange(height), np.arange(width)
    inside = ((rows >= top) & (rows < top + side))[:, :, None] & (
        (columns >= left) & (columns < left + side)
    )[:, None]
    return np.where(inside[..., None], 0.5, x_NxHxWxC)


CORRUPTIONS = {"noise": (noise, NOISE), "blur": (blur, BLUR), "occlusion": (occlusion, OCCLUSION)}


def corrupted(image_NxHxWxC, levels, name, strength, seed=0):
    """uint8 images of the same grey levels, corrupted; the same noise for the same seed."""
    x = np.asarray(image_NxHxWxC, np.float64) / (levels - 1)
    x = CORRUPTIONS[name][0](x, strength, np.random.default_rng(seed))
    return np.rint((levels - 1) * np.clip(x, 0, 1)).astype(np.uint8)


def log_probabilities(model, samples=0, bayes=False):
    r"""log p(y|x) as a function (params, x_BxHxWxC, key) → BxY of what the model classifies by.

    ``samples`` = 0: at the posterior mean (or q(y|x) of a conditional model): what evaluation reports. Else of a
    classifier that draws its code (:func:`drawing`), the mean over S draws; z is a in an ``Auxiliary``:

    .. math:: p(y|x) = \tfrac1S \sum_s p(y|z_s), \qquad z_s = \mu(x) + \sigma(x) \epsilon_s

    With ``bayes``, of a conditional model, Bayes' rule on the importance-weighted bound of S draws for each label
    (``generative.label_bounds``). Gradients go through μ and σ (the reparameterisation), so an attack that averages
    over draws is expectation over transformation (Athalye et al. 2018, arXiv:1707.07397): noise hides no gradient.
    """

    def run(params, x, key):
        keys = jax.random.split(key, (samples, len(x))) if samples else None
        if bayes:
            return jax.nn.log_softmax(generative.label_bounds(model, params, x, keys))
        log_p = jax.nn.log_softmax(model.classify(params, x, keys))
        if log_p.ndim == 2:
            return log_p
        return jax.nn.logsumexp(log_p, axis=0) - np.log(samples)

    return run


def drawing(model):
    """Whether the classifier can draw what it reads: z, or an auxiliary a. A q(y|x) of x alone draws nothing."""
    return model.decode is not None and (not model.spec.labelled or model.spec.auxiliary)


def attacks(log_p):
    r"""run(params, x_BxHxWxC, label_B, key, epsilon, steps=20) → (FGSM's images, PGD's images) against ``log_p``.

    .. math:: x' = \Pi\big(x + \epsilon\, \mathrm{sign} \nabla_x (-\log p(y|x))\big), \qquad
              x_{t+1} = \Pi\big(x_t + \alpha\, \mathrm{sign} \nabla_x (-\log p(y|x_t))\big)

    Π clips to at most ε from x in each value, and to [0, 1]. FGSM: Goodfellow et al. 2015 (arXiv:1412.6572), eq. 2.
    PGD: Madry et al. 2018 (arXiv:1706.06083), section 2.1, with α = 2.5 ε / steps; half of the steps from x, and where
    these did not mislead, half from FGSM's image. An image stays where it first misleads, so PGD misleads wherever
    FGSM does, if ``log_p`` draws nothing. Draws are fresh at each step. Of binarised data x is what the nets see, and
    attacked values lie between black and white.
    """

    def move(params, x, clean, label, key, size, epsilon):
        def loss(x):
            ce, hit = cross_entropy(log_p(params, x, key), label)
            return ce.sum(), hit

        grad, hit = jax.grad(loss, has_aux=True)(x)
        moved = jnp.clip(x + size * jnp.sign(grad), clean - epsilon, clean + epsilon)
        held_Bx1x1x1 = hit[:, None, None, None] > 0
        return jnp.where(held_Bx1x1x1, jnp.clip(moved, 0, 1), x), held_Bx1x1x1

    move = compile_lib.simple(move)

    def run(params, x_BxHxWxC, label_B, key, epsilon, steps=20):
        clean, keys = jnp.asarray(x_BxHxWxC, jnp.float32), iter(jax.random.split(key, steps + 2))
        fgsm, _ = move(params, clean, clean, label_B, next(keys), epsilon, epsilon)
        x = clean
        for i in range(
            steps
        ):  # not a loop on the device: XLA's convolutions are slow in one on CPU
            if i == steps // 2:
                _, held = move(params, x, clean, label_B, next(keys), 0.0, epsilon)
                x = jnp.where(held, fgsm, x)
            x, _ = move(params, x, clean, label_B, next(keys), 2.5 * epsilon / steps, epsilon)
        return fgsm, x

    return run
