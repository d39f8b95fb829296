"""Categorical codes and their relaxation against enumeration, chi-square and quadrature."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from vae_jax import config, models
from vae_jax import distributions as de
from vae_jax.config import UserError
from vae_jax.distributions.categorical import Categorical, RelaxedCategorical

LOGITS = jnp.array([[[0.3, -1.0, 0.9], [2.0, 0.0, -0.5]]])  # one example, N = 2, C = 3
KEYS = jax.random.split(jax.random.key(0), (40_000, 1))


def mean_and_error(value_K):
    value = np.asarray(value_K, np.float64)
    return value.mean(0), value.std(0, ddof=1) / np.sqrt(len(value))


def test_probabilities_sum_to_one_and_the_kl_is_the_sum():
    q = Categorical(LOGITS)
    p = Categorical(jnp.array([[0.1, 0.5, -0.2], [0.0, 1.0, 0.4]]))
    z = q.enumerate()[:, None]
    assert z.shape == (9, 1, 6)
    log_q = np.asarray(q.log_prob(z), np.float64)
    assert np.exp(log_q).sum() == pytest.approx(1, abs=1e-6)
    want = (np.exp(log_q) * (log_q - np.asarray(p.log_prob(z)))).sum(0)
    np.testing.assert_allclose(de.kl(q, p), want, rtol=1e-5)
    np.testing.assert_allclose(q.mu, (np.exp(log_q)[..., None] * z).sum(0), rtol=1e-5)


@pytest.mark.parametrize("temperature", [None, 0.5])
def test_draws_are_one_hot_and_have_their_probabilities(temperature):
    q = Categorical(LOGITS, temperature)
    z, log_q = jax.jit(q.sample_and_log_prob)(KEYS)
    assert set(np.unique(z)) == {0.0, 1.0}
    np.testing.assert_allclose(log_q, q.log_prob(z), rtol=1e-6)
    index = np.asarray(q.indices(z))[:, 0]
    seen = np.bincount(index @ [3, 1], minlength=9)
    expected = np.exp(np.asarray(q.log_prob(q.enumerate()[:, None]), np.float64))[:, 0]
    assert stats.chisquare(seen, expected / expected.sum() * len(z)).pvalue > 1e-3


def gradients(temperature, function):
    """Gradients of E function(z) with respect to the logits of one variable, one for each draw."""

    def one(key):
        def value(logits):
            return function(Categorical(logits, temperature).sample(key[None])[0])

        return jax.grad(value)(LOGITS[:, :1])

    return jax.jit(jax.vmap(one))(KEYS[:, 0])


def exact_gradient(function):
    def value(logits):
        q = Categorical(logits)
        z = q.enumerate()
        return jnp.sum(jnp.exp(q.log_prob(z[:, None])[:, 0]) * jax.vmap(function)(z))

    return jax.grad(value)(LOGITS[:, :1])


WEIGHT = jnp.array([1.0, -2.0, 0.5])
MATRIX = jnp.array([[1.0, 3.0, -1.0], [0.0, -2.0, 0.5], [2.0, 1.0, 0.3]])


def linear(z):
    return z @ WEIGHT


def quadratic(z):
    return z @ MATRIX @ z


def test_straight_through_is_exact_for_linear_functions_only():
    """Of zᵀAz its mean is Σ_k π_k (A + Aᵀ)_k J, and the true gradient Σ_k A_kk J_k."""
    mean, error = mean_and_error(gradients(None, linear))
    np.testing.assert_allclose(mean, exact_gradient(linear), atol=1e-6)
    mean, error = mean_and_error(gradients(None, quadratic))
    pi = jax.nn.softmax(LOGITS[0, 0])
    jacobian = jnp.diag(pi) - jnp.outer(pi, pi)
    want = pi @ (MATRIX + MATRIX.T) @ jacobian
    assert (np.abs(mean[0, 0] - want) < 4 * error[0, 0] + 1e-6).all()
    bias = np.abs(want - exact_gradient(quadratic)[0, 0])
    assert bias.max() > 0.1


def test_the_bias_of_gumbel_softmax_falls_and_its_variance_rises_as_it_cools():
    exact = np.asarray(exact_gradient(linear))
    biases = []
    errors = []
    for temperature in (5.0, 1.0, 0.1):
        mean, error = mean_and_error(gradients(temperature, linear))
        biases.append(np.abs(mean - exact).max())
        errors.append(error.max())
    assert biases[0] > 20 * errors[0], "a warm draw is biased even for a linear function"
    assert biases[0] > biases[1] > biases[2]
    assert biases[2] < 5 * errors[2]
    assert errors[0] < errors[1] < errors[2]


@pytest.mark.parametrize("temperature", [0.7, 1.5])
def test_the_relaxed_density_integrates_to_one(temperature):
    """Over the triangle of C = 3, with nodes that are denser at its sides."""
    q = RelaxedCategorical(LOGITS[0, :1], temperature)
    node, weight = np.polynomial.legendre.leggauss(300)
    share = (node + 1) / 2
    t = share**2 * (3 - 2 * share)  # denser at both ends, and 1 − t is t turned round
    slope = 6 * share * (1 - share) * weight / 2
    first, rest = np.meshgrid(t, t, indexing="ij")
    left = t[::-1, None]
    z = np.stack([first, left * rest, left * t[::-1]], -1)
    density = np.exp(np.asarray(q.log_prob(jnp.asarray(z, jnp.float32)), np.float64))
    total = (density * left * slope[:, None] * slope).sum()
    assert total == pytest.approx(1, abs=5e-3)


def test_the_relaxed_draw_has_its_density():
    """C = 2: z is the sigmoid of (a logistic + logit difference) / λ, so F is known."""
    logits = jnp.array([[[0.8, 0.0]]])
    z, log_q = jax.jit(RelaxedCategorical(logits, 0.6).sample_and_log_prob)(KEYS[:5000])
    assert np.isfinite(log_q).all() and (np.asarray(z) > 0).all()
    first = np.clip(np.asarray(z, np.float64)[:, 0, 0], 1e-12, 1 - 1e-7)

    def cdf(x):
        return stats.logistic.cdf(0.6 * np.log(x / (1 - x)) - 0.8)

    assert stats.kstest(first, cdf).pvalue > 1e-3
    grad = jax.grad(lambda l: RelaxedCategorical(l, 0.6).sample(KEYS[:50]).sum(-1).mean())
    assert np.isfinite(grad(LOGITS)).all()


def coded(posterior="categorical", prior="categorical", **options):
    c = config.default()
    c.latent = 6
    c.posterior = config.call("posterior", posterior, codes=3, **options)
    c.prior = config.call("prior", prior, codes=3)
    return c


def built(c):
    return models.build(c, shape=(4, 4, 1), levels=17, classes=0, binary=False)


@pytest.mark.parametrize("name", ["categorical", "concrete"])
def test_a_model_of_codes_has_a_bound_and_finite_gradients(name):
    m = built(coded(name, name))
    params = jax.jit(m.init)(jax.random.key(0))
    x = jax.random.uniform(jax.random.key(1), (5, 4, 4, 1))
    keys = jax.random.split(jax.random.key(2), (3, 5))
    d = jax.jit(m.draw)(params, x, keys)
    assert d.z.shape == (3, 5, 6) and d.log_w.shape == (3, 5)
    if name == "categorical":
        np.testing.assert_array_equal(d.kl[0], d.kl[1])
    grads = jax.jit(jax.grad(lambda p: -m.draw(p, x, keys).log_w.mean()))(params)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    assert np.abs(grads["posterior"]["logits"]["kernel"]).max() > 0
    assert m.sample(params, keys[0]).shape == (5, 6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prior": "concrete"}, r"prior.name=concrete: lives on simplex\(3\)"),
        ({"gradient": "exact"}, "posterior.gradient=exact: want gumbel or straight_through"),
        ({"temperature": 0.0}, "posterior.temperature=0.0: want a number > 0"),
    ],
)
def test_what_does_not_fit_is_one_line(change, message):
    with pytest.raises(UserError, match=message):
        built(coded(**change)).init(jax.random.key(0))


def test_latent_is_a_multiple_of_the_codes():
    c = coded()
    c.latent = 7
    with pytest.raises(UserError, match="latent=7: want a multiple of codes=3, such as 6"):
        built(c).init(jax.random.key(0))
