"""The ELBO with a discriminator that tells patches of images from patches of reconstructions."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from vae_jax.distributions.normal import real
from vae_jax.models.core import Model, Params
from vae_jax.nets.patch import PatchDiscriminator
from vae_jax.objectives.perceptual import decoded, with_term
from vae_jax.objectives.terms import Terms, sample_k

LEAST = 1e-4  # of a gradient's norm that is divided by
MOST = 1e4  # of the adaptive weight


def adversarial(
    model: Model,
    params: Params,
    batch: dict,
    keys: jax.Array,
    *,
    beta: float = 1.0,
    weight: float = 0.5,
) -> Terms:
    r"""The ELBO, and what a discriminator of patches thinks of the reconstruction.

    .. math:: \mathrm{loss} = -E_q \log p(x|z) + \beta\,KL - w \lambda\,\overline{D(\hat x)},
              \quad \hat x = E[x|z], \quad
              \lambda = \frac{\lVert \partial \log p(x|z) / \partial o \rVert}
                             {\lVert \partial \overline{D(\hat x)} / \partial o \rVert}

    o is what the decoder gives for the example, so that the second term pulls at it ``weight``
    times as hard as the first: the adaptive weight of VQGAN (Esser et al. 2021, arXiv:2012.09841,
    eq. 7), there of a batch and at the decoder's last layer, here of each example, which keeps
    examples apart. λ is a constant of the gradient, and at most 10⁴.

    D, a :class:`~vae_jax.nets.patch.PatchDiscriminator`, is ``params["objective"]``. It minimises
    the hinge loss ½ [max(0, 1 − D(x)) + max(0, 1 + D(x̂))], mean over patches, in the same step;
    neither net sees the other's gradient. The term has no unit and is no likelihood; ``elbo``,
    ``log_px`` and ``kl`` are the plain bound's.

    Raises:
      UserError: the model has no decoder, or one that takes labels.
    """
    x = batch["image"]
    draws = sample_k(model, params, x, keys, 1)
    out = decoded(model, params, draws)
    stop = jax.lax.stop_gradient
    net = params["objective"]

    def judged(out: jax.Array) -> jax.Array:
        """The mean of D over the patches of each reconstruction, B."""
        return _judge(stop(net), model.likelihood.mean(out)).mean(-1)

    def log_likelihood(out: jax.Array) -> jax.Array:
        return model.likelihood.log_prob(out, x)

    pull = _norms(log_likelihood, out) / (_norms(judged, out) + LEAST)
    adaptive = stop(jnp.minimum(pull, MOST))
    of_real = _judge(net, real(x))
    of_rebuilt = _judge(net, stop(model.likelihood.mean(out)))
    hinge = 0.5 * (jax.nn.relu(1 - of_real) + jax.nn.relu(1 + of_rebuilt)).mean(-1)
    generator = judged(out)
    term = hinge - stop(hinge) - weight * adaptive * generator
    extra = {"judged": generator, "adaptive_weight": adaptive, "discriminator": hinge}
    return with_term(draws, beta, term, extra)


def _judge(net: Params, x_BxHxWxC: jax.Array) -> jax.Array:
    return PatchDiscriminator().apply({"params": net}, x_BxHxWxC)


def _norms(function: Callable[[jax.Array], jax.Array], out: jax.Array) -> jax.Array:
    """‖∂ function_b / ∂ out_b‖ of each example, B."""
    gradient = jax.grad(lambda out: function(out).sum())(jax.lax.stop_gradient(out))
    return jnp.sqrt((real(gradient) ** 2).reshape(len(out), -1).sum(-1))


def _init_discriminator(key: jax.Array, model: Model) -> Params:
    image = jnp.zeros((1, *model.shape))
    return PatchDiscriminator().init(key, image)["params"]


adversarial.init = _init_discriminator
adversarial.needs = "decoder"
