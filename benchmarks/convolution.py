"""Time one convolution alone, its two gradients too, beside PyTorch's in both memory layouts.

python -m benchmarks.convolution --out=results/convolution.json

The layers are those of ``configs/seed_conv.py`` and ``configs/mnist.py`` that take most of a step.
Ours is the function of ``vae_jax.ops`` that the nets call, and XLA's own operation beside it
(``ops.plain``). Each is a program of its own that reads and writes memory, so the times add up to
more than those of a step, where XLA joins neighbours. Windows of all of them take turns.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks import common
from vae_jax import ops
from vae_jax.tools import results
from vae_jax.train.program import options

Call = Callable[[], object]


class Layer(NamedTuple):
    """A convolution: shapes of its input (NHWC) and kernel, and its form."""

    input_BxHxWxI: tuple[int, int, int, int]
    kernel_hxwxIxO: tuple[int, int, int, int]
    stride: int
    transposed: bool = False


LAYERS = {
    "same_64_64_at_32": Layer((128, 32, 32, 64), (3, 3, 64, 64), 1),
    "same_3_64_at_32": Layer((128, 32, 32, 3), (3, 3, 3, 64), 1),
    "up_64_64_at_16": Layer((128, 16, 16, 64), (3, 3, 64, 64), 2, transposed=True),
    "down_32_64_at_14": Layer((128, 14, 14, 32), (4, 4, 32, 64), 2),
    "up_64_32_at_7": Layer((128, 7, 7, 64), (4, 4, 32, 64), 2, transposed=True),
}
PARTS = ("forward", "input_gradient", "kernel_gradient")


def parts_of_jax(layer: Layer, x: np.ndarray, w: np.ndarray) -> dict[str, Call]:
    """Compiled calls of the forward pass and of either gradient; each waits for its result."""

    def function(x: jax.Array, w: jax.Array) -> jax.Array:
        if layer.transposed:
            return ops.up2(x, w)
        return ops.same(x, w) if layer.stride == 1 else ops.down2(x, w)

    def input_gradient(x: jax.Array, w: jax.Array, g: jax.Array) -> jax.Array:
        return jax.vjp(lambda v: function(v, w), x)[1](g)[0]

    def kernel_gradient(x: jax.Array, w: jax.Array, g: jax.Array) -> jax.Array:
        return jax.vjp(lambda v: function(x, v), w)[1](g)[0]

    x_device = jnp.asarray(x)
    w_device = jnp.asarray(w)
    g = jnp.ones_like(function(x_device, w_device))
    programs = {
        "forward": (function, (x_device, w_device)),
        "input_gradient": (input_gradient, (x_device, w_device, g)),
        "kernel_gradient": (kernel_gradient, (x_device, w_device, g)),
    }
    calls = {}
    for part, (program, arguments) in programs.items():
        jitted = jax.jit(program, compiler_options=options(jax.default_backend()))
        compiled = jitted.lower(*arguments).compile()
        calls[part] = lambda f=compiled, a=arguments: f(*a).block_until_ready()
    return calls


def parts_of_torch(layer: Layer, x: np.ndarray, w: np.ndarray, layout: str) -> dict[str, Call]:
    """The same of PyTorch; ``layout`` is 'contiguous' or 'channels_last'."""
    format_ = getattr(torch, f"{layout}_format" if layout == "contiguous" else layout)
    x_BxIxHxW = torch.from_numpy(x.transpose(0, 3, 1, 2).copy()).contiguous(memory_format=format_)
    # torch keeps a transposed convolution's kernel as [in, out]; ours is [.., out, in].
    w_OxIxhxw = torch.from_numpy(w.transpose(3, 2, 0, 1).copy()).contiguous(memory_format=format_)
    sizes = {"stride": layer.stride, "padding": 1}
    if layer.transposed:
        sizes["output_padding"] = len(w) % 2

    def forward() -> torch.Tensor:
        if layer.transposed:
            return torch.nn.functional.conv_transpose2d(x_BxIxHxW, w_OxIxhxw, **sizes)
        return torch.nn.functional.conv2d(x_BxIxHxW, w_OxIxhxw, **sizes)

    g = torch.ones_like(forward())
    pair = [layer.stride, layer.stride]
    extra = [sizes.get("output_padding", 0)] * 2
    form = (None, pair, [1, 1], [1, 1], layer.transposed, extra, 1)

    def gradient(mask: list[bool]) -> object:
        backward = torch.ops.aten.convolution_backward
        return backward(g, x_BxIxHxW, w_OxIxhxw, *form, mask)

    return {
        "forward": forward,
        "input_gradient": lambda: gradient([True, False, False]),
        "kernel_gradient": lambda: gradient([False, True, False]),
    }


def lanes(layer: Layer, part: str) -> dict[str, Call]:
    """Every implementation of one part of a layer."""
    generator = np.random.default_rng(0)
    x = generator.standard_normal(layer.input_BxHxWxI, np.float32)
    w = generator.standard_normal(layer.kernel_hxwxIxO, np.float32)
    calls = {"ours": parts_of_jax(layer, x, w)[part]}
    with ops.plain():
        calls["xla"] = parts_of_jax(layer, x, w)[part]
    for layout in ("contiguous", "channels_last"):
        calls[f"torch_{layout}"] = parts_of_torch(layer, x, w, layout)[part]
    return calls


def window(call: Call, repeats: int) -> float:
    """Milliseconds of a call, over one window."""
    began = time.perf_counter()
    for _ in range(repeats):
        call()
    return 1000 * (time.perf_counter() - began) / repeats


def compare(calls: dict[str, Call], rounds: int, seconds: float) -> common.FIGURES:
    """Median milliseconds of each, and ours over the better layout of torch, round by round."""
    repeats = {}
    for name, call in calls.items():
        call()
        repeats[name] = max(1, int(1000 * seconds / window(call, 1)))
    times = {name: [] for name in calls}
    for number in range(rounds):
        order = list(calls)
        if number % 2:
            order.reverse()
        for name in order:
            times[name].append(window(calls[name], repeats[name]))
    peers = [name for name in calls if name.startswith("torch")]
    best = min(peers, key=lambda name: np.median(times[name]))
    ratios = np.array(times[best]) / np.array(times["ours"])
    spread = float(np.std(ratios, ddof=1))
    figures = {}
    for name, values in times.items():
        spread_ms = float(np.std(values, ddof=1))
        figures[f"{name}_ms"] = results.figure(float(np.median(values)), "ms", spread_ms, rounds)
    figures["speed"] = results.figure(float(np.median(ratios)), "ours / torch", spread, rounds)
    return figures


def main() -> None:
    arguments = common.parser(__doc__)
    arguments.add_argument("--rounds", type=int, default=12)
    arguments.add_argument("--seconds", type=float, default=0.15, help="length of a window")
    args = arguments.parse_args()
    recorder = common.Recorder("convolution", args.out)
    figures = {}
    for name, layer in LAYERS.items():
        for part in PARTS:
            measured = compare(lanes(layer, part), args.rounds, args.seconds)
            print(name, part, {key: round(f["value"], 2) for key, f in measured.items()})
            figures |= {f"{name}.{part}.{key}": value for key, value in measured.items()}
            recorder.write(None, figures)


if __name__ == "__main__":
    common.script(main)
