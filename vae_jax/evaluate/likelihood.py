"""ELBO and importance-weighted log-likelihood, example by example, in constant memory.

Each example's noise is keyed by (seed, example id, sample number), so a result does not depend on
the batch size, the number of devices or the order of the examples.
"""

import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from vae_jax.data import Split, evaluation
from vae_jax.distributions import example_keys, sample_keys
from vae_jax.evaluate.subject import Subject
from vae_jax.mesh import hosts
from vae_jax.mesh import rules as sharding
from vae_jax.models import Draw, Model
from vae_jax.train import program as compile_lib

# Parameters of p(x|z) that one device makes in one call: on CPU, what stays in its caches.
VALUES = {"cpu": 2**20, "other": 2**26}
Carry = tuple[jax.Array, jax.Array, jax.Array, jax.Array]  # B each
Rows = Sequence[tuple[Mapping[str, jax.Array], int]]  # per-example results, how many are real


def draws(
    model: Model,
    params: dict,
    x_BxHxWxC: jax.Array,
    id_B: jax.Array,
    key: jax.Array,
    first: int | jax.Array,
    samples: int,
) -> Draw:
    """Draws number ``first`` … ``first + samples − 1`` of each example; leaves BxKx….

    Each draw of a model with labels is a pass over all of them.
    """
    keys_KxB = sample_keys(example_keys(key, id_B), first + jnp.arange(samples))
    return _draws(model, params, x_BxHxWxC, keys_KxB)


def _draws(model: Model, params: dict, x_BxHxWxC: jax.Array, keys_KxB: jax.Array) -> Draw:
    """Leaves BxK…; one example at a time, so that a mesh can split both examples and samples."""

    def draws_of_one(x_HxWxC: jax.Array, keys_K: jax.Array) -> Draw:
        draws_Kx1 = model.draw(params, x_HxWxC[None], keys_K[:, None])
        return jax.tree.map(lambda a: a[:, 0], draws_Kx1)

    return jax.vmap(draws_of_one)(x_BxHxWxC, keys_KxB.T)


def add_log_weights(
    carry: tuple[jax.Array, jax.Array], log_w_BxK: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Streaming log Σ w and log Σ w² over samples: carry is (lse_B, lse2_B), −inf at the start."""
    lse, lse2 = carry
    lse = jnp.logaddexp(lse, jax.nn.logsumexp(log_w_BxK, axis=1))
    return lse, jnp.logaddexp(lse2, jax.nn.logsumexp(2 * log_w_BxK, axis=1))


def add_samples(
    carry: Carry,
    model: Model,
    params: dict,
    x_BxHxWxC: jax.Array,
    keys_KxB: jax.Array,
    mesh: jax.sharding.Mesh,
) -> Carry:
    """(log Σ w, log Σ w², Σ log p(x|z), Σ KL), each of shape B, with these draws added.

    The draws are spread over the whole mesh, images over ``data`` and samples over ``model``, so
    parameters that are split over ``model`` are gathered for the call.
    """
    params = jax.lax.with_sharding_constraint(params, sharding.replicated(mesh))
    d = _draws(model, params, x_BxHxWxC, keys_KxB)
    place = NamedSharding(mesh, P(sharding.BATCH, "model"))
    terms = (d.log_w, d.log_px, d.kl.sum(-1))
    log_w, log_px, kl = jax.lax.with_sharding_constraint(terms, place)
    return *add_log_weights(carry[:2], log_w), carry[2] + log_px.sum(1), carry[3] + kl.sum(1)


def log_likelihood(
    subject: Subject, split: Split, key: jax.Array, *, k: int, chunk: int | None = None
) -> dict[str, np.ndarray]:
    r"""Per-example results over a whole split, in one pass: a dict of arrays of shape N.

    ``elbo``, ``log_px``, ``kl``, means over the K draws, and

    .. math:: \mathrm{iw} = \log \tfrac1K \sum_{k=1}^{K} p(x, z_k) / q(z_k|x), \quad z_k \sim q(z|x)

    (Burda et al. 2016, arXiv:1509.00519, eq. 8), a bound that rises to log p(x) with K. ``ess`` is
    the effective sample size (Σw)²/Σw².

    The samples are streamed, ``chunk`` at a time, through a running log-sum-exp; memory does not
    grow with K. Few images meet many samples, so that the encoder, the binarisation and the prior's
    own nets, which a call runs once, cost next to nothing. ``config.eval.batch`` is the most images
    in a call.
    """
    model = subject.model
    mesh = subject.mesh
    to_x = evaluation.inputs(subject.config, subject.levels)
    images, fitting = call_size(model, mesh, k)
    chunk = chunk or fitting

    def program(params: dict, batch: dict, first: int, carry: Carry, samples: int) -> Carry:
        keys_KxB = sample_keys(example_keys(key, batch["id"]), first + jnp.arange(samples))
        return add_samples(carry, model, params, to_x(batch), keys_KxB, mesh)

    sizes = [chunk] * (k // chunk)
    if k % chunk:
        sizes.append(k % chunk)
    programs = {}
    for size in set(sizes):
        sized = functools.partial(program, samples=size)
        programs[size] = compile_lib.over_batches(sized, mesh)
    start = None
    rows = []
    for batch, real in evaluation.batches(split, min(subject.config.eval.batch, images), mesh):
        batch = hosts.place(batch, sharding.over_batch(mesh))
        if start is None:
            start = _start(len(batch["id"]), mesh)
        carry = start
        first = 0
        for size in sizes:
            carry = programs[size](subject.params, batch, first, carry)
            first += size
        rows.append((dict(zip(("lse", "lse2", "log_px", "kl"), carry, strict=True)), real))
    out = gather(rows)
    out["log_px"] /= k
    out["kl"] /= k
    out["elbo"] = out["log_px"] - out["kl"]
    out["iw"] = out["lse"] - np.log(k)
    out["ess"] = np.exp(2 * out.pop("lse") - out.pop("lse2"))
    return out


def _start(size: int, mesh: jax.sharding.Mesh) -> Carry:
    """The carry of :func:`add_samples` before the first draw."""
    nothing = np.full(size, -np.inf, np.float32)
    zero = np.zeros(size, np.float32)
    return hosts.place((nothing, nothing, zero, zero), sharding.over_batch(mesh))


def call_size(model: Model, mesh: jax.sharding.Mesh, k: int) -> tuple[int, int]:
    """(images, samples of each) in one call, for K samples.

    As many samples as fit, then images beside them: the parameters of p(x|z) of all draws of a
    device come to :data:`VALUES`, but no less than 32 draws.
    """
    height, width, channels = model.shape
    values = VALUES.get(mesh.devices.flat[0].platform, VALUES["other"])
    each = height * width * model.likelihood.outputs(channels)
    if model.spec.labelled:
        each *= model.classes
    rows = max(32, values // each)
    calls = -(-k // (rows * mesh.shape["model"]))
    samples = -(-k // calls)
    return sharding.ways(mesh) * max(1, rows // -(-samples // mesh.shape["model"])), samples


def over_split(
    subject: Subject,
    program: Callable[[dict, dict], Mapping[str, jax.Array]],
    split: Split,
    size: int | None = None,
) -> dict[str, np.ndarray]:
    """{name: N…}: ``program(params, batch)`` of all examples, ``size`` (eval.batch) at a time."""
    run = compile_lib.over_batches(program, subject.mesh)
    rows = []
    for batch, real in evaluation.batches(split, size or subject.config.eval.batch, subject.mesh):
        rows.append((run(subject.params, batch), real))
    return gather(rows)


def gather(rows: Rows) -> dict[str, np.ndarray]:
    """Concatenate per-example device arrays, padding dropped; float64 on the host."""
    out = {}
    for name in rows[0][0]:
        parts = [hosts.fetch(values[name])[:real] for values, real in rows]
        out[name] = np.concatenate(parts).astype(np.float64)
    return out
