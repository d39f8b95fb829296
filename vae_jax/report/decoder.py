"""A small decoder as numbers and a list of layers, which the page's script can run.

The page gets the weights in half precision (float16) and computes in float32: the mean of p(x|z)
for any z. Decoders ``mlp`` and ``conv`` of one-layer models without labels are packed, up to
:data:`LIMIT` numbers, where half precision moves no pixel by more than a grey level of 255; of
other models the page shows rows of images that Python has computed.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from vae_jax.models import Spec

LIMIT = 500_000  # numbers; 1 MB in half precision, a third more as text of the page
MEANS = {  # likelihood → how the script makes a pixel's mean of the decoder's output
    "bernoulli": "sigmoid",
    "gaussian": "identity",
    "gaussian_learned": "identity",
    "gaussian_optimal": "identity",
    "discretized_logistic": "logistic",
}

Layer = dict[str, Any]


class Decoder(NamedTuple):
    """z → the mean of p(x|z), as the page's script computes it.

    A layer is ``{"kind": "dense", "inputs", "outputs", "activation"}`` or ``{"kind": "up",
    "kernel", "rows", "columns", "inputs", "outputs", "activation"}``, a transposed convolution of
    stride 2 from a grid of rows x columns. Its kernel, then its bias are the next of ``weights``.
    """

    shape: tuple[int, int, int]  # H, W, C
    grid: tuple[int, int, int]  # rows, columns and channels of the last layer's output
    mean: str  # a value of MEANS
    layers: list[Layer]
    weights: np.ndarray  # float16

    def view(self) -> dict[str, Any]:
        """The fields as the script reads them, the weights as base64."""
        return self._asdict() | {"weights": text_of(self.weights)}


def text_of(numbers: np.ndarray) -> str:
    """Numbers in half precision, little-endian, as base64."""
    return base64.b64encode(np.asarray(numbers).astype("<f2").tobytes()).decode()


def pack(config: ConfigDict, params: Mapping[str, Any], spec: Spec) -> Decoder | None:
    """The decoder of a model for the page's script; None where the script cannot run it.

    A weight beyond the range of float16 (65,504) makes the decoder one that it cannot run.
    """
    plain = config.model.name == "vae" and config.dtype == "float32"
    if (
        not plain
        or config.posterior.name == "von_mises_fisher"
        or spec.likelihood.name not in MEANS
    ):
        return None
    layers_of = {"mlp": _mlp, "conv": _conv}.get(config.decoder.name)
    if layers_of is None:
        return None
    height, width, channels = spec.shape
    shape = (height, width, spec.likelihood.outputs(channels))
    layers, grid, parameters = layers_of(config.decoder, params["decoder"], shape)
    flat = [np.asarray(leaf, np.float32).reshape(-1) for leaf in parameters]
    weights = np.concatenate(flat)
    if len(weights) > LIMIT or np.abs(weights).max() > np.finfo(np.float16).max:
        return None
    mean = MEANS[spec.likelihood.name]
    return Decoder(spec.shape, grid, mean, layers, weights.astype(np.float16))


def rounded(params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters with those of the decoder rounded to half precision, as the page has them."""

    def half(leaf: jax.Array) -> jax.Array:
        return leaf.astype(np.float16).astype(leaf.dtype)

    return dict(params) | {"decoder": jax.tree.map(half, params["decoder"])}


Packed = tuple[list[Layer], tuple[int, int, int], Iterable[Any]]  # layers, grid, parameters


def _dense(parameters: Mapping[str, Any], activation: str) -> Layer:
    inputs, outputs = parameters["kernel"].shape
    return {"kind": "dense", "inputs": inputs, "outputs": outputs, "activation": activation}


def _mlp(c: ConfigDict, params: Mapping[str, Any], shape: tuple[int, int, int]) -> Packed:
    """Layers of ``nets.mlp.MLPDecoder``."""
    layers = []
    parameters = []
    for i in range(len(c.widths)):
        name = "gated" if c.activation == "gated" else "dense"
        one = params[f"Layer_{i}"][name]
        layers.append(_dense(one, c.activation))
        parameters += [one["kernel"], one["bias"]]
    out = params["out"]
    layers.append(_dense(out, "identity"))
    return layers, shape, [*parameters, out["kernel"], out["bias"]]


def _conv(c: ConfigDict, params: Mapping[str, Any], shape: tuple[int, int, int]) -> Packed:
    """Layers of ``nets.conv.ConvDecoder``."""
    dense = [params["Dense_0"], params["Dense_1"]]
    layers = [_dense(one, c.activation) for one in dense]
    doublings = [params[f"UpConv_{i}"] for i in range(len(c.widths) - 1)] + [params["out"]]
    rows = math.ceil(shape[0] / 2 ** len(doublings))
    columns = math.ceil(shape[1] / 2 ** len(doublings))
    for one in doublings:
        kernel, _, outputs, inputs = one["kernel"].shape
        layer = {"kind": "up", "kernel": kernel, "rows": rows, "columns": columns}
        layer |= {"inputs": inputs, "outputs": outputs, "activation": c.activation}
        layers.append(layer)
        rows *= 2
        columns *= 2
    layers[-1]["activation"] = "identity"
    parameters = []
    for one in [*dense, *doublings]:
        parameters += [one["kernel"], one["bias"]]
    return layers, (rows, columns, shape[2]), parameters
