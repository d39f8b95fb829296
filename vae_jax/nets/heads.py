"""From features to q(z|x), and the prior p(z): modules that return a distribution."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from vae_jax import distributions as densities
from vae_jax.nets.flows import MADE, CouplingNet

Params = dict[str, Any]
LOGVAR = (-20.0, 20.0)  # smooth bounds, so that exp never overflows


class Gaussian(nn.Module):
    """q(z|x) = N(μ(x), diag σ²(x))."""

    shape: int  # D
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, h: jax.Array) -> densities.Normal:
        out = nn.Dense(2 * self.shape, dtype=self.dtype)(h).astype(jnp.float32)
        mu, logvar = jnp.split(out, 2, axis=-1)
        return densities.Normal(mu, densities.soft_clip(logvar, *LOGVAR))


class FullGaussian(nn.Module):
    """q(z|x) = N(μ(x), L(x) L(x)ᵀ); begins as a diagonal one."""

    shape: int  # D
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, h: jax.Array) -> densities.FullNormal:
        mu, logvar = Gaussian(self.shape, dtype=self.dtype, name="diagonal")(h)
        size = self.shape * (self.shape - 1) // 2
        zeros = nn.initializers.zeros
        lower = nn.Dense(size, kernel_init=zeros, dtype=self.dtype, name="lower")(h)
        return densities.FullNormal(mu, densities.scale_tril(logvar, lower.astype(jnp.float32)))


class InverseAutoregressive(nn.Module):
    """q(z|x): a diagonal Gaussian through inverse autoregressive steps.

    Kingma et al. 2016 (arXiv:1606.04934).
    """

    shape: int  # D
    steps: int = 2
    hidden: Sequence[int] = (256,)
    context: int = 64
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, h: jax.Array) -> densities.Flow:
        base = Gaussian(self.shape, dtype=self.dtype, name="base")(h)
        context = nn.Dense(self.context, dtype=self.dtype, name="context")(h)
        context = nn.silu(context).astype(jnp.float32)
        made = MADE(self.hidden, self.shape, parent=None)

        def init(key: jax.Array) -> Params:
            return made.init(key, base.mu, context)["params"]

        def apply(params: Params, z: jax.Array, context: jax.Array) -> list[jax.Array]:
            return made.apply({"params": params}, z, context)

        params = [self.param(f"step_{i}", init) for i in range(self.steps)]
        return densities.autoregressive_flow(base, apply, params, context)


class FixedNormal(nn.Module):
    """p(z) = N(0, I)."""

    shape: int  # D
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self) -> densities.Normal:
        return _standard(self.shape)


class Mixture(nn.Module):
    """p(z): a learned mixture of diagonal Gaussians."""

    shape: int  # D
    components: int = 100
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self) -> densities.MixtureOfNormals:
        size = (self.components, self.shape)
        logits = self.param("logits", nn.initializers.zeros, (self.components,))
        mu = self.param("mu", nn.initializers.normal(1.0), size)
        logvar = self.param("logvar", nn.initializers.zeros, size)
        return densities.MixtureOfNormals(logits, mu, densities.soft_clip(logvar, *LOGVAR))


class Labelled(nn.Module):
    r"""p(z) = (1/Y) Σ_y p(z|y): a diagonal Gaussian for each label, component y of the mixture.

    With ``classifier.name=bayes``, p(y|z) by Bayes' rule, and the joint objective at gamma = 1 it
    makes the bound

    .. math:: \log p(x, y) \ge E_q[\log p(x|z) + \log p(z|y) + \log p(y) - \log q(z|x)]

    of a model in which the label shapes z. Joy et al. 2021 (arXiv:2006.10102) have a mapping
    y → p(z|y) too.
    """

    shape: int  # D
    outputs: int  # Y
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self) -> densities.MixtureOfNormals:
        size = (self.outputs, self.shape)
        mu = self.param("mu", nn.initializers.normal(1.0), size)
        logvar = self.param("logvar", nn.initializers.zeros, size)
        logits = jnp.zeros(self.outputs)
        return densities.MixtureOfNormals(logits, mu, densities.soft_clip(logvar, *LOGVAR))


class Vamp(nn.Module):
    """Pseudo-inputs u_KxHxWxC in (0, 1) of a VampPrior p(z) = (1/K) Σ_k q(z|u_k).

    The model encodes them: the prior's parameters are these and the encoder's. Tomczak & Welling
    2018 (arXiv:1705.07120), eq. 9; a sigmoid keeps u in range, where the paper clips.
    """

    image: tuple[int, int, int]
    components: int = 500
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self) -> jax.Array:
        size = (self.components, *self.image)
        return nn.sigmoid(self.param("pseudo", nn.initializers.normal(1.0), size))


class RealNVP(nn.Module):
    """p(z): N(0, I) through affine coupling steps (Dinh et al. 2017, arXiv:1605.08803)."""

    shape: int  # D
    steps: int = 4
    hidden: Sequence[int] = (128, 128)
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self) -> densities.Flow:
        net = CouplingNet(self.hidden, self.shape, parent=None)

        def init(key: jax.Array) -> Params:
            return net.init(key, jnp.zeros((1, self.shape)))["params"]

        def apply(params: Params, z: jax.Array) -> list[jax.Array]:
            return net.apply({"params": params}, z)

        params = [self.param(f"step_{i}", init) for i in range(self.steps)]
        return densities.coupling_flow(_standard(self.shape), apply, params)


def _standard(d: int) -> densities.Normal:
    return densities.Normal(jnp.zeros(d, jnp.float32), jnp.zeros(d, jnp.float32))
