"""Terms that compare images by features or structure, against written-out forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import convolve2d

from tests.objectives.built import built, images
from tests.objectives.linear import B, batch_keys, jit
from vae_jax.config import UserError
from vae_jax.evaluate import quality
from vae_jax.objectives import OBJECTIVES
from vae_jax.objectives.perceptual import SCALES, multiscale_similarity, num_scales

RNG = np.random.default_rng(0)


def noisy(*shape, noise):
    """Smooth images in [0, 1], and the same with noise."""
    rows = np.linspace(0, 3, shape[1])[None, :, None, None]
    columns = np.linspace(0, 2, shape[2])[None, None, :, None]
    phase = RNG.uniform(0, 6, (shape[0], 1, 1, shape[3]))
    a = 0.5 + 0.4 * np.sin(rows * columns + phase)
    b = np.clip(a + noise * RNG.normal(size=shape), 0, 1)
    return a.astype(np.float32), b.astype(np.float32)


def ms_ssim_by_hand(a, b):
    """Of one channel HxW in float64, by scipy's convolution with the whole window."""
    line = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    window = np.outer(line, line) / np.outer(line, line).sum()

    def mean(v):
        return convolve2d(v, window, mode="valid")

    count = num_scales(*a.shape)
    weights = np.array(SCALES[:count]) / np.sum(SCALES[:count])
    value = 1.0
    for j in range(count):
        mu_a, mu_b = mean(a), mean(b)
        contrast = 2 * (mean(a * b) - mu_a * mu_b) + 0.03**2
        contrast /= mean(a * a) - mu_a**2 + mean(b * b) - mu_b**2 + 0.03**2
        value *= contrast.mean() ** weights[j]
        luminance = (2 * mu_a * mu_b + 0.01**2) / (mu_a**2 + mu_b**2 + 0.01**2)
        height, width = a.shape[0] // 2 * 2, a.shape[1] // 2 * 2
        a, b = (
            v[:height, :width].reshape(height // 2, 2, width // 2, 2).mean((1, 3)) for v in (a, b)
        )
    return value * luminance.mean() ** weights[-1]


@pytest.mark.parametrize(
    ("height", "width", "channels", "scales"), [(28, 28, 1, 2), (45, 50, 3, 3), (13, 20, 1, 1)]
)
def test_ms_ssim_is_the_written_out_one(height, width, channels, scales):
    assert num_scales(height, width) == scales
    for noise in (0.02, 0.2):
        a, b = noisy(2, height, width, channels, noise=noise)
        got = jax.jit(multiscale_similarity)(a, b)
        for n in range(2):
            by_channel = []
            for c in range(channels):
                by_channel.append(ms_ssim_by_hand(*np.float64((a[n, ..., c], b[n, ..., c]))))
            assert got[n] == pytest.approx(np.mean(by_channel), abs=1e-4)


def test_ms_ssim_is_one_for_equal_images_and_its_gradient_is_finite():
    a, b = noisy(3, 28, 28, 1, noise=0.1)
    flat = np.full_like(a, 0.3)
    value_and_gradient = jax.jit(jax.value_and_grad(lambda b, a: multiscale_similarity(a, b).sum()))
    assert multiscale_similarity(a, a) == pytest.approx(np.ones(3), abs=1e-4)
    for pair in ((a, a), (flat, flat), (1 - a, a), (flat, a), (np.zeros_like(a), np.ones_like(a))):
        value, gradient = value_and_gradient(*pair)
        assert np.isfinite(value) and np.isfinite(gradient).all()
    assert (np.asarray(value_and_gradient(b, a)[1]) != 0).any()
    # One scale alone is the mean of the products; scikit-image's, which quality.ssim is.
    small_a, small_b = noisy(2, 16, 16, 1, noise=0.02)
    difference = multiscale_similarity(small_a, small_b) - quality.ssim(small_a, small_b)
    assert np.abs(difference).max() < 0.02
    with pytest.raises(UserError, match="images of 10x30; want at least 11x11"):
        num_scales(10, 30)


def features_of(x):
    """The pixels, and a layer that is not linear in them."""
    return [x, jnp.tanh(x[:, ::2]) * 3.0]


def test_the_distance_is_the_features_and_the_bound_stays_the_elbos():
    model = built("gaussian", "normal")
    batch = images()
    keys = batch_keys(jax.random.key(0))

    @jit
    def run(params):
        numbers = {"features": features_of, "weight": 7.0}
        terms = OBJECTIVES["perceptual"](model, params, batch, keys, **numbers)
        plain = OBJECTIVES["elbo"](model, params, batch, keys)
        z = model.draw(params, batch["image"], keys).z
        return terms, plain, model.likelihood.mean(model.decode(params, z))

    terms, plain, x_hat = run(model.init(jax.random.key(1)))
    assert terms.extra["feature_distance"].shape == (B,)
    want = np.zeros(B)
    for of_x, of_x_hat in zip(features_of(batch["image"]), features_of(x_hat), strict=True):
        want += ((np.asarray(of_x, np.float64) - of_x_hat) ** 2).reshape(B, -1).mean(1)
    np.testing.assert_allclose(terms.extra["feature_distance"], want, rtol=1e-5)
    np.testing.assert_allclose(terms.loss, plain.loss + 7 * want, rtol=1e-5)
    for name in ("elbo", "log_px", "kl"):
        np.testing.assert_allclose(getattr(terms, name), getattr(plain, name), rtol=1e-6)


def test_what_is_missing_is_one_line():
    model = built("gaussian", "normal")
    params = jax.eval_shape(model.init, jax.random.key(0))
    keys = batch_keys(jax.random.key(0))

    def terms(name):
        return jax.eval_shape(lambda p: OBJECTIVES[name](model, p, images(), keys), params)

    with pytest.raises(UserError, match=r"objective\.features=: want the folder of a finished run"):
        terms("perceptual")
    with pytest.raises(UserError, match="images of 4x4; want at least 11x11"):
        terms("ms_ssim")
