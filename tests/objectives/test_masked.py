"""The masked autoencoder: which pixels are hidden, and that only these are in the loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from tests.objectives.linear import (
    BATCH,
    BIAS,
    MODEL,
    OTHER,
    OTHER_A,
    OTHER_C,
    S2,
    B,
    P,
    W,
    X,
    assert_nats,
    batch_keys,
    jit,
    terms_of,
)
from vae_jax.config import UserError
from vae_jax.distributions import LIKELIHOODS
from vae_jax.objectives import OBJECTIVES
from vae_jax.objectives.masked import GREY, patches, pixel_log_prob

KEY = jax.random.key(3)


def masks_of(n=400, shape=(8, 8), patch=2, share=0.75):
    return np.asarray(jit(lambda keys: patches(keys, shape, patch, share))(batch_keys(KEY, n)))


def test_every_image_has_its_own_patches_and_as_many():
    masks = masks_of()
    blocks = masks.reshape(-1, 4, 2, 4, 2)
    assert (blocks == blocks[:, :, :1, :, :1]).all()  # a patch is masked whole or not at all
    assert (masks.sum((1, 2)) == 12 * 4).all()
    # A patch is masked in a share of 3/4 of the images: within 4 standard errors.
    rate = blocks[:, :, 0, :, 0].mean(0)
    assert np.abs(rate - 0.75).max() < 4 * np.sqrt(0.75 * 0.25 / 400)
    assert len(np.unique(masks.reshape(400, -1), axis=0)) > 300
    odd = masks_of(5, shape=(5, 7), patch=3, share=0.5)
    assert odd.shape == (5, 5, 7)
    for mask in odd:
        assert mask[::3, ::3].sum() == 3


def test_the_loss_is_that_of_the_masked_pixels_alone():
    """Of a linear Gaussian model, written out with scipy."""
    mask = np.asarray(patches(batch_keys(KEY), (1, P), 1, 0.4))[:, 0]
    assert (mask.sum(1) == 2).all()
    hidden = np.where(mask, GREY, X)
    mean = (hidden @ OTHER_A + OTHER_C) @ W.T + BIAS
    each = stats.norm(mean, np.sqrt(S2)).logpdf(X)
    terms = terms_of("masked", OTHER, KEY, patch=1, share=0.4)
    assert_nats(terms.loss, -np.where(mask, each, 0).sum(1))
    assert_nats(terms.log_px, each.sum(1))
    assert_nats(terms.extra["masked_nats"], terms.loss / 2)
    assert terms.elbo is None and terms.kl is None


def test_what_is_hidden_changes_no_code():
    """Other values in the masked pixels move log p of these alone."""
    mask = jnp.asarray(patches(batch_keys(KEY), (1, P), 1, 0.4))[..., None]
    moved = jnp.where(mask, BATCH["image"] + 5, BATCH["image"])
    whole = terms_of("masked", OTHER, KEY, patch=1, share=0.4)
    other = terms_of("masked", OTHER, KEY, BATCH | {"image": moved}, patch=1, share=0.4)
    assert_nats(whole.log_px + whole.loss, other.log_px + other.loss, rtol=1e-4)
    assert (np.abs(whole.loss - other.loss) > 1).all()


KINDS = {
    "bernoulli": (2, {}),
    "discretized_logistic": (9, {}),
    "discretized_mix_logistic": (9, {"components": 2}),
    "categorical": (9, {}),
    "gaussian_learned": (9, {}),
}


@pytest.mark.parametrize("name", KINDS)
def test_the_pixels_add_up_to_the_image(name):
    levels, numbers = KINDS[name]
    likelihood = LIKELIHOODS[name](levels=levels, **numbers)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.integers(0, levels, (3, 4, 5, 3)) / (levels - 1), jnp.float32)
    out = jnp.asarray(rng.normal(size=(3, 4, 5, likelihood.outputs(3))), jnp.float32)
    pixels, whole = jit(lambda: (pixel_log_prob(likelihood, out, x), likelihood.log_prob(out, x)))()
    assert pixels.shape == (3, 4, 5)
    assert_nats(pixels.sum((1, 2)), whole, rtol=1e-5)


def test_what_it_needs_is_one_line():
    keys = batch_keys(KEY, B)
    for share in (0.05, 0.99):
        with pytest.raises(UserError, match=rf"share={share}: masks \d of 5 patches of 1 pixels"):
            OBJECTIVES["masked"](MODEL, OTHER, BATCH, keys, patch=1, share=share)
    with pytest.raises(UserError, match=r"decoder\.name=none"):
        OBJECTIVES["masked"](MODEL._replace(decode=None), OTHER, BATCH, keys, patch=1)
    spec = MODEL.spec._replace(likelihood=LIKELIHOODS["gaussian_optimal"]())
    with pytest.raises(UserError, match="gaussian_optimal"):
        OBJECTIVES["masked"](MODEL._replace(spec=spec), OTHER, BATCH, keys, patch=1)
