"""Likelihoods: they sum or integrate to 1, agree with scipy, and stay finite at the extremes."""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as npd
import pytest
from jax.test_util import check_grads
from scipy import integrate, special, stats

from vae_jax import distributions as de
from vae_jax.config import UserError
from vae_jax.train import flops as count

KEY = jax.random.key(0)
BINARY = ("bernoulli",)
LEVELS = ("discretized_logistic", "discretized_mix_logistic", "categorical")
UNIT = ("continuous_bernoulli", "gaussian", "gaussian_learned", "gaussian_optimal")


def make(name, levels=256, **kwargs):
    """One program for each function and shape: op by op, compiling would take ten times as long as all else."""
    likelihood = de.LIKELIHOODS[name](levels=levels, **kwargs)
    functions = {part: jax.jit(getattr(likelihood, part)) for part in ("log_prob", "mean", "sample")}
    return dataclasses.replace(likelihood, **functions)


def random_out(likelihood, n, c, scale=1.0, seed=0):
    """Random decoder outputs out_nx1x1xO."""
    rng = np.random.default_rng(seed)
    return (scale * rng.standard_normal((n, 1, 1, likelihood.outputs(c)))).astype(np.float32)


def all_images(levels, c):
    """Every image of one pixel: x_(levels^c)x1x1x1xc, with the batch axis after the first."""
    x = list(itertools.product(range(levels), repeat=c))
    return np.array(x, np.float32).reshape(-1, 1, 1, 1, c) / (levels - 1)


def test_the_table_says_what_each_is():
    assert set(de.LIKELIHOODS) == {*BINARY, *LEVELS, *UNIT}
    for name, constructor in de.LIKELIHOODS.items():
        likelihood = constructor(levels=17)
        assert likelihood.name == name
        kind = "binary" if name in BINARY else "levels" if name in LEVELS else "unit"
        assert likelihood.data == kind and likelihood.discrete == (kind != "unit")
    outputs = {name: (make(name, 17).outputs(1), make(name, 17).outputs(3)) for name in de.LIKELIHOODS}
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
@pytest.mark.parametrize("name, levels", [("bernoulli", 2), *itertools.product(LEVELS, (2, 17, 256))])
def test_probabilities_of_all_levels_sum_to_one(name, levels, scale):
    likelihood = make(name, levels)
    log_p = likelihood.log_prob(random_out(likelihood, 50, 1, scale), all_images(levels, 1))
    assert log_p.shape == (levels, 50)
    np.testing.assert_allclose(special.logsumexp(np.float64(log_p), 0), 0, atol=2e-5 * max(scale, 1))


@pytest.mark.parametrize("name", LEVELS)
def test_probabilities_of_all_colours_sum_to_one(name):
    likelihood = make(name, 4)
    log_p = likelihood.log_prob(random_out(likelihood, 20, 3, 3.0), all_images(4, 3))
    np.testing.assert_allclose(special.logsumexp(np.float64(log_p), 0), 0, atol=1e-5)


@pytest.mark.parametrize("mu, log_scale", list(itertools.product((-200.0, -1.0, 0.1, 1.0, 200.0), (-30, -12, 0, 12))))
def test_logistic_bins_sum_to_one_however_narrow(mu, log_scale):
    log_p = de.log_discretized_logistic(np.arange(256.0, dtype=np.float32), mu, log_scale, 256)
    assert np.isfinite(log_p).all()
    np.testing.assert_allclose(special.logsumexp(np.float64(log_p)), 0, atol=1e-4)


@pytest.mark.parametrize(("extreme", "red_green"), [(False, (37, 201)), (True, (0, 255)), (True, (255, 0))])
def test_blue_given_red_and_green_sums_to_one_over_256_levels(extreme, red_green):
    """Summed over blue, the colour mixture is the two-channel one of the same parameters."""
    m = 4
    three, two = (make("discretized_mix_logistic", 256, components=m) for _ in range(2))
    out = random_out(three, 40, 3, 2.0)
    if extreme:  # means far off, scales at both bounds and at e^-12 before them, γ at ±1
        out = np.random.default_rng(0).choice(np.float32([-200, -30, -12, -1, 0.5, 12, 200]), out.shape)
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

    np.testing.assert_allclose(make("gaussian", logvar=-3.0).log_prob(mu, x), scipys(-3.0), rtol=1e-5)
    per_pixel = make("gaussian_learned").log_prob(np.concatenate([mu, lv], -1), x)
    np.testing.assert_allclose(per_pixel, scipys(lv), rtol=1e-5)
    per_image = make("gaussian_learned", per="image").log_prob(np.concatenate([mu, lv[..., :1]], -1), x)
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
    k, mu, log_scale = np.meshgrid(np.arange(levels), [-3.0, -1.0, 0.2, 1.0], [-4.0, -1.0, 3.0], indexing="ij")
    got = de.log_discretized_logistic(*(np.float32(v) for v in (k, mu, log_scale)), levels)
    np.testing.assert_allclose(got, logistic_bin(k, mu, np.exp(log_scale), levels), rtol=2e-5, atol=2e-5)
    likelihood = make("discretized_logistic", levels)
    out = np.stack([mu, log_scale], -1).reshape(-1, 1, 1, 2).astype(np.float32)
    image = np.float32(k.reshape(-1, 1, 1, 1) / (levels - 1))
    np.testing.assert_allclose(likelihood.log_prob(out, image), got.reshape(-1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("c", [1, 3])
def test_mixture_of_logistics_written_out(c):
    """Loops over pixels, components and channels in float64, as PixelCNN++ defines it."""
    levels, m = 17, 3
    likelihood = make("discretized_mix_logistic", levels, components=m)
    out = np.random.default_rng(0).standard_normal((2, 2, 1, likelihood.outputs(c))).astype(np.float32)
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
            parts = [logistic_bin(k[b, h, 0, j], means[j], np.exp(log_scale[j, i]), levels) for j in range(c)]
            terms.append(special.log_softmax(logits[0])[i] + sum(parts))
        want[b] += special.logsumexp(terms)
    np.testing.assert_allclose(likelihood.log_prob(out, np.float32(k / (levels - 1))), want, rtol=1e-5)


def test_categorical_is_numpyros():
    likelihood = make("categorical", 17)
    rng = np.random.default_rng(0)
    out = (50 * rng.standard_normal((4, 3, 2, 51))).astype(np.float32)
    k = rng.integers(0, 17, (4, 3, 2, 3))
    want = npd.Categorical(logits=out.reshape(4, 3, 2, 3, 17)).log_prob(k).sum((1, 2, 3))
    np.testing.assert_allclose(likelihood.log_prob(out, np.float32(k / 16)), want, rtol=1e-5)


# Numbers: types, extremes, gradients


@pytest.mark.parametrize("name", de.LIKELIHOODS)
def test_bfloat16_outputs_are_summed_in_float32(name):
    likelihood = make(name, 2 if name in BINARY else 256)
    rng = np.random.default_rng(0)
    out = jnp.asarray(rng.standard_normal((2, 16, 16, likelihood.outputs(3))), jnp.bfloat16)
    x = jnp.asarray(rng.integers(0, 2, (2, 16, 16, 3)), jnp.bfloat16)
    got = likelihood.log_prob(out, x)
    assert got.dtype == likelihood.mean(out).dtype == jnp.float32
    np.testing.assert_array_equal(got, likelihood.log_prob(out.astype(jnp.float32), np.float32(x)))


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_levels_come_back_from_float32_and_bfloat16_images(levels):
    k = np.arange(levels)
    out = jnp.asarray(np.eye(levels, dtype=np.float32) * 100).reshape(levels, 1, 1, levels)
    likelihood = make("categorical", levels)
    for dtype in (jnp.float32, jnp.bfloat16):
        x = jnp.asarray(k / (levels - 1), dtype).reshape(-1, 1, 1, 1)
        np.testing.assert_allclose(likelihood.log_prob(out, x), 0, atol=1e-6)


@pytest.mark.parametrize(("name", "c"), [*((name, 1) for name in de.LIKELIHOODS), ("discretized_mix_logistic", 3)])
def test_values_and_gradients_are_finite_at_extremes(name, c):
    """Of colour, at each corner and in the middle of the scale: there the channels' coefficients are extreme too."""
    likelihood = make(name, 2 if name in BINARY else 256)
    extremes = np.array([-200.0, -30.0, -12.0, 0.0, 0.5, 30.0, 200.0], np.float32)
    n = likelihood.outputs(c)
    rng = np.random.default_rng(0)
    out = np.concatenate([np.tile(extremes[:, None], (1, n)), rng.choice(extremes, (200, n))])
    out = out.reshape(-1, 1, 1, n)
    f = jax.jit(jax.value_and_grad(lambda out, x: likelihood.log_prob(out, x).sum()))
    for x in itertools.product((0.0, 1.0) if name in BINARY else (0.0, 1.0, 128 / 255), repeat=c):
        value, gradient = f(out, np.float32(x).reshape(1, 1, 1, c))
        assert np.isfinite(value) and np.isfinite(gradient).all()
    assert (likelihood.mean(out) >= 0).all() or name in UNIT
    assert np.isfinite(likelihood.mean(out)).all() and np.isfinite(likelihood.sample(KEY, out)).all()


@pytest.mark.parametrize("log_scale", [-30.0, -12.0, 12.0])
def test_logistic_gradients_are_finite_at_both_ends_and_any_scale(log_scale):
    gradient = jax.vmap(jax.grad(de.log_discretized_logistic, argnums=(1, 2)), (0, 0, None, None))
    k = np.repeat(np.float32([0, 1, 128, 254, 255]), 5)
    mu = np.tile(np.float32([-200, -1, 0.3, 1, 200]), 5)
    assert all(np.isfinite(g).all() for g in gradient(k, mu, log_scale, 256))


@pytest.mark.parametrize("name", de.LIKELIHOODS)
def test_gradients_are_those_of_finite_differences_in_float64(name):
    with jax.enable_x64(True):
        likelihood = make(name, 2 if name in BINARY else 17)
        out = np.random.default_rng(0).standard_normal((4, 1, 1, likelihood.outputs(3)))
        out[0] *= 0.1  # the continuous Bernoulli's series
        out[1] *= 8  # the smooth bounds
        x = np.array([0, 1, 0.5, 1] if name not in BINARY else [0, 1, 0, 1]).reshape(4, 1, 1, 1)
        x = np.tile(x, 3)
        f = jax.jit(lambda out: likelihood.log_prob(out, x))
        assert f(out).dtype == jnp.float64
        check_grads(f, (out,), order=1, modes=["rev"], atol=1e-5, rtol=1e-5, eps=1e-6)


@pytest.mark.parametrize("name", de.LIKELIHOODS)
def test_a_sample_axis_in_front_broadcasts(name):
    likelihood = make(name, 2 if name in BINARY else 17)
    out = np.random.default_rng(0).standard_normal((5, 2, 3, 2, likelihood.outputs(3)))
    out = out.astype(np.float32)
    x = np.random.default_rng(1).integers(0, 2, (2, 3, 2, 3)).astype(np.float32)
    want = jnp.stack([likelihood.log_prob(o, x) for o in out])
    assert want.shape == (5, 2)
    np.testing.assert_allclose(likelihood.log_prob(out, x), want, rtol=1e-5)
    np.testing.assert_allclose(jax.vmap(likelihood.log_prob, (0, None))(out, x), want, rtol=1e-5)


def test_the_mixture_has_no_array_larger_than_components_by_pixels_by_three_but_what_it_is_given():
    m, pixels = 10, 6 * 8 * 8
    likelihood = make("discretized_mix_logistic", 256, components=m)
    out, x = jnp.zeros((6, 8, 8, 10 * m)), jnp.zeros((6, 8, 8, 3))
    todo, sizes = [jax.make_jaxpr(likelihood.log_prob)(out, x).jaxpr], []
    while todo:
        for equation in todo.pop().eqns:
            sizes += [v.aval.size for v in equation.outvars]
            todo += count.inner(equation)
    laid_out = [s for s in sizes if s == out.size]
    assert len(sizes) > 50 and max(s for s in sizes if s != out.size) <= 3 * m * pixels
    assert 1 <= len(laid_out) <= 5  # the product with the identity and its transpose; the other platforms' way


# Samples and means


CASES = [("bernoulli", 2, 1), ("categorical", 5, 1), ("discretized_logistic", 7, 1)]
CASES += [("discretized_mix_logistic", 7, 1), ("discretized_mix_logistic", 3, 3)]


@pytest.mark.parametrize("name, levels, c", CASES)
def test_samples_of_discrete_likelihoods_have_their_probabilities(name, levels, c):
    n = 20_000
    likelihood = make(name, levels)
    out = random_out(likelihood, 1, c, seed=3)
    x = likelihood.sample(KEY, jnp.broadcast_to(out, (n, *out.shape[1:])))
    assert x.shape == (n, 1, 1, c)
    k = np.rint(np.asarray(x).reshape(n, c) * (levels - 1)).astype(int)
    counts = np.bincount(k @ levels ** np.arange(c)[::-1], minlength=levels**c)
    p = np.exp(np.float64(likelihood.log_prob(out, all_images(levels, c))[:, 0]))
    often = p * n > 5
    counts = [*counts[often], counts[~often].sum() + 1e-9]
    expected = n * np.array([*p[often], p[~often].sum() + 1e-12])
    assert stats.chisquare(counts, expected * np.sum(counts) / expected.sum()).pvalue > 1e-3
    # The mean: exact for two, before rounding for logistics (half a level), chained over channels.
    exact = p @ all_images(levels, c).reshape(-1, c)
    slack = 1e-5 if name in ("bernoulli", "categorical") else 0.5 / (levels - 1)
    if c == 1:
        np.testing.assert_allclose(likelihood.mean(out)[0, 0, 0], exact, atol=slack)


def test_mean_of_a_colour_mixture_is_that_of_its_samples_inside_the_scale():
    likelihood = make("discretized_mix_logistic", 256, components=3)
    out = random_out(likelihood, 1, 3, 0.2)
    out[..., 12:21] = -4.0  # narrow: nothing beyond the ends
    x = np.float64(likelihood.sample(KEY, jnp.broadcast_to(out, (20_000, 1, 1, 30)))[:, 0, 0])
    error = x.std(0) / np.sqrt(len(x))
    assert (np.abs(x.mean(0) - likelihood.mean(out)[0, 0, 0]) < 4 * error + 1e-4).all()


@pytest.mark.parametrize("logit", [-200.0, -2.0, 0.0, 1e-5, 0.4, 30.0])
def test_samples_of_the_continuous_bernoulli_have_its_distribution(logit):
    likelihood = make("continuous_bernoulli")
    x = np.float64(likelihood.sample(KEY, jnp.full((20_000, 1, 1, 1), logit)).ravel())
    y = x if logit < 0 else 1 - x
    want = stats.truncexpon(abs(logit), scale=1 / abs(logit)) if abs(logit) > 0.1 else stats.uniform
    assert stats.kstest(y, want.cdf).pvalue > 1e-3


@pytest.mark.parametrize("name", ["gaussian", "gaussian_learned"])
def test_samples_of_gaussians_have_their_distribution(name):
    likelihood = make(name)
    out = np.full((20_000, 1, 1, likelihood.outputs(1)), -1.0, np.float32)
    sigma = np.exp((-4.0 if name == "gaussian" else -1.0) / 2)
    x = np.float64(likelihood.sample(KEY, out).ravel())
    assert stats.kstest(x, stats.norm(-1, sigma).cdf).pvalue > 1e-3
    np.testing.assert_array_equal(likelihood.mean(out), out[..., :1])


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
