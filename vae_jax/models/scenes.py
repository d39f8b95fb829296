"""Models of scenes from a config's nets: attend-infer-repeat, and a detector on any encoder."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from vae_jax import nets
from vae_jax.config import UserError
from vae_jax.models import boxes
from vae_jax.models.air import WHERE, Law, Parts, attend_infer_repeat
from vae_jax.models.boxes import Detections
from vae_jax.models.core import Array, Model, Params, Spec
from vae_jax.models.nets import Given, Nets, top_features
from vae_jax.nets.attend import Attend
from vae_jax.nets.detection import DenseHead, feature_map

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
    law = Law(steps, window, units, present, scale, spread)
    latent = steps * (1 + WHERE + c.latent)
    spec = Spec(given.shape, given.classes, latent, given.likelihood)
    return attend_infer_repeat(spec, air_parts(given, law), law)


def air_parts(given: Given, law: Law) -> Parts:
    """The nets of :func:`build_air` as functions of parameters."""
    c = given.config
    dtype = given.dtype
    glyph_shape = (law.window, law.window, given.shape[2])
    modules = {
        "encoder": given.module("encoder"),
        "attend": Attend(law.units, dtype=dtype),
        "glimpse": nets.MLPEncoder((law.units,), dtype=dtype),
        "what": nets.Gaussian(c.latent, dtype=dtype),
        "decoder": given.module("decoder", shape=glyph_shape),
    }

    def apply(part: str, params: Params, *inputs: Array) -> Array:
        return modules[part].apply({"params": params[part]}, *inputs)

    def features(params: Params, x: Array) -> Array:
        return top_features(apply("encoder", params, x.astype(dtype)))

    def attend(params: Params, state: Array, features: Array, z: Array) -> tuple:
        return apply("attend", params, state.astype(dtype), features, z)

    def what(params: Params, glimpse: Array) -> nets.Gaussian:
        return apply("what", params, apply("glimpse", params, glimpse.astype(dtype)))

    def glyph(params: Params, what: Array) -> Array:
        logits = apply("decoder", params, what.astype(dtype)).astype(jnp.float32)
        return jax.nn.sigmoid(logits + GLYPH_BIAS)

    def init(key: Array, mean_HxWxC: Array | None = None) -> Params:
        keys = dict(zip(modules, jax.random.split(key, len(modules)), strict=True))
        x = jnp.zeros((1, *given.shape), dtype)
        params = {"encoder": modules["encoder"].init(keys["encoder"], x).get("params", {})}
        state = jnp.zeros((1, law.units), dtype)
        before = jnp.zeros((1, WHERE + c.latent), dtype)
        inputs = {
            "attend": (state, features(params, x), before),
            "glimpse": (jnp.zeros((1, *glyph_shape), dtype),),
            "what": (state,),
            "decoder": (jnp.zeros((1, c.latent), dtype),),
        }
        for part, values in inputs.items():
            params[part] = modules[part].init(keys[part], *values)["params"]
        return params

    return Parts(init, features, attend, what, glyph)


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
