r"""Models with labels y and a second latent variable a between x and (y, z):

.. math:: p(x, y, a, z) = p(x|\cdot)\, p(a|\cdot)\, p(y)\, p(z), \qquad
          q(a, y, z|x) = q(a|x)\, q(y|\cdot)\, q(z|\cdot)

:data:`SEES` says what stands for each dot.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vae_jax import distributions
from vae_jax.config import UserError
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


@dataclasses.dataclass(frozen=True)
class Passes:
    """The stochastic passes of a model with an auxiliary variable."""

    spec: Spec
    parts: AuxiliaryParts
    sees: Sees

    def draw_given(self, params: Params, x: Array, keys_B: Array, y: Array) -> Draw:
        """a ~ q(a|x), z ~ q(z|·) of given labels: a bound on log p(x|y) of two levels, a and z."""
        parts = self.parts
        p = parts.prior(params)
        a, log_qa = parts.first(params, x).sample_and_log_prob(distributions.fold_keys(keys_B, 0))
        q = parts.latent(params, x=x, a=a, y=y)
        z, log_qz = q.sample_and_log_prob(distributions.fold_keys(keys_B, 1))
        log_px = self.spec.likelihood.log_prob(parts.image(params, a=a, y=y, z=z), x)
        log_pa = parts.auxiliary(params, x=x, y=y, z=z).log_prob(a)
        log_pz = p.log_prob(z)
        kl_z = distributions.kl(q, p)
        if kl_z is None:
            kl_z = log_qz - log_pz
        kl = jnp.stack([log_qa - log_pa, kl_z], axis=-1)
        return Draw(log_px, kl, log_px + log_pa - log_qa + log_pz - log_qz, z)

    def draw_any(self, params: Params, x: Array, keys_B: Array) -> Draw:
        """The sum over all labels, which meet one a: a bound on log p(x)."""
        classes = self.spec.classes
        logits_BxY = self.classify(params, x, keys_B)
        d = jax.vmap(functools.partial(self.draw_given, params, x, keys_B))(jnp.arange(classes))
        log_px, kl = over_labels(jax.nn.log_softmax(logits_BxY), d.log_px, d.kl.sum(-1))
        log_w = jax.nn.logsumexp(d.log_w, axis=0) - math.log(classes)
        z = d.z[jnp.argmax(logits_BxY, -1), jnp.arange(len(x))]
        return Draw(log_px, kl[:, None], log_w, z)

    def draw(self, params: Params, x: Array, keys: Array, y: Array | None = None) -> Draw:
        one = functools.partial(self.draw_any, params, x)
        if y is not None:
            one = functools.partial(self.draw_given, params, x, y=y)
        return over_samples(one, keys)

    def classify(self, params: Params, x: Array, keys: Array | None = None) -> Array:
        """Logits of q(y|·): at the mean of q(a|x), or at the a of each draw."""
        q = self.parts.first(params, x)
        if keys is None:
            return self.parts.label(params, x=x, a=q.mu)

        def one(keys_B: Array) -> Array:
            a = q.sample(distributions.fold_keys(keys_B, 0))
            return self.parts.label(params, x=x, a=a)

        return over_samples(one, keys)

    def encode(self, params: Params, x: Array, y: Array) -> Any:
        return self.parts.latent(params, x=x, a=self.parts.first(params, x).mu, y=y)

    def decode(self, params: Params, z: Array, y: Array) -> Array:
        a = None
        if "a" in self.sees.image:
            a = self.parts.auxiliary(params, x=None, y=y, z=z).mu
        return self.parts.image(params, a=a, y=y, z=z)

    def sample(self, params: Params, keys_N: Array, y: Array | None = None) -> Array:
        return self.parts.prior(params).sample(keys_N)


def _no_density(*_: Any) -> Array:
    raise UserError(
        "objective: log p(x, z) of this model is an integral over a; want objective.name=m2"
    )


def auxiliary(spec: Spec, parts: AuxiliaryParts, kind: str) -> Model:
    r"""The model of a kind of :data:`SEES` as a value. A draw has two levels, a and z.

    Without labels ``draw`` sums over y exactly; all y meet one a:

    .. math:: U(x) = E_{q(a|x)} \sum_y q(y|x,a) \big(L(x, y; a) - \log q(y|x,a)\big)

    Maaløe et al. 2016 (arXiv:1602.05473), eqs. 6 to 11. ``encode`` and ``decode`` go through the
    means of a.
    """
    passes = Passes(spec, parts, SEES[kind])
    return Model(
        spec=spec,
        init=parts.init,
        draw=passes.draw,
        log_joint=_no_density,
        log_posterior=_no_density,
        encode=passes.encode,
        prior=parts.prior,
        decode=passes.decode,
        sample=passes.sample,
        classify=passes.classify,
        nets=parts,
    )
