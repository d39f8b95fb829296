"""Meshes, partition rules, and the same update however it is compiled."""

import importlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks import target
from tests.test_step import small
from vae_jax import config, data, models
from vae_jax.config import UserError
from vae_jax.distributions import example_keys
from vae_jax.mesh import layout
from vae_jax.mesh import rules as sharding
from vae_jax.tools import partition, results
from vae_jax.train import program as compile_lib

# Relative, in float32: sums in another order.
TOLERANCE = 1e-5
P = jax.sharding.PartitionSpec
slow = pytest.mark.slow


def built(c, devices=8):
    dataset = data.load(c.data)
    mesh = sharding.make_mesh(c.mesh, jax.devices()[:devices])
    m = models.build_for(c, dataset)
    state, places = compile_lib.init(c, m, mesh, dataset)
    return state, compile_lib.training(c, m, mesh, dataset, state, places)


def update(c, devices=8):
    """(the figures of one step, Adam's mean of gradients after it): what an update is made of, before it is rounded
    into parameters that are a thousand times larger."""
    state, run = built(c, devices)
    state, values = run.run(state, run.source, run.key)
    return np.asarray(values)[0], jax.tree.map(np.asarray, optax.tree.get(state.opt, "mu"))


def objective(name, **fields):
    """A tiny config of an objective on digits, with noise in the data, in z and in the augmentation."""
    c = small(
        optim__name="adam", optim__weight_decay=0.0, optim__eps=1.0, optim__schedule="constant"
    )
    c.encoder.widths = c.decoder.widths = (32, 16)
    if name == "m2":
        c.data.binarize, c.data.labels, c.data.labelled_batch = "dynamic", 100, 16
        c.likelihood = config.call("likelihood", "bernoulli")
        c.model = config.call("model", "m2")
        c.objective = config.call("objective", "m2", alpha=10.0)
    if name == "iwae":
        c.classifier = config.call("classifier", "none")
        c.objective = config.call("objective", "iwae", samples=4, estimator="dreg")
    for field, value in fields.items():
        config.set_field(c, field.replace("__", "."), value)
    config.validate(c)
    return c


# name: (fields, devices). Each must make the update of jit on one device.
MODES = {
    "jit 2": ({}, 2),
    "jit 8": ({}, 8),
    "jit data=4 model=2": ({"mesh__data": 4, "mesh__model": 2}, 8),
    "jit data=2 fsdp=4": ({"mesh__data": 2, "mesh__fsdp": 4}, 8),
    "jit data=4 samples=2": ({"mesh__data": 4, "mesh__samples": 2}, 8),
    "shard_map 8": ({"compile": "shard_map"}, 8),
    "shard_map data=2 fsdp=2 model=2": (
        {"compile": "shard_map", "mesh__fsdp": 2, "mesh__model": 2},
        8,
    ),
    "shard_map fsdp=2 samples=2": (
        {"compile": "shard_map", "mesh__fsdp": 2, "mesh__samples": 2},
        8,
    ),
    "pmap 8": ({"compile": "pmap"}, 8),
    "jit 4, accumulate 4": ({"accumulate": 4}, 4),
    "shard_map 4, accumulate 2": ({"compile": "shard_map", "accumulate": 2}, 4),
    "remat": ({"remat": "full"}, 1),
}


def apart(c, want, devices):
    """The largest relative difference of a figure, or of one parameter array's gradient (its norm), from ``want``."""
    figures, grads = update(c, devices)
    pairs = list(zip(jax.tree.leaves(grads), jax.tree.leaves(want[1]), strict=True))
    gaps = [
        np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-9)
        for a, b in [*pairs, *zip(figures, want[0], strict=True)]
    ]
    return float(max(gaps))


@pytest.fixture(scope="module")
def one():
    """name of an objective → its update under jit on one device."""
    return {name: update(objective(name), 1) for name in ("joint", "m2", "iwae")}


# Of the two slower objectives the fast suite has the modes that differ for them.
SOME = ("jit data=4 samples=2", "shard_map fsdp=2 samples=2")


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        pytest.param(name, mode, marks=[] if name == "joint" or mode in SOME else slow)
        for name in ("joint", "m2", "iwae")
        for mode in MODES
        if name != "joint" or "samples" not in mode
    ],
)
def test_every_mode_makes_the_same_update(one, name, mode):
    fields, devices = MODES[mode]
    assert apart(objective(name, **fields), one[name], devices) <= TOLERANCE


TINY = {
    "vit": {"patch": 4, "width": 8, "depth": 1, "heads": 2},
    "residual": {"widths": (4, 8), "depths": (1, 1), "dense": 8},
}


@slow
@pytest.mark.parametrize("net", TINY)
def test_remat_and_microbatches_leave_the_update_of_a_deep_net(net):
    """Its blocks are rematerialised one by one: another way than the one of the dense nets above."""

    def config_with(**fields):
        c = objective("joint", **fields)
        c.encoder, c.decoder = (
            config.call(part, net, **TINY[net]) for part in ("encoder", "decoder")
        )
        return c

    plain = update(config_with(), 1)
    for fields in ({"remat": "full"}, {"accumulate": 2}):
        assert apart(config_with(**fields), plain, 1) <= TOLERANCE, fields


def test_every_row_has_its_place_in_the_global_batch():
    """Blocks of shards, strides of microbatches: together every place once."""
    shards = jax.vmap(lambda _: layout.places(6, "data"), axis_name="data")(jnp.zeros(2))
    np.testing.assert_array_equal(np.concatenate(shards), layout.places(12))
    ids = jnp.arange(12)
    np.testing.assert_array_equal(
        layout.microbatches(ids, 3), [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]
    )


# A loss and a posterior as a user writes them, with noise that is not ours.
OWN = """
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from vae_jax.objectives import Terms


class Shifted(NamedTuple):
    mu: Any

    def sample_and_log_prob(self, keys):
        flat = jax.vmap(lambda key: jax.random.gamma(key, 2.0, self.mu.shape[-1:]))(keys.reshape(-1))
        noise = flat.reshape(*keys.shape, -1)
        return self.mu + noise, jnp.sum(jnp.log(noise) - noise, -1)

    def log_prob(self, z):
        return jnp.sum(jnp.log(z - self.mu) - (z - self.mu), -1)


class Head(nn.Module):
    shape: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, h):
        return Shifted(nn.Dense(self.shape)(h))


def loss(model, params, batch, keys):
    d = model.draw(params, batch["image"], keys)
    numbers = jnp.arange(20.0)
    extra = {
        "gamma": jax.vmap(lambda key: jax.random.gamma(key, 2.0))(keys),
        "uniform": jax.vmap(jax.random.uniform)(keys),
        "permuted": jax.vmap(lambda key: jax.random.permutation(key, numbers)[0])(keys),
    }
    return Terms(extra["gamma"] * d.kl.sum(-1) - d.log_px, extra=extra)
"""
OWN_MODES = {
    **{
        mode: MODES[mode]
        for mode in ("jit 8", "jit data=2 fsdp=4", "shard_map 8", "pmap 8", "jit 4, accumulate 4")
    },
    "bfloat16": ({"dtype": "bfloat16"}, 8),
    "bfloat16, accumulate 2": ({"dtype": "bfloat16", "accumulate": 2}, 4),
}


@pytest.fixture(scope="module")
def with_own_noise(tmp_path_factory):
    path = tmp_path_factory.mktemp("own") / "own.py"
    path.write_text(OWN)

    def make(**fields):
        c = objective("joint", **fields)
        c.classifier = config.call("classifier", "none")
        c.objective = config.call("objective", f"{path}:loss")
        c.posterior = config.call("posterior", f"{path}:Head")
        return c

    return make, {dtype: update(make(dtype=dtype), 1) for dtype in ("float32", "bfloat16")}


@pytest.mark.parametrize("mode", OWN_MODES)
def test_a_users_own_noise_is_the_same_in_every_mode_and_shared_by_no_two_examples(
    with_own_noise, mode
):
    make, one_device = with_own_noise
    fields, devices = OWN_MODES[mode]
    dtype = fields.get("dtype", "float32")
    # Gradients of bfloat16 nets are sums of rounded numbers; the noise itself meets no net.
    tolerance = TOLERANCE if dtype == "float32" else 2e-2
    c = make(**fields)
    state, run = built(c, devices)
    state, values = run.run(state, run.source, run.key)
    metrics, want = (
        dict(zip(run.names, row, strict=True))
        for row in (np.asarray(values)[0], one_device[dtype][0])
    )
    for name in ("gamma", "uniform", "permuted"):
        np.testing.assert_allclose(metrics[name], want[name], rtol=1e-5)
    assert apart(c, one_device[dtype], devices) <= tolerance


def test_keys_of_one_example_draw_for_no_other():
    keys_B = example_keys(jax.random.key(0), jnp.arange(8))
    for draw in (
        jax.random.uniform,
        lambda key: jax.random.gamma(key, 2.0),
        lambda key: jax.random.normal(key),
    ):
        assert len(np.unique(jax.vmap(draw)(keys_B))) == 8
    with pytest.raises(ValueError, match="vmap"):
        jax.random.gamma(keys_B, 2.0)


def lowered(c):
    """(a training program before and after XLA, as text) on eight devices."""
    dataset, mesh = data.load(c.data), sharding.make_mesh(c.mesh)
    m = models.build_for(c, dataset)
    state, places = compile_lib.shapes(c, m, mesh)
    made = compile_lib.program(c, m, mesh, dataset, state, places, target.source_shapes(c, dataset))
    text = made.jitted.lower(*made.arguments)
    return text.as_text(), text.compile().as_text()


@pytest.mark.parametrize("mode", ["jit", "shard_map"])
def test_bfloat16_nets_sum_their_gradients_in_float32(mode):
    """In what XLA is given: its CPU compiler would widen a bfloat16 sum by itself."""
    given, compiled = lowered(small(dtype="bfloat16", compile=mode, optim__clip=0.0))
    sums = re.findall(r'"stablehlo.all_reduce".*?}\) : \(tensor<[^>]*?(bf16|f32)>', given, re.S)
    assert len(sums) >= 10 and set(sums) == {"f32"}, sums
    assert {dtype for _, dtype in target.collectives(compiled)} == {"f32"}


def test_a_data_parallel_step_sums_each_parameter_once():
    """All-reduces: the gradients, once, in float32, and a few numbers beside them (metrics)."""
    c = small(optim__clip=0.0)
    moved = target.collectives(lowered(c)[1])
    m = models.build_for(c, data.load(c.data))
    params = sum(x.size for x in jax.tree.leaves(jax.eval_shape(m.init, jax.random.key(0))))
    assert set(moved) <= {("all-reduce", "f32"), ("all-gather", "s32"), ("all-gather", "u8")}
    assert moved["all-reduce", "f32"]["count"] == 1  # all of them together
    assert 4 * params <= moved["all-reduce", "f32"]["bytes"] <= 4 * params + 400


def test_fsdp_gathers_parameters_and_scatters_gradients():
    """Each once: no activation is gathered."""
    c = small(mesh__fsdp=8, mesh__data=1, optim__clip=0.0)
    moved, m = target.collectives(lowered(c)[1]), models.build_for(c, data.load(c.data))
    arrays = [
        x.size for x in jax.tree.leaves(jax.eval_shape(m.init, jax.random.key(0))) if x.ndim > 1
    ]
    kernels = sum(arrays)
    assert set(moved) == {(kind, "f32") for kind in ("all-gather", "reduce-scatter", "all-reduce")}
    assert (
        moved["all-gather", "f32"]["count"]
        == moved["reduce-scatter", "f32"]["count"]
        <= len(arrays)
    )
    assert (
        moved["all-reduce", "f32"]["count"] <= 3
    )  # arrays too small to be split, the gradient's norm, metrics
    assert moved["all-gather", "f32"]["bytes"] <= 4 * kernels
    assert (
        moved["reduce-scatter", "f32"]["bytes"]
        <= 4 * kernels
        < 2 * moved["reduce-scatter", "f32"]["bytes"]
    )


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
  %d = u8[4]{0} all-gather(%z), replica_groups=[1,4]<=[4], dimensions={0}, frontend_attributes={chain_id="7"}
  %f = s32[4]{0} all-reduce(%z), replica_groups={}, to_apply=%add
  %e = u8[4]{0} all-gather(%z), replica_groups=[1,4]<=[4], dimensions={0}, frontend_attributes={chain_id="7"}
}
"""
    found = target.collectives(text)
    assert found["all-reduce", "f32"] == {"count": 1, "bytes": 40, "wire": 40.0}
    assert found["all-reduce", "bf16"]["bytes"] == 12
    assert found["all-gather", "f32"] == {"count": 1, "bytes": 32, "wire": 24.0}
    assert found["all-reduce", "s32"]["wire"] == 2 * 7 / 8 * 16
    assert found["all-gather", "u8"]["count"] == 1  # one, in two fusions
    assert found["reduce-scatter", "f32"] == {"count": 1, "bytes": 2048, "wire": 1536.0}


@pytest.mark.parametrize("mode", ["jit", "shard_map", "pmap"])
def test_the_state_is_donated_in_every_mode(mode):
    state, run = built(small(compile=mode, accumulate=2))
    leaf = state.params["encoder"]["Layer_0"]["dense"]["kernel"]
    run.run(state, run.source, run.key)
    assert leaf.is_deleted()


def test_specs_of_a_config():
    """Golden: M2's nets on data=2, fsdp=2, model=2."""
    c = objective("m2", mesh__data=2, mesh__fsdp=2, mesh__model=2)
    mesh, m = sharding.make_mesh(c.mesh), models.build_for(c, data.load(c.data))
    places = sharding.shardings({"params": jax.eval_shape(m.init, jax.random.key(0))}, mesh)
    found = {
        jax.tree_util.keystr(p, simple=True, separator="/"): s.spec
        for p, s in jax.tree.leaves_with_path(places)
    }
    kernels = {path: spec for path, spec in found.items() if path.endswith("kernel")}
    column, row = P("fsdp", "model"), P("model", "fsdp")
    trunk = {f"params/trunk/Layer_{i}/dense/kernel": spec for i, spec in enumerate((column, row))}
    assert kernels == trunk | {
        "params/classifier/out/kernel": P(None, "fsdp"),
        "params/decoder/Layer_0/dense/kernel": column,
        "params/decoder/Layer_0/label/kernel": column,
        "params/decoder/Layer_1/dense/kernel": row,
        "params/decoder/out/kernel": column,
        "params/encoder/Layer_0/dense/kernel": column,
        "params/encoder/Layer_0/label/kernel": column,
        "params/encoder/Layer_1/dense/kernel": row,
        "params/posterior/Dense_0/kernel": column,
    }
    assert all(spec == P() for path, spec in found.items() if path.endswith("bias"))


COLUMN, ROW, LAST = ("fsdp", "model"), ("model", "fsdp"), ("fsdp",)
SPLIT = {
    "Dense_0": COLUMN,
    "Dense_1": ROW,
    "dense": COLUMN,
    "Conv_0": LAST,
    "grid": LAST,
    "width_1": LAST,
    "out": LAST,
}
SPLIT |= {"embed": LAST, "attention/qkv": LAST, "attention/out": LAST, "merge": LAST}


@pytest.mark.parametrize(
    ("encoder", "decoder", "fields", "own"),
    [
        ("residual", "residual", {}, {}),
        ("vit", "vit", {}, {"decoder/out": COLUMN}),
        ("residual", "vdvae", {}, {}),
        ("residual", "vdvae", {"scan": True}, {}),
    ],
)
def test_every_kernel_of_a_deep_net_is_split(encoder, decoder, fields, own):
    """Golden, on fsdp=2, model=2: the axes of the last dimensions; a scan's kernels have one more in front."""
    c, mesh = config.default(), sharding.make_mesh({"data": 2, "fsdp": 2, "model": 2, "samples": 1})
    size = {"width": 32, "depth": 2} if encoder == "vit" else {"widths": (32, 64), "depths": (1, 2)}
    c.encoder = config.call("encoder", encoder, **size)
    c.decoder = config.call("decoder", decoder, **size, **fields)
    m = models.build(c, shape=(16, 16, 3), levels=256, classes=0, binary=False)
    places = sharding.shardings(jax.eval_shape(m.init, jax.random.key(0)), mesh)
    found = {
        jax.tree_util.keystr(p, simple=True, separator="/"): s.spec
        for p, s in jax.tree.leaves_with_path(places)
    }
    kernels = {p.removesuffix("/kernel"): s for p, s in found.items() if p.endswith("kernel")}
    assert len(kernels) > 15
    for path, spec in kernels.items():
        want = next(axes for end, axes in (own | SPLIT).items() if path.endswith(end))
        axes = tuple(spec)
        assert axes == (None,) * (len(axes) - len(want)) + want, path
    assert all(not any(spec) for path, spec in found.items() if path.endswith("bias"))


def test_fsdp_takes_another_dimension_where_its_own_does_not_divide():
    mesh = sharding.make_mesh({"data": 1, "fsdp": 8, "model": 1, "samples": 1})
    assert sharding.spec("params/encoder/Conv_0/kernel", (4, 4, 3, 32), mesh) == P(
        None, None, None, "fsdp"
    )
    assert sharding.spec("params/decoder/out/kernel", (4, 4, 6, 64), mesh) == P(
        None, None, None, "fsdp"
    )
    assert sharding.spec("params/posterior/Dense_0/kernel", (100, 64), mesh) == P(None, "fsdp")
    assert sharding.spec("params/x/kernel", (3, 5), mesh) == P(None, None)


def test_bytes_on_a_device_and_a_picture(capsys):
    argv = [
        "sharding",
        "--config=configs/digits.py",
        "--config.mesh.data=2",
        "--config.mesh.fsdp=4",
        "--devices=8",
    ]
    assert partition.main(argv) == 0
    said = capsys.readouterr().out
    assert re.search(r"params/decoder/Layer_1/dense/kernel +256x256 +–, fsdp +65,536", said)
    assert "| 0 4 | 1 5 | 2 6 | 3 7 |" in said


@pytest.mark.parametrize(
    ("mesh", "line"),
    [
        ({"data": 3, "model": -1}, r"mesh\.data=3: 3 does not fit 8 devices; nearest that fits: 2"),
        (
            {"data": -1, "fsdp": 16},
            r"mesh\.fsdp=16: 16 does not fit 8 devices; nearest that fits: 8",
        ),
        (
            {"data": 4, "model": 4},
            r"mesh\.data=4: 4 x 4 does not fit 8 devices; nearest that fits: 2",
        ),
        ({"data": -1, "samples": -1}, r"mesh\.samples=-1: want at most one -1"),
    ],
)
def test_a_wrong_mesh_is_one_line(mesh, line):
    with pytest.raises(UserError, match=line):
        sharding.make_mesh({"data": 1, "fsdp": 1, "model": 1, "samples": 1} | mesh)


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        (
            {"batch": 20},
            r"batch=20: does not divide over 8 devices \(mesh\.data\); nearest that does: 16",
        ),
        (
            {"accumulate": 3},
            r"batch=32: does not divide over 8 .* x 3 microbatches; nearest that does: 24",
        ),
        (
            {"mesh__samples": 2},
            r"mesh\.samples=2: does not divide objective\.samples=1; nearest that does: 1",
        ),
        (
            {"compile": "pmap", "mesh__fsdp": 2},
            r"compile=pmap: splits the batch only; want mesh\.fsdp=1",
        ),
        (
            {"compile": "pmap", "data__on_device_mb": 0},
            r"data\.on_device_mb=0: compile=pmap needs the training set",
        ),
    ],
)
def test_what_does_not_fit_a_mesh_is_one_line(fields, line):
    with pytest.raises(UserError, match=line):
        lowered(small(**fields))


def test_slices_share_the_data_axis(monkeypatch):
    """Eight devices of two slices: `data` crosses between them, `fsdp` stays inside."""

    class Device:
        platform, device_kind, process_index = "cpu", "cpu", 0

        def __init__(self, i):
            self.id, self.slice_index = i, i // 4

    seen = {}
    monkeypatch.setattr(
        sharding, "Mesh", lambda devices, axes, axis_types: seen.update(at=devices, axes=axes)
    )
    sharding.make_mesh(
        {"data": 4, "fsdp": 2, "model": 1, "samples": 1}, [Device(i) for i in range(8)]
    )
    slices = np.vectorize(lambda d: d.slice_index)(seen["at"])
    assert (slices == slices[:, :1]).all() and slices[:, 0, 0, 0].tolist() == [0, 0, 1, 1]
    with pytest.raises(
        UserError, match=r"mesh\.data=1: want a multiple of the 2 slices; nearest: 2"
    ):
        sharding.make_mesh(
            {"data": 1, "fsdp": 8, "model": 1, "samples": 1}, [Device(i) for i in range(8)]
        )


def test_a_target_without_libtpu_or_of_no_chip_is_one_line(monkeypatch):
    with pytest.raises(UserError, match=r"target=v9:2x2: want CHIP:AxB"):
        target.devices("v9:2x2")
    monkeypatch.setattr(target.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"needs libtpu; want: pip install -r requirements-tpu-aot\.txt"
    ):
        target.devices("v5e:2x2")
    with pytest.raises(UserError, match=r"needs jaxlib's CUDA plugin"):
        target.devices("h100:1x2x4")
    with pytest.raises(UserError, match=r"h100:8: want"):
        target.devices("h100:8")


@pytest.mark.parametrize("page", [pytest.param("imagenet64", marks=slow), "pod_smoke"])
def test_pod_configs_step_on_two_images(page):
    """At 1/32 of their widths: the whole of them is a pod's work."""
    c = config.load(f"configs/{page}.py")
    c.batch = 2
    c.data.name, c.data.size = "synthetic", 64
    for section in ("encoder", "decoder"):
        c[section].widths = tuple(w // 32 for w in c[section].widths)
        c[section].dense = 64
    assert np.isfinite(update(c, 2)[0]).all()


@slow
def test_a_bfloat16_program_for_tpus_sums_in_float32():
    pytest.importorskip("libtpu", reason="needs requirements-tpu-aot.txt")
    row = target.measure(small(dtype="bfloat16", mesh__fsdp=2), "v5e:2x2")
    assert row["fits"] and row["devices"] == 4 and row["flops"] > 0
    assert {d for kind, d in row["collectives"] if kind in ("all-reduce", "reduce-scatter")} == {
        "f32"
    }


@slow
def test_a_program_that_needs_more_memory_than_a_chip_has_is_a_row(tmp_path, capsys):
    pytest.importorskip("libtpu", reason="needs requirements-tpu-aot.txt")
    out, small_fields = tmp_path / "t.json", ["--config.optim.warmup=0", "--config.data.shift=0"]
    given = [
        "--config=configs/digits.py",
        *small_fields,
        "--target=v5e:2x2",
        "--sweep=batch=33554432,64",
        f"--out={out}",
    ]
    assert importlib.import_module("benchmark").run(["benchmark.py", *given]) == 1
    figures = results.read(out)["figures"]
    assert figures["batch_33554432_fits"]["value"] == 0 and figures["batch_64_fits"]["value"] == 1
    assert (
        "batch=33554432: DOES NOT COMPILE: JaxRuntimeError: RESOURCE_EXHAUSTED"
        in capsys.readouterr().out
    )
