"""ELBO and importance-weighted log-likelihood, example by example, in constant memory.

Each example's noise is keyed by (seed, example id, sample number), so a figure does not depend on the
batch size, the number of devices or the order of the examples.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from vae_jax.data import evaluation
from vae_jax.distributions import example_keys, sample_keys
from vae_jax.mesh import hosts
from vae_jax.mesh import rules as sharding
from vae_jax.train import program as compile_lib

# Parameters of p(x|z) that one device makes in one call: on CPU, what stays in its caches.
VALUES = {"cpu": 2**20, "other": 2**26}


def draws(model, params, x_BxHxWxC, id_B, key, first, samples, y_B=None):
    """Draws number ``first`` … ``first + samples − 1`` of each example; leaves BxKx….

    Of a model with labels each is a pass over all of them, or given ``y_B`` one of that label.
    """
    keys_KxB = sample_keys(example_keys(key, id_B), first + jnp.arange(samples))

    def draws_of_one(x, keys_K, y):
        """One example at a time, so that examples and samples stay two axes that a mesh can split."""
        label = None if y is None else y[None]
        draws_Kx1 = model.draw(params, x[None], keys_K[:, None], label)
        return jax.tree.map(lambda a: a[:, 0], draws_Kx1)

    return jax.vmap(draws_of_one)(x_BxHxWxC, keys_KxB.T, y_B)


def add_log_weights(carry, log_w_BxK):
    """Streaming log Σ w and log Σ w² over samples: carry is (lse_B, lse2_B), −inf at the start."""
    lse, lse2 = carry
    lse = jnp.logaddexp(lse, jax.nn.logsumexp(log_w_BxK, axis=1))
    return lse, jnp.logaddexp(lse2, jax.nn.logsumexp(2 * log_w_BxK, axis=1))


def add_samples(carry, model, params, x_BxHxWxC, id_B, key, first, samples, mesh):
    """(log Σ w, log Σ w², Σ log p(x|z), Σ KL), each of shape B, with these draws added.

    The draws are spread over the whole mesh, images over ``data`` and samples over ``model``, so parameters
    that are split over ``model`` are gathered for the call.
    """
    params = jax.lax.with_sharding_constraint(params, sharding.replicated(mesh))
    d = draws(model, params, x_BxHxWxC, id_B, key, first, samples)
    place = NamedSharding(mesh, P(sharding.BATCH, "model"))
    log_w, log_px, kl = jax.lax.with_sharding_constraint((d.log_w, d.log_px, d.kl.sum(-1)), place)
    return *add_log_weights(carry[:2], log_w), carry[2] + log_px.sum(1), carry[3] + kl.sum(1)


def log_likelihood(c, model, params, split, levels, mesh, key, *, k, chunk=None):
    r"""Per-example figures over a whole split, in one pass: a dict of arrays of shape N.

    ``elbo``, ``log_px``, ``kl``, means over the K draws, and

    .. math:: \mathrm{iw} = \log \tfrac1K \sum_{k=1}^{K} p(x, z_k) / q(z_k|x), \quad z_k \sim q(z|x)

    (Burda et al. 2016, arXiv:1509.00519, eq. 8), a bound that rises to log p(x) with K. ``ess`` is the
    effective sample size (Σw)²/Σw².

    The samples are streamed, ``chunk`` at a time, through a running log-sum-exp; memory does not grow with K.
    Few images meet many samples, so that the encoder, the binarisation and the prior's own nets, which a
    call runs once, cost next to nothing. ``c.eval.batch`` is the most images in a call.
    """
    to_x = evaluation.inputs(c, levels)
    images, fitting = call_size(model, mesh, k)
    chunk = chunk or fitting

    def program(params, batch, first, carry, samples):
        return add_samples(
            carry, model, params, to_x(batch), batch["id"], key, first, samples, mesh
        )

    sizes = [chunk] * (k // chunk) + ([k % chunk] if k % chunk else [])
    programs = {
        s: compile_lib.over_batches(functools.partial(program, samples=s), mesh) for s in set(sizes)
    }
    start, found = None, []
    for batch, real in evaluation.batches(split, min(c.eval.batch, images), mesh):
        batch = hosts.place(batch, sharding.over_batch(mesh))
        if start is None:
            none, zero = (
                np.full(len(batch["id"]), -np.inf, np.float32),
                np.zeros(len(batch["id"]), np.float32),
            )
            start = hosts.place((none, none, zero, zero), sharding.over_batch(mesh))
        carry, first = start, 0
        for size in sizes:
            carry = programs[size](params, batch, first, carry)
            first += size
        found.append((dict(zip(("lse", "lse2", "log_px", "kl"), carry, strict=True)), real))
    out = gather(found)
    out["log_px"], out["kl"] = out["log_px"] / k, out["kl"] / k
    out["elbo"] = out["log_px"] - out["kl"]
    out["iw"] = out["lse"] - np.log(k)
    out["ess"] = np.exp(2 * out.pop("lse") - out.pop("lse2"))
    return out


def call_size(model, mesh, k):
    """(images, samples of each) in one call, for K samples: as many samples as fit, then images beside them.

    The parameters of p(x|z) of all draws of a device come to :data:`VALUES`, but no less than 32 draws.
    """
    height, width, channels = model.shape
    values = VALUES.get(mesh.devices.flat[0].platform, VALUES["other"])
    each = (
        height
        * width
        * model.likelihood.outputs(channels)
        * (model.classes if model.spec.labelled else 1)
    )
    rows = max(32, values // each)
    calls = -(-k // (rows * mesh.shape["model"]))
    samples = -(-k // calls)
    return sharding.ways(mesh) * max(1, rows // -(-samples // mesh.shape["model"])), samples


def gather(rows):
    """Concatenate per-example device arrays of batches, padding dropped; float64 on the host."""
    names = rows[0][0].keys()
    return {
        n: np.concatenate([hosts.fetch(values[n])[:real] for values, real in rows]).astype(
            np.float64
        )
        for n in names
    }
