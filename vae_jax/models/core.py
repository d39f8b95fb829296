"""A model is a value: a tuple of pure functions of its parameters. Wrappers take one and give one.

Every density is float32, in nats, one number per example. ``keys`` are a key for each example,
keys_B, or keys_KxB for K draws of each; every leaf of a result then has an axis K in front.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array
Params = dict[str, Any]


class Draw(NamedTuple):
    """One stochastic pass x → z → p(x|z). L is the number of stochastic levels, often 1."""

    log_px: Array  # B      log p(x|z)
    kl: Array  # BxL    level by level, analytic where it is known, else log q − log p of the draw
    log_w: Array  # B      log p(x, z) − log q(z|x): the importance weight
    z: Array  # BxD
    extra: dict[str, Array] = {}  # further terms of q, B each; never changed  # noqa: RUF012


class Spec(NamedTuple):
    """What a model is of, as plain values."""

    shape: tuple[int, int, int]
    classes: int  # Y; 0 where the data has no labels
    latent: int  # D; of a hierarchy all its levels together
    likelihood: Any
    groups: tuple[
        tuple[int, int], ...
    ] = ()  # of a hierarchy: (levels of equal size, numbers of each)
    code: int | None = None  # recognition looks at the first so many dimensions of z; None: at all
    labelled: bool = False  # p(x|y, z): encode and decode take labels
    auxiliary: bool = False  # q(y|x) draws a variable a

    @property
    def levels(self) -> int:
        """L."""
        return sum(n for n, _ in self.groups) or 1


class Model(NamedTuple):
    """Functions of the parameters; ``y`` is None, a label for each example, or one for all.

    ``draw`` without labels is always a bound on log p(x): of a model with labels it sums over y.
    With labels it is one on log p(x|y). ``classify`` is always of x; ``head`` is the classifier of
    z where there is one, so that an objective that has drawn z need not run the encoder and its
    gradient again.
    """

    spec: Spec
    init: Callable[..., Params]  # key, mean training image or None → params
    draw: Callable[..., Draw]  # params, x_B, keys, y=None → Draw
    log_joint: Callable[..., Array]  # params, x_B, z, y=None → log p(x, z)
    log_posterior: Callable[..., Array]  # params, x_B, z, y=None → log q(z|x)
    encode: Callable[..., Any]  # params, x_B, y=None → q(z|x), a distribution
    prior: Callable[..., Any]  # params → p(z)
    decode: Callable[..., Array] | None  # params, z_BxD, y=None → the parameters of p(x|z), BxHxWxO
    sample: Callable[..., Array]  # params, keys_N, y=None → z_NxD of the prior
    classify: Callable[..., Array] | None  # params, x_B, keys=None → logits_BxY
    head: Callable[..., Array] | None = None  # params, z_BxD → logits_BxY
    # Of a hierarchy: params, x_B or None, keys, y=None, first=0, temperature=1 → z whose first
    # levels are q's means.
    complete: Callable[..., Array] | None = None
    # Of scenes: params, x_B → boxes.Detections, the objects that the model finds in each image.
    detect: Callable[..., Any] | None = None
    nets: Any = None  # the nets that the functions were made of, for tests and tools

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.spec.shape

    @property
    def classes(self) -> int:
        return self.spec.classes

    @property
    def latent(self) -> int:
        return self.spec.latent

    @property
    def likelihood(self) -> Any:
        return self.spec.likelihood

    @property
    def levels(self) -> int:
        return self.spec.levels

    def map_label(self, params: Params, x_BxHxWxC: Array) -> Array | None:
        """The y of encode and decode: an image's most probable label, or None without labels."""
        if not self.spec.labelled:
            return None
        return jnp.argmax(self.classify(params, x_BxHxWxC), -1)

    def label_turns(self, n: int) -> Array | None:
        """Labels 0, 1, …, Y − 1, 0, … of n examples where the model has labels, else None."""
        return jnp.arange(n) % self.spec.classes if self.spec.labelled else None


def scale_gradient(z: Array, scale: Array) -> Array:
    """z to the last bit, with gradients multiplied by ``scale`` (a constant) on their way back."""
    constant = jax.lax.stop_gradient(z)
    return constant + jax.lax.stop_gradient(scale) * (z - constant)


def classifier_of_code(
    encode: Callable[..., Any], head: Callable[..., Array] | None
) -> Callable[..., Array] | None:
    """``classify`` by a classifier of z: at the mean of q(z|x), or at a draw for each key."""
    if head is None:
        return None

    def classify(params: Params, x: Array, keys: Array | None = None) -> Array:
        q = encode(params, x)
        if keys is None:
            return head(params, q.mu)
        return over_samples(lambda keys_B: head(params, q.sample(keys_B)), keys)

    return classify


def over_samples(function: Callable[..., Any], keys: Array) -> Any:
    """``function(keys_B)``, or its K results for keys_KxB."""
    return function(keys) if keys.ndim == 1 else jax.vmap(function)(keys)
