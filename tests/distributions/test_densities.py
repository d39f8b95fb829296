"""Gaussians, divergences, mixtures: against scipy, numpyro, quadrature and closed values."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as npd
import pytest
from jax.test_util import check_grads
from scipy import special, stats

from vae_jax import distributions as de

KEY = jax.random.key(0)


def keys(*shape):
    return jax.random.split(KEY, shape)


EXTREMES = np.array([-30.0, -12.0, -1.0, 0.0, 1e-4, 2.0, 30.0])


def random(*shape, seed=0, scale=1.0):
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def tril(*batch, d, seed=0):
    """Random lower-triangular matrices with a positive diagonal."""
    return de.scale_tril(random(*batch, d, seed=seed), random(*batch, d * (d - 1) // 2, seed=seed))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_log_normal_is_scipys(dtype):
    z, mu = (jnp.asarray(random(9, 7, seed=s, scale=3), dtype) for s in (0, 1))
    logvar = jnp.broadcast_to(jnp.asarray(EXTREMES, dtype), (9, 7))
    got = de.log_normal(z, mu, logvar)
    f64 = (np.asarray(v, np.float64) for v in (z, mu, logvar))
    z, mu, logvar = f64
    want = stats.norm(mu, np.exp(logvar / 2)).logpdf(z).sum(-1)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_entropy_is_scipys():
    logvar = np.tile(EXTREMES, (3, 1))
    want = stats.norm(0, np.exp(logvar / 2)).entropy().sum(-1)
    np.testing.assert_allclose(de.entropy_normal(logvar), want, rtol=1e-6)


@pytest.mark.parametrize("logvar", [1e-4, -1e-4, 1e-3, 0.5, -30.0, 30.0])
def test_kl_keeps_its_digits_as_a_dimension_collapses(logvar):
    want = 0.5 * (special.expm1(logvar) - logvar)  # float64
    zero = np.zeros((1, 1), np.float32)
    for got in (
        de.kl_std_normal(zero, zero + logvar),
        de.kl_normal(zero, zero + logvar, zero, zero),
    ):
        np.testing.assert_allclose(got[0], want, rtol=5e-3 if abs(logvar) < 0.1 else 1e-5)


def test_kl_of_bfloat16_parameters_is_computed_in_float32():
    mu, logvar = random(100, 50), random(100, 50, seed=1, scale=0.5)

    def exact(mu, logvar):
        mu, logvar = np.asarray(mu, np.float64), np.asarray(logvar, np.float64)
        return 0.5 * (mu**2 + np.exp(logvar) - 1 - logvar).sum(-1)

    rounded = jnp.asarray(mu, jnp.bfloat16), jnp.asarray(logvar, jnp.bfloat16)
    got = de.kl_std_normal(*rounded)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, exact(*rounded), rtol=1e-6)  # the sum adds no error
    np.testing.assert_allclose(got, exact(mu, logvar), rtol=4e-3)  # the inputs' rounding, 2^-8


def test_kl_is_numpyros():
    q, p = (de.Normal(random(6, 4, seed=s), random(6, 4, seed=s + 1)) for s in (0, 2))

    def numpyro(d):
        return npd.Normal(d.mu, jnp.exp(d.logvar / 2)).to_event(1)

    np.testing.assert_allclose(de.kl(q, p), npd.kl_divergence(numpyro(q), numpyro(p)), rtol=1e-5)
    full = de.FullNormal(random(6, 4), tril(6, d=4))
    want = npd.kl_divergence(
        npd.MultivariateNormal(full.mu, scale_tril=full.scale_tril),
        npd.MultivariateNormal(p.mu, scale_tril=jnp.exp(p.logvar / 2)[..., None] * jnp.eye(4)),
    )
    np.testing.assert_allclose(de.kl(full, p), want, rtol=1e-5)


def test_kl_closed_values():
    one = np.ones((1, 3), np.float32)
    np.testing.assert_allclose(de.kl_std_normal(one, 0 * one), 1.5)
    # N(0, 4) from N(1, 2): ½ (½ + 2 - 1 - log 2) for each dimension
    got = de.kl_normal(0 * one, np.log(4) * one, one, np.log(2) * one)
    np.testing.assert_allclose(got, 1.5 * (1.5 - np.log(2)), rtol=1e-6)
    # correlation r: KL to the standard normal is -½ log(1 - r²), the mutual information
    l_2x2 = jnp.linalg.cholesky(jnp.array([[1.0, 0.8], [0.8, 1.0]]))
    zero = jnp.zeros(2)
    got = de.kl(de.FullNormal(zero, l_2x2), de.Normal(zero, zero))
    np.testing.assert_allclose(got, -0.5 * np.log(1 - 0.64), rtol=1e-5)


PAIRS = {
    "diagonal-diagonal": (
        de.Normal(random(3, 4), random(3, 4, seed=1)),
        de.Normal(random(3, 4, seed=2), random(3, 4, seed=3)),
    ),
    "diagonal-standard": (
        de.Normal(random(3, 4), random(3, 4, seed=1)),
        de.Normal(*np.zeros((2, 4))),
    ),
    "full-diagonal": (
        de.FullNormal(random(3, 4), tril(3, d=4)),
        de.Normal(random(3, 4, seed=2), random(3, 4, seed=3)),
    ),
    "full-standard": (de.FullNormal(random(3, 4), tril(3, d=4)), de.Normal(*np.zeros((2, 4)))),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_analytic_kl_is_the_mean_of_the_log_ratio(pair):
    q, p = PAIRS[pair]
    z, log_q = q.sample_and_log_prob(keys(40_000, len(q.mu)))
    ratio = np.asarray(log_q - p.log_prob(z), np.float64)
    error = ratio.std(0) / np.sqrt(len(ratio))
    assert (np.abs(ratio.mean(0) - de.kl(q, p)) < 4 * error).all()


def test_kl_is_none_where_no_closed_form_is_known():
    normal = de.Normal(random(2, 3), random(2, 3))
    full = de.FullNormal(random(2, 3), tril(2, d=3))
    mixture = de.MixtureOfNormals(random(4), random(4, 3), random(4, 3))
    assert de.kl(normal, mixture) is None
    assert de.kl(normal, full) is None
    assert de.kl(de.coupling_flow(normal, None, ()), normal) is None


def test_full_normal_is_scipys():
    q = de.FullNormal(random(5, 4), tril(5, d=4))
    z_KxBxD = random(3, 5, 4, seed=7, scale=2)
    got = q.log_prob(z_KxBxD)
    for b in range(5):
        l_DxD = np.asarray(q.scale_tril[b], np.float64)
        want = stats.multivariate_normal(q.mu[b], l_DxD @ l_DxD.T).logpdf(z_KxBxD[:, b])
        np.testing.assert_allclose(got[:, b], want, rtol=2e-5)


def test_scale_tril_of_no_correlation_is_the_diagonal_normal():
    mu, logvar, z = random(5, 4), random(5, 4, seed=1), random(5, 4, seed=2)
    q = de.FullNormal(mu, de.scale_tril(logvar, np.zeros((5, 6))))
    np.testing.assert_allclose(q.log_prob(z), de.log_normal(z, mu, logvar), rtol=1e-5)
    l_3x3 = de.scale_tril(2 * jnp.log(jnp.array([1.0, 2.0, 3.0])), jnp.array([1.0, 2.0, 3.0]))
    np.testing.assert_allclose(l_3x3, [[1, 0, 0], [2, 2, 0], [6, 9, 3]], rtol=1e-6)


DISTRIBUTIONS = {
    "normal": de.Normal(random(3, 2), random(3, 2, seed=1)),
    "full": de.FullNormal(random(3, 2), tril(3, d=2)),
    "mixture": de.MixtureOfNormals(random(5), random(5, 2, scale=2), random(5, 2, seed=1)),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_samples_come_with_their_density_in_every_layout(name):
    dist = DISTRIBUTIONS[name]
    z_KxBxD, log_prob = dist.sample_and_log_prob(keys(7, 3))
    assert z_KxBxD.shape == (7, 3, 2) and log_prob.shape == (7, 3)
    np.testing.assert_array_equal(z_KxBxD, dist.sample(keys(7, 3)))
    np.testing.assert_allclose(dist.log_prob(z_KxBxD), log_prob, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(jax.vmap(dist.log_prob)(z_KxBxD), log_prob, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        jnp.stack([dist.log_prob(z) for z in z_KxBxD]), log_prob, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_samples_have_the_moments_of_the_density(name):
    dist = DISTRIBUTIONS[name]
    x = np.linspace(-14, 14, 281)
    grid_GxD = np.stack(np.meshgrid(x, x, indexing="ij"), -1).reshape(-1, 2).astype(np.float32)
    b = 0 if name == "mixture" else 1
    log_p = jax.jit(dist.log_prob)(grid_GxD if name == "mixture" else grid_GxD[:, None])
    p = np.exp(np.asarray(log_p if name == "mixture" else log_p[:, b], np.float64)) * 0.1**2
    np.testing.assert_allclose(p.sum(), 1, atol=1e-4)
    z = dist.sample(keys(100_000, 1 if name == "mixture" else 3))[:, b]
    for moment in (lambda v: v, lambda v: v**2, lambda v: v[:, :1] * v[:, 1:]):
        values = np.asarray(moment(z), np.float64)
        error = values.std(0) / np.sqrt(len(values))
        assert (np.abs(values.mean(0) - p @ moment(grid_GxD)) < 4 * error).all()


def test_sampled_log_density_keeps_its_digits_where_z_minus_mu_has_none():
    q = de.Normal(jnp.full((1, 50), 100.0), jnp.full((1, 50), -30.0))
    _, log_q = q.sample_and_log_prob(keys(1000, 1))
    assert abs(log_q.mean() + de.entropy_normal(q.logvar)[0]) < 4 * np.sqrt(50 / 2 / 1000)


def test_soft_clip_is_the_identity_in_the_middle_and_bounded_outside():
    middle = np.linspace(-13, 13, 1001, dtype=np.float32)
    np.testing.assert_array_equal(de.soft_clip(middle, -14.0, 14.0), middle)
    far = np.array([-np.inf, -1e30, -1e3, 1e3, 1e30, np.inf], np.float32)
    got = de.soft_clip(far, -14.0, 14.0)
    assert (np.abs(got) <= 14).all() and (np.sign(got) == np.sign(far)).all()
    np.testing.assert_allclose(de.soft_clip(np.float32(14), -14.0, 14.0), 13.5)
    np.testing.assert_array_equal(
        de.soft_clip(np.linspace(-0.25, 0.25, 9), -0.5, 0.5), np.linspace(-0.25, 0.25, 9)
    )


def test_soft_clip_never_loses_the_gradient():
    f = jax.vmap(jax.grad(lambda v: de.soft_clip(v, -14.0, 14.0)))
    v = np.concatenate([np.linspace(-1e3, 1e3, 20_001), [-1e17, 1e17]]).astype(np.float32)
    u = np.maximum(np.abs(v.astype(np.float64)) - 13, 0)
    gradient = f(v)
    assert (gradient > 0).all() and (gradient <= 1).all()
    np.testing.assert_allclose(gradient, (1 + u) ** -2.0, rtol=1e-5)
    assert (
        np.diff(de.soft_clip(np.linspace(-200, 200, 4001, dtype=np.float32), -14, 14)) > 0
    ).all()


def test_stop_leaves_the_path_through_z_only():
    q, z = DISTRIBUTIONS["full"], random(3, 2, seed=9)
    by_q = jax.grad(lambda q: de.stop(q).log_prob(z).sum())(q)
    assert all((g == 0).all() for g in by_q)
    by_z = jax.grad(lambda z: de.stop(q).log_prob(z).sum())(z)
    np.testing.assert_array_equal(by_z, jax.grad(lambda z: q.log_prob(z).sum())(z))
    assert (by_z != 0).any()


def test_sticking_the_landing_has_no_noise_at_the_optimum():
    """q = the posterior p(z|x): every single sample's gradient of log p - log q is 0."""
    p = de.Normal(random(3, 4), random(3, 4, seed=1))

    def loss(q):
        z = q.sample(keys(3))
        return jnp.sum(p.log_prob(z) - de.stop(q).log_prob(z))

    for gradient in jax.grad(loss)(p):
        np.testing.assert_allclose(gradient, 0, atol=1e-5)


def direct_mixture(mixture, z):
    """The textbook form in float64, all of KxBxMxD at once."""
    logits, mu, logvar, z = (np.asarray(v, np.float64) for v in (*mixture, z))
    quadratic = (z[..., None, :] - mu) ** 2 / np.exp(logvar)
    log_n = -0.5 * (np.log(2 * np.pi) + logvar + quadratic).sum(-1)
    return special.logsumexp(special.log_softmax(logits) + log_n, -1)


@pytest.mark.parametrize("offset", [-10.0, 0.0, 3.0])
def test_mixture_density_is_the_direct_form_however_narrow(offset):
    mixture = de.MixtureOfNormals(
        random(50), random(50, 20, scale=3), random(50, 20, seed=1) + np.float32(offset)
    )
    z = random(4, 8, 20, seed=2)
    z[0] = mixture.mu[:8] + 1e-3  # where a narrow component's square is a small difference
    np.testing.assert_allclose(
        mixture.log_prob(z), direct_mixture(mixture, z), rtol=1e-5, atol=1e-3
    )


def test_mixture_of_one_is_a_normal_and_logits_need_not_be_normalised():
    mu, logvar, z = random(1, 3), np.array([[-30.0, 0.0, 30.0]], np.float32), random(6, 3, seed=2)
    one = de.MixtureOfNormals(np.array([7.0]), mu, logvar)
    np.testing.assert_allclose(one.log_prob(z), de.log_normal(z, mu, logvar), rtol=1e-5)


def test_mixture_never_holds_samples_by_components_by_dimensions():
    n, m, d = 256, 200, 50
    mixture = de.MixtureOfNormals(random(m), random(m, d), random(m, d))

    def value(mixture, z):
        return mixture.log_prob(z).sum()

    for f in (value, jax.grad(value, argnums=(0, 1))):
        memory = jax.jit(f).lower(mixture, random(n, d)).compile().memory_analysis()
        assert memory.temp_size_in_bytes < 8 * n * m * 4  # n x m x d would be 50 of them


def test_label_normal_takes_the_labels_row():
    mu, logvar = random(10, 4), random(10, 4, seed=1)
    y, z = np.array([3, 3, 0, 9]), random(4, 4, seed=2)
    got = de.label_normal(y, jnp.asarray(mu), jnp.asarray(logvar)).log_prob(z)
    np.testing.assert_allclose(got, de.log_normal(z, mu[y], logvar[y]), rtol=1e-6)


def everything(z, mu, lv, mu2, lv2, lower):
    """Every density and divergence once, of parameters BxD (lower BxT)."""
    full = de.FullNormal(mu, de.scale_tril(lv, lower))
    return (
        de.log_normal(z, mu, lv),
        de.kl_std_normal(mu, lv),
        de.kl_normal(mu, lv, mu2, lv2),
        de.kl(full, de.Normal(mu2, lv2)),
        full.log_prob(z),
        de.MixtureOfNormals(mu2[:, 0], mu, lv).log_prob(z),
        de.soft_clip(lv, -1.0, 1.5),
    )


def test_gradients_are_those_of_finite_differences_in_float64():
    with jax.enable_x64(True):
        arguments = tuple(np.asarray(random(2, 3, seed=s), np.float64) for s in range(6))
        assert all(v.dtype == jnp.float64 for v in jax.eval_shape(everything, *arguments))
        check_grads(
            jax.jit(everything), arguments, order=1, modes=["rev"], atol=1e-6, rtol=1e-6, eps=1e-6
        )


def test_values_and_gradients_are_finite_at_extremes():
    arguments = [random(2, 3, seed=s, scale=3) for s in range(6)]
    scalar = jax.jit(
        jax.value_and_grad(lambda *a: sum(v.sum() for v in everything(*a)), argnums=range(6))
    )
    for logvar in (-30.0, 0.0, 30.0):
        arguments[2] = np.full((2, 3), logvar, np.float32)
        value, gradients = scalar(*arguments)
        assert np.isfinite(value) and all(np.isfinite(g).all() for g in gradients)
