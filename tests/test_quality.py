"""Figures of images against independent libraries, closed forms and written-out loops."""

import numpy as np
import pytest
from scipy import linalg

from vae_jax.evaluate import quality

RNG = np.random.default_rng(0)


def test_frechet_is_scipys_and_zero_for_equal_sets():
    a, b = RNG.normal(size=(200, 4)) @ RNG.normal(size=(4, 4)), 1 + RNG.normal(size=(300, 4))
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    want = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b - 2 * linalg.sqrtm(cov_a @ cov_b).real)
    assert quality.frechet(a, b) == pytest.approx(want, rel=1e-8)
    assert quality.frechet(a, a) == pytest.approx(0, abs=1e-8)
    assert quality.frechet(a, a + [3, 0, 0, 0]) == pytest.approx(9)
    flat = a * [1, 1, 0, 0]  # features that never move
    assert quality.frechet(flat, 2 * flat) == pytest.approx(np.trace(np.cov(flat.T)) + (flat.mean(0) ** 2).sum())


def test_kernel_distance_is_the_double_loop_and_unbiased():
    a, b = RNG.normal(size=(6, 3)), RNG.normal(size=(5, 3)) + 1
    k = lambda u, v: (u @ v / 3 + 1) ** 3  # noqa: E731
    pairs = lambda s: np.mean([k(s[i], s[j]) for i in range(len(s)) for j in range(len(s)) if i != j])  # noqa: E731
    want = pairs(a) + pairs(b) - 2 * np.mean([k(u, v) for u in a for v in b])
    assert quality.kernel_distance(a, b) == pytest.approx(want)
    same = [quality.kernel_distance(*RNG.normal(size=(2, 50, 3))) for _ in range(200)]
    assert abs(np.mean(same)) < 4 * np.std(same) / np.sqrt(200)


def test_precision_and_recall_written_out():
    """k = 1 on a line: reaches of 0, 1, 3 are 1, 1, 2; of 0.5, 10, 11 they are 9.5, 1, 1."""
    real, made = np.array([[0.0], [1], [3]]), np.array([[0.5], [10], [11]])
    assert quality.precision_recall(real, made, k=1) == pytest.approx((1 / 3, 1.0))


def test_psnr_and_ssim_are_scikit_images():
    """Values of skimage.metrics (0.26) with data_range=1, gaussian_weights, sigma=1.5 and population covariances."""
    rng = np.random.default_rng(7)
    a = rng.uniform(size=(2, 16, 20, 3))
    b = np.clip(a + rng.normal(size=a.shape) * [[[[0.1]]], [[[0.3]]]], 0, 1)
    np.testing.assert_allclose(quality.psnr(a, b), [20.44612235468824, 12.399949829946666], rtol=1e-6)
    np.testing.assert_allclose(quality.ssim(a, b), [0.942404466713357, 0.7020356410180844], rtol=1e-6)
    np.testing.assert_allclose(quality.ssim(a, a), 1)


def test_sharpness_falls_as_an_image_is_blurred():
    x = np.zeros((1, 5, 5, 1))
    x[0, 2, 2, 0] = 1  # its Laplacian: −4 there and 1 at four neighbours, mean 0
    assert quality.sharpness(x) == pytest.approx((16 + 4) / 25)
    assert quality.sharpness(np.ones((2, 5, 5, 3))) == 0
