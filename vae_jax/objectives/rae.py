"""The regularised autoencoders: no noise in the code, and no bound."""

import jax
import jax.numpy as jnp

from vae_jax.distributions import standard_normal
from vae_jax.models.core import Model, Params
from vae_jax.models.vae import log_likelihood
from vae_jax.objectives.terms import Terms

STEP = 0.01  # of the difference quotient in rae_gp, in units of z


def rae(
    model: Model,
    params: Params,
    batch: dict,
    keys: jax.Array,
    *,
    beta: float = 0.01,
    decoder_l2: float = 1e-6,
) -> Terms:
    r"""RAE-L2: reconstruction from the mean of q(z|x), a small code and small decoder weights.

    .. math:: \mathrm{loss} = -\log p(x|z) + \tfrac{\beta}{2} \lVert z\rVert^2
              + \lambda \lVert\theta_{\mathrm{decoder}}\rVert^2, \qquad z = \mu(x)

    λ is ``decoder_l2``. Nothing trains the variance of q, so a bound that an evaluation takes of
    such a run is one of an arbitrary q; the prior's samples mean nothing either. A density for the
    codes is fitted afterwards: ``python -m vae_jax.tools.density``. With both weights 0 it is the
    plain autoencoder.

    Ghosh et al. 2020 (arXiv:1903.12436), eq. 6, 7 and 8.
    """
    _, log_px, size = reconstruction(model, params, batch["image"])
    weights = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params.get("decoder", {})))
    loss = beta * size + decoder_l2 * weights - log_px
    return Terms(loss, None, log_px, None, {"code_energy": size})


def rae_gp(
    model: Model,
    params: Params,
    batch: dict,
    keys: jax.Array,
    *,
    beta: float = 0.01,
    gradient_penalty: float = 0.1,
) -> Terms:
    r"""RAE-GP: :func:`rae` with a smooth decoder in the place of small weights.

    .. math:: \mathrm{loss} = -\log p(x|z) + \tfrac{\beta}{2} \lVert z\rVert^2
              + \lambda \lVert \nabla_z\, \bar x(z) \rVert_F^2, \qquad z = \mu(x)

    x̄ is the mean of p(x|z) and λ is ``gradient_penalty``. The square of the Jacobian is estimated
    by one direction u ~ N(0, I) for each example, ‖x̄(z + h u) − x̄(z)‖² / h² with h = 0.01: its
    mean is the square up to terms of h², and it needs no second derivative of the decoder.

    Ghosh et al. 2020 (arXiv:1903.12436), eq. 6, 7 and 9.
    """
    z, log_px, size = reconstruction(model, params, batch["image"])
    slope = squared_jacobian(model, params, z, keys)
    loss = beta * size + gradient_penalty * slope - log_px
    return Terms(loss, None, log_px, None, {"code_energy": size, "squared_jacobian": slope})


def reconstruction(
    model: Model, params: Params, x_BxHxWxC: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(z_BxD, log p(x|z), ½ ‖z‖²) at the means of q(z|x)."""
    z = model.encode(params, x_BxHxWxC).mu
    log_px = log_likelihood(model.spec, model.decode, params, x_BxHxWxC, z)
    return z, log_px, 0.5 * jnp.sum(z**2, axis=-1)


def squared_jacobian(
    model: Model, params: Params, z_BxD: jax.Array, keys_B: jax.Array
) -> jax.Array:
    """An estimate of ‖∇_z x̄(z)‖_F² for each example, shape B, without bias but for O(h²)."""

    def mean(z: jax.Array) -> jax.Array:
        return model.likelihood.mean(model.decode(params, z, None))

    direction = standard_normal(keys_B, z_BxD.shape[-1])
    difference = mean(z_BxD + STEP * direction) - mean(z_BxD)
    return jnp.sum(difference**2, axis=(1, 2, 3)) / STEP**2


rae.needs = "decoder"
rae_gp.needs = "decoder"
