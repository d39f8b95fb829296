"""Every objective with every posterior and prior."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.objectives.built import built, images
from tests.objectives.linear import B, assert_nats, batch_keys, jit
from vae_jax.config import UserError
from vae_jax.objectives import OBJECTIVES
from vae_jax.objectives.evidence import path_log_w

UNCONDITIONAL = {name for name, f in OBJECTIVES.items() if not hasattr(f, "needs")}


GROUPS = ("miwae", "piwae")
SAMPLES = ("iwae", "ciwae", "renyi", "vr_max", "tvo")
DIAGONAL = ("beta_tcvae", "dip_vae")  # need posterior.name=gaussian


def objectives(posterior: str, prior: str) -> dict[str, dict]:
    """{name: keyword arguments} of those that this posterior and prior allow."""
    numbers = {name: {} for name in UNCONDITIONAL}
    for name in SAMPLES:
        numbers[name] = {"samples": 2}
    for name in GROUPS:
        numbers[name] = {"groups": 2, "samples": 2}
    if (posterior, prior) != ("gaussian", "normal"):
        numbers["free_bits"] = {"per": "level"}
    if posterior != "gaussian":
        for name in DIAGONAL:
            del numbers[name]
    return numbers


def estimators(posterior: str, prior: str) -> dict[str, tuple[str, dict]]:
    """{title: (name, keyword arguments)} of every objective and estimator."""
    calls = {name: (name, numbers) for name, numbers in objectives(posterior, prior).items()}
    for estimator in ("stl", "dreg"):
        calls[f"iwae {estimator}"] = ("iwae", {"samples": 2, "estimator": estimator})
    calls["elbo stl"] = ("elbo", {"stl": True})
    return calls


def with_own(params, name, key, model):
    """``params`` with those that the objective learns itself."""
    own = getattr(OBJECTIVES[name], "init", None)
    if own is None:
        return params
    return params | {"objective": own(key, model)}


def moved(params, key):
    """Parameters away from where they begin: fresh flows are the identity."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    noise = [0.3 * jax.random.normal(k, a.shape) for k, a in zip(keys, leaves, strict=True)]
    return jax.tree.map(jnp.add, params, jax.tree.unflatten(tree, noise))


COMBINATIONS = [
    (q, p) for q in ("gaussian", "full", "iaf") for p in ("normal", "mixture", "vamp", "realnvp")
]
REAL = [
    ("gaussian", "normal", None),  # all of them
    ("gaussian", "vamp", ("free_bits", "iwae dreg")),
    pytest.param("iaf", "realnvp", ("elbo stl", "tvo"), marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("posterior", "prior"), COMBINATIONS)
def test_every_objective_with_every_posterior_and_prior(posterior, prior):
    if prior == "vamp" and posterior != "gaussian":
        with pytest.raises(UserError, match="VampPrior"):
            built(posterior, prior)
        return
    model = built(posterior, prior)
    batch = images()

    def run(key, name, kwargs):
        params = with_own(model.init(key), name, key, model)
        return OBJECTIVES[name](model, params, batch, batch_keys(key), **kwargs)

    for title, (name, kwargs) in estimators(posterior, prior).items():
        t = jax.eval_shape(functools.partial(run, name=name, kwargs=kwargs), jax.random.key(0))
        assert (t.elbo is None) == (name == "supervised")
        for figure in jax.tree.leaves(t):
            assert (figure.shape, figure.dtype) == ((B,), jnp.float32), title
    for name in UNCONDITIONAL - set(objectives(posterior, prior)):
        with pytest.raises(UserError, match=r"posterior\.name=gaussian"):
            jax.eval_shape(functools.partial(run, name=name, kwargs={}), jax.random.key(0))


@pytest.mark.parametrize(("posterior", "prior", "titles"), REAL)
def test_every_objective_has_finite_gradients(posterior, prior, titles):
    model = built(posterior, prior)
    batch = images()
    calls = {t: c for t, c in estimators(posterior, prior).items() if titles is None or t in titles}

    @jit
    def run(key):
        params = moved(model.init(key), key)
        d = model.draw(params, batch["image"], batch_keys(key))
        log_w = [d.log_w, path_log_w(model, params, batch["image"], d.z)]
        out = {}
        for title, (name, kwargs) in calls.items():

            def f(p, name=name, kwargs=kwargs):
                t = OBJECTIVES[name](model, p, batch, batch_keys(key), **kwargs)
                return t.loss.mean(), t

            out[title] = jax.grad(f, has_aux=True)(with_own(params, name, key, model))
        return out, log_w

    out, log_w = run(jax.random.key(5))
    # log q of a flow by its inverse is that of the forward pass.
    assert_nats(log_w[1], log_w[0], atol=1e-4)
    nets = {"encoder", "posterior", "decoder"}
    if prior != "normal":
        nets.add("prior")
    learned = {"supervised": {"encoder", "posterior", "classifier"}, "joint": nets | {"classifier"}}
    learned |= dict.fromkeys(("factor_vae", "geco"), nets | {"objective"})
    for title, (grads, t) in out.items():
        for leaf in jax.tree.leaves((t, grads)):
            assert np.isfinite(leaf).all(), title
        assert nonzero_parts(grads) == learned.get(title, nets), title


def nonzero_parts(grads) -> set[str]:
    """The parts of the parameters that have a gradient."""
    parts = set()
    for part, tree in grads.items():
        for leaf in jax.tree.leaves(tree):
            if (np.asarray(leaf) != 0).any():
                parts.add(part)
    return parts
