"""Meshes and partition rules."""

import re

import jax
import numpy as np
import pytest

from benchmarks.parity import objective, small
from tests.tiny import lowered
from vae_jax import config, data, models
from vae_jax.config import UserError
from vae_jax.mesh import rules as sharding
from vae_jax.tools import partition

P = jax.sharding.PartitionSpec


def specs_of(m, mesh):
    """{path of a parameter: its spec}."""
    params = jax.eval_shape(m.init, jax.random.key(0))
    places = sharding.shardings({"params": params}, mesh)
    specs = {}
    for path, place in jax.tree.leaves_with_path(places):
        specs[jax.tree_util.keystr(path, simple=True, separator="/")] = place.spec
    return specs


def test_specs_of_a_config():
    """Golden: M2's nets on data=2, fsdp=2, model=2."""
    c = objective("m2", mesh__data=2, mesh__fsdp=2, mesh__model=2)
    mesh = sharding.make_mesh(c.mesh)
    m = models.build_for(c, data.load(c.data))
    specs = specs_of(m, mesh)
    column = P("fsdp", "model")
    row = P("model", "fsdp")
    kernels = {path: spec for path, spec in specs.items() if path.endswith("kernel")}
    assert kernels == {
        "params/trunk/Layer_0/dense/kernel": column,
        "params/trunk/Layer_1/dense/kernel": row,
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
    for path, spec in specs.items():
        assert spec == P() or not path.endswith("bias"), path


COLUMN = ("fsdp", "model")
ROW = ("model", "fsdp")
LAST = ("fsdp",)
# The end of a kernel's path: the axes of its last dimensions.
SPLIT = {
    "Dense_0": COLUMN,
    "Dense_1": ROW,
    "dense": COLUMN,
    "Conv_0": LAST,
    "grid": LAST,
    "width_1": LAST,
    "out": LAST,
    "embed": LAST,
    "attention/qkv": LAST,
    "attention/out": LAST,
    "merge": LAST,
}
CONV_SIZE = {"widths": (32, 64), "depths": (1, 2)}
VIT_SIZE = {"width": 32, "depth": 2}


@pytest.mark.parametrize(
    ("encoder", "decoder", "size", "fields", "own"),
    [
        ("residual", "residual", CONV_SIZE, {}, {}),
        ("vit", "vit", VIT_SIZE, {}, {"decoder/out": COLUMN}),
        ("residual", "vdvae", CONV_SIZE, {}, {}),
        ("residual", "vdvae", CONV_SIZE, {"scan": True}, {}),
    ],
)
def test_every_kernel_of_a_deep_net_is_split(encoder, decoder, size, fields, own):
    """Golden, on fsdp=2, model=2. The kernels of a scan have one more dimension in front."""
    c = config.default()
    c.encoder = config.call("encoder", encoder, **size)
    c.decoder = config.call("decoder", decoder, **size, **fields)
    m = models.build(c, shape=(16, 16, 3), levels=256, classes=0, binary=False)
    mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "model": 2, "samples": 1})
    num_kernels = 0
    for path, spec in specs_of(m, mesh).items():
        axes = tuple(spec)
        if path.endswith("bias"):
            assert not any(axes), path
        if path.endswith("/kernel"):
            num_kernels += 1
            layer = path.removesuffix("/kernel")
            want = next(last for end, last in (own | SPLIT).items() if layer.endswith(end))
            assert axes == (None,) * (len(axes) - len(want)) + want, path
    assert num_kernels > 15


@pytest.mark.parametrize(
    ("path", "shape", "spec"),
    [
        ("params/encoder/Conv_0/kernel", (4, 4, 3, 32), P(None, None, None, "fsdp")),
        ("params/decoder/out/kernel", (4, 4, 6, 64), P(None, None, None, "fsdp")),
        ("params/posterior/Dense_0/kernel", (100, 64), P(None, "fsdp")),
        ("params/x/kernel", (3, 5), P(None, None)),
    ],
)
def test_fsdp_takes_another_dimension_where_its_own_does_not_divide(path, shape, spec):
    mesh = sharding.make_mesh({"data": 1, "fsdp": 8, "model": 1, "samples": 1})
    assert sharding.spec(path, shape, mesh) == spec


def test_bytes_on_a_device_and_a_picture(capsys):
    argv = ["sharding", "--config=configs/digits.py", "--config.mesh.data=2"]
    assert partition.main([*argv, "--config.mesh.fsdp=4", "--devices=8"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"params/decoder/Layer_1/dense/kernel +256x256 +–, fsdp +65,536", printed)
    assert "| 0 4 | 1 5 | 2 6 | 3 7 |" in printed


@pytest.mark.parametrize(
    ("mesh", "line"),
    [
        ({"data": 3, "model": -1}, r"mesh\.data=3: 3 does not fit 8 devices; nearest that fits: 2"),
        (
            {"data": -1, "fsdp": 16},
            r"mesh\.fsdp=16: 16 does not fit 8 devices; nearest that fits: 8; "
            r"XLA_FLAGS=--xla_force_host_platform_device_count=16 before the command gives virtual",
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


class Device:
    """Of two slices of four devices, as :func:`rules.make_mesh` sees it."""

    platform = "cpu"
    device_kind = "cpu"
    process_index = 0

    def __init__(self, i):
        self.id = i
        self.slice_index = i // 4


def test_slices_share_the_data_axis(monkeypatch):
    """Eight devices of two slices: `data` crosses between them, `fsdp` stays inside."""
    devices = [Device(i) for i in range(8)]
    meshes = []
    monkeypatch.setattr(sharding, "Mesh", lambda grid, axes, axis_types: meshes.append(grid))
    sharding.make_mesh({"data": 4, "fsdp": 2, "model": 1, "samples": 1}, devices)
    slices = np.vectorize(lambda device: device.slice_index)(meshes[0])
    assert (slices == slices[:, :1]).all()
    assert slices[:, 0, 0, 0].tolist() == [0, 0, 1, 1]
    line = r"mesh\.data=1: want a multiple of the 2 slices; nearest: 2"
    with pytest.raises(UserError, match=line):
        sharding.make_mesh({"data": 1, "fsdp": 8, "model": 1, "samples": 1}, devices)
