"""Likelihoods p(x|z) of images: what a decoder's output channels mean, in nats.

``out_BxHxWxO`` comes from the decoder, ``x_BxHxWxC`` is the image in [0, 1]; ``log_prob`` sums over
H, W and C in float32 (a K axis in front broadcasts). The three kinds of data:

- ``binary``: x is exactly 0 or 1, and p(x|z) is a probability;
- ``levels``: x is one of ``levels`` grey levels k / (levels - 1), and p(x|z) is a probability;
- ``unit``: x is taken as a real number in [0, 1], and p(x|z) is a density. Bits per dimension are
  then not defined, and values of two different kinds must not be compared.

Nothing is dequantised: the images that a model meets are k / (levels - 1) to the last bit.
``binary`` and ``levels`` need no dequantisation: their log_prob is that of the value itself, and
bits per dimension follow from it directly. A density of x + u, with u uniform over a value's bin,
would give a lower bound on log P(k) only (Theis et al. 2016, arXiv:1511.01844, section 3.1). A
``unit`` density is taken at the values themselves. On a finite set of values it can rise without
limit, as a Gaussian of learnt variance does down to its floor: its nats are no code length of the
image, and evaluation gives no bits per dimension.

``LIKELIHOODS[name](levels=…, …)`` makes a likelihood. ``levels`` is the data's number of grey
levels, which those for binary data and the densities do not use.
"""

from collections.abc import Callable

from vae_jax.config import UserError
from vae_jax.distributions.continuous import (
    continuous_bernoulli,
    gaussian,
    gaussian_learned,
    gaussian_optimal,
)
from vae_jax.distributions.discrete import (
    bernoulli,
    categorical,
    discretized_logistic,
    discretized_mix_logistic,
    log_discretized_logistic,
)
from vae_jax.distributions.likelihood import Likelihood, bits_per_dim
from vae_jax.ops import softplus

__all__ = [
    "LIKELIHOODS",
    "Likelihood",
    "bits_per_dim",
    "check",
    "log_discretized_logistic",
    "softplus",
]

LIKELIHOODS: dict[str, Callable[..., Likelihood]] = {
    "bernoulli": bernoulli,
    "continuous_bernoulli": continuous_bernoulli,
    "gaussian": gaussian,
    "gaussian_learned": gaussian_learned,
    "gaussian_optimal": gaussian_optimal,
    "discretized_logistic": discretized_logistic,
    "discretized_mix_logistic": discretized_mix_logistic,
    "categorical": categorical,
}


def check(likelihood: Likelihood, *, levels_of_data: int, binarized: bool) -> None:
    """Raise UserError unless the likelihood is one of this kind of data.

    levels_of_data: grey levels in the data set (256; 17 for digits; 2 for black and white).
    binarized: whether images are made binary before the model sees them.
    """
    levels = 2 if binarized else levels_of_data
    name = f"likelihood.name={likelihood.name}"
    if likelihood.data == "binary" and levels != 2:
        others = ", ".join(k for k in LIKELIHOODS if k != likelihood.name)
        raise UserError(
            f"{name}: is one of binary data, the images have {levels} levels; "
            f"want data.binarize or one of {others}"
        )
    if likelihood.data == "unit" and levels == 2:
        raise UserError(
            f"{name}: is a density of grey or colour data, the images are binary; want bernoulli"
        )
    if likelihood.data == "levels" and likelihood.levels != levels:
        raise UserError(
            f"{name}: was made for {likelihood.levels} levels, the images have {levels}; "
            f"want levels={levels}"
        )
