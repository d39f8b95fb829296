"""What a compiled step moves between devices."""

import re

import jax
import pytest

from benchmarks import target
from benchmarks.parity import small
from tests.tiny import lowered
from vae_jax import data, models


def sizes_of(c):
    """The shape of every parameter of a config's model."""
    m = models.build_for(c, data.load(c.data))
    return jax.tree.leaves(jax.eval_shape(m.init, jax.random.key(0)))


@pytest.mark.parametrize("fields", [{"dtype": "bfloat16"}, {"mesh__data": 2, "mesh__fsdp": 4}])
def test_jit_is_the_global_view_and_auto_the_program_by_shards(fields):
    """Before XLA's partitioner the global view has no collective."""
    texts = {}
    for mode in ("jit", "shard_map", "auto"):
        texts[mode] = lowered(small(compile=mode, optim__clip=0.0, **fields))[0]
    assert "stablehlo.all_reduce" not in texts["jit"]
    assert "stablehlo.all_reduce" in texts["shard_map"] and texts["auto"] == texts["shard_map"]


def test_auto_is_jit_elsewhere():
    texts = [lowered(small(compile=mode))[0] for mode in ("auto", "jit")]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("mode", ["auto", "shard_map"])
def test_bfloat16_nets_sum_their_gradients_in_float32(mode):
    """In the program before XLA: its CPU compiler would widen a bfloat16 sum by itself."""
    before, compiled = lowered(small(dtype="bfloat16", compile=mode, optim__clip=0.0))
    sums = re.findall(r'"stablehlo.all_reduce".*?}\) : \(tensor<[^>]*?(bf16|f32)>', before, re.S)
    assert len(sums) >= 10
    assert set(sums) == {"f32"}, sums
    assert {dtype for _, dtype in target.collectives(compiled)} == {"f32"}


def test_a_data_parallel_step_sums_each_parameter_once():
    """All-reduces: the gradients, once, in float32, and a few numbers beside them (metrics)."""
    c = small(optim__clip=0.0)
    moved = target.collectives(lowered(c)[1])
    params = sum(shape.size for shape in sizes_of(c))
    assert set(moved) <= {("all-reduce", "f32"), ("all-gather", "s32"), ("all-gather", "u8")}
    sums = moved["all-reduce", "f32"]
    assert sums["count"] == 1  # all of them together
    assert 4 * params <= sums["bytes"] <= 4 * params + 400


def test_fsdp_gathers_parameters_and_scatters_gradients():
    """Each once: no activation is gathered."""
    c = small(mesh__fsdp=8, mesh__data=1, optim__clip=0.0)
    moved = target.collectives(lowered(c)[1])
    kernels = [shape.size for shape in sizes_of(c) if shape.ndim > 1]
    kernel_bytes = 4 * sum(kernels)
    assert set(moved) == {(kind, "f32") for kind in ("all-gather", "reduce-scatter", "all-reduce")}
    gathers = moved["all-gather", "f32"]
    scatters = moved["reduce-scatter", "f32"]
    assert gathers["count"] == scatters["count"] <= len(kernels)
    # Arrays too small to be split, the gradient's norm, metrics.
    assert moved["all-reduce", "f32"]["count"] <= 3
    assert gathers["bytes"] <= kernel_bytes
    assert scatters["bytes"] <= kernel_bytes < 2 * scatters["bytes"]


def test_collectives_are_read_from_a_program():
    """Lines as XLA writes them for TPUs and for CPU."""
    text = """HloModule jit_many, is_scheduled=true, num_partitions=8
%all-reduce-scatter.1 (input: f32[64,8]) -> f32[16,8] {
  %ar = f32[64,8]{1,0} all-reduce(%input), replica_groups=[8,4]<=[32], to_apply=%add
}
ENTRY %main {
  %a = (f32[10]{0}, bf16[6]{0}) all-reduce(%x, %y), replica_groups={{0,1},{2,3}}, to_apply=%add
  %b = (f32[2]{0}, f32[8]{0}) all-gather-start(%z), replica_groups=[1,4]<=[4], dimensions={0}
  %c = f32[8]{0} all-gather-done(%b)
  %d = u8[4]{0} all-gather(%z), replica_groups=[1,4]<=[4], dimensions={0}, CHAIN
  %f = s32[4]{0} all-reduce(%z), replica_groups={}, to_apply=%add
  %e = u8[4]{0} all-gather(%z), replica_groups=[1,4]<=[4], dimensions={0}, CHAIN
}
"""
    text = text.replace("CHAIN", 'frontend_attributes={chain_id="7"}')
    moved = target.collectives(text)
    assert moved["all-reduce", "f32"] == {"count": 1, "bytes": 40, "wire": 40.0}
    assert moved["all-reduce", "bf16"]["bytes"] == 12
    assert moved["all-gather", "f32"] == {"count": 1, "bytes": 32, "wire": 24.0}
    assert moved["all-reduce", "s32"]["wire"] == 2 * 7 / 8 * 16
    assert moved["all-gather", "u8"]["count"] == 1  # one, in two fusions
    assert moved["reduce-scatter", "f32"] == {"count": 1, "bytes": 2048, "wire": 1536.0}
