"""OOD scores: closed forms of a model whose posterior is known, and independent libraries."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from sklearn.covariance import EmpiricalCovariance
from sklearn.metrics import roc_auc_score

from vae_jax import config, data, models
from vae_jax import distributions as densities
from vae_jax.evaluate import likelihood, ood
from vae_jax.evaluate.subject import Subject
from vae_jax.mesh import rules as sharding
from vae_jax.train import program as compile_lib

KEY = jax.random.key(3)
RNG = np.random.default_rng


LOADINGS = np.array([[1.0, 0.5], [-0.5, 1.0], [0.5, 0.25], [-0.25, 0.5]])  # columns are orthogonal


def linear():
    """p(z) = N(0, I), p(x|z) = N(W z, I): p(x) = N(0, I + W Wᵀ), p(z|x) a diagonal Gaussian."""
    spread = 1 / (1 + (LOADINGS**2).sum(0))

    def encode(params, x, y=None):
        mu = spread * (x.reshape(len(x), -1) @ LOADINGS)
        return densities.Normal(mu + params["off"], jnp.log(spread) + params["wide"] + 0 * mu)

    def prior(params):
        return densities.Normal(jnp.zeros(2), jnp.zeros(2))

    def decode(params, z, y=None):
        return (z @ LOADINGS.T).reshape(-1, 2, 2, 1)

    spec = models.Spec((2, 2, 1), 0, 2, densities.LIKELIHOODS["gaussian"](logvar=0.0))
    return models.vae(spec, models.Parts(None, encode, prior, decode, None)), spread


def test_auroc_and_its_interval():
    rng = RNG(0)
    inside = np.round(rng.normal(size=500), 1)  # ties
    outside = np.round(rng.normal(1, 1, 300), 1)
    want = roc_auc_score(np.repeat([0, 1], [500, 300]), np.concatenate([inside, outside]))
    assert ood.auroc(inside, outside) == pytest.approx(want)
    assert ood.auroc(outside, inside) == pytest.approx(1 - want)
    true = stats.norm.cdf(1 / np.sqrt(2))  # P(b > a) of N(1, 1) and N(0, 1)
    low, high = ood.interval(rng.normal(size=2000), rng.normal(1, 1, 2000))
    assert low < true < high
    assert high - low == pytest.approx(4 * 0.0075, rel=0.2)  # Hanley & McNeil's error: 0.0075


def test_latent_distance_is_that_of_mahalanobis_to_the_nearest_class():
    rng = RNG(0)
    mu = rng.normal(size=(400, 3)) @ rng.normal(size=(3, 3))
    label = rng.integers(0, 2, 400)
    mu[label == 1] += 9
    other = rng.normal(size=(50, 3))
    np.testing.assert_allclose(
        ood.Gaussians(mu)(other), EmpiricalCovariance().fit(mu).mahalanobis(other), rtol=1e-3
    )
    centred = np.concatenate([mu[label == y] - mu[label == y].mean(0) for y in (0, 1)])
    tied = EmpiricalCovariance(assume_centered=True).fit(centred)
    want = np.minimum(*(tied.mahalanobis(other - mu[label == y].mean(0)) for y in (0, 1)))
    np.testing.assert_allclose(ood.Gaussians(mu, label)(other), want, rtol=1e-3)
    inside = compile_lib.simple(lambda m: ood.Gaussians(mu, label)(m, jnp))(
        other.astype(np.float32)
    )
    np.testing.assert_allclose(inside, want, rtol=1e-3)


def test_likelihood_regret_is_the_divergence_from_the_posterior():
    """L = log p(x) − KL(q ‖ p(z|x)), so the best q wins that KL, which is known here."""
    model, spread = linear()
    c = config.default()
    mesh = sharding.make_mesh(c.mesh, jax.devices()[:1])
    split = data.Split(RNG(0).integers(0, 17, (6, 2, 2, 1)).astype(np.uint8), None)
    dataset = data.Dataset("", (2, 2, 1), 17, (), split, split, split)

    def run(params, **options):
        subject = Subject(c, model, params, dataset, mesh)
        return ood.regret(subject, split, KEY, **options)["regret"]

    params = {"off": jnp.array([0.8, -0.5]), "wide": jnp.array([0.0, 0.7])}
    off = np.array([0.8, -0.5])
    wide = np.array([0, 0.7])
    want = 0.5 * (off**2 / spread + np.exp(wide) - 1 - wide).sum()
    got = run(params, steps=80, judges=1000)
    np.testing.assert_allclose(got, want, rtol=0.12)
    np.testing.assert_allclose(
        run({"off": jnp.zeros(2), "wide": jnp.zeros(2)}, steps=80, judges=1000), 0, atol=0.05
    )
    few = run({"off": jnp.zeros(2), "wide": jnp.zeros(2)}, steps=5, judges=4)
    assert (few >= 0).all(), "the encoder's own q is a candidate"


def test_likelihood_regret_tells_whether_it_has_converged():
    model, _ = linear()
    c = config.default()
    mesh = sharding.make_mesh(c.mesh, jax.devices()[:1])
    split = data.Split(RNG(0).integers(0, 17, (6, 2, 2, 1)).astype(np.uint8), None)
    dataset = data.Dataset("", (2, 2, 1), 17, (), split, split, split)
    params = {"off": jnp.array([3.0, -3.0]), "wide": jnp.zeros(2)}
    subject = Subject(c, model, params, dataset, mesh)
    few = ood.regret(subject, split, KEY, steps=8, judges=100)
    enough = ood.regret(subject, split, KEY, steps=ood.STEPS, judges=100)
    share = [np.mean(rows["late"]) / np.mean(rows["regret"]) for rows in (few, enough)]
    assert share[0] > 0.03 > 0.01 > abs(share[1])


def test_an_ensemble_is_its_members():
    model, _ = linear()
    c = config.default()
    mesh = sharding.make_mesh(c.mesh, jax.devices()[:1])
    split = data.Split(RNG(0).integers(0, 17, (6, 2, 2, 1)).astype(np.uint8), None)
    members = [{"off": jnp.full(2, v), "wide": jnp.zeros(2)} for v in (0.0, 0.9)]
    stacked = jax.tree.map(lambda *a: jnp.stack(a), *members)
    dataset = data.Dataset("", (2, 2, 1), 17, (), split, split, split)
    subject = Subject(c, model, stacked, dataset, mesh)
    got = ood.ensemble_bound(subject, stacked, split, KEY, k=5)
    for row, params in zip(got, members, strict=True):
        member = dataclasses.replace(subject, params=params)
        want = likelihood.log_likelihood(member, split, KEY, k=5)["iw"]
        np.testing.assert_allclose(row, want, rtol=1e-5)
    x = split.image.reshape(6, -1) / 16  # member 0 is exact
    exact = stats.multivariate_normal(np.zeros(4), np.eye(4) + LOADINGS @ LOADINGS.T).logpdf(x)
    np.testing.assert_allclose(got[0], exact, rtol=1e-4)
    np.testing.assert_allclose(ood.waic(np.array([[1.0, 2.0], [3.0, 2.0]])), [1 - 2, 0 - 2])
