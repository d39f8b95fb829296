"""A VAE whose z is quantised by a learned codebook, which posterior, prior and decoder share."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from vae_jax import config as config_lib
from vae_jax.config import UserError
from vae_jax.distributions.code_prior import Autoregressive
from vae_jax.distributions.codebook import CodebookPrior, VectorQuantised
from vae_jax.models.build import build_vae
from vae_jax.models.core import Array, Model, Params
from vae_jax.models.nets import Given
from vae_jax.models.vae import vae
from vae_jax.nets.autoregressive import OfTokens


def with_codebook(
    model: Model, codes: int, width: int, autoregressive: OfTokens | None = None
) -> Model:
    """The one-layer model with the means of its q(z|x) as features, quantised token by token.

    ``codes`` is K and ``width`` G, the numbers of a token. ``params["codebook"]`` has the vectors
    KxG. The prior is a learned distribution of each token, whose logits PxK are there too, or the
    ``autoregressive`` one of ``params["prior"]``.
    """
    parts = model.nets
    tokens = model.spec.latent // width

    def init(key: Array, mean_HxWxC: Any = None) -> Params:
        nets_key, codebook_key = jax.random.split(key)
        vectors = jax.random.normal(codebook_key, (codes, width)) / jnp.sqrt(width)
        params = parts.init(nets_key, mean_HxWxC) | {"codebook": {"vectors": vectors}}
        if autoregressive is None:
            params["codebook"]["logits"] = jnp.zeros((tokens, codes))
        else:
            prior_key = jax.random.fold_in(codebook_key, 1)
            params["prior"] = autoregressive.init(prior_key, vectors)["params"]
        return params

    def encode(params: Params, x: Array, y: Array | None = None) -> VectorQuantised:
        return VectorQuantised(parts.encode(params, x, y).mu, params["codebook"]["vectors"])

    def prior(params: Params) -> CodebookPrior | Autoregressive:
        own = params["codebook"]
        if autoregressive is not None:
            return autoregressive.apply({"params": params["prior"]}, own["vectors"])
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
    if c.prior.name not in ("normal", "autoregressive") or c.posterior.name != "gaussian":
        raise UserError(
            "model.name=vq: has a posterior and a prior of its own; want posterior.name=gaussian "
            "and prior.name=normal, the defaults, or prior.name=autoregressive"
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
    if c.prior.name == "normal":
        return with_codebook(build_vae(given), codes, width)
    features = c.copy_and_resolve_references()
    features.prior = config_lib.call("prior", "normal")
    model = build_vae(dataclasses.replace(given, config=features))
    autoregressive = OfTokens(c.latent // width, tuple(c.prior.hidden))
    return with_codebook(model, codes, width, autoregressive)
