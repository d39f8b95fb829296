"""The streamed log-mean of importance weights, and that it depends on no batch, chunk or device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp

from vae_jax import config, data, models
from vae_jax.evaluate import likelihood
from vae_jax.evaluate.subject import Subject
from vae_jax.mesh import rules


@pytest.mark.parametrize("chunk", [1, 7, 50, 64])
def test_streaming_log_weights_is_the_direct_sum(chunk):
    log_w = np.random.default_rng(0).normal(-90, 8, size=(4, 64)).astype(np.float32)
    log_w[0, 5] = -np.inf
    log_w[1] = -500
    carry = (jnp.full(4, -jnp.inf),) * 2
    for start in range(0, 64, chunk):
        carry = likelihood.add_log_weights(carry, jnp.asarray(log_w[:, start : start + chunk]))
    np.testing.assert_allclose(carry[0], logsumexp(log_w.astype(np.float64), axis=1), rtol=1e-6)
    np.testing.assert_allclose(carry[1], logsumexp(2 * log_w.astype(np.float64), axis=1), rtol=1e-6)


def test_log_likelihood_does_not_depend_on_batches_chunks_or_devices():
    c = config.default()
    c.latent = 3
    c.encoder = config.call("encoder", "mlp", widths=(8,))
    c.decoder = config.call("decoder", "mlp", widths=(8,))
    dataset = data.load(c.data)
    split = data.Split(dataset.test.image[:21], dataset.test.label[:21])
    model = models.build_for(c, dataset)
    params = jax.jit(model.init)(jax.random.key(0))
    key = jax.random.key(1)
    k = 7

    def run(batch: int, chunk: int, devices: int) -> dict[str, np.ndarray]:
        c.eval.batch = batch
        mesh = rules.make_mesh(c.mesh, jax.devices()[:devices])
        subject = Subject(c, model, params, dataset, mesh)
        return likelihood.log_likelihood(subject, split, key, k=k, chunk=chunk)

    whole = run(21, 7, 1)
    assert set(whole) == {"log_px", "kl", "iw", "elbo", "ess"}
    assert {len(values) for values in whole.values()} == {21}
    assert (whole["iw"] > whole["log_px"] - 100).all() and (whole["ess"] >= 1 - 1e-3).all()
    assert (whole["ess"] <= k + 1e-3).all() and len(np.unique(whole["iw"])) > 15
    for batch, chunk, devices in ((8, 7, 8), (8, 3, 1)):
        other = run(batch, chunk, devices)
        np.testing.assert_allclose(other.pop("ess"), whole["ess"], rtol=2e-5, atol=1e-3)
        for name, values in other.items():
            np.testing.assert_allclose(values, whole[name], rtol=2e-5)
    # The direct sum over the same draws, in float64.
    x = jnp.asarray(split.image[:2], jnp.float32) / (dataset.levels - 1)
    draws = jax.jit(lambda p: likelihood.draws(model, p, x, jnp.arange(2), key, 0, k))(params)
    log_w = np.asarray(draws.log_w, np.float64)
    want = logsumexp(log_w, axis=1) - np.log(k)
    np.testing.assert_allclose(whole["iw"][:2], want, rtol=2e-5)
