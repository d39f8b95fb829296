r"""Models with labels y and a second latent variable a between x and (y, z):

.. math:: p(x, y, a, z) = p(x|\cdot)\, p(a|\cdot)\, p(y)\, p(z), \qquad
          q(a, y, z|x) = q(a|x)\, q(y|\cdot)\, q(z|\cdot)

:data:`SEES` says what stands for each dot.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vae_jax import distributions
from vae_jax.models.core import Array, Draw, Model, Params, Spec, over_samples
from vae_jax.models.labels import over_labels


class Sees(NamedTuple):
    """The variables that each net is given."""

    label: str  # q(y|·)
    latent: str  # q(z|·)
    auxiliary: str  # p(a|·)
    image: str  # p(x|·)


SEES = {
    "adgm": Sees("xa", "xay", "xyz", "yz"),  # Maaløe et al. 2016 (arXiv:1602.05473), section 2.2
    "sdgm": Sees("xa", "xay", "yz", "ayz"),  # there, section 2.4: x below a, with skip connections
    "m1m2": Sees("a", "ay", "yz", "a"),  # Kingma et al. 2014 (arXiv:1406.5298), section 3.1.3
}


class AuxiliaryParts(NamedTuple):
    """The nets as functions of parameters; each takes the variables as keywords x, a, y, z."""

    init: Callable[..., Params]
    first: Callable[..., Any]  # params, x → q(a|x)
    label: Callable[..., Array]  # params, x=, a= → logits of q(y|·), BxY
    latent: Callable[..., Any]  # params, x=, a=, y= → q(z|·)
    auxiliary: Callable[..., Any]  # params, x=, y=, z= → p(a|·)
    image: Callable[..., Array]  # params, a=, y=, z= → BxHxWxO
    prior: Callable[..., Any]  # params → p(z)


def auxiliary(spec: Spec, parts: AuxiliaryParts, kind: str) -> Model:
    r"""The model of a kind of :data:`SEES` as a value. A draw has two levels, a and z.

    Without labels ``draw`` sums over y exactly; all y meet one a:

    .. math:: U(x) = E_{q(a|x)} \sum_y q(y|x,a) \big(L(x, y; a) - \log q(y|x,a)\big)

    Maaløe et al. 2016 (arXiv:1602.05473), eqs. 6 to 11. Without keys the label is judged at the mean of q(a|x), and
    ``encode`` and ``decode`` go through the means of a.
    """
    sees = SEES[kind]

    def levels_at(params: Params, x: Array, a: Array, z: Array, y: Array) -> tuple[Array, Array]:
        """(log p(x|·), log p(a|·)) of given latents."""
        log_px = spec.likelihood.log_prob(parts.image(params, a=a, y=y, z=z), x)
        return log_px, parts.auxiliary(params, x=x, y=y, z=z).log_prob(a)

    def draw_given(params: Params, x: Array, keys_B: Array, y: Array) -> Draw:
        p = parts.prior(params)
        a, log_qa = parts.first(params, x).sample_and_log_prob(distributions.fold_keys(keys_B, 0))
        q = parts.latent(params, x=x, a=a, y=y)
        z, log_qz = q.sample_and_log_prob(distributions.fold_keys(keys_B, 1))
        log_px, log_pa = levels_at(params, x, a, z, y)
        log_pz = p.log_prob(z)
        kl_z = distributions.kl(q, p)
        if kl_z is None:
            kl_z = log_qz - log_pz
        kl = jnp.stack([log_qa - log_pa, kl_z], axis=-1)
        return Draw(log_px, kl, log_px + log_pa - log_qa + log_pz - log_qz, z)

    def draw_any(params: Params, x: Array, keys_B: Array) -> Draw:
        logits_BxY = classify(params, x, keys_B)
        labels = jnp.arange(spec.classes)
        d = jax.vmap(lambda y: draw_given(params, x, keys_B, y))(labels)
        log_px, kl = over_labels(jax.nn.log_softmax(logits_BxY), d.log_px, d.kl.sum(-1))
        log_w = jax.nn.logsumexp(d.log_w, axis=0) - math.log(spec.classes)
        return Draw(log_px, kl[:, None], log_w, d.z[jnp.argmax(logits_BxY, -1), jnp.arange(len(x))])

    def draw(params: Params, x: Array, keys: Array, y: Array | None = None) -> Draw:
        if y is None:
            return over_samples(lambda keys_B: draw_any(params, x, keys_B), keys)
        return over_samples(lambda keys_B: draw_given(params, x, keys_B, y), keys)

    def classify(params: Params, x: Array, keys: Array | None = None) -> Array:
        q = parts.first(params, x)
        if keys is None:
            return parts.label(params, x=x, a=q.mu)

        def one(keys_B: Array) -> Array:
            return parts.label(params, x=x, a=q.sample(distributions.fold_keys(keys_B, 0)))

        return over_samples(one, keys)

    def encode(params: Params, x: Array, y: Array) -> Any:
        return parts.latent(params, x=x, a=parts.first(params, x).mu, y=y)

    def decode(params: Params, z: Array, y: Array) -> Array:
        a = parts.auxiliary(params, x=None, y=y, z=z).mu if "a" in sees.image else None
        return parts.image(params, a=a, y=y, z=z)

    def not_known(*_: Any) -> Array:
        raise NotImplementedError(
            "log p(x, z) of a model with an auxiliary variable is an integral over a"
        )

    return Model(
        spec=spec,
        init=parts.init,
        draw=draw,
        log_joint=not_known,
        log_posterior=not_known,
        encode=encode,
        prior=parts.prior,
        decode=decode,
        sample=lambda params, keys_N, y=None: parts.prior(params).sample(keys_N),
        classify=classify,
        nets=parts,
    )
