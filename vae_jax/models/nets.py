"""The linen modules of a config as plain functions of their parameters."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from vae_jax import config as config_lib
from vae_jax import distributions
from vae_jax import nets as nets_lib
from vae_jax.config import UserError
from vae_jax.models.auxiliary import SEES, AuxiliaryParts
from vae_jax.models.core import Array, Params
from vae_jax.models.hierarchy import LevelParts, draw_level
from vae_jax.models.vae import Parts


@dataclasses.dataclass(frozen=True)
class Given:
    """What a model is built from: its config, and the facts of its data."""

    config: ConfigDict
    shape: tuple[int, int, int]
    classes: int
    likelihood: Any

    @property
    def dtype(self) -> jnp.dtype:
        return jnp.dtype(self.config.dtype)

    @property
    def out_shape(self) -> tuple[int, int, int]:
        """Of the parameters of p(x|z)."""
        height, width, channels = self.shape
        return height, width, self.likelihood.outputs(channels)

    @property
    def hierarchical(self) -> bool:
        """Whether the decoder has levels of its own."""
        decoder = config_lib.resolve("decoder", self.config.decoder.name)
        return hasattr(decoder, "groups")

    def module(self, part: str, **facts: Any) -> Any:
        """The linen module that the config names for a part."""
        return config_lib.build(part, self.config[part], dtype=self.dtype, **facts)


def logit_bias(mean_HxWxC: Array, shape: tuple[int, ...]) -> Array:
    """The output bias with which a Bernoulli decoder that ignores z gives the training mean."""
    mean = jnp.clip(mean_HxWxC, 1e-3, 1 - 1e-3)
    pixels = jnp.log(mean) - jnp.log1p(-mean)
    if pixels.size == math.prod(shape):
        return pixels.reshape(shape)
    return jnp.tile(pixels.mean((0, 1)), shape[0] // pixels.shape[-1])


@dataclasses.dataclass(frozen=True)
class Nets:
    """Modules by part, applied to parameters by part. ``labelled``: they take one-hot labels."""

    given: Given
    modules: dict[str, Any]
    latent: int
    code: int | None = None
    labelled: bool = False

    def net(self, part: str, params: Params) -> Callable[..., Any]:
        """A part's module as a function of its inputs; rematerialised as ``config.remat`` says."""
        module = self.modules[part]
        apply = module.apply
        # Posterior and prior make distributions, not arrays; a net with the field ``remat`` does it
        # block by block.
        own = part in ("posterior", "prior") or hasattr(module, "remat")
        if self.given.config.remat != "none" and not own:
            # What goes into a net is kept, or also its products; the rest is computed again.
            policy = None
            if self.given.config.remat == "dots":
                policy = jax.checkpoint_policies.dots_saveable
            apply = jax.checkpoint(apply, policy=policy)
        return functools.partial(apply, {"params": params[part]})

    def one_hot(self, y: Array | None) -> tuple[Array, ...]:
        """The label as an argument of a net: none where the nets take none."""
        if not self.labelled:
            return ()
        if y is None:
            name = self.given.config.model.name
            raise UserError(f"model.name={name}: p(x|y,z) and q(z|x,y) want a label")
        return (jax.nn.one_hot(y, self.given.classes, dtype=self.given.dtype),)

    def encode(self, params: Params, x: Array, y: Array | None = None) -> Any:
        h = self.net("encoder", params)(x.astype(self.given.dtype), *self.one_hot(y))
        return self.net("posterior", params)(h)

    def prior(self, params: Params) -> Any:
        p = self.net("prior", params)()
        if isinstance(p, jax.Array):  # pseudo-inputs of a VampPrior
            q = self.encode(params, p)
            return distributions.MixtureOfNormals(jnp.zeros(len(p)), q.mu, q.logvar)
        return p

    def decode(self, params: Params, z: Array, y: Array | None = None) -> Array:
        out = self.net("decoder", params)(z.astype(self.given.dtype), *self.one_hot(y))
        return out.astype(jnp.float32)

    def head(self, params: Params, z: Array) -> Array:
        """Logits of a label from the first ``code`` dimensions of z."""
        logits = self.net("classifier", params)(z.astype(self.given.dtype)[..., : self.code])
        return logits.astype(jnp.float32)

    def bayes_head(self, params: Params, z: Array) -> Array:
        """log p(z|y) of every label, p(y) being uniform: the prior has a component for each."""
        p = self.prior(params)
        labels = jnp.arange(self.given.classes)
        of_label = distributions.label_normal(labels, p.mu, p.logvar)
        return of_label.log_prob(z[..., None, :])

    def classify_image(self, params: Params, x: Array) -> Array:
        """Logits of q(y|x), by nets of its own: ``trunk``, and on its features the classifier."""
        features = self.net("trunk", params)(x.astype(self.given.dtype))
        return self.net("classifier", params)(top_features(features)).astype(jnp.float32)

    def features(self, params: Params, x: Array) -> Any:
        """What the bottom-up net of a hierarchy makes of x; it takes no label."""
        return self.net("encoder", params)(x.astype(self.given.dtype))

    def top_down(
        self,
        params: Params,
        features: Any,
        choose: Callable,
        given: list,
        rows: int,
        y: Array | None = None,
    ) -> tuple[Array, list]:
        """The way down of a hierarchy; a label enters here, where both q and p are read off."""
        variables = {"params": params["decoder"]}
        inputs = (features, choose, given, rows, *self.one_hot(y))
        out, records = self.modules["decoder"].apply(variables, *inputs)
        return out.astype(jnp.float32), records

    def init(self, key: Array, mean_HxWxC: Array | None = None) -> Params:
        dtype = self.given.dtype
        x = jnp.zeros((1, *self.given.shape), dtype)
        z = jnp.zeros((1, self.latent), dtype)
        y = (jnp.zeros(self.given.classes, dtype),) if self.labelled else ()
        numbers = enumerate(sorted(nets_lib.PARTS))
        keys = {part: jax.random.fold_in(key, number) for number, part in numbers}
        levels = hasattr(self.modules.get("decoder"), "groups")
        encoder = self.modules["encoder"]
        inputs = (x,) if levels else (x, *y)
        features, variables = encoder.init_with_output(keys["encoder"], *inputs)
        inputs = {"posterior": (features,), "prior": (), "decoder": (z, *y), "trunk": (x,)}
        inputs["classifier"] = (z[:, : self.code],)
        if self.labelled:
            inputs["classifier"] = (top_features(features),)
        if levels:
            level_keys = [
                jax.random.split(key, (n, 1)) for n, _ in self.modules["decoder"].groups()
            ]
            inputs["decoder"] = (features, draw_level, level_keys, 1, *y)
        params = {"encoder": variables.get("params", {})}
        for part, module in self.modules.items():
            if part != "encoder":
                params[part] = module.init(keys[part], *inputs[part]).get("params", {})
        return with_bias(params, mean_HxWxC)

    def parts(self) -> Parts:
        """The functions of a one-layer VAE."""
        head = None
        if self.given.config.classifier.name == "bayes":
            head = self.bayes_head
        elif "classifier" in self.modules:
            head = self.head
        decode = self.decode if "decoder" in self.modules else None
        return Parts(self.init, self.encode, self.prior, decode, head)

    def level_parts(self) -> LevelParts:
        """The functions of a hierarchy."""
        head = self.head if "classifier" in self.modules else None
        return LevelParts(self.init, self.features, self.top_down, head)


def top_features(features: Any) -> Array:
    """The input of a classifier of images: of a hierarchy the features of the coarsest grid."""
    if isinstance(features, tuple):
        return features[-1].reshape(len(features[-1]), -1)
    return features


def with_bias(params: Params, mean_HxWxC: Array | None) -> Params:
    """The parameters, the decoder's output bias at the logit of the mean image if there is one."""
    if mean_HxWxC is not None:
        bias = params["decoder"]["out"]["bias"]
        params["decoder"]["out"]["bias"] = logit_bias(mean_HxWxC, bias.shape)
    return params


# --- Nets of a model with an auxiliary variable ---


@dataclasses.dataclass(frozen=True)
class AuxiliaryNets:
    """z has ``latent`` dimensions, a has ``size``.

    q(a|x) is ``encoder`` and ``posterior``, p(x|·) is ``decoder``, as in a VAE of a alone; the
    other nets have the hidden layers of ``classifier``. In m1m2 the former are constants, M1's as
    they were trained.
    """

    given: Given
    kind: str
    size: int
    modules: dict[str, Any]

    def net(self, part: str, params: Params) -> Callable[..., Any]:
        """A part's module as a function of its inputs."""
        own = params[part]
        if self.kind == "m1m2" and part in ("encoder", "posterior", "decoder"):
            own = jax.lax.stop_gradient(own)
        return functools.partial(self.modules[part].apply, {"params": own})

    def inputs(self, sees: str, variables: dict[str, Array | None]) -> tuple[Array, ...]:
        """What a net is given: the variables that it sees as one row, and the label as one-hot."""
        dtype = self.given.dtype
        rows = []
        for name in sees:
            if name != "y":
                value = variables[name].astype(dtype)
                rows.append(value.reshape(len(value), -1))
        row = jnp.concatenate(rows, axis=-1)
        if "y" not in sees:
            return (row,)
        return row, jax.nn.one_hot(variables["y"], self.given.classes, dtype=dtype)

    def first(self, params: Params, x: Array) -> Any:
        h = self.net("encoder", params)(x.astype(self.given.dtype))
        return self.net("posterior", params)(h)

    def label(self, params: Params, **variables: Array) -> Array:
        h = self.net("label_trunk", params)(*self.inputs(SEES[self.kind].label, variables))
        return self.net("label", params)(h).astype(jnp.float32)

    def latent(self, params: Params, **variables: Array) -> Any:
        h = self.net("latent_trunk", params)(*self.inputs(SEES[self.kind].latent, variables))
        return self.net("latent", params)(h)

    def auxiliary(self, params: Params, **variables: Array | None) -> Any:
        h = self.net("first_trunk", params)(*self.inputs(SEES[self.kind].auxiliary, variables))
        return self.net("first", params)(h)

    def image(self, params: Params, **variables: Array | None) -> Array:
        row = self.inputs(SEES[self.kind].image, variables)
        return self.net("decoder", params)(*row).astype(jnp.float32)

    def init(self, key: Array, mean_HxWxC: Array | None = None) -> Params:
        given = self.given
        x = jnp.zeros((1, *given.shape))
        a = jnp.zeros((1, self.size))
        z = jnp.zeros((1, given.config.latent))
        variables = {"x": x, "a": a, "y": jnp.zeros(1, int), "z": z}
        features = (jnp.zeros((1, given.config.classifier.widths[-1]), given.dtype),)
        sees = SEES[self.kind]
        inputs = {
            "encoder": (x.astype(given.dtype),),
            "prior": (),
            "decoder": self.inputs(sees.image, variables),
            "label_trunk": self.inputs(sees.label, variables),
            "latent_trunk": self.inputs(sees.latent, variables),
            "first_trunk": self.inputs(sees.auxiliary, variables),
            "label": features,
            "latent": features,
            "first": features,
        }
        params = {}
        keys = jax.random.split(key, len(self.modules))
        for (part, module), part_key in zip(self.modules.items(), keys, strict=True):
            if part == "posterior":
                inputs[part] = (self.net("encoder", params)(x.astype(given.dtype)),)
            params[part] = module.init(part_key, *inputs[part]).get("params", {})
        return with_bias(params, mean_HxWxC)

    def prior(self, params: Params) -> Any:
        return self.net("prior", params)()

    def parts(self) -> AuxiliaryParts:
        return AuxiliaryParts(
            self.init, self.first, self.label, self.latent, self.auxiliary, self.image, self.prior
        )
