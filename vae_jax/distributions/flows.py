"""Normalising flows: invertible steps with conditioner *functions*, and their densities.

A step is ``step(params, u_BxD, inverse=False) -> (z_BxD, log_det_B)`` with log_det = log|det dz/du|
of the map that was applied (nats). Leading axes broadcast, as in ``z_KxBxD``.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vae_jax.distributions.normal import real, soft_clip
from vae_jax.ops import softplus

# (shift, log-scale) of a step as functions of z_BxD
Conditioner = Callable[[jax.Array], tuple[jax.Array, jax.Array]]
LOG_SCALE = 3.0  # one step scales a dimension by e^-3 .. e^3 at most


def _affine(
    z: jax.Array, shift: jax.Array, log_scale: jax.Array, inverse: bool
) -> tuple[jax.Array, jax.Array]:
    """z e^a + t, or its inverse (z - t) e^-a, and the log-scale that was applied."""
    a = soft_clip(log_scale, -LOG_SCALE, LOG_SCALE)
    if inverse:
        return (z - shift) * jnp.exp(-a), -a
    return z * jnp.exp(a) + shift, a


def coupling(
    z_BxD: jax.Array,
    mask_D: Sequence[bool],
    shift_and_log_scale: Conditioner,
    *,
    inverse: bool = False,
) -> tuple[jax.Array, jax.Array]:
    r"""Affine coupling: what the mask keeps decides how the rest is moved and scaled.

    .. math:: z'_d = z_d \text{ (kept)},\quad z'_d = z_d e^{a_d} + t_d \text{ (else)},
              \quad (t, a) = f(\text{mask} \odot z), \quad \log\det = \textstyle\sum_{else} a_d

    RealNVP, Dinh et al. 2017 (arXiv:1605.08803), eqs. 6-9; a is bounded by :func:`soft_clip`.
    Returns (z'_BxD, log_det_B).
    """
    z = real(z_BxD)
    keep = jnp.asarray(mask_D, bool)
    shift, log_scale = shift_and_log_scale(jnp.where(keep, z, 0.0))
    moved, a = _affine(z, real(shift), log_scale, inverse)
    return jnp.where(keep, z, moved), jnp.sum(jnp.where(keep, 0.0, a), axis=-1)


def autoregressive(
    z_BxD: jax.Array,
    shift_and_log_scale: Conditioner,
    *,
    inverse: bool = False,
    reverse: bool = False,
) -> tuple[jax.Array, jax.Array]:
    r"""Affine autoregressive step: z'_d = z_d exp(a_d(z_<d)) + t_d(z_<d), log det = Σ_d a_d.

    Inverse autoregressive flow, Kingma et al. 2016 (arXiv:1606.04934), Section 3. Forward is one
    call of the conditioner; ``inverse`` needs D + 1 calls, one after the other: the price of
    asking for the density of a point that was not sampled here. ``reverse`` turns the order of
    the dimensions round, so that steps in alternating order mix all of them. The conditioner is
    a pure function (a linen module's ``apply``): the inverse calls it inside a loop.
    """
    z = real(z_BxD)
    d = z.shape[-1]

    def turn(x: jax.Array) -> jax.Array:
        return x[..., ::-1] if reverse else x

    def conditioner(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        shift, log_scale = shift_and_log_scale(turn(x))
        return turn(real(shift)), turn(real(log_scale))

    if not inverse:
        z, a = _affine(z, *conditioner(z), False)
        return z, jnp.sum(a, axis=-1)

    def solve(i: int | jax.Array, x: jax.Array) -> jax.Array:
        # Dimension i depends on those before it, which are right by now.
        dimension = d - 1 - i if reverse else i
        return jnp.where(jnp.arange(d) == dimension, _affine(z, *conditioner(x), True)[0], x)

    x = jax.lax.fori_loop(0, d, solve, jnp.zeros_like(z))
    return x, jnp.sum(_affine(z, *conditioner(x), True)[1], axis=-1)


def _bounded(v: jax.Array) -> jax.Array:
    """A number > e^-3 − 1, increasing in v and 0 at v = 0: 1 + it is never below e^-LOG_SCALE."""
    least = math.exp(-LOG_SCALE)
    shift = math.log(math.expm1(1 - least))
    return least - 1 + softplus(real(v) + shift)


def planar(
    params: tuple[jax.Array, jax.Array, jax.Array], z_BxD: jax.Array, inverse: bool = False
) -> tuple[jax.Array, jax.Array]:
    r"""Space is moved along u, by as much as the place on the axis w says.

    .. math:: z' = z + \hat u \tanh(w^T z + b), \qquad
              \log\det = \log\big(1 + w^T\hat u\, (1 - \tanh^2(w^T z + b))\big)

    Rezende & Mohamed 2015 (arXiv:1505.05770), eq. 10 to 12. û is u with its part along w changed so
    that wᵀû > e^-3 − 1 (appendix A.1 has −1): the step is invertible and its determinant at least
    e^-3; û = u where wᵀu = 0. The inverse solves one equation in one unknown, a = wᵀz + b, by
    bisection.

    ``params``: (u_BxD, w_BxD, b_B). Returns (z'_BxD, log_det_B).
    """
    u, w, b = (real(array) for array in params)
    z = real(z_BxD)
    product = jnp.sum(w * u, axis=-1)
    square = jnp.maximum(jnp.sum(w**2, axis=-1), 1e-12)
    slope = _bounded(product)  # wᵀû
    moved = u + ((slope - product) / square)[..., None] * w
    place = jnp.sum(w * z, axis=-1) + b
    if inverse:
        place = _solve_planar(place, slope)
    t = jnp.tanh(place)
    log_det = jnp.log1p(slope * (1 - t**2))
    if inverse:
        return z - moved * t[..., None], -log_det
    return z + moved * t[..., None], log_det


def _solve_planar(target: jax.Array, slope: jax.Array) -> jax.Array:
    """a with a + slope · tanh(a) = target, for slope > −1.

    tanh is within ±1, so a is within ``|slope|`` of the target. The halvings have no gradient; the
    two steps of Newton's method after them have the root's, of first and second order.
    """
    target_value, slope_value = jax.lax.stop_gradient((target, slope))

    def halve(_: int, bracket: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        below, above = bracket
        middle = 0.5 * (below + above)
        high = middle + slope_value * jnp.tanh(middle) > target_value
        return jnp.where(high, below, middle), jnp.where(high, middle, above)

    reach = jnp.abs(slope_value)
    bracket = (target_value - reach, target_value + reach)
    below, above = jax.lax.fori_loop(0, 30, halve, bracket)
    a = 0.5 * (below + above)
    for _ in range(2):
        t = jnp.tanh(a)
        a -= (a + slope * t - target) / (1 + slope * (1 - t**2))
    return a


def radial(
    params: tuple[jax.Array, jax.Array, jax.Array], z_BxD: jax.Array, inverse: bool = False
) -> tuple[jax.Array, jax.Array]:
    r"""Space is drawn to a centre c, or pushed away from it.

    .. math:: z' = c + s\,(z - c), \quad s = 1 + \frac{\alpha\beta}{\alpha + r}, \quad
              \log\det = (D - 1) \log s + \log\Big(1 + \frac{\alpha^2\beta}{(\alpha + r)^2}\Big),
              \quad r = \|z - c\|

    Rezende & Mohamed 2015 (arXiv:1505.05770), eq. 14; their β is α times ours. α is in e^-3 … e^3
    and β > e^-3 − 1 (appendix A.2 has −1), so that the step is invertible and neither factor is
    below e^-3. The inverse is in closed form: r is the root of a quadratic.

    ``params``: (c_BxD, log_alpha_B, beta_B), the last two without bounds; β = 0 at beta = 0.
    Returns (z'_BxD, log_det_B).
    """
    centre, log_alpha, beta = (real(array) for array in params)
    alpha = jnp.exp(soft_clip(log_alpha, -LOG_SCALE, LOG_SCALE))
    beta = _bounded(beta)
    difference = real(z_BxD) - centre
    r = jnp.sqrt(jnp.sum(difference**2, axis=-1) + 1e-20)
    if inverse:
        r = _solve_radial(r, alpha, beta)
    h = alpha * beta / (alpha + r)
    log_det = (difference.shape[-1] - 1) * jnp.log1p(h) + jnp.log1p(h * alpha / (alpha + r))
    if inverse:
        return centre + difference / (1 + h)[..., None], -log_det
    return centre + difference * (1 + h)[..., None], log_det


def _solve_radial(target: jax.Array, alpha: jax.Array, beta: jax.Array) -> jax.Array:
    """r > 0 with r (1 + α β / (α + r)) = target: of r² + b r − α · target = 0."""
    b = alpha * (1 + beta) - target
    root = jnp.sqrt(b**2 + 4 * alpha * target)
    large = b > 0  # the sum without cancellation of either sign
    denominator = jnp.where(large, b + root, 1.0)
    return jnp.where(large, 2 * alpha * target / denominator, 0.5 * (root - b))


@dataclasses.dataclass(frozen=True)
class Coupling:
    """:func:`coupling` as a step; ``net(params, z) -> (shift, log_scale)``."""

    net: Callable[[Any, jax.Array], tuple[jax.Array, jax.Array]]
    mask: tuple[bool, ...]

    def __call__(
        self, params: Any, z: jax.Array, inverse: bool = False
    ) -> tuple[jax.Array, jax.Array]:
        return coupling(z, self.mask, functools.partial(self.net, params), inverse=inverse)


@dataclasses.dataclass(frozen=True)
class Autoregressive:
    """:func:`autoregressive` as a step; ``net(params, z, context) -> (shift, log_scale)``.

    The step's own params are the pair (params, context_BxC).
    """

    net: Callable[[Any, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
    reverse: bool

    def __call__(
        self, params: tuple[Any, jax.Array], z: jax.Array, inverse: bool = False
    ) -> tuple[jax.Array, jax.Array]:
        net_params, context = params

        def net(x: jax.Array) -> tuple[jax.Array, jax.Array]:
            return self.net(net_params, x, context)

        return autoregressive(z, net, inverse=inverse, reverse=self.reverse)


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["base", "params"], meta_fields=["steps"]
)
@dataclasses.dataclass(frozen=True)
class Flow:
    r"""The distribution of z = step_n(… step_1(u)), u ~ base: log p(z) = log p(u) - Σ log det.

    A pytree of the base's and the steps' parameters, so ``stop(flow)`` works; the steps are
    static. A context has the base's batch, and z may have axes in front of it.
    """

    base: Any  # a distribution
    params: tuple  # one entry per step
    steps: tuple

    @property
    def mu(self) -> jax.Array:
        """The image of the base's mean: a point to stand for the distribution, not its mean."""
        z = self.base.mu
        for step, params in zip(self.steps, self.params, strict=True):
            z, _ = step(params, z)
        return z

    def sample(self, keys: jax.Array) -> jax.Array:
        return self.sample_and_log_prob(keys)[0]

    def log_prob(self, z_BxD: jax.Array) -> jax.Array:
        total = 0.0
        for step, params in zip(reversed(self.steps), reversed(self.params), strict=True):
            z_BxD, log_det = step(params, z_BxD, inverse=True)
            total += log_det
        return self.base.log_prob(z_BxD) + total

    def sample_and_log_prob(self, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
        """z and log p(z) by forward passes alone."""
        z, log_prob = self.base.sample_and_log_prob(keys)
        for step, params in zip(self.steps, self.params, strict=True):
            z, log_det = step(params, z)
            log_prob -= log_det
        return z, log_prob


def coupling_flow(base: Any, net: Callable, params: Sequence[Any]) -> Flow:
    """RealNVP over the last axis of ``base``: one step per entry of ``params``, of which the even
    ones keep the even dimensions and the odd ones the odd. D = 1 leaves nothing to condition on."""
    d = base.mu.shape[-1]
    steps = []
    for step in range(len(params)):
        mask = tuple((i + step) % 2 == 0 for i in range(d))
        steps.append(Coupling(net, mask))
    return Flow(base, tuple(params), tuple(steps))


def autoregressive_flow(
    base: Any, net: Callable, params: Sequence[Any], context_BxC: jax.Array
) -> Flow:
    """The IAF posterior q(z|x): ``base`` (a Normal from the encoder), then one autoregressive step
    per entry of ``params``, in alternating order, all with the encoder's ``context``.

    ``sample_and_log_prob`` is one forward pass; ``log_prob`` of another point is sequential in D.
    """
    steps = tuple(Autoregressive(net, reverse=i % 2 == 1) for i in range(len(params)))
    return Flow(base, tuple((p, context_BxC) for p in params), steps)


def made_masks(dim: int, hidden: Sequence[int]) -> list[np.ndarray]:
    """Binary masks [in, out] of a masked MLP dim → hidden… → 2 x dim (shift, then log-scale).

    Output d depends on the inputs before d alone. Degrees: inputs 1 … D, hidden units 0 … D - 1
    spread evenly, outputs 1 … D; a connection must not lower the degree, and must raise it to an
    output. Units of degree 0 see a context only, so the first dimension depends on it too.
    MADE, Germain et al. 2015 (arXiv:1502.03509), Section 4.
    """
    inputs = np.arange(1, dim + 1)
    degrees = [inputs, *(np.arange(width) * dim // width for width in hidden)]
    masks = []
    for lower, upper in itertools.pairwise(degrees):
        masks.append(np.float32(upper[None, :] >= lower[:, None]))
    outputs = np.float32(inputs[None, :] > degrees[-1][:, None])
    return [*masks, np.tile(outputs, (1, 2))]
