"""A discriminator that judges patches of an image, one number for each."""

from collections.abc import Sequence

import flax.linen as nn
import jax

from vae_jax.nets.conv import Conv


class PatchDiscriminator(nn.Module):
    """x_BxHxWxC → logits_BxN, one for each of the N patches that its last layer sees.

    Convolutions of 4x4, each with stride 2 and a leaky ReLU, and one that gives the numbers (Isola
    et al. 2017, arXiv:1611.07004, section 3.2.2), without norms, so that examples stay apart.
    """

    widths: Sequence[int] = (32, 64)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for width in self.widths:
            x = nn.leaky_relu(Conv(width, kernel=4, stride=2)(x), 0.2)
        return Conv(1, kernel=4)(x).reshape(len(x), -1)
