"""A pod without a pod: the training program compiled ahead of time for a topology of TPUs or GPUs, and what is in it.

Needs libtpu (requirements-tpu-aot.txt) and no TPU; or jaxlib's CUDA plugin and no GPU. XLA's FLOPs and bytes are of one
device and count the body of a loop once. Nothing is run: the roofline bound is what a step takes at least by the
maker's peak figures, no step time. For GPUs XLA gives no FLOPs or bytes, and nothing is autotuned: a compile check.
"""

import importlib.util
import math
import os
import re
import time

import jax
import jax.numpy as jnp

from vae_jax import config as config_lib
from vae_jax import data
from vae_jax.config import UserError
from vae_jax.mesh import rules as sharding
from vae_jax.models import model
from vae_jax.train import flops as count
from vae_jax.train import program as compile_lib

# Of a chip: FLOP/s in bfloat16, bytes of memory, bytes/s of it, bytes/s that it can send to its neighbours (half of the
# bidirectional figure), source. A float32 product by default is one in bfloat16 here.
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
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448 shared_memory_per_core: 233472
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


def devices(target):
    """(devices of a topology such as 'v5e:16x16', cores of a chip, its row of :data:`CHIPS`).

    Raises:
      UserError: an unknown target, or no libtpu.
    """
    chip, _, shape = target.partition(":")
    if (
        chip not in CHIPS
        or not re.fullmatch(r"\d+(x\d+){1,2}", shape)
        or (chip == "h100" and shape.count("x") < 2)
    ):
        raise UserError(
            f"target={target}: want CHIP:AxB or AxBxC, such as v5e:16x16, or h100:SLICESxHOSTSxGPUS; chips: "
            + ", ".join(CHIPS)
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
        asked = {
            "platform": "cuda",
            "topology_name": chip,
            "topology": shape,
            "target_config": H100,
        }
    else:
        if importlib.util.find_spec("libtpu") is None:
            raise UserError(
                f"target={target}: needs libtpu; want: pip install -r requirements-tpu-aot.txt"
            )
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no machine of Google's to ask
        os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # no chip to share, so no lock
        asked = {"platform": "tpu", "topology_name": target}
    from jax.experimental import topologies

    jax.config.update("jax_platforms", "cpu")
    try:
        found = topologies.get_topology_desc(**asked).devices
    except Exception as error:  # the compiler's own words
        raise UserError(f"target={target}: {' '.join(str(error).split())[:200]}") from None
    return found, len(found) // math.prod(map(int, shape.split("x"))), CHIPS[chip]


def collectives(text):
    """{(kind, dtype): {'count', 'bytes', 'wire'}} of a compiled program's text, for one device.

    ``bytes``: of the whole arrays; ``wire``: what a device must send of them at least, on a ring of its group of n:
    (n − 1)/n of the bytes, twice that for an all-reduce. An all-reduce that is a fusion with the slicing after it
    (as TPUs have it) is a reduce-scatter; one that is spread over several fusions, a ``chain``, is one. Operations
    inside a loop count once.
    """
    found, chains, scatter = {}, set(), False
    everyone = int(re.search(r"num_partitions=(\d+)|$", text)[1] or 1)
    for line in text.splitlines():
        if not line.startswith(" "):
            scatter = "all-reduce-scatter" in line.partition("(")[0]
        match, chain = OPERATION.search(line), re.search(r'chain_id="(\w+)"', line)
        if not match or (chain and chain[1] in chains):
            continue
        chains |= {chain[1]} if chain else set()
        kind = "reduce-scatter" if scatter and match[2] == "all-reduce" else match[2]
        arrays = [
            (t, math.prod(int(d) for d in s.split(",") if d)) for t, s in ARRAY.findall(match[1])
        ]
        if (
            match[3] and kind != "all-reduce"
        ):  # what goes in comes first, then what comes out, then flags
            arrays = [max(arrays, key=lambda a: a[1])]
        n = group(line) or everyone
        for dtype, size in arrays:
            size *= BYTES.get(dtype, 4) * (n if match[2] == "reduce-scatter" else 1)
            row = found.setdefault((kind, dtype), {"count": 0, "bytes": 0, "wire": 0.0})
            row["bytes"] += size
            row["wire"] += size * (n - 1) / n * (2 if kind == "all-reduce" else 1)
        found[kind, arrays[0][0]]["count"] += 1
    return found


def group(line):
    """How many devices a collective's groups have; None: it does not say, and all are one."""
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", line)
    if listed:
        return listed[1].count(",") + 1
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]", line)
    return int(iota[2]) if iota else None


def source_shapes(c, dataset):
    """Shapes of ``compile.resident``'s arrays, or None where the data would be streamed."""
    images = dataset.train.image
    if math.prod(images.shape) > c.data.on_device_mb * 2**20:
        return None
    number = jax.ShapeDtypeStruct((len(images),), jnp.int32)
    source = {"image": jax.ShapeDtypeStruct(images.shape, jnp.uint8), "label": number}
    return source | ({"labelled": number} if c.data.labelled_batch else {})


def compiled(c, target):
    """(the training program of a config compiled for a target, its mesh, seconds to compile, its data set)."""
    config_lib.validate(c)
    found, _, _ = devices(target)
    mesh, dataset = sharding.make_mesh(c.mesh, found), data.described(c.data)
    m = model.build_for(c, dataset)
    state, places = compile_lib.shapes(c, m, mesh)
    made = compile_lib.program(c, m, mesh, dataset, state, places, source_shapes(c, dataset))
    began = time.perf_counter()
    platform = "cuda" if target.startswith("h100") else "tpu"
    program = made.jitted.trace(*made.arguments).lower(lowering_platforms=(platform,)).compile()
    return (
        program,
        mesh,
        time.perf_counter() - began,
        count.flops(count.traced(c, m, mesh, dataset)),
    )


def measure(c, target):
    """What a compiled program says of itself, for one device and one step; FLOPs, bytes, seconds."""
    _, cores, (peak, memory, bandwidth, link, source) = devices(target)
    program, mesh, seconds, hand = compiled(c, target)
    cost, sizes = program.cost_analysis() or {}, program.memory_analysis()
    steps = c.steps_per_call if c.unroll else 1
    flops, traffic = cost.get("flops", 0.0) / steps, cost.get("bytes accessed", 0.0) / steps
    moved = collectives(program.as_text())
    wire = sum(row["wire"] for row in moved.values()) / steps
    # Of a device, which is a core.
    bound = {
        "compute": max(flops, hand / mesh.size) / (peak / cores),
        "memory": traffic / (bandwidth / cores),
        "interconnect": wire / (link / cores),
    }
    held = sizes.argument_size_in_bytes + sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    peak_bytes = sizes.peak_memory_in_bytes or held + sizes.temp_size_in_bytes
    return {
        "devices": mesh.size,
        "fits": peak_bytes <= memory / cores,
        "peak_bytes": peak_bytes,
        "memory_bytes": memory / cores,
        "argument_bytes": sizes.argument_size_in_bytes,
        "temp_bytes": sizes.temp_size_in_bytes,
        "flops": flops,
        "flops_per_image": flops * mesh.size / (c.batch + c.data.labelled_batch),
        "hand_flops_per_image": hand / (c.batch + c.data.labelled_batch),
        "bytes": traffic,
        "intensity": flops / traffic if traffic else 0.0,
        "ridge": peak / bandwidth,
        "collectives": moved,
        "wire_bytes": wire,
        "bound": bound,
        "compile_s": seconds,
        "source": source,
    }


def words(name, row):
    """A measured program in a few lines."""
    costs = (
        f"  {row['flops'] / 1e9:,.1f} GFLOP and {row['bytes'] / 1e6:,.0f} MB a device and step; "
        f"{row['flops_per_image'] / 1e9:.2f} GFLOP an image ({row['hand_flops_per_image'] / 1e9:.2f} by hand); "
        f"{row['intensity']:.0f} FLOP a byte, ridge {row['ridge']:.0f}: bound by "
        + ("compute" if row["intensity"] > row["ridge"] else "memory")
    )
    if not row["bytes"]:
        costs = f"  {row['hand_flops_per_image'] / 1e9:.2f} GFLOP an image by hand; XLA counts neither FLOPs nor bytes here"
    limit = max(row["bound"], key=row["bound"].get)
    lines = [
        f"{name}: {'fits' if row['fits'] else 'DOES NOT FIT'} on {row['devices']} devices, "
        f"peak {row['peak_bytes'] / 2**20:,.0f} of {row['memory_bytes'] / 2**20:,.0f} MiB each "
        f"(arguments {row['argument_bytes'] / 2**20:,.0f}, activations {row['temp_bytes'] / 2**20:,.0f})",
        costs,
    ]
    for (kind, dtype), one in sorted(row["collectives"].items()):
        lines.append(f"  {one['count']:>3} {kind} {dtype}, {one['bytes'] / 1e6:,.3f} MB")
    each = ", ".join(f"{k} {v * 1e3:.3f} ms" for k, v in row["bound"].items())
    lines.append(
        f"  a step takes no less than {row['bound'][limit] * 1e3:.3f} ms, a bound and no step time ({each})"
    )
    lines.append(f"  compiled in {row['compile_s']:.0f} s; peak figures: {row['source']}")
    return "\n".join(lines)


def figures(name, row):
    """{key: results.figure} of a measured program."""
    from vae_jax.tools import results

    made = {
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
        made[f"{kind.replace('-', '_')}_{dtype}"] = (one["bytes"] / 1e6, "MB / step")
        made[f"{kind.replace('-', '_')}_{dtype}_count"] = (one["count"], "")
    return {f"{name}_{key}": results.figure(*value) for key, value in made.items()}
