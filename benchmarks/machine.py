"""Peaks of the device: matrix products and copies, measured, and those its maker publishes."""

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from vae_jax.train import program

# Part of device_kind -> (FLOP/s in bfloat16, FLOP/s in float32 as products run by default,
# bytes/s), dense, from the makers' data sheets; the first match counts. By default a float32
# product is TF32 on these GPUs and bfloat16 passes on TPUs.
PUBLISHED = {
    "H200": (989e12, 494e12, 4.8e12),
    "H100 PCIe": (756e12, 378e12, 2.0e12),
    "H100": (989e12, 494e12, 3.35e12),
    "A100-SXM4-80GB": (312e12, 156e12, 2.04e12),
    "A100": (312e12, 156e12, 1.55e12),
    "TPU v6 lite": (918e12, 918e12, 1.64e12),
    "TPU v5 lite": (197e12, 197e12, 0.82e12),
    "TPU v5": (459e12, 459e12, 2.77e12),
    "TPU v4": (275e12, 275e12, 1.23e12),
}
SIZES = {"cpu": (512, 1024, 2048)}  # of square products; elsewhere:
LARGE = (4096, 8192, 16384)
COPY = {"cpu": 2**27}  # bytes, several times the caches; elsewhere:
LARGE_COPY = 2**30
PASSES = (4, 36)

Peaks = dict[str, float]  # 'float32', 'bfloat16': FLOP/s; 'bytes': bytes/s


def best(function: Callable, x: jax.Array | tuple, seconds: float) -> float:
    """Seconds of the fastest blocked call within ``seconds``, after one that compiles."""
    run = program.simple(function)
    run(x).block_until_ready()
    times = []
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        began = time.perf_counter()
        run(x).block_until_ready()
        times.append(time.perf_counter() - began)
    return min(times)


def measured(seconds: float = 0.5) -> Peaks:
    """The peaks of one device: the best of some sizes.

    A copy reads and writes an array that is larger than the caches. It is the time of 36 passes
    less that of 4: on CPU the pages of a new array cost more than the pass over it.
    """
    platform = jax.default_backend()
    sizes = SIZES.get(platform, LARGE)
    peaks = {}
    for dtype in ("float32", "bfloat16"):
        speeds = []
        for n in sizes:
            x = jnp.ones((n, n), dtype)
            speeds.append(2 * n**3 / best(_square, x, seconds / len(sizes)))
        peaks[dtype] = max(speeds)
    x = jnp.zeros(COPY.get(platform, LARGE_COPY) // 4, jnp.float32)
    few, many = (best(_passes, (x, n), 2 * seconds) for n in PASSES)
    peaks["bytes"] = 2 * x.nbytes * (PASSES[1] - PASSES[0]) / max(many - few, 1e-9)
    return peaks


def _square(x: jax.Array) -> jax.Array:
    return x @ x


def _passes(inputs: tuple[jax.Array, int]) -> jax.Array:
    """Read and write an array as often as the second input says."""
    x, n = inputs
    return jax.lax.fori_loop(0, n, lambda _, x: 0.5 * x + 1, x)


def better(one: Peaks, other: Peaks) -> Peaks:
    """The higher of two measurements, peak by peak."""
    return {name: max(one[name], other[name]) for name in one}


def words(peaks: Peaks) -> str:
    """Measured peaks as text."""
    products = []
    for dtype in ("float32", "bfloat16"):
        products.append(f"{dtype} {peaks[dtype] / 1e9:,.0f} GFLOP/s")
    return f"{', '.join(products)}, copies {peaks['bytes'] / 1e9:,.1f} GB/s, measured"


def published(kind: str | None = None) -> Peaks | None:
    """The peaks of a device kind, from the maker's data sheet; None where the table lacks it."""
    kind = kind or jax.devices()[0].device_kind
    for part, (bfloat16, float32, copy) in PUBLISHED.items():
        if part in kind:
            return {"bfloat16": bfloat16, "float32": float32, "bytes": copy}
    return None
