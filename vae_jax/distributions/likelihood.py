"""What a likelihood p(x|z) of images is; ``likelihoods`` describes the kinds and has the table."""

import dataclasses
import math
from collections.abc import Callable

import jax

from vae_jax.config import UserError

LogProb = Callable[[jax.Array, jax.Array], jax.Array]  # out_BxHxWxO, x_BxHxWxC → B
Mean = Callable[[jax.Array], jax.Array]  # out_BxHxWxO → BxHxWxC
Sample = Callable[[jax.Array, jax.Array], jax.Array]  # key, out_BxHxWxO → BxHxWxC


@dataclasses.dataclass(frozen=True)
class Likelihood:
    """p(x|z) as functions of the decoder's output.

    data: 'binary', 'levels' or 'unit' (see ``likelihoods``). levels: how many, None for a density.
    outputs(C) -> O; log_prob(out, x) -> B; mean(out) -> BxHxWxC; sample(key, out) -> BxHxWxC.
    """

    name: str
    data: str
    levels: int | None
    outputs: Callable[[int], int]
    log_prob: LogProb
    mean: Mean
    sample: Sample

    @property
    def discrete(self) -> bool:
        """Whether log_prob is a log-probability, so that bits per dimension are defined."""
        return self.levels is not None


def bits_per_dim(nats_B: jax.Array, shape: tuple[int, int, int]) -> jax.Array:
    """nats / (H W C ln 2) for a negative log-likelihood of discrete data; shape = (H, W, C).

    It is defined for a probability P(k), without dequantisation, and not for a density.
    """
    return nats_B / (math.prod(shape) * math.log(2))


def one_output_each(channels: int) -> int:
    """``outputs`` of a likelihood with one number for each value of the image."""
    return channels


def check_count(field: str, value: int, least: int) -> None:
    """Raise UserError unless the field is a whole number >= ``least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"likelihood.{field}={value}: want a whole number >= {least}")
