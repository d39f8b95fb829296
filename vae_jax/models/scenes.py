"""Models of scenes from a config's nets: attend-infer-repeat, a grid, a detector's head."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from vae_jax import nets
from vae_jax.config import UserError
from vae_jax.models import boxes
from vae_jax.models.air import WHERE, Law, Parts, attend_infer_repeat
from vae_jax.models.boxes import Detections
from vae_jax.models.core import Array, Model, Params, Spec
from vae_jax.models.grid import grid as grid_model
from vae_jax.models.nets import Given, Nets, top_features
from vae_jax.nets.attend import Attend
from vae_jax.nets.detection import DenseHead, feature_map
from vae_jax.nets.grid import CellHead

GLYPH_BIAS = -2.0  # of the first glyph's logits: objects begin dark
ADDITIVE = ("gaussian", "bernoulli")  # likelihoods whose mean a sum of objects can be
OBJECT_BIAS = -4.0  # of the first objectness: most cells are empty


def build_air(
    given: Given,
    *,
    steps: int = 3,
    window: int = 20,
    units: int = 128,
    present: float = 0.5,
    scale: float = 0.45,
    spread: float = 0.15,
) -> Model:
    """Attend, infer, repeat (Eslami et al. 2016, arXiv:1603.08575): at most ``steps`` objects.

    ``config.encoder`` looks at what is left of the image, ``config.decoder`` draws an object of
    ``window`` x ``window`` pixels from ``config.latent`` numbers, and a layer of ``units`` reads
    a window. The prior: one more object with probability ``present``; a window's side, in units
    of the canvas, is log-normal with median ``scale`` and ``spread`` in the logarithm.
    """
    check_additive(given, present)
    law = Law(steps, window, units, present, scale, spread)
    latent = steps * (1 + WHERE + given.config.latent)
    spec = Spec(given.shape, given.classes, latent, given.likelihood)
    return attend_infer_repeat(spec, air_parts(given, law), law)


def check_additive(given: Given, present: float) -> None:
    """Raise where a config cannot be a model of a square image as a sum of objects."""
    c = given.config
    height, width, _ = given.shape
    if height != width:
        raise UserError(f"model.name={c.model.name}: images of {height}x{width}; want square ones")
    if given.likelihood.name not in ADDITIVE:
        raise UserError(
            f"likelihood.name={given.likelihood.name}: model {c.model.name} sums objects; "
            f"want {' or '.join(ADDITIVE)}"
        )
    if c.decoder.name == "none" or given.hierarchical:
        raise UserError(
            f"decoder.name={c.decoder.name}: model {c.model.name} draws one object with it; "
            "want mlp or conv"
        )
    if not 0 < present < 1:
        raise UserError(f"model.present={present}: want 0 < value < 1")


def build_grid(
    given: Given,
    *,
    window: int = 16,
    units: int = 128,
    present: float = 0.1,
    scale: float = 0.25,
    spread: float = 0.15,
) -> Model:
    """A grid of cells with at most one object each (arXiv:2001.02407): many objects at once.

    Each cell of the last map of ``config.encoder`` (``conv``) has an object with probability
    ``present``; a layer of ``units`` looks at the map around it. The other fields are those of
    :func:`build_air`.
    """
    check_additive(given, present)
    rows, columns = map_shape(given)
    if rows != columns:
        raise UserError(f"encoder.strides: a map of {rows}x{columns} cells; want a square one")
    law = Law(rows * columns, window, units, present, scale, spread)
    latent = law.steps * (1 + WHERE + given.config.latent)
    spec = Spec(given.shape, given.classes, latent, given.likelihood)
    return grid_model(spec, grid_parts(given, law), law)


def map_shape(given: Given) -> tuple[int, int]:
    """(rows, columns) of the last map of the config's encoder."""
    name = given.config.encoder.name
    if name != "conv":
        raise UserError(f"encoder.name={name}: model grid has cells of convolutions; want conv")
    encoder = given.module("encoder")

    def last_map(key: Array) -> Array:
        x = jnp.zeros((1, *given.shape), given.dtype)
        return feature_map(encoder, encoder.init(key, x)["params"], x)

    return jax.eval_shape(last_map, jax.random.key(0)).shape[1:3]


@dataclasses.dataclass(frozen=True)
class SceneNets:
    """Modules by part: the encoder, one that finds objects, and those of a single object."""

    given: Given
    law: Law
    modules: dict[str, Any]

    @classmethod
    def of(cls, given: Given, law: Law, part: str, module: Any) -> "SceneNets":
        """``module`` finds objects, under the name ``part``."""
        shape = (law.window, law.window, given.shape[2])
        modules = {
            "encoder": given.module("encoder"),
            part: module,
            "glimpse": nets.MLPEncoder((law.units,), dtype=given.dtype),
            "what": nets.Gaussian(given.config.latent, dtype=given.dtype),
            "decoder": given.module("decoder", shape=shape),
        }
        return cls(given, law, modules)

    def apply(self, part: str, params: Params, *inputs: Array) -> Any:
        return self.modules[part].apply({"params": params[part]}, *inputs)

    def what(self, params: Params, glimpse: Array) -> nets.Gaussian:
        features = self.apply("glimpse", params, glimpse.astype(self.given.dtype))
        return self.apply("what", params, features)

    def glyph(self, params: Params, what: Array) -> Array:
        logits = self.apply("decoder", params, what.astype(self.given.dtype))
        return jax.nn.sigmoid(logits.astype(jnp.float32) + GLYPH_BIAS)

    def init(self, key: Array, part: str, see: Callable[[Params], tuple[Array, ...]]) -> Params:
        """``see(params)``: the inputs of the part that finds objects, given the encoder's."""
        keys = dict(zip(self.modules, jax.random.split(key, len(self.modules)), strict=True))
        dtype = self.given.dtype
        law = self.law
        x = jnp.zeros((1, *self.given.shape), dtype)
        encoder = self.modules["encoder"].init(keys["encoder"], x)
        params = {"encoder": encoder.get("params", {})}
        inputs = {
            part: see(params),
            "glimpse": (jnp.zeros((1, law.window, law.window, x.shape[-1]), dtype),),
            "what": (jnp.zeros((1, law.units), dtype),),
            "decoder": (jnp.zeros((1, self.given.config.latent), dtype),),
        }
        for name, values in inputs.items():
            params[name] = self.modules[name].init(keys[name], *values)["params"]
        return params


def air_parts(given: Given, law: Law) -> Parts:
    """The nets of :func:`build_air` as functions of parameters."""
    dtype = given.dtype
    own = SceneNets.of(given, law, "attend", Attend(law.units, dtype=dtype))

    def features(params: Params, x: Array) -> Array:
        return top_features(own.apply("encoder", params, x.astype(dtype)))

    def attend(params: Params, state: Array, features: Array, z: Array) -> tuple:
        return own.apply("attend", params, state.astype(dtype), features, z)

    def init(key: Array, mean_HxWxC: Array | None = None) -> Params:
        def see(params: Params) -> tuple[Array, ...]:
            state = jnp.zeros((1, law.units), dtype)
            before = jnp.zeros((1, WHERE + given.config.latent), dtype)
            return state, features(params, jnp.zeros((1, *given.shape))), before

        return own.init(key, "attend", see)

    return Parts(init, features, attend, own.what, own.glyph)


def grid_parts(given: Given, law: Law) -> Parts:
    """The nets of :func:`build_grid` as functions of parameters."""
    dtype = given.dtype
    own = SceneNets.of(given, law, "cells", CellHead((law.units,), dtype=dtype))

    def features(params: Params, x: Array) -> Array:
        return feature_map(own.modules["encoder"], params["encoder"], x.astype(dtype))

    def attend(params: Params, map_BxGxGxF: Array) -> tuple:
        return own.apply("cells", params, map_BxGxGxF)

    def init(key: Array, mean_HxWxC: Array | None = None) -> Params:
        def see(params: Params) -> tuple[Array, ...]:
            return (features(params, jnp.zeros((1, *given.shape))),)

        return own.init(key, "cells", see)

    return Parts(init, features, attend, own.what, own.glyph)


def with_detector(
    model: Model, functions: Nets, *, grid: int, classes: int, widths: Sequence[int], frozen: bool
) -> Model:
    """``model`` with a dense head on its encoder: a box, an objectness and classes for each cell.

    An anchor-free head of ``grid`` x ``grid`` cells (Redmon et al. 2016, arXiv:1506.02640): what a
    cell says is coded as :func:`vae_jax.models.boxes.encode` does. On an encoder that ends in
    convolutions (``conv``) it is convolutional and stands on the last of their maps; on another
    it is dense, on the features. ``frozen``: the encoder is a constant, as it was initialised or
    as ``config.init_from`` gave it.
    """
    given = functions.given
    outputs = 5 + classes
    convolutional = given.config.encoder.name == "conv"
    if convolutional:
        head = DenseHead(outputs, tuple(widths), dtype=given.dtype)
    else:
        head = nets.MLPClassifier(grid * grid * outputs, tuple(widths), dtype=given.dtype)

    def features(params: Params, x: Array) -> Array:
        x = x.astype(given.dtype)
        if convolutional:
            h = feature_map(functions.modules["encoder"], params["encoder"], x)
            _check_grid(h, grid)
        else:
            h = top_features(functions.features(params, x))
        return jax.lax.stop_gradient(h) if frozen else h

    def init(key: Array, mean_HxWxC: Array | None = None) -> Params:
        model_key, head_key = jax.random.split(key)
        params = model.init(model_key, mean_HxWxC)
        h = features(params, jnp.zeros((1, *given.shape)))
        return params | {"detector": head.init(head_key, h)["params"]}

    def detect(params: Params, x: Array) -> Detections:
        out = head.apply({"params": params["detector"]}, features(params, x))
        out = out.astype(jnp.float32).reshape(len(x), grid * grid, outputs)
        box_BxMx4 = boxes.decode(out[..., :4], jnp.arange(grid * grid), grid, x.shape[1])
        return Detections(box_BxMx4, out[..., 4] + OBJECT_BIAS, out[..., 5:])

    return model._replace(init=init, detect=detect)


def _check_grid(map_BxGxGxF: Array, grid: int) -> None:
    """Raise where the encoder's map has not one cell for each of the grid."""
    height, width = map_BxGxGxF.shape[1:3]
    if (height, width) != (grid, grid):
        raise UserError(
            f"model.grid={grid}: the encoder's last map is {height}x{width}; "
            "want its side, or other encoder.strides"
        )
