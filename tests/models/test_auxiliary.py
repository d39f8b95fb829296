"""ADGM, SDGM and M1+M2: models with two latent variables, against quadrature and against sums
written out.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.special import log_softmax, logsumexp

from tests.tiny import LABEL, PIXELS, SEED, SHAPE, X, batch_of, semi_supervised
from tests.tiny import m2 as tiny
from vae_jax import config, models
from vae_jax.config import UserError
from vae_jax.distributions import split_keys
from vae_jax.evaluate import likelihood
from vae_jax.objectives import OBJECTIVES
from vae_jax.train import loop, step
from vae_jax.train import program as compile_lib
from vae_jax.train import run as workdir

KINDS = ("adgm", "sdgm", "m1m2")
jit = compile_lib.simple
KEY = jax.random.key(SEED)
KEYS = jax.random.split(KEY, 5)


def small(kind, **fields):
    model, params = tiny(kind, classifier=config.call("classifier", "mlp", widths=(4,)), **fields)
    return model, jax.tree.map(
        lambda a: 0.4 * a, params
    )  # or q is narrower than p, and weights have no variance


@pytest.mark.parametrize("kind", KINDS)
def test_the_bound_is_below_the_exact_evidence_which_importance_weights_reach(kind):
    """log p(x) by quadrature over a and z and the sum over y: every density and every dependency is
    in it.
    """
    model, params = small(kind)
    at = np.linspace(-7, 7, 141)
    a, z = (jnp.asarray(g.reshape(-1, 1), jnp.float32) for g in np.meshgrid(at, at, indexing="ij"))
    cell = 2 * np.log(at[1] - at[0])
    x3 = X[:3]

    @jit
    def grid(y):  # log p(x, a, z | y) on the grid, for three images
        logits = model.nets.image(params, a=a, y=y, z=z).reshape(len(a), PIXELS)

        def image(x):
            return -jnp.logaddexp(0, logits * (1 - 2 * x.reshape(PIXELS))).sum(-1)

        def first(x):
            images = jnp.broadcast_to(x, (len(a), *SHAPE))
            return model.nets.auxiliary(params, x=images, y=y, z=z).log_prob(a)

        return jax.vmap(lambda x: image(x) + first(x))(x3)

    log_pz = stats.norm.logpdf(np.asarray(z, np.float64)[:, 0])
    exact = [
        logsumexp(np.asarray(grid(jnp.full(len(a), y)), np.float64) + log_pz + cell, axis=1)
        for y in (0, 1)
    ]
    exact = logsumexp(exact, axis=0) - np.log(2)
    d = jit(lambda x: likelihood.draws(model, params, x, jnp.arange(3), KEY, 0, 4000))(x3)
    elbo = np.asarray(d.log_px - d.kl[..., 0], np.float64)
    assert (elbo.mean(1) < exact - 1e-3).all(), "a bound, and here not a tight one"
    w = np.exp(np.asarray(d.log_w, np.float64) - exact[:, None])
    error = w.std(1) / np.sqrt(w.shape[1])
    assert (error < 0.1).all()
    np.testing.assert_array_less(abs(w.mean(1) - 1), 4 * error)


@pytest.mark.parametrize(("kind", "auxiliary"), [*((kind, 0) for kind in KINDS), ("m1m2", 3)])
def test_the_objective_is_the_sums_written_out(kind, auxiliary):
    model, params = small(kind, auxiliary=auxiliary)
    assert jax.eval_shape(model.draw, params, X, KEYS, y=LABEL).z.shape == (5, 1)
    assert model.nets.first(params, X).mu.shape == (5, auxiliary or 1)
    batch = batch_of(X, jnp.full(5, -1), X[:3], LABEL[:3])
    keys_u, keys_l = (list(split_keys(keys, 2)) for keys in (KEYS, batch["labelled"]["keys"]))

    @jit
    def run(params):
        terms = OBJECTIVES["m2"](model, params, batch, KEYS, alpha=7.0, labelled=0.5, samples=2)
        every = [[model.draw(params, X, k, y=jnp.full(5, y)) for y in (0, 1)] for k in keys_u]
        given = [model.draw(params, X[:3], k, y=LABEL[:3]) for k in keys_l]
        logits = [
            model.classify(params, x, k) for x, keys in ((X, keys_u), (X[:3], keys_l)) for k in keys
        ]
        return (
            terms,
            every,
            given,
            logits,
            jax.grad(lambda p: OBJECTIVES["m2"](model, p, batch, KEYS).loss.sum())(params),
        )

    terms, every, given, logits, gradient = run(params)

    def real(d):
        return np.asarray(d.log_px, np.float64) - np.asarray(d.kl, np.float64).sum(-1)

    log_q = [log_softmax(np.asarray(s, np.float64), axis=1) for s in logits]
    sums = [
        sum(np.exp(q[:, y]) * (real(d[y]) + np.log(0.5) - q[:, y]) for y in (0, 1))
        for d, q in zip(every, log_q[:2], strict=True)
    ]
    np.testing.assert_allclose(terms.elbo, np.mean(sums, 0), rtol=1e-5)
    value = np.mean([real(d) for d in given], 0) + np.log(0.5)
    ce = -np.mean([q[np.arange(3), LABEL[:3]] for q in log_q[2:]], 0)
    np.testing.assert_allclose(terms.labelled.elbo, value, rtol=1e-5)
    np.testing.assert_allclose(terms.labelled.loss, 7 * ce - 0.5 * value, rtol=1e-5)
    still = {
        part for part, g in gradient.items() if not any(np.any(leaf) for leaf in jax.tree.leaves(g))
    }
    assert still == (
        {"encoder", "posterior", "decoder", "prior"} if kind == "m1m2" else {"prior"}
    ), "M1 is constant"


def test_what_a_net_is_not_given_it_does_not_see():
    """p(a|y,z) of SDGM is another function of x in ADGM; q(y|a) of M1+M2 sees x through a alone."""
    for kind, sees in (("adgm", True), ("sdgm", False)):
        model, params = small(kind)
        first_given = jit(
            lambda p, x, model=model: (
                model.nets.auxiliary(p, x=x, y=jnp.zeros(5, int), z=jnp.zeros((5, 1))).mu
            )
        )
        p, other = first_given(params, X), first_given(params, 1 - X)
        assert (np.abs(p - other) > 1e-6).any() == sees
    model, params = small("m1m2")
    params = {**params, "encoder": jax.tree.map(jnp.zeros_like, params["encoder"])}
    classify = jit(lambda x: model.classify(params, x))
    np.testing.assert_array_equal(classify(X), classify(1 - X))


@pytest.mark.slow
def test_m1m2_begins_with_m1_and_leaves_it(tmp_path):
    """A run of M1, then M2 on its codes: M1's encoder and decoder are there to the last bit, all
    else moves.
    """
    changes = dict(
        mesh__data=1, steps=20, eval__every=20, log_every=20, steps_per_call=20, unroll=False
    )
    m1 = semi_supervised(data__labels=0, data__labelled_batch=0, **changes)
    m1.model = config.call("model", "vae")
    m1.classifier = config.call("classifier", "none")
    m1.objective = config.call("objective", "elbo")
    assert loop.train(m1, str(tmp_path / "m1"), say=lambda _: None)
    c = semi_supervised(init_from=str(tmp_path / "m1"), **changes)
    c.classifier = config.call("classifier", "mlp", widths=(32,))
    c.model = config.call("model", "m1m2")
    assert loop.train(c, str(tmp_path / "m1m2"), say=lambda _: None)
    (_, before, _), (s, after, _) = (
        workdir.restore(str(tmp_path / n), "latest") for n in ("m1", "m1m2")
    )
    for part in ("encoder", "posterior", "decoder"):
        jax.tree.map(
            np.testing.assert_array_equal, step.averaged(before)[part], step.averaged(after)[part]
        )
    fresh = compile_lib.init(c, s.model, s.mesh, s.dataset)[0].params
    for part in ("label_trunk", "latent", "first"):
        assert any(
            np.abs(a - b).max() > 1e-4
            for a, b in zip(*map(jax.tree.leaves, (fresh[part], after.params[part])), strict=True)
        )
    c.latent = 3
    c.encoder, c.decoder = (config.call(p, "mlp", widths=(7,)) for p in ("encoder", "decoder"))
    other = compile_lib.init(c, models.build_for(c, s.dataset), s.mesh, s.dataset)
    with pytest.raises(UserError, match=r"init_from=.*no part"):
        workdir.begin_from(c.init_from, *other)


def test_models_side_by_side_are_one_of_each_label():
    """The parameters of label 0 do not touch what is said of label 1; a label for each image, one
    for all: the same.
    """
    model, params = tiny("per_class")
    other = {
        **params,
        "per_class": jax.tree.map(lambda p: p.at[0].add(1.0), params["per_class"]),
    }

    @jit
    def run(params):
        every = jax.vmap(lambda y: model.draw(params, X, KEYS, y=y).log_w)(jnp.arange(2))
        rows = jax.vmap(lambda x, y: model.encode(params, x[None], y).mu[0])(X, LABEL)
        return (
            every,
            model.draw(params, X, KEYS, y=LABEL).log_w,
            model.encode(params, X, LABEL).mu,
            rows,
        )

    (every, given, mu, rows), (moved, _, _, _) = run(params), run(other)
    np.testing.assert_array_equal(every[1], moved[1])
    assert (np.abs(every[0] - moved[0]) > 1e-4).all()
    np.testing.assert_allclose(given, np.asarray(every)[LABEL, np.arange(5)], rtol=1e-5)
    np.testing.assert_allclose(mu, rows, rtol=1e-5)


@pytest.mark.parametrize(
    "label", [(0, 1, 2, 3, 2, 0, 1, 2), (1, 1, 3, 1, 1, 1, 0, 1)], ids=["even", "uneven"]
)
def test_of_an_uneven_batch_no_row_is_lost(label):
    """Each row goes through the nets of its label, also where more rows have a label than it has
    places: values and gradients are those of all labels' nets picked from.
    """
    model, params = tiny("per_class", labels=4)
    y, x = jnp.asarray(label), jax.random.bernoulli(KEY, 0.5, (8, *SHAPE)).astype(jnp.float32)

    def own(params):
        return model.encode(params, x, y).mu

    def picked(params):
        return jax.vmap(lambda y: model.encode(params, x, y).mu)(jnp.arange(4))[y, jnp.arange(8)]

    grown = [
        jit(jax.value_and_grad(lambda p, f=f: (f(p) ** 2).sum()))(params) for f in (own, picked)
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *grown)
    assert np.ptp(own(params), axis=0).max() > 0.1
