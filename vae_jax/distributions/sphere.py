r"""The unit sphere S^{D-1} in R^D: von Mises-Fisher densities and the uniform one.

Davidson et al. 2018, Hyperspherical Variational Auto-Encoders (arXiv:1804.00891). Modified Bessel
functions I_v enter through the ratios r_v = I_{v+1} / I_v, which obey r_v = 1 / (2 (v + 1) / κ +
r_{v+1}): evaluated downwards this is stable for every order v >= 0 and every κ > 0.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vae_jax.distributions.keys import split_keys, standard_normal
from vae_jax.distributions.normal import real, register_kl

UNIFORM_FROM = 24  # orders from here on take Olver's expansion, whose next term is below 1e-7
GUESS_AFTER = 16  # orders beyond the last ratio wanted where the recurrence begins
QUADRATURE = 48  # Gauss-Legendre nodes of the gradient of a sample
TAIL = 30.0  # exp(-30) is nothing in float32


def _uniform_series(v: float, t: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(Σ U_k(t) / v^k, Σ V_k(t) / v^k), k = 1 to 3, of I_v and its derivative.

    DLMF 10.41.10 and 10.41.11.
    """
    u1 = (3 * t - 5 * t**3) / 24
    u2 = (81 * t**2 - 462 * t**4 + 385 * t**6) / 1152
    u3 = (30375 * t**3 - 369603 * t**5 + 765765 * t**7 - 425425 * t**9) / 414720
    v1 = (-9 * t + 7 * t**3) / 24
    v2 = (-135 * t**2 + 594 * t**4 - 455 * t**6) / 1152
    v3 = (-42525 * t**3 + 451737 * t**5 - 883575 * t**7 + 475475 * t**9) / 414720
    return u1 / v + u2 / v**2 + u3 / v**3, v1 / v + v2 / v**2 + v3 / v**3


def _ratio_uniform(v: float, kappa: jax.Array) -> jax.Array:
    """I_{v+1} / I_v = I_v' / I_v − v / κ for large v; loses digits where κ is far below v."""
    root = jnp.sqrt(v**2 + kappa**2)
    of_value, of_derivative = _uniform_series(v, v / root)
    return (root * (1.0 + of_derivative) / (1.0 + of_value) - v) / kappa


def bessel_ratios(v: float, kappa: jax.Array, n: int) -> list[jax.Array]:
    """[I_{v+1} / I_v, …, I_{v+n} / I_{v+n-1}] at κ, each of κ's shape.

    The recurrence begins :data:`GUESS_AFTER` orders above and forgets its start where κ is small;
    where κ is large the start itself is exact to float32.
    """
    last = max(v + n, UNIFORM_FROM) + GUESS_AFTER
    last = v + math.ceil(last - v)
    ratio = jnp.maximum(_ratio_uniform(last, kappa), 0.0)
    ratios = []
    for step in range(round(last - v)):
        order = last - 1 - step
        ratio = 1.0 / (2.0 * (order + 1.0) / kappa + ratio)
        ratios.append(ratio)
    return ratios[::-1][:n]


def _log_scaled_bessel_uniform(v: float, kappa: jax.Array) -> jax.Array:
    """log I_v(κ) − κ for large v, uniformly in κ: Olver's expansion (DLMF 10.41.3), three terms."""
    root = jnp.sqrt(v**2 + kappa**2)
    series = jnp.log1p(_uniform_series(v, v / root)[0])
    exponent = v**2 / (root + kappa) + v * (jnp.log(kappa) - jnp.log(v + root))
    return exponent - 0.5 * (math.log(2 * math.pi) + jnp.log(root)) + series


def _log_scaled_bessel(v: float, kappa: jax.Array) -> jax.Array:
    n = max(0, math.ceil(UNIFORM_FROM - v))
    value = _log_scaled_bessel_uniform(v + n, kappa)
    for ratio in bessel_ratios(v, kappa, n):
        value = value - jnp.log(ratio)
    return value


@jax.custom_jvp
def _with_slope(value: jax.Array, slope: jax.Array, kappa: jax.Array) -> jax.Array:
    """``value``, whose derivative with respect to κ is ``slope``."""
    return value


@_with_slope.defjvp
def _with_slope_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    value, slope, _ = primals
    return value, slope * tangents[2]


def log_scaled_bessel(v: float, kappa: jax.Array) -> jax.Array:
    r"""log(e^{-κ} I_v(κ)) for v >= 0 and κ > 0, elementwise; d/dκ = v/κ + I_{v+1}/I_v − 1."""
    slope = v / kappa + bessel_ratios(v, kappa, 1)[0] - 1.0
    constant = jax.lax.stop_gradient(kappa)
    return _with_slope(_log_scaled_bessel(v, constant), slope, kappa)


def log_area(d: int) -> float:
    r"""log of the area of S^{D-1}: log 2 + (D/2) log π − log Γ(D/2)."""
    return math.log(2) + 0.5 * d * math.log(math.pi) - math.lgamma(0.5 * d)


def log_normaliser(d: int, kappa: jax.Array) -> jax.Array:
    r"""log C_D(κ) + κ with C_D(κ) = κ^{D/2-1} / ((2π)^{D/2} I_{D/2-1}(κ)).

    Davidson et al. 2018, eq. 4.
    """
    v = 0.5 * d - 1.0
    return v * jnp.log(kappa) - 0.5 * d * math.log(2 * math.pi) - log_scaled_bessel(v, kappa)


class UniformSphere(NamedTuple):
    """The uniform density on S^{D-1}; ``pole``, D zeros and a one, says D."""

    pole: jax.Array  # D

    support = "sphere"

    @property
    def mu(self) -> jax.Array:
        """A point to stand for the distribution, whose mean is the centre of the ball."""
        return self.pole

    def sample(self, keys: jax.Array) -> jax.Array:
        z = standard_normal(keys, self.pole.shape[-1])
        return z / jnp.linalg.norm(z, axis=-1, keepdims=True)

    def log_prob(self, z_BxD: jax.Array) -> jax.Array:
        """−log area, shape B, in nats with respect to the area of the sphere."""
        return jnp.full(z_BxD.shape[:-1], -log_area(self.pole.shape[-1]), jnp.float32)

    def sample_and_log_prob(self, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
        z = self.sample(keys)
        return z, self.log_prob(z)


class VonMisesFisher(NamedTuple):
    r"""vMF(z; μ, κ) = C_D(κ) exp(κ μᵀz) on S^{D-1}, D >= 3 (Davidson et al. 2018, eq. 3)."""

    mu: jax.Array  # BxD, of length 1
    kappa: jax.Array  # B, > 0

    support = "sphere"

    def log_prob(self, z_BxD: jax.Array) -> jax.Array:
        """Nats with respect to the area of the sphere, shape B; z_KxBxD gives KxB."""
        kappa = real(self.kappa)
        cosine = jnp.sum(real(z_BxD) * real(self.mu), axis=-1)
        return log_normaliser(self.mu.shape[-1], kappa) + kappa * (cosine - 1.0)

    def sample(self, keys: jax.Array) -> jax.Array:
        r"""z = the reflection of (w, √(1 − w²) v) that takes the first axis to μ.

        Davidson et al. 2018, algorithm 1.

        w is the cosine to μ, v is uniform on S^{D-2}. Gradients with respect to μ and κ are those
        of the exact distribution: dw/dκ is implicit, −(∂F/∂κ) / p(w).
        """
        d = self.mu.shape[-1]
        cosine_keys, side_keys = split_keys(keys, 2)
        kappa = jnp.broadcast_to(real(self.kappa), keys.shape)
        w = sample_cosine(d, cosine_keys, kappa)[..., None]
        v = standard_normal(side_keys, d - 1)
        v = v / jnp.linalg.norm(v, axis=-1, keepdims=True)
        radius = jnp.sqrt(jnp.maximum(1.0 - w**2, 1e-12))
        upright = jnp.concatenate([w, radius * v], axis=-1)
        return reflect(upright, real(self.mu))

    def sample_and_log_prob(self, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
        z = self.sample(keys)
        return z, self.log_prob(z)


def reflect(z_BxD: jax.Array, mu_BxD: jax.Array) -> jax.Array:
    """z − 2 u (uᵀz), u ∝ e₁ − μ: the Householder reflection that exchanges the first axis and μ."""
    first = jnp.zeros(mu_BxD.shape[-1]).at[0].set(1.0)
    difference = first - mu_BxD
    square = jnp.sum(difference**2, axis=-1, keepdims=True)
    along = jnp.sum(difference * z_BxD, axis=-1, keepdims=True)
    return z_BxD - 2.0 * difference * along / jnp.maximum(square, 1e-12)


def _propose(d: int, key: jax.Array, kappa: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(a cosine, whether it is accepted) of one try (Wood 1994, algorithm VM*)."""
    beta_key, uniform_key = jax.random.split(key)
    n = d - 1.0
    b = n / (2.0 * kappa + jnp.sqrt(4.0 * kappa**2 + n**2))
    x0 = (1.0 - b) / (1.0 + b)
    c = kappa * x0 + n * jnp.log1p(-(x0**2))
    epsilon = jax.random.beta(beta_key, 0.5 * n, 0.5 * n)
    w = (1.0 - (1.0 + b) * epsilon) / (1.0 - (1.0 - b) * epsilon)
    log_accept = kappa * w + n * jnp.log1p(-x0 * w) - c
    return w, log_accept >= jnp.log(jax.random.uniform(uniform_key, minval=1e-38))


def _draw_cosine(d: int, key: jax.Array, kappa: jax.Array) -> jax.Array:
    """One w ~ p(w) ∝ exp(κ w) (1 − w²)^{(D−3)/2} by rejection."""

    def rejected(carry: tuple) -> jax.Array:
        return ~carry[2]

    def again(carry: tuple) -> tuple:
        number, _, _ = carry
        w, accepted = _propose(d, jax.random.fold_in(key, number), kappa)
        return number + 1, w, accepted

    start = (jnp.zeros((), jnp.int32), jnp.zeros_like(kappa), jnp.zeros((), bool))
    return jax.lax.while_loop(rejected, again, start)[1]


def sample_cosine(d: int, keys: jax.Array, kappa: jax.Array) -> jax.Array:
    """The cosine between z and μ for each key and κ, with its implicit derivative in κ."""
    constant = jax.lax.stop_gradient(kappa)
    draw = jax.vmap(lambda key, k: _draw_cosine(d, key, k))
    w = draw(keys.reshape(-1), constant.reshape(-1)).reshape(keys.shape)
    w = jax.lax.stop_gradient(jnp.clip(w, -1.0 + 1e-6, 1.0 - 1e-7))
    slope = jax.lax.stop_gradient(cosine_slope(d, w, constant))
    return w + slope * (kappa - constant)


def cosine_slope(d: int, w: jax.Array, kappa: jax.Array) -> jax.Array:
    r"""dw/dκ at a fixed quantile of p(w; κ) ∝ exp(κ w) (1 − w²)^{(D−3)/2}.

    .. math:: \frac{dw}{d\kappa} = -\frac{\partial_\kappa F(w)}{p(w)}
              = \frac{1}{p(w)} \int_w^1 (t - A)\, p(t)\, dt
              = -\frac{1}{p(w)} \int_{-1}^w (t - A)\, p(t)\, dt, \qquad A = E[w]

    by Gauss-Legendre quadrature on the side of w away from the mean, where the integrand falls off
    (Figurnov et al. 2018, arXiv:1805.08498, eq. 5).
    """
    mean = bessel_ratios(0.5 * d - 1.0, kappa, 1)[0]
    above = w >= mean
    node, weight = np.polynomial.legendre.leggauss(QUADRATURE)
    share = np.float32((node + 1) / 2)[:, None] ** 2  # s² takes the root at ±1 out of the integrand
    step = np.float32(weight / 2)[:, None] * 2 * np.sqrt(share)
    lowest = jnp.maximum(-1.0, w - TAIL / kappa)
    end = jnp.where(above, 1.0, lowest)
    flat_w = w.reshape(-1)
    flat_end = end.reshape(-1)
    flat_kappa = kappa.reshape(-1)
    flat_mean = mean.reshape(-1)
    t = flat_end + (flat_w - flat_end) * share
    power = 0.5 * (d - 3)
    log_ratio = flat_kappa * (t - flat_w)
    inside = jnp.maximum(1.0 - t**2, 1e-14)  # the last nodes round to ±1
    log_ratio += power * (jnp.log(inside) - jnp.log1p(-(flat_w**2)))
    integral = jnp.sum(step * (t - flat_mean) * jnp.exp(log_ratio), axis=0) * (flat_end - flat_w)
    return integral.reshape(w.shape)


@register_kl(VonMisesFisher, UniformSphere)
def kl_von_mises_fisher(q: VonMisesFisher, p: UniformSphere) -> jax.Array:
    r"""κ I_{D/2}(κ) / I_{D/2-1}(κ) + log C_D(κ) + log area, from the uniform prior; nats, shape B.

    Davidson et al. 2018, eq. 14.
    """
    d = q.mu.shape[-1]
    kappa = real(q.kappa)
    mean = bessel_ratios(0.5 * d - 1.0, kappa, 1)[0]
    return kappa * (mean - 1.0) + log_normaliser(d, kappa) + log_area(d)
