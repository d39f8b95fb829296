"""The training program compiled ahead of time for a topology of TPUs or GPUs, and its costs.

Needs libtpu (the extra tpu-aot) and no TPU; or jaxlib's CUDA plugin and no GPU. XLA's FLOPs
and bytes are of one device and count the body of a loop once. Nothing is run: the roofline bound is
the least time of a step by the maker's peak figures, no step time. For GPUs XLA gives no FLOPs or
bytes, and nothing is autotuned: a compile check.
"""

import importlib.util
import math
import os
import re
import time
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from benchmarks.common import FIGURES
from vae_jax import config as config_lib
from vae_jax import data, models
from vae_jax.config import UserError
from vae_jax.mesh import rules as sharding
from vae_jax.train import flops as count
from vae_jax.train import program as compile_lib

# Of a chip: FLOP/s in bfloat16, bytes of memory, bytes/s of it, bytes/s that it can send to its
# neighbours (half of the bidirectional figure), source. By default a float32 product is one in
# bfloat16 here.
CHIPS = {
    "v4": (275e12, 32 * 2**30, 1.2e12, 300e9, "Jouppi et al. 2023, arXiv:2304.01433, table 4"),
    "v5e": (197e12, 16e9, 819e9, 200e9, "cloud.google.com/tpu/docs/v5e"),
    "v5p": (459e12, 95e9, 2.765e12, 600e9, "cloud.google.com/tpu/docs/v5p"),
    "v6e": (918e12, 32e9, 1.638e12, 400e9, "cloud.google.com/tpu/docs/v6e"),
    "h100": (989.4e12, 80e9, 3.35e12, 450e9, "NVIDIA H100 Tensor Core GPU data sheet, SXM; NVLink"),
    "tpu7x": (2307e12, 192 * 2**30, 7.38e12, 600e9, "cloud.google.com/tpu/docs/tpu7x"),
}
# What XLA asks of a GPU that is not there; device queries of an H100 SXM with 80 GB.
H100 = """
gpu_device_info {
  cuda_compute_capability { major: 9 }
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_block_limit: 65536 registers_per_core_limit: 65536
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  l2_cache_size: 52428800 memory_bandwidth: 3350000000000 device_memory_size: 80000000000
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
runtime_version { major: 12 minor: 9 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
BYTES = {
    "pred": 1,
    "s8": 1,
    "u8": 1,
    "bf16": 2,
    "f16": 2,
    "s16": 2,
    "u16": 2,
    "s64": 8,
    "u64": 8,
    "f64": 8,
}
OPERATION = re.compile(rf"= (\(.*?\)|\S+) ({'|'.join(KINDS)})(-start)?\(")
ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")


def devices(target: str) -> tuple[list, int, tuple]:
    """(devices of a topology such as 'v5e:16x16', cores of a chip, its row of :data:`CHIPS`).

    Raises:
      UserError: an unknown target, or no libtpu.
    """
    chip, _, shape = target.partition(":")
    known = chip in CHIPS and re.fullmatch(r"\d+(x\d+){1,2}", shape)
    if not known or (chip == "h100" and shape.count("x") < 2):
        raise UserError(
            f"target={target}: want CHIP:AxB or AxBxC, such as v5e:16x16, or "
            f"h100:SLICESxHOSTSxGPUS; chips: {', '.join(CHIPS)}"
        )
    if chip == "h100":
        plugins = ("jax_plugins.xla_cuda13", "jax_plugins.xla_cuda12")
        if not (
            importlib.util.find_spec("jax_plugins") and any(map(importlib.util.find_spec, plugins))
        ):
            raise UserError(
                f"target={target}: needs jaxlib's CUDA plugin; want: pip install 'jax[cuda12]'"
            )
        os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")  # there is no driver to ask
        options = {
            "platform": "cuda",
            "topology_name": chip,
            "topology": shape,
            "target_config": H100,
        }
    else:
        if importlib.util.find_spec("libtpu") is None:
            raise UserError(f"target={target}: needs libtpu; want: pip install '.[tpu-aot]'")
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no machine of Google's to ask
        os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # no chip to share, so no lock
        options = {"platform": "tpu", "topology_name": target}
    from jax.experimental import topologies

    jax.config.update("jax_platforms", "cpu")
    try:
        chips = topologies.get_topology_desc(**options).devices
    except Exception as error:  # the compiler's own words
        raise UserError(f"target={target}: {' '.join(str(error).split())[:200]}") from None
    cores = len(chips) // math.prod(map(int, shape.split("x")))
    return chips, cores, CHIPS[chip]


def collectives(text: str) -> dict[tuple[str, str], dict[str, float]]:
    """{(kind, dtype): {'count', 'bytes', 'wire'}} of a compiled program's text, for one device.

    ``bytes``: of the whole arrays; ``wire``: the least that a device must send of them, on a ring
    of its group of n: (n − 1)/n of the bytes, twice that for an all-reduce. An all-reduce that is
    fused with the slicing after it (as on TPUs) is a reduce-scatter; one that is spread over
    several fusions, a ``chain``, is one. Operations inside a loop count once.
    """
    rows = {}
    chains = set()
    scatter = False
    everyone = int(re.search(r"num_partitions=(\d+)|$", text)[1] or 1)
    for line in text.splitlines():
        if not line.startswith(" "):
            scatter = "all-reduce-scatter" in line.partition("(")[0]
        match = OPERATION.search(line)
        chain = re.search(r'chain_id="(\w+)"', line)
        if not match or (chain and chain[1] in chains):
            continue
        if chain:
            chains.add(chain[1])
        kind = "reduce-scatter" if scatter and match[2] == "all-reduce" else match[2]
        arrays = [(dtype, elements(shape)) for dtype, shape in ARRAY.findall(match[1])]
        if match[3] and kind != "all-reduce":  # the operand, then the result, then flags
            arrays = [max(arrays, key=lambda a: a[1])]
        n = group(line) or everyone
        for dtype, size in arrays:
            size *= BYTES.get(dtype, 4) * (n if match[2] == "reduce-scatter" else 1)
            row = rows.setdefault((kind, dtype), {"count": 0, "bytes": 0, "wire": 0.0})
            row["bytes"] += size
            row["wire"] += size * (n - 1) / n * (2 if kind == "all-reduce" else 1)
        rows[kind, arrays[0][0]]["count"] += 1
    return rows


def elements(shape: str) -> int:
    """The size of an array of shape '8,128'; 1 for ''."""
    return math.prod(int(side) for side in shape.split(",") if side)


def group(line: str) -> int | None:
    """How many devices a collective's groups have; None where the line names no groups."""
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", line)
    if listed:
        return listed[1].count(",") + 1
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]", line)
    return int(iota[2]) if iota else None


def source_shapes(c: ConfigDict, dataset: data.Dataset) -> dict[str, Any] | None:
    """Shapes of ``compile.resident``'s arrays, or None where the data would be streamed."""
    images = dataset.train.image
    if math.prod(images.shape) > c.data.on_device_mb * 2**20:
        return None
    number = jax.ShapeDtypeStruct((len(images),), jnp.int32)
    source = {"image": jax.ShapeDtypeStruct(images.shape, jnp.uint8), "label": number}
    if c.data.labelled_batch:
        source["labelled"] = number
    return source


def compiled(c: ConfigDict, target: str) -> tuple[Any, jax.sharding.Mesh, float, int]:
    """(program of a config compiled for a target, mesh, seconds to compile, FLOPs by hand)."""
    config_lib.validate(c)
    chips, _, _ = devices(target)
    mesh = sharding.make_mesh(c.mesh, chips)
    dataset = data.described(c.data)
    m = models.build_for(c, dataset)
    state, places = compile_lib.shapes(c, m, mesh)
    source = source_shapes(c, dataset)
    parts = compile_lib.program(c, m, mesh, dataset, state, places, source)
    began = time.perf_counter()
    platform = "cuda" if target.startswith("h100") else "tpu"
    traced = parts.jitted.trace(*parts.arguments)
    program = traced.lower(lowering_platforms=(platform,)).compile()
    seconds = time.perf_counter() - began
    return program, mesh, seconds, count.flops(count.traced(c, m, mesh, dataset))


def measure(c: ConfigDict, target: str) -> dict[str, Any]:
    """The costs of a compiled program for one device and step: FLOPs, bytes, seconds."""
    _, cores, (peak, memory, bandwidth, link, source) = devices(target)
    program, mesh, seconds, hand = compiled(c, target)
    cost = program.cost_analysis() or {}
    sizes = program.memory_analysis()
    steps = c.steps_per_call if c.unroll else 1
    flops = cost.get("flops", 0.0) / steps
    traffic = cost.get("bytes accessed", 0.0) / steps
    images = c.batch + c.data.labelled_batch
    moved = collectives(program.as_text())
    wire = sum(row["wire"] for row in moved.values()) / steps
    # Of a device, which is a core.
    bound = {
        "compute": max(flops, hand / mesh.size) / (peak / cores),
        "memory": traffic / (bandwidth / cores),
        "interconnect": wire / (link / cores),
    }
    arguments = sizes.argument_size_in_bytes + sizes.output_size_in_bytes
    arguments -= sizes.alias_size_in_bytes
    peak_bytes = sizes.peak_memory_in_bytes or arguments + sizes.temp_size_in_bytes
    return {
        "devices": mesh.size,
        "fits": peak_bytes <= memory / cores,
        "peak_bytes": peak_bytes,
        "memory_bytes": memory / cores,
        "argument_bytes": sizes.argument_size_in_bytes,
        "temp_bytes": sizes.temp_size_in_bytes,
        "flops": flops,
        "flops_per_image": flops * mesh.size / images,
        "hand_flops_per_image": hand / images,
        "bytes": traffic,
        "intensity": flops / traffic if traffic else 0.0,
        "ridge": peak / bandwidth,
        "collectives": moved,
        "wire_bytes": wire,
        "bound": bound,
        "compile_s": seconds,
        "source": source,
    }


def words(name: str, row: dict[str, Any]) -> str:
    """A measured program in a few lines."""
    fits = "fits" if row["fits"] else "DOES NOT FIT"
    sizes = f"arguments {row['argument_bytes'] / 2**20:,.0f}"
    sizes += f", activations {row['temp_bytes'] / 2**20:,.0f}"
    lines = [
        f"{name}: {fits} on {row['devices']} devices, "
        f"peak {row['peak_bytes'] / 2**20:,.0f} of {row['memory_bytes'] / 2**20:,.0f} MiB each "
        f"({sizes})",
        _costs(row),
    ]
    for (kind, dtype), one in sorted(row["collectives"].items()):
        lines.append(f"  {one['count']:>3} {kind} {dtype}, {one['bytes'] / 1e6:,.3f} MB")
    each = ", ".join(f"{k} {v * 1e3:.3f} ms" for k, v in row["bound"].items())
    bound = max(row["bound"].values()) * 1e3
    lines.append(f"  a step takes no less than {bound:.3f} ms, a bound and no step time ({each})")
    lines.append(f"  compiled in {row['compile_s']:.0f} s; peak figures: {row['source']}")
    return "\n".join(lines)


def _costs(row: dict[str, Any]) -> str:
    """FLOPs, bytes and intensity as text."""
    hand = f"{row['hand_flops_per_image'] / 1e9:.2f}"
    if not row["bytes"]:
        return f"  {hand} GFLOP an image by hand; XLA counts neither FLOPs nor bytes here"
    side = "compute" if row["intensity"] > row["ridge"] else "memory"
    return (
        f"  {row['flops'] / 1e9:,.1f} GFLOP and {row['bytes'] / 1e6:,.0f} MB a device and step; "
        f"{row['flops_per_image'] / 1e9:.2f} GFLOP an image ({hand} by hand); "
        f"{row['intensity']:.0f} FLOP a byte, ridge {row['ridge']:.0f}: bound by {side}"
    )


def figures(name: str, row: dict[str, Any]) -> FIGURES:
    """{key: results.figure} of a measured program."""
    from vae_jax.tools import results

    values = {
        "fits": (int(row["fits"]), "1: yes"),
        "peak": (row["peak_bytes"] / 2**20, "MiB / device"),
        "arguments": (row["argument_bytes"] / 2**20, "MiB / device"),
        "flops": (row["flops"] / 1e9, "GFLOP / device / step"),
        "flops_per_image": (row["flops_per_image"] / 1e9, "GFLOP / image"),
        "bytes": (row["bytes"] / 1e6, "MB / device / step"),
        "intensity": (row["intensity"], "FLOP / byte"),
        "ridge": (row["ridge"], "FLOP / byte"),
        "wire": (row["wire_bytes"] / 1e6, "MB sent / device / step"),
        "bound": (max(row["bound"].values()) * 1e3, "ms / step at least, no step time"),
        "compile": (row["compile_s"], "s"),
    }
    for (kind, dtype), one in row["collectives"].items():
        values[f"{kind.replace('-', '_')}_{dtype}"] = (one["bytes"] / 1e6, "MB / step")
        values[f"{kind.replace('-', '_')}_{dtype}_count"] = (one["count"], "")
    return {f"{name}_{key}": results.figure(*value) for key, value in values.items()}
