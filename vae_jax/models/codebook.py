"""A VAE whose z is quantised by a learned codebook, which posterior, prior and decoder share."""

from typing import Any

import jax
import jax.numpy as jnp

from vae_jax import config as config_lib
from vae_jax.config import UserError
from vae_jax.distributions.codebook import CodebookPrior, VectorQuantised
from vae_jax.models.build import build_vae
from vae_jax.models.core import Array, Model, Params
from vae_jax.models.nets import Given
from vae_jax.models.vae import vae


def with_codebook(model: Model, codes: int, width: int) -> Model:
    """The one-layer model with the means of its q(z|x) as features, quantised token by token.

    ``codes`` is K and ``width`` G, the numbers of a token. ``params["codebook"]`` has the vectors
    KxG and the logits PxK of a learned distribution of each token.
    """
    parts = model.nets
    tokens = model.spec.latent // width

    def init(key: Array, mean_HxWxC: Any = None) -> Params:
        nets_key, codebook_key = jax.random.split(key)
        vectors = jax.random.normal(codebook_key, (codes, width)) / jnp.sqrt(width)
        own = {"vectors": vectors, "logits": jnp.zeros((tokens, codes))}
        return parts.init(nets_key, mean_HxWxC) | {"codebook": own}

    def encode(params: Params, x: Array, y: Array | None = None) -> VectorQuantised:
        return VectorQuantised(parts.encode(params, x, y).mu, params["codebook"]["vectors"])

    def prior(params: Params) -> CodebookPrior:
        own = params["codebook"]
        return CodebookPrior(own["logits"], own["vectors"])

    quantised = parts._replace(init=init, encode=encode, prior=prior)
    return vae(model.spec, quantised)._replace(nets=quantised)


def build_vq(given: Given, *, codes: int = 512, width: int = 8) -> Model:
    """The VQ-VAE (van den Oord et al. 2017): P · width numbers of z are P tokens of K codes.

    Raises:
      UserError: the decoder has levels, ``latent`` is no multiple of ``width``, or the objective
        would leave the codebook as it began.
    """
    c = given.config
    if given.hierarchical:
        raise UserError(f"decoder.name={c.decoder.name}: model vq has one level; want mlp or conv")
    if c.prior.name != "normal" or c.posterior.name != "gaussian":
        raise UserError(
            "model.name=vq: has a posterior and a prior of its own; want posterior.name=gaussian "
            "and prior.name=normal, the defaults"
        )
    objective = config_lib.resolve("objective", c.objective.name)
    if ":" not in c.objective.name and getattr(objective, "needs", "") != "codebook":
        raise UserError(f"objective.name={c.objective.name}: trains no codebook; want vq")
    codes = c.model.get("codes", codes)
    width = c.model.get("width", width)
    if c.latent % width:
        near = max(1, round(c.latent / width)) * width
        wanted = f"want a multiple of model.width={width}, such as {near}"
        raise UserError(f"latent={c.latent}: {wanted}")
    return with_codebook(build_vae(given), codes, width)
