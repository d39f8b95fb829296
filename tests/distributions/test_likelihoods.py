"""Likelihoods: they sum or integrate to 1, agree with scipy, and stay finite at the extremes."""

import itertools
import math

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as npd
import pytest
from scipy import integrate, special, stats

from tests.distributions.images import (
    BINARY,
    LEVELS,
    UNIT,
    all_images,
    make,
    random_out,
)
from vae_jax import distributions as de
from vae_jax.config import UserError


def test_the_table_says_what_each_is():
    assert set(de.LIKELIHOODS) == {*BINARY, *LEVELS, *UNIT}
    for name, constructor in de.LIKELIHOODS.items():
        likelihood = constructor(levels=17)
        assert likelihood.name == name
        kind = "binary" if name in BINARY else "levels" if name in LEVELS else "unit"
        assert likelihood.data == kind and likelihood.discrete == (kind != "unit")
    outputs = {
        name: (make(name, 17).outputs(1), make(name, 17).outputs(3)) for name in de.LIKELIHOODS
    }
    assert outputs == {
        "bernoulli": (1, 3),
        "continuous_bernoulli": (1, 3),
        "gaussian": (1, 3),
        "gaussian_learned": (2, 6),
        "gaussian_optimal": (1, 3),
        "discretized_logistic": (2, 6),
        "discretized_mix_logistic": (30, 100),
        "categorical": (17, 51),
    }
    assert make("gaussian_learned", per="image").outputs(3) == 4


# Probabilities sum to 1


@pytest.mark.parametrize("scale", [1.0, 5.0, 200.0])
@pytest.mark.parametrize(
    "name, levels", [("bernoulli", 2), *itertools.product(LEVELS, (2, 17, 256))]
)
def test_probabilities_of_all_levels_sum_to_one(name, levels, scale):
    likelihood = make(name, levels)
    log_p = likelihood.log_prob(random_out(likelihood, 50, 1, scale), all_images(levels, 1))
    assert log_p.shape == (levels, 50)
    np.testing.assert_allclose(
        special.logsumexp(np.float64(log_p), 0), 0, atol=2e-5 * max(scale, 1)
    )


@pytest.mark.parametrize("name", LEVELS)
def test_probabilities_of_all_colours_sum_to_one(name):
    likelihood = make(name, 4)
    log_p = likelihood.log_prob(random_out(likelihood, 20, 3, 3.0), all_images(4, 3))
    np.testing.assert_allclose(special.logsumexp(np.float64(log_p), 0), 0, atol=1e-5)


@pytest.mark.parametrize(
    "mu, log_scale", list(itertools.product((-200.0, -1.0, 0.1, 1.0, 200.0), (-30, -12, 0, 12)))
)
def test_logistic_bins_sum_to_one_however_narrow(mu, log_scale):
    log_p = de.log_discretized_logistic(np.arange(256.0, dtype=np.float32), mu, log_scale, 256)
    assert np.isfinite(log_p).all()
    np.testing.assert_allclose(special.logsumexp(np.float64(log_p)), 0, atol=1e-4)


@pytest.mark.parametrize(
    ("extreme", "red_green"), [(False, (37, 201)), (True, (0, 255)), (True, (255, 0))]
)
def test_blue_given_red_and_green_sums_to_one_over_256_levels(extreme, red_green):
    """Summed over blue, the colour mixture is the two-channel one of the same parameters."""
    m = 4
    three, two = (make("discretized_mix_logistic", 256, components=m) for _ in range(2))
    out = random_out(three, 40, 3, 2.0)
    if extreme:  # means far off, scales at both bounds and at e^-12 before them, γ at ±1
        out = np.random.default_rng(0).choice(
            np.float32([-200, -30, -12, -1, 0.5, 12, 200]), out.shape
        )
    logits, mu, log_scale, gamma = np.split(out, [m, 4 * m, 7 * m], axis=-1)
    out2 = np.concatenate([logits, mu[..., : 2 * m], log_scale[..., : 2 * m], gamma[..., :m]], -1)
    x = np.zeros((256, 1, 1, 1, 3), np.float32)
    x[..., :2], x[..., 2] = np.float32(red_green) / 255, np.arange(256).reshape(-1, 1, 1, 1) / 255
    log_p = special.logsumexp(np.float64(three.log_prob(out, x)), 0)
    np.testing.assert_allclose(log_p, two.log_prob(out2, x[0, ..., :2]), rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_the_uniform_model_has_log2_levels_bits_per_dim(levels):
    likelihood = make("categorical", levels)
    x = np.random.default_rng(0).integers(0, levels, (3, 5, 4, 3)).astype(np.float32) / (levels - 1)
    nats = -likelihood.log_prob(jnp.zeros((3, 5, 4, 3 * levels)), x)
    np.testing.assert_allclose(de.bits_per_dim(nats, (5, 4, 3)), math.log2(levels), rtol=1e-6)


# Densities integrate to 1


@pytest.mark.parametrize("logit", [-200.0, -3.0, -0.51, -0.49, -1e-3, 0.0, 1e-4, 0.3, 20.0, 200.0])
def test_continuous_bernoulli_integrates_to_one(logit):
    likelihood, out = make("continuous_bernoulli"), jnp.full((1, 1, 1), logit)

    def p(x):
        return np.exp(np.float64(likelihood.log_prob(out, np.float32(x).reshape(-1, 1, 1, 1))))

    np.testing.assert_allclose(integrate.fixed_quad(p, 0, 1, n=200)[0], 1, rtol=2e-5)
    mean = integrate.fixed_quad(lambda x: x * p(x), 0, 1, n=200)[0]
    np.testing.assert_allclose(likelihood.mean(out)[0, 0, 0], mean, rtol=5e-5)


@pytest.mark.parametrize("name", ["gaussian", "gaussian_learned"])
def test_gaussians_integrate_to_one(name):
    likelihood = make(name)
    out = random_out(likelihood, 1, 1)[0]

    def p(x):
        return np.exp(np.float64(likelihood.log_prob(out, np.float32(x).reshape(-1, 1, 1, 1))))

    np.testing.assert_allclose(integrate.fixed_quad(p, -20, 20, n=3000)[0], 1, rtol=1e-4)


# Against independent libraries and written-out values


def test_bernoulli_is_exact_at_any_logit():
    likelihood = make("bernoulli")
    logits = np.array([-200, -88, -1, 0, 1, 88, 200], np.float32).reshape(-1, 1, 1, 1)
    for x in (0.0, 1.0):
        got = likelihood.log_prob(logits, np.full((1, 1, 1), x))
        want = special.log_expit(np.float64(logits) * (2 * x - 1))[:, 0, 0, 0]
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-7)
        numpyro = npd.Bernoulli(logits=logits[2:5]).log_prob(x)[:, 0, 0, 0]
        np.testing.assert_allclose(got[2:5], numpyro, rtol=1e-6)


@pytest.mark.parametrize("logit", [-200.0, -30.0, -0.51, -0.49, -1e-3, 1e-3, 0.6, 5.0, 200.0])
def test_continuous_bernoulli_is_the_truncated_exponential(logit):
    x = np.linspace(0, 1, 33, dtype=np.float32)
    got = make("continuous_bernoulli").log_prob(jnp.full((1, 1, 1), logit), x.reshape(-1, 1, 1, 1))
    y = np.float64(x if logit < 0 else 1 - x)  # scipy's falls from 0 on
    want = stats.truncexpon(abs(logit), scale=1 / abs(logit)).logpdf(y)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("c", [1, 3])
def test_gaussians_are_scipys(c):
    rng = np.random.default_rng(0)
    x, mu, lv = (rng.standard_normal((4, 3, 2, c)).astype(np.float32) for _ in range(3))

    def scipys(logvar):
        return stats.norm(np.float64(mu), np.exp(np.float64(logvar) / 2)).logpdf(x).sum((1, 2, 3))

    np.testing.assert_allclose(
        make("gaussian", logvar=-3.0).log_prob(mu, x), scipys(-3.0), rtol=1e-5
    )
    per_pixel = make("gaussian_learned").log_prob(np.concatenate([mu, lv], -1), x)
    np.testing.assert_allclose(per_pixel, scipys(lv), rtol=1e-5)
    per_image = make("gaussian_learned", per="image").log_prob(
        np.concatenate([mu, lv[..., :1]], -1), x
    )
    mean = lv[..., :1].mean((1, 2), keepdims=True)
    np.testing.assert_allclose(per_image, scipys(mean), rtol=1e-5)


def test_optimal_variance_is_the_best_of_the_fixed_ones_for_each_image():
    rng = np.random.default_rng(0)
    mu = rng.uniform(size=(3, 8, 8, 1)).astype(np.float32)
    x = mu + np.float32([0.05, 0.2, 1.0]).reshape(3, 1, 1, 1) * rng.standard_normal(mu.shape)
    got = make("gaussian_optimal").log_prob(mu, np.float32(x))
    mse = ((x - mu) ** 2).mean((1, 2, 3))
    np.testing.assert_allclose(got, -32 * (np.log(2 * np.pi * mse) + 1), rtol=1e-3)
    fixed = [make("gaussian", logvar=float(v)).log_prob(mu, np.float32(x)) for v in np.log(mse)]
    np.testing.assert_allclose(got, np.diag(np.stack(fixed)), rtol=1e-4)
    assert (got >= np.max(fixed, 0) - 0.02).all()


def logistic_bin(k, mu, s, levels):
    """log P(k) from scipy's logistic, each tail from its own side; float64."""
    k, mu, s = np.broadcast_arrays(*(np.float64(v) for v in (k, mu, s)))
    a = np.where(k == levels - 1, np.inf, ((2 * k + 2 - levels) / (levels - 1) - mu) / s)
    b = np.where(k == 0, -np.inf, ((2 * k - levels) / (levels - 1) - mu) / s)
    flip = a + b > 0
    a, b = np.where(flip, -b, a), np.where(flip, -a, b)
    return np.log(stats.logistic.cdf(a) - stats.logistic.cdf(b))


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_discretized_logistic_is_scipys(levels):
    k, mu, log_scale = np.meshgrid(
        np.arange(levels), [-3.0, -1.0, 0.2, 1.0], [-4.0, -1.0, 3.0], indexing="ij"
    )
    got = de.log_discretized_logistic(*(np.float32(v) for v in (k, mu, log_scale)), levels)
    np.testing.assert_allclose(
        got, logistic_bin(k, mu, np.exp(log_scale), levels), rtol=2e-5, atol=2e-5
    )
    likelihood = make("discretized_logistic", levels)
    out = np.stack([mu, log_scale], -1).reshape(-1, 1, 1, 2).astype(np.float32)
    image = np.float32(k.reshape(-1, 1, 1, 1) / (levels - 1))
    np.testing.assert_allclose(
        likelihood.log_prob(out, image), got.reshape(-1), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("c", [1, 3])
def test_mixture_of_logistics_written_out(c):
    """Loops over pixels, components and channels in float64, as PixelCNN++ defines it."""
    levels, m = 17, 3
    likelihood = make("discretized_mix_logistic", levels, components=m)
    out = (
        np.random.default_rng(0)
        .standard_normal((2, 2, 1, likelihood.outputs(c)))
        .astype(np.float32)
    )
    k = np.random.default_rng(1).integers(0, levels, (2, 2, 1, c))
    want = np.zeros(2)
    for b, h in np.ndindex(2, 2):
        rows = np.float64(out[b, h, 0]).reshape(-1, m)
        logits, mu, log_scale, gamma = np.split(rows, [1, 1 + c, 1 + 2 * c])
        v = 2 * k[b, h, 0] / (levels - 1) - 1
        terms = []
        for i in range(m):
            g = np.tanh(gamma[:, i])
            means = [mu[0, i]]
            if c == 3:
                means += [mu[1, i] + g[0] * v[0], mu[2, i] + g[1] * v[0] + g[2] * v[1]]
            parts = [
                logistic_bin(k[b, h, 0, j], means[j], np.exp(log_scale[j, i]), levels)
                for j in range(c)
            ]
            terms.append(special.log_softmax(logits[0])[i] + sum(parts))
        want[b] += special.logsumexp(terms)
    np.testing.assert_allclose(
        likelihood.log_prob(out, np.float32(k / (levels - 1))), want, rtol=1e-5
    )


def test_categorical_is_numpyros():
    likelihood = make("categorical", 17)
    rng = np.random.default_rng(0)
    out = (50 * rng.standard_normal((4, 3, 2, 51))).astype(np.float32)
    k = rng.integers(0, 17, (4, 3, 2, 3))
    want = npd.Categorical(logits=out.reshape(4, 3, 2, 3, 17)).log_prob(k).sum((1, 2, 3))
    np.testing.assert_allclose(likelihood.log_prob(out, np.float32(k / 16)), want, rtol=1e-5)


# Which data


@pytest.mark.parametrize(
    "name, levels, data, binarized, guilty",
    [
        ("bernoulli", 2, 256, False, "binarize"),
        ("bernoulli", 2, 17, False, "17 levels"),
        ("continuous_bernoulli", 2, 256, True, "want bernoulli"),
        ("gaussian", 2, 2, False, "want bernoulli"),
        ("discretized_logistic", 256, 17, False, "levels=17"),
        ("discretized_mix_logistic", 256, 256, True, "levels=2"),
        ("categorical", 17, 256, False, "levels=256"),
    ],
)
def test_data_of_another_kind_is_refused_in_one_line(name, levels, data, binarized, guilty):
    with pytest.raises(UserError, match=guilty) as error:
        de.check(make(name, levels), levels_of_data=data, binarized=binarized)
    assert str(error.value).startswith(f"likelihood.name={name}: ") and "\n" not in str(error.value)


def test_data_of_the_right_kind_is_taken():
    for name in BINARY:
        de.check(make(name, 2), levels_of_data=256, binarized=True)
        de.check(make(name, 2), levels_of_data=2, binarized=False)
    for name in LEVELS:
        de.check(make(name, 17), levels_of_data=17, binarized=False)
        de.check(make(name, 2), levels_of_data=256, binarized=True)
    for name in UNIT:
        de.check(make(name), levels_of_data=256, binarized=False)


@pytest.mark.parametrize(
    "name, kwargs, message",
    [
        ("gaussian_learned", {"per": "row"}, "likelihood.per=row: want pixel or image"),
        ("categorical", {"levels": 1}, "likelihood.levels=1: want a whole number >= 2"),
        (
            "discretized_logistic",
            {"levels": 2.5},
            "likelihood.levels=2.5: want a whole number >= 2",
        ),
        (
            "discretized_mix_logistic",
            {"components": 0},
            "likelihood.components=0: want a whole number >= 1",
        ),
    ],
)
def test_parameters_that_make_no_likelihood_are_refused(name, kwargs, message):
    with pytest.raises(UserError) as error:
        make(name, **kwargs)
    assert str(error.value) == message
