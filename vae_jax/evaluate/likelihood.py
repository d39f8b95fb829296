"""ELBO and importance-weighted log-likelihood, example by example, in constant memory.

Each example's noise is keyed by (seed, example id, sample number), so a figure does not depend on the
batch size, the number of devices or the order of the examples.
"""

import jax
import jax.numpy as jnp
import numpy as np

from vae_jax import compile as compile_lib
from vae_jax import data, sharding


def inputs(c, levels):
    """to_x(batch) → x_BxHxWxC in [0, 1] as evaluation sees it."""
    d = c.data
    return lambda batch: data.to_input(batch["image"], batch["id"], None, levels=levels, binarize=d.binarize)


def draws(model, params, x_BxHxWxC, id_B, key, first, samples):
    """Draws number ``first`` … ``first + samples − 1`` of each example; leaves BxKx…."""

    def one(x, i):
        keys = jax.vmap(lambda s: jax.random.fold_in(jax.random.fold_in(key, i), s))(first + jnp.arange(samples))
        return jax.vmap(lambda k: jax.tree.map(lambda a: a[0], model.draw(params, x[None], k)))(keys)

    return jax.vmap(one)(x_BxHxWxC, id_B)


def add_log_weights(carry, log_w_BxK):
    """Streaming log Σ w and log Σ w² over samples: carry is (lse_B, lse2_B), −inf at the start."""
    lse, lse2 = carry
    lse = jnp.logaddexp(lse, jax.nn.logsumexp(log_w_BxK, axis=1))
    return lse, jnp.logaddexp(lse2, jax.nn.logsumexp(2 * log_w_BxK, axis=1))


def log_likelihood(c, model, params, split, levels, mesh, key, *, k, chunk=None):
    r"""Per-example figures over a whole split, in one pass: a dict of arrays of shape N.

    ``elbo``, ``log_px``, ``kl``, means over the K draws, and

    .. math:: \mathrm{iw} = \log \tfrac1K \sum_{k=1}^{K} p(x, z_k) / q(z_k|x), \quad z_k \sim q(z|x)

    (Burda et al. 2016, arXiv:1509.00519, eq. 8), a bound that rises to log p(x) with K. The samples are
    streamed in chunks through a running log-sum-exp; memory does not grow with K. ``ess`` is the
    effective sample size (Σw)²/Σw².
    """
    to_x = inputs(c, levels)
    one = jax.eval_shape(model.decode, params, jax.ShapeDtypeStruct((1, model.latent), jnp.float32))
    # About 5,000 images at once, fewer where their parameters would take more than 256 MiB.
    chunk = chunk or max(1, min(k, 5000 // c.eval.batch, 2**26 // (c.eval.batch * one.size)))

    def program(params, batch, first, carry, samples):
        d = draws(model, params, to_x(batch), batch["id"], key, first, samples)
        lse, lse2, log_px, kl = carry
        return *add_log_weights((lse, lse2), d.log_w), log_px + d.log_px.sum(1), kl + d.kl.sum((1, 2))

    sizes = [chunk] * (k // chunk) + ([k % chunk] if k % chunk else [])
    programs = {s: compile_lib.over_batches(lambda p, b, f, cr, s=s: program(p, b, f, cr, s), mesh) for s in set(sizes)}
    rows = []
    for batch, real in batches(split, c.eval.batch, mesh):
        none, zero = jnp.full(len(batch["id"]), -jnp.inf), jnp.zeros(len(batch["id"]))
        carry, first = jax.device_put((none, none, zero, zero), sharding.over_batch(mesh)), 0
        for size in sizes:
            carry = programs[size](params, batch, first, carry)
            first += size
        rows.append((dict(zip(("lse", "lse2", "log_px", "kl"), carry, strict=True)), real))
    out = gather(rows)
    out["log_px"], out["kl"] = out["log_px"] / k, out["kl"] / k
    out["elbo"] = out["log_px"] - out["kl"]
    out["iw"] = out["lse"] - np.log(k)
    out["ess"] = np.exp(2 * out.pop("lse") - out.pop("lse2"))
    return out


def batches(split, size, mesh):
    """({'image', 'label', 'id', 'mask'}, real count) of equal shapes; each example once, the rest masked."""
    size = -(-min(size, len(split.image)) // mesh.shape["data"]) * mesh.shape["data"]
    for index, mask in data.eval_batches(len(split.image), size):
        label = np.zeros(size, np.int32) if split.label is None else split.label[index]
        batch = {"image": np.asarray(split.image[index]), "label": label, "id": index, "mask": mask}
        yield batch, int(mask.sum())


def gather(rows):
    """Concatenate per-example device arrays of batches, padding dropped; float64 on the host."""
    names = rows[0][0].keys()
    return {
        n: np.concatenate([np.asarray(values[n])[:real] for values, real in rows]).astype(np.float64) for n in names
    }
