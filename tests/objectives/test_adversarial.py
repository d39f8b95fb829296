"""A discriminator of patches beside the ELBO: the written-out loss, and two games kept apart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.objectives.built import B, built, images
from tests.objectives.linear import batch_keys, jit
from vae_jax.config import UserError
from vae_jax.nets.patch import PatchDiscriminator
from vae_jax.objectives import OBJECTIVES
from vae_jax.objectives.adversarial import MOST

WEIGHT = 0.3
BETA = 2.0
adversarial = OBJECTIVES["adversarial"]


@pytest.fixture(scope="module")
def model():
    return built("gaussian", "normal")


@pytest.fixture(scope="module")
def params(model):
    nets_key, own_key = jax.random.split(jax.random.key(1))
    return jit(model.init)(nets_key) | {"objective": adversarial.init(own_key, model)}


def terms(model, params, batch=None):
    options = {"weight": WEIGHT, "beta": BETA}
    keys = batch_keys(jax.random.key(0))
    return adversarial(model, params, batch or images(), keys, **options)


def judge(params, x):
    return PatchDiscriminator().apply({"params": params["objective"]}, x)


def test_it_is_the_written_out_loss(model, params):
    batch = images()

    @jit
    def run(params):
        plain = OBJECTIVES["elbo"](model, params, batch, batch_keys(jax.random.key(0)))
        z = model.draw(params, batch["image"], batch_keys(jax.random.key(0))).z
        x_hat = model.likelihood.mean(model.decode(params, z))
        return terms(model, params), plain, judge(params, batch["image"]), judge(params, x_hat)

    got, plain, of_real, of_rebuilt = run(params)
    hinge = 0.5 * (np.maximum(0, 1 - of_real) + np.maximum(0, 1 + of_rebuilt)).mean(-1)
    np.testing.assert_allclose(got.extra["discriminator"], hinge, rtol=1e-5)
    np.testing.assert_allclose(got.extra["judged"], of_rebuilt.mean(-1), rtol=1e-4, atol=1e-6)
    pull = WEIGHT * got.extra["adaptive_weight"] * got.extra["judged"]
    np.testing.assert_allclose(got.loss, BETA * plain.kl - plain.log_px - pull, rtol=1e-5)
    for name in ("elbo", "log_px", "kl"):
        np.testing.assert_allclose(getattr(got, name), getattr(plain, name), rtol=1e-6)


def test_the_second_term_pulls_weight_times_as_hard_as_the_first(model, params):
    """By finite differences of each part along its own gradient, at the decoder's output."""
    batch = images()

    @jit
    def run(params):
        z = model.draw(params, batch["image"], batch_keys(jax.random.key(0))).z
        out = model.decode(params, z)
        parts = (
            lambda out: model.likelihood.log_prob(out, batch["image"]),
            lambda out: judge(params, model.likelihood.mean(out)).mean(-1),
        )
        slopes = []
        for part in parts:
            gradient = jax.grad(lambda out, part=part: part(out).sum())(out)
            norm = jnp.sqrt((gradient**2).sum((1, 2, 3)))
            move = 1e-2 * gradient / norm[:, None, None, None]
            slopes.append((part(out + move) - part(out - move)) / 2e-2)
        return slopes, terms(model, params).extra["adaptive_weight"]

    (first, second), adaptive = run(params)
    assert (adaptive < MOST).all() and adaptive.shape == (B,)
    np.testing.assert_allclose(adaptive * second, first, rtol=0.02)


def test_neither_net_sees_the_others_gradient(model, params):
    @jit
    def gradients(params):
        def loss(params):
            return terms(model, params).loss.sum()

        def hinge(params):
            return terms(model, params).extra["discriminator"].sum()

        return jax.grad(loss)(params), jax.grad(hinge)(params)

    of_loss, of_hinge = gradients(params)
    same = (of_loss["objective"], of_hinge["objective"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), *same)
    kernels = [leaf for leaf in jax.tree.leaves(same[0]) if leaf.ndim > 1]
    assert all(np.abs(leaf).max() > 0 for leaf in kernels)
    for part in ("encoder", "decoder"):
        assert all(np.abs(leaf).max() == 0 for leaf in jax.tree.leaves(of_hinge[part]))
        assert any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(of_loss[part]))


def test_an_example_alone_has_the_loss_that_it_has_in_a_batch(model, params):
    batch = images()
    one = {"image": batch["image"][:1], "label": batch["label"][:1], "n": batch["n"]}
    keys = batch_keys(jax.random.key(0))
    whole = jit(lambda p: adversarial(model, p, batch, keys).loss)(params)
    alone = jit(lambda p: adversarial(model, p, one, keys[:1]).loss)(params)
    np.testing.assert_allclose(alone, whole[:1], rtol=1e-5)


def test_a_model_of_labels_or_without_a_decoder_is_one_line(model, params):
    with_labels = model._replace(spec=model.spec._replace(labelled=True))
    for wrong in (model._replace(decode=None), with_labels):
        with pytest.raises(UserError, match=r"want model\.name=vae and a decoder"):
            terms(wrong, params)
