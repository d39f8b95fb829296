"""Operations that XLA on CPU runs two to ten times slower than need be, in forms that it runs well.

Each operation has two forms of the same sum. The *plain* one is what JAX gives: accelerators always
take it, and every transformation works through it (``jax.jvp``, Hessian-vector products,
``jax.vmap`` of ``jax.grad``). The other one is for CPU and allows reverse mode only: gradients by
``custom_vjp``, convolutions in phases, sums as products with ones, layouts by a product with the
identity. results/performance.md says how much each of them brings.

One switch takes the plain form on CPU too, when a function is traced::

    with ops.plain():
        jax.jvp(loss, (params,), (direction,))

or ``VAE_JAX_PLAIN_OPS=1`` in the environment, for a whole process. The switch is part of the key of
jit's cache: a jitted function that was traced in the other form is traced again.
"""

import contextlib
import math
import os
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vae_jax.config import UserError

VARIABLE = "VAE_JAX_PLAIN_OPS"
Padding = str | Sequence[tuple[int, int]]

_switch = jax.make_user_context(default_value=False)


def plain() -> contextlib.AbstractContextManager:
    """A context manager within which functions are traced in the plain form."""
    return _switch(True)


def is_plain() -> bool:
    """Whether a function that is traced now takes the plain forms."""
    if _switch.value or jax.default_backend() != "cpu":
        return True
    value = os.environ.get(VARIABLE, "0")
    if value not in ("0", "1"):
        raise UserError(f"{VARIABLE}={value}: want 0 or 1")
    return value == "1"


def _by_platform(*args: jax.Array, cpu: Callable, default: Callable) -> jax.Array:
    """``cpu(*args)`` where the program is compiled for CPU; ``default(*args)`` elsewhere.

    A program may be compiled on a CPU for an accelerator, so that :func:`is_plain` is not enough.
    """
    if is_plain():
        return default(*args)
    return lax.platform_dependent(*args, cpu=cpu, default=default)


def _reverse_mode(name: str, function: Callable, *args: jax.Array) -> jax.Array:
    """``function(*args)`` of a custom_vjp function, whose error in forward mode is one line.

    Under ``jax.jvp`` of a jitted function JAX raises its own error, outside of this call.
    """
    try:
        return function(*args)
    except TypeError as error:
        if "forward-mode" not in str(error):
            raise
        raise UserError(
            f"ops.{name}: its form for CPU has no forward mode (jvp, linearize, jacfwd); "
            f"want {VARIABLE}=1 in the environment, or `with vae_jax.ops.plain():`"
        ) from None


# Convolutions, NHWC with kernels HWIO


def conv(x: jax.Array, w: jax.Array, stride: int = 1, padding: Padding = "SAME") -> jax.Array:
    """XLA's convolution; x_BxHxWxI and w_hxwxIxO give out_BxHxWxO."""
    dimensions = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, w, (stride, stride), padding, dimension_numbers=dimensions)


def _transposed(function: Callable, like: jax.Array, g: jax.Array) -> jax.Array:
    """The transpose of a linear function of something shaped as ``like``, at g."""
    return jax.linear_transpose(function, jax.ShapeDtypeStruct(like.shape, like.dtype))(g)[0]


def _contiguous(x: jax.Array) -> jax.Array:
    """x, by a product with the identity: XLA on CPU then has it in memory before it is transposed.

    A copy that is a program of its own runs in blocks; one within the loop that computes x reads
    one number at a time, far apart in memory. A value that is not finite makes its cell's values
    NaN.
    """
    width = x.shape[-1]
    if width < 16 or x.size < 2**20:  # the product would cost more
        return x
    identity = jnp.eye(width, dtype=x.dtype)
    rows = jnp.matmul(x.reshape(-1, width), identity, precision="highest")
    return rows.reshape(x.shape)


def _kernel_gradient(x: jax.Array, w: jax.Array, g: jax.Array, stride: int) -> jax.Array:
    """The gradient in w of ``conv(x, w, stride)``."""

    def gradient(x: jax.Array, w: jax.Array, g: jax.Array) -> jax.Array:
        return _transposed(lambda v: conv(x, v, stride), w, g)

    def contiguous(x: jax.Array, w: jax.Array, g: jax.Array) -> jax.Array:
        return gradient(_contiguous(x), w, g)

    return _by_platform(x, w, g, cpu=contiguous, default=gradient)


def _plain_up2(z: jax.Array, w: jax.Array) -> jax.Array:
    """The transpose of ``conv(·, w, 2)``."""
    batch, height, width, _ = z.shape
    x = jax.ShapeDtypeStruct((batch, 2 * height, 2 * width, w.shape[2]), z.dtype)
    return _transposed(lambda y: conv(y, w, 2), x, z)


def _phases(z: jax.Array, w: jax.Array) -> jax.Array:
    """The four pixels that a cell of z becomes, each by the taps that reach it: no gaps in z.

    Tap a of cell h reaches pixel 2q + r where 2h + a - before = 2q + r.
    """
    batch, rows, columns, _ = z.shape
    k = len(w)
    before = (k - 2) // 2
    taps, pads = [], []
    for r in (0, 1):
        last = k - 1 - (k - 1 - before - r) % 2
        reaching = np.arange(last, -1, -2)
        first = (r + before - reaching[0]) // 2  # cell h - q of the first tap
        taps.append(reaching)
        pads.append((-first, first + len(reaching) - 1))

    def pixel(r: int, s: int) -> jax.Array:
        return conv(z, w[np.ix_(taps[r], taps[s])].swapaxes(2, 3), 1, (pads[r], pads[s]))

    pairs = [jnp.stack([pixel(r, 0), pixel(r, 1)], 3) for r in (0, 1)]
    return jnp.stack(pairs, 2).reshape(batch, 2 * rows, 2 * columns, -1)


def _up2(z: jax.Array, w: jax.Array) -> jax.Array:
    if min(w.shape[2:]) < 16:  # the phases' narrow products cost more than the gaps
        return _plain_up2(z, w)
    return _by_platform(z, w, cpu=_phases, default=_plain_up2)


def _up2_kernel_gradient(z: jax.Array, w: jax.Array, g: jax.Array) -> jax.Array:
    return _transposed(lambda v: _plain_up2(z, v), w, g)


def _up2_kernel_gradient_mirrored(z: jax.Array, w: jax.Array, g: jax.Array) -> jax.Array:
    """The same sum as the kernel's gradient of the strided convolution that up2 transposes."""
    return _transposed(lambda v: conv(_contiguous(g), v, 2), w, z)


def _up2_forward(z: jax.Array, w: jax.Array) -> tuple[jax.Array, tuple]:
    return _up2(z, w), (z, w)


def _up2_backward(residuals: tuple, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    z, w = residuals
    forms = {"cpu": _up2_kernel_gradient_mirrored, "default": _up2_kernel_gradient}
    return conv(g, w, 2), _by_platform(z, w, g, **forms)


_up2_for_cpu = jax.custom_vjp(_up2)
_up2_for_cpu.defvjp(_up2_forward, _up2_backward)


def up2(z_BxHxWxI: jax.Array, w_hxwxOxI: jax.Array) -> jax.Array:
    """Transposed convolution of stride 2: the transpose of :func:`down2`; BxHxWxI → Bx2Hx2WxO.

    Equal to ``lax.conv_transpose(z, w, (2, 2), "SAME", transpose_kernel=True)``. On CPU dw is the
    kernel gradient of the mirrored strided convolution, which is the same sum: XLA's own takes ten
    times the rest of the step.
    """
    if is_plain():
        return _plain_up2(z_BxHxWxI, w_hxwxOxI)
    return _reverse_mode("up2", _up2_for_cpu, z_BxHxWxI, w_hxwxOxI)


def _down2(x: jax.Array, w: jax.Array) -> jax.Array:
    return conv(x, w, 2)


def _down2_forward(x: jax.Array, w: jax.Array) -> tuple[jax.Array, tuple]:
    return _down2(x, w), (x, w)


def _down2_backward(residuals: tuple, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, w = residuals
    return _up2(g, w), _kernel_gradient(x, w, g, 2)


_down2_for_cpu = jax.custom_vjp(_down2)
_down2_for_cpu.defvjp(_down2_forward, _down2_backward)


def down2(x_BxHxWxI: jax.Array, w_hxwxIxO: jax.Array) -> jax.Array:
    """Convolution of stride 2, 'SAME', of an even height and width; its gradient in x is up2."""
    if is_plain():
        return _down2(x_BxHxWxI, w_hxwxIxO)
    return _reverse_mode("down2", _down2_for_cpu, x_BxHxWxI, w_hxwxIxO)


def _same(x: jax.Array, w: jax.Array) -> jax.Array:
    return conv(x, w)


def _same_forward(x: jax.Array, w: jax.Array) -> tuple[jax.Array, tuple]:
    return _same(x, w), (x, w)


def _same_backward(residuals: tuple, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, w = residuals
    return _transposed(lambda v: conv(v, w), x, g), _kernel_gradient(x, w, g, 1)


_same_for_cpu = jax.custom_vjp(_same)
_same_for_cpu.defvjp(_same_forward, _same_backward)


def same(x_BxHxWxI: jax.Array, w_hxwxIxO: jax.Array) -> jax.Array:
    """Convolution of stride 1, 'SAME'."""
    if is_plain():
        return _same(x_BxHxWxI, w_hxwxIxO)
    return _reverse_mode("same", _same_for_cpu, x_BxHxWxI, w_hxwxIxO)


# Dense layers


def _add_bias(x: jax.Array, b: jax.Array) -> jax.Array:
    return x + b


def _add_bias_forward(x: jax.Array, b: jax.Array) -> tuple[jax.Array, None]:
    return x + b, None


def _add_bias_backward(_: None, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    def by_product(g: jax.Array) -> jax.Array:
        over_batch = jnp.ones((1, len(g)), g.dtype) @ g.reshape(len(g), -1)
        return over_batch.reshape(-1, g.shape[-1]).sum(0)

    def by_sum(g: jax.Array) -> jax.Array:
        return g.sum((0, 1, 2))

    return g, _by_platform(g, cpu=by_product, default=by_sum)


_add_bias_for_cpu = jax.custom_vjp(_add_bias)
_add_bias_for_cpu.defvjp(_add_bias_forward, _add_bias_backward)


def add_bias(x_BxHxWxC: jax.Array, b_C: jax.Array) -> jax.Array:
    """x + b; on CPU the gradient in b is a product with ones over the batch before it is a sum."""
    if is_plain():
        return _add_bias(x_BxHxWxC, b_C)
    return _reverse_mode("add_bias", _add_bias_for_cpu, x_BxHxWxC, b_C)


def _product(x: jax.Array, w: jax.Array) -> jax.Array:
    return x @ w


def _product_forward(x: jax.Array, w: jax.Array) -> tuple[jax.Array, tuple]:
    return x @ w, (x, w)


def _product_backward(residuals: tuple, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, w = residuals

    def transposed(g: jax.Array, w: jax.Array) -> jax.Array:
        barrier = lax.optimization_barrier  # or XLA makes g wᵀ of it again
        return barrier(w @ barrier(g.T)).T

    def straight(g: jax.Array, w: jax.Array) -> jax.Array:
        return g @ w.T

    return _by_platform(g, w, cpu=transposed, default=straight), x.T @ g


_product_for_cpu = jax.custom_vjp(_product)
_product_for_cpu.defvjp(_product_forward, _product_backward)


def product(x_BxI: jax.Array, w_IxO: jax.Array) -> jax.Array:
    """x w; on CPU the gradient in x is (w gᵀ)ᵀ, which reads a large w in its order in memory."""
    if is_plain():
        return _product(x_BxI, w_IxO)
    return _reverse_mode("product", _product_for_cpu, x_BxI, w_IxO)


def as_rows(layer: Callable[[jax.Array], jax.Array], h: jax.Array) -> jax.Array:
    """``layer(h)`` of a dense layer of every cell of h_…xF; on CPU the cells are rows of a matrix.

    A kernel's gradient is then one product over rows. Over the axes of a grid XLA on CPU makes it
    one of transposed copies, in three times the time.
    """
    if is_plain():
        return layer(h)
    out = layer(h.reshape(-1, h.shape[-1]))
    return out.reshape(*h.shape[:-1], out.shape[-1])


# Sums, layouts and softplus of the likelihoods


def sum_pixels(values_BxHxWxC: jax.Array) -> jax.Array:
    """The sum over H, W and C, shape B; a K axis in front stays.

    XLA on CPU fuses a sum into the loop that computes its terms and then runs both one number at a
    time; a product with ones is not fused.
    """
    size = math.prod(values_BxHxWxC.shape[-3:])
    flat = values_BxHxWxC.reshape(*values_BxHxWxC.shape[:-3], size)

    def by_product(v: jax.Array) -> jax.Array:
        return jnp.matmul(v, jnp.ones(size, v.dtype), precision="highest")

    def by_sum(v: jax.Array) -> jax.Array:
        return jnp.sum(v, axis=-1)

    return _by_platform(flat, cpu=by_product, default=by_sum)


def channels_first(out_BxHxWxO: jax.Array) -> jax.Array:
    """O x … x H x W, laid out so.

    XLA on CPU would read a transposed array one number at a time in every loop that uses it; a
    product with the identity is computed once. There a value that is not finite makes all of its
    pixel's NaN.
    """

    def by_product(v: jax.Array) -> jax.Array:
        identity = jnp.eye(v.shape[-1], dtype=v.dtype)
        return jnp.einsum("po,...o->p...", identity, v, precision="highest")

    def by_transpose(v: jax.Array) -> jax.Array:
        return jnp.moveaxis(v, -1, 0)

    return _by_platform(out_BxHxWxO, cpu=by_product, default=by_transpose)


@jax.custom_jvp
def softplus(a: jax.Array) -> jax.Array:
    """log(1 + e^a), to float32 rounding at any a, without log1p, which is slow on CPU.

    With u = e^-|a| and w = 1 + u as rounded, log(1 + u) = u log(w) / (w - 1): the rounding errors
    of numerator and denominator cancel (Kahan's trick; Goldberg 1991, theorem 4). It has this one
    form on every platform, and every mode of differentiation.
    """
    u = jnp.exp(-jnp.abs(a))
    w = 1 + u
    exact = w == 1
    quotient = u * jnp.log(w) / jnp.where(exact, 1, w - 1)
    return jnp.maximum(a, 0) + jnp.where(exact, u, quotient)


@softplus.defjvp
def _softplus_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    (a,) = primals
    (da,) = tangents
    return softplus(a), jax.nn.sigmoid(a) * da
