"""What the device can do: matrix products and copies, measured here, and the peaks that its maker gives."""

import time

import jax
import jax.numpy as jnp

from vae_jax.train import program as compile_lib

# Part of device_kind -> (FLOP/s in bfloat16, FLOP/s in float32 as products run by default, bytes/s), dense, from the
# makers' data sheets. By default a float32 product is TF32 on these GPUs and bfloat16 passes on TPUs. First match.
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


def best(function, x, seconds):
    """The shortest time of one call, over blocked calls for ``seconds``; compiled before."""
    run = compile_lib.simple(function)
    run(x).block_until_ready()
    times, end = [], time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        began = time.perf_counter()
        run(x).block_until_ready()
        times.append(time.perf_counter() - began)
    return min(times)


def measured(seconds=0.5):
    """{'float32': FLOP/s, 'bfloat16': FLOP/s, 'bytes': bytes/s} of one device: the best of some sizes.

    A copy reads and writes an array that is larger than the caches. It is the time of 36 passes less that of 4:
    on CPU the pages of a new array cost more than the pass over it.
    """
    platform = jax.default_backend()
    found = {}
    for dtype in ("float32", "bfloat16"):
        sizes = SIZES.get(platform, LARGE)
        product = lambda x: x @ x  # noqa: E731
        found[dtype] = max(2 * n**3 / best(product, jnp.ones((n, n), dtype), seconds / len(sizes)) for n in sizes)
    x = jnp.zeros(COPY.get(platform, LARGE_COPY) // 4, jnp.float32)
    passes = lambda given: jax.lax.fori_loop(0, given[1], lambda _, x: 0.5 * x + 1, given[0])  # noqa: E731
    few, many = (best(passes, (x, n), 2 * seconds) for n in PASSES)
    found["bytes"] = 2 * x.nbytes * (PASSES[1] - PASSES[0]) / max(many - few, 1e-9)
    return found


def better(one, other):
    """The higher of two measurements, peak by peak."""
    return {name: max(one[name], other[name]) for name in one}


def words(peaks):
    """Measured peaks as text."""
    products = ", ".join(f"{dtype} {peaks[dtype] / 1e9:,.0f} GFLOP/s" for dtype in ("float32", "bfloat16"))
    return f"{products}, copies {peaks['bytes'] / 1e9:,.1f} GB/s, measured"


def published(kind=None):
    """As :func:`measured`, from the maker's data sheet; None for a device that the table lacks."""
    kind = jax.devices()[0].device_kind if kind is None else kind
    for part, (bfloat16, float32, copy) in PUBLISHED.items():
        if part in kind:
            return {"bfloat16": bfloat16, "float32": float32, "bytes": copy}
    return None
