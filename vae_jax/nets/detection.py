"""The convolutional head of a detector, and the feature map of an encoder that it stands on."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from vae_jax.nets.conv import Conv


class DenseHead(nn.Module):
    """map_BxGxGxF → out_BxGxGxO: 3x3 convolutions of these widths, then 1x1; one for all cells."""

    outputs: int
    widths: Sequence[int] = (128,)
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, h: jax.Array) -> jax.Array:
        h = nn.relu(h)
        for width in self.widths:
            h = nn.relu(Conv(width, 3, dtype=self.dtype)(h))
        return Conv(self.outputs, 1, dtype=self.dtype)(h)


def feature_map(encoder: nn.Module, params: Any, x: jax.Array) -> jax.Array | None:
    """What an encoder's last convolution makes of x, BxGxGxF; None where it has none."""

    def is_conv(module: nn.Module, method: str) -> bool:
        return isinstance(module, Conv) and method == "__call__"

    variables = {"params": params}
    _, state = encoder.apply(variables, x, capture_intermediates=is_conv)
    maps = {}
    for name, values in state.get("intermediates", {}).items():
        kind, _, number = name.partition("_")
        if kind == "Conv":
            maps[int(number)] = values["__call__"][0]
    return maps[max(maps)] if maps else None
