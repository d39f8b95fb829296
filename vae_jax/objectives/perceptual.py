"""The ELBO with a term that compares images by more than their pixels.

The terms are no likelihoods and have other units than nats; ``elbo``, ``log_px`` and ``kl`` are the
plain bound's, so what a term costs in nats can be read off.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vae_jax.config import UserError
from vae_jax.distributions.normal import real
from vae_jax.models.core import Draw, Model, Params
from vae_jax.objectives.terms import Terms, bound, sample_k

# Of each scale, the finest first: Wang et al. 2003, section 4.2.
SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
WINDOW = 11  # pixels of a side
SIGMA = 1.5
C1 = 0.01**2
C2 = 0.03**2
LEAST = 1e-3  # of a contrast: below it a power of it would have a gradient without bound


def perceptual(
    model: Model,
    params: Params,
    batch: dict,
    keys: jax.Array,
    *,
    beta: float = 1.0,
    features: Any = "",
    weight: float = 1000.0,
) -> Terms:
    r"""The ELBO, and how far a reconstruction is from its image in the features of another run.

    .. math:: \mathrm{loss} = -E_q\log p(x|z) + \beta\,KL
              + w \sum_l \frac{1}{F_l} \lVert\phi_l(x) - \phi_l(\hat x)\rVert^2, \quad
              \hat x = E[x|z], \quad z \sim q(z|x)

    ``features`` in a config is the folder of a finished run on images of the same shape; φ_l is the
    output of its encoder's layer l, of F_l numbers, and its parameters are constants. In Python it
    is a function x_BxHxWxC → [φ_l, with B rows each]. The sum, ``extra["feature_distance"]``, has
    the unit of the features' squares; it is no likelihood.

    Johnson et al. 2016 (arXiv:1603.08155), eq. 2; as a loss of a VAE, Hou et al. 2017
    (arXiv:1610.00291), eq. 4.

    Raises:
      UserError: no features are named.
    """
    if not callable(features):
        wanted = "want the folder of a finished run on these images, such as runs/mnist_cnn"
        raise UserError(f"objective.features={features}: {wanted}")
    x = batch["image"]
    draws = sample_k(model, params, x, keys, 1)
    distance = feature_distance(features, x, reconstruction(model, params, draws))
    return with_term(draws, beta, weight * distance, {"feature_distance": distance})


perceptual.needs = "features"
perceptual.runs = ("features",)  # fields that name the folder of a run


def feature_distance(
    features: Callable[[jax.Array], Sequence[jax.Array]], a: jax.Array, b: jax.Array
) -> jax.Array:
    """Σ_l of the mean square of φ_l(a) − φ_l(b), shape B."""
    total = jnp.zeros(len(a))
    for of_a, of_b in zip(features(a), features(b), strict=True):
        squares = (real(of_a) - real(of_b)) ** 2
        total += squares.reshape(len(a), -1).mean(-1)
    return total


def ms_ssim(
    model: Model,
    params: Params,
    batch: dict,
    keys: jax.Array,
    *,
    beta: float = 1.0,
    weight: float = 1000.0,
) -> Terms:
    r"""The ELBO, and how far an image and its reconstruction are from the same structure.

    .. math:: \mathrm{loss} = -E_q\log p(x|z) + \beta\,KL + w\,(1 - \mathrm{MSSSIM}(x, \hat x)),
              \quad \hat x = E[x|z], \quad z \sim q(z|x)

    See :func:`multiscale_similarity`, ``extra["ms_ssim"]``: a number without a unit, 1 for equal
    images; it is no likelihood.
    """
    x = batch["image"]
    draws = sample_k(model, params, x, keys, 1)
    similarity = multiscale_similarity(x, reconstruction(model, params, draws))
    return with_term(draws, beta, weight * (1 - similarity), {"ms_ssim": similarity})


ms_ssim.needs = "decoder"


def with_term(draws: Draw, beta: float, term: jax.Array, extra: dict) -> Terms:
    """−E log p(x|z) + beta KL + ``term``, and the bound without it."""
    value, log_px, kl = bound(draws)
    return Terms(beta * kl - log_px + term, value, log_px, kl, extra)


def decoded(model: Model, params: Params, draws: Draw) -> jax.Array:
    """The parameters of p(x|z) for the one draw of each example; XLA computes the decoder once."""
    if model.decode is None or model.spec.labelled:
        raise UserError("objective: compares x with E[x|z]; want model.name=vae and a decoder")
    return model.decode(params, draws.z[0])


def reconstruction(model: Model, params: Params, draws: Draw) -> jax.Array:
    """E[x|z] of the one draw of each example, BxHxWxC."""
    return model.likelihood.mean(decoded(model, params, draws))


def num_scales(height: int, width: int) -> int:
    """How many of :data:`SCALES` images of this size have: each halves them, a window must fit.

    Raises:
      UserError: not even one window fits.
    """
    side = min(height, width)
    if side < WINDOW:
        wanted = f"want at least {WINDOW}x{WINDOW} pixels, a window of SSIM"
        raise UserError(f"objective: images of {height}x{width}; {wanted}")
    count = 1
    while count < len(SCALES) and side // 2**count >= WINDOW:
        count += 1
    return count


def multiscale_similarity(a_BxHxWxC: jax.Array, b_BxHxWxC: jax.Array) -> jax.Array:
    r"""MS-SSIM of images in [0, 1], the mean over channels; shape B.

    .. math:: l_M^{\alpha_M} \prod_{j=1}^{M} c_j^{\alpha_j}, \quad
              l = \overline{\frac{2\mu_a\mu_b + C_1}{\mu_a^2 + \mu_b^2 + C_1}}, \quad
              c = \overline{\frac{2\sigma_{ab} + C_2}{\sigma_a^2 + \sigma_b^2 + C_2}}

    Means over Gaussian windows of σ = 1.5 and 11x11 pixels, wholly inside the image; j = 1 is the
    image, and each scale after it averages 2x2 pixels of the one before. Small images have the
    first M scales (two at 28x28), whose weights then are divided by their sum. l and c are at least
    1e-3, so that a power of them has a gradient.

    Wang, Simoncelli & Bovik 2003 (Asilomar), eq. 7 and section 4.2.
    """
    a = real(a_BxHxWxC)
    b = real(b_BxHxWxC)
    count = num_scales(*a.shape[1:3])
    weights = np.array(SCALES[:count]) / sum(SCALES[:count])
    value = jnp.ones((len(a), a.shape[-1]))
    for j, weight in enumerate(weights):
        if j > 0:
            a = _halved(a)
            b = _halved(b)
        luminance, contrast = _similarities(a, b)
        value *= jnp.maximum(contrast, LEAST) ** weight
        if j == count - 1:
            value *= jnp.maximum(luminance, LEAST) ** weight
    return value.mean(-1)


def _halved(x: jax.Array) -> jax.Array:
    """Means of 2x2 pixels; an odd last row or column is left out."""
    batch, height, width, channels = x.shape
    rows = height // 2
    columns = width // 2
    blocks = x[:, : 2 * rows, : 2 * columns].reshape(batch, rows, 2, columns, 2, channels)
    return blocks.mean((2, 4))


def _similarities(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(luminance, contrast and structure), means over the windows, BxC."""
    across_rows = _windows(a.shape[1])
    across_columns = _windows(a.shape[2])

    def mean(v: jax.Array) -> jax.Array:
        arrays = (v, across_rows, across_columns)
        return jnp.einsum("bhwc,ih,jw->bijc", *arrays, precision="highest")

    mu_a = mean(a)
    mu_b = mean(b)
    variances = mean(a * a) - mu_a**2 + mean(b * b) - mu_b**2
    covariance = mean(a * b) - mu_a * mu_b
    luminance = (2 * mu_a * mu_b + C1) / (mu_a**2 + mu_b**2 + C1)
    contrast = (2 * covariance + C2) / (variances + C2)
    return luminance.mean((1, 2)), contrast.mean((1, 2))


def _windows(size: int) -> np.ndarray:
    """(size − 10) x size: row i is the Gaussian window over pixels i … i + 10 of a side."""
    place = np.arange(WINDOW) - WINDOW // 2
    window = np.exp(-0.5 * (place / SIGMA) ** 2)
    window /= window.sum()
    rows = np.zeros((size - WINDOW + 1, size), np.float32)
    for i in range(len(rows)):
        rows[i, i : i + WINDOW] = window
    return rows
