"""The one-layer VAE: p(x|z) p(z) with q(z|x), from four functions of parameters."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vae_jax import distributions
from vae_jax.config import UserError
from vae_jax.mesh import layout
from vae_jax.models.core import (
    Array,
    Draw,
    Model,
    Params,
    Spec,
    classifier_of_code,
    over_samples,
)


class Parts(NamedTuple):
    """The nets of a VAE as functions of its parameters."""

    init: Callable[..., Params]
    encode: Callable[..., Any]  # params, x_B, y=None → q(z|x)
    prior: Callable[..., Any]  # params → p(z)
    decode: Callable[..., Array] | None  # params, z_BxD, y=None → BxHxWxO
    head: Callable[..., Array] | None  # params, z_BxD → logits_BxY


@dataclasses.dataclass(frozen=True)
class OneLayer:
    """The functions of a one-layer VAE."""

    spec: Spec
    parts: Parts

    def draw(self, params: Params, x: Array, keys: Array, y: Array | None = None) -> Draw:
        q = self.parts.encode(params, x, y)
        p = self.parts.prior(params)

        def latent(keys_B: Array) -> tuple[Array, ...]:
            z, log_qz = q.sample_and_log_prob(keys_B)
            log_pz = p.log_prob(z)
            kl = distributions.kl(q, p)
            return z, log_pz - log_qz, log_qz - log_pz if kl is None else kl

        z, log_ratio, kl = over_samples(latent, keys)
        if keys.ndim == 2:
            z, log_ratio = layout.constrain((z, log_ratio), len(keys))
        log_px = log_likelihood(self.spec, self.parts.decode, params, x, z, y)
        return Draw(log_px, kl[..., None], log_px + log_ratio, z)

    def log_joint(self, params: Params, x: Array, z: Array, y: Array | None = None) -> Array:
        log_px = log_likelihood(self.spec, self.parts.decode, params, x, z, y)
        return log_px + self.parts.prior(params).log_prob(z)

    def log_posterior(self, params: Params, x: Array, z: Array, y: Array | None = None) -> Array:
        q = self.parts.encode(params, x, y)
        return q.log_prob(z) if z.ndim == 2 else jax.vmap(q.log_prob)(z)

    def sample(self, params: Params, keys_N: Array, y: Array | None = None) -> Array:
        return self.parts.prior(params).sample(keys_N)


def vae(spec: Spec, parts: Parts) -> Model:
    r"""A one-layer VAE as a value.

    .. math:: \log p(x) \ge E_{q(z|x)}[\log p(x|z)] - KL(q(z|x) \| p(z))

    Kingma & Welling 2014 (arXiv:1312.6114), eq. 3.
    """
    functions = OneLayer(spec, parts)
    return Model(
        spec=spec,
        init=parts.init,
        draw=functions.draw,
        log_joint=functions.log_joint,
        log_posterior=functions.log_posterior,
        encode=parts.encode,
        prior=parts.prior,
        decode=parts.decode,
        sample=functions.sample,
        classify=classifier_of_code(parts.encode, parts.head),
        head=parts.head,
    )


def log_likelihood(
    spec: Spec,
    decode: Callable[..., Array] | None,
    params: Params,
    x_BxHxWxC: Array,
    z: Array,
    y: Array | None = None,
) -> Array:
    """log p(x|z), or log p(x|y, z), of z_BxD or z_KxBxD; shape B or KxB."""
    if decode is None:
        raise UserError(
            "decoder.name=none: this objective needs one; want decoder.name=mlp or conv"
        )
    if z.ndim == 2:
        return spec.likelihood.log_prob(decode(params, z, y), x_BxHxWxC)
    # One batch of B·K rows, those of an example side by side, as the devices hold them; the
    # outermost axis is the devices' that share the samples, W of them (1 without a mesh axis for
    # samples).
    k, b, d = z.shape
    w = layout.num_shards(k)
    if y is not None and jnp.ndim(y):
        y = jnp.tile(jnp.repeat(y, k // w), w)
    rows = jnp.swapaxes(z.reshape(w, k // w, b, d), 1, 2).reshape(w * b * (k // w), d)
    out = decode(params, layout.constrain(rows, k, batch=True), y)
    out = out.reshape(w, b, k // w, *out.shape[1:])
    log_px_WxBxK = spec.likelihood.log_prob(out, x_BxHxWxC[:, None])
    return jnp.swapaxes(log_px_WxBxK, 1, 2).reshape(k, b)
