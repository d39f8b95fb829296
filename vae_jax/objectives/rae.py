"""The regularised autoencoder: no noise in the code, and no bound."""

import jax
import jax.numpy as jnp

from vae_jax.models.core import Model, Params
from vae_jax.models.vae import log_likelihood
from vae_jax.objectives.terms import Terms


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
    codes is fitted afterwards: ``python -m vae_jax.tools.density``.

    Ghosh et al. 2020 (arXiv:1903.12436), eq. 6, 7 and 8.
    """
    x = batch["image"]
    z = model.encode(params, x).mu
    log_px = log_likelihood(model.spec, model.decode, params, x, z)
    size = 0.5 * jnp.sum(z**2, axis=-1)
    weights = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params.get("decoder", {})))
    loss = beta * size + decoder_l2 * weights - log_px
    return Terms(loss, None, log_px, None, {"code_energy": size})


rae.needs = "decoder"
