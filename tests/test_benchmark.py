"""The benchmark counts right, compiles what train.py compiles, and goes on where a cell fails. No time is asserted."""

import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import benchmark
from benchmarks import cells, machine, present, startup, whole
from vae_jax import cli as flags
from vae_jax import config, data
from vae_jax.config import UserError
from vae_jax.mesh import rules as sharding
from vae_jax.models import model
from vae_jax.tools import results
from vae_jax.train import clock as watch
from vae_jax.train import flops as count
from vae_jax.train import program as compile_lib
from vae_jax.train import step

ROOT = pathlib.Path(__file__).parents[1]
# FLOPs of dense and convolutional layers in a training step, for one image.
GOLDEN = {
    "adgm_mnist": 74_742_248,
    "ccvae_mnist": 6_982_800,
    "cifar10_vdvae": 12_146_724_864,
    "cifar10_vdvae_20k": 354_103_296,
    "cifar10_vit": 1_803_168_768,
    "digits": 1_142_528,
    "fashion_cnn": 13_659_648,
    "fashion_mnist": 27_955_264,
    "fashion_hier": 177_534_976,
    "fashion_residual": 99_426_304,
    "fashion_vit": 98_672_128,
    "imagenet64": 3_861_454_848,
    "iwae_mnist": 7_191_200,
    "m1_mnist": 9_567_136,
    "m1m2_mnist": 6_720_600,
    "m2_mnist": 18_616_248,
    "mnist": 27_955_264,
    "mnist_cnn": 13_659_648,
    "mnist_dynamic": 2_228_000,
    "mnist_hier": 17_921_088,
    "mnist_vdvae": 83_490_880,
    "normal_mnist": 5_743_936,
    "pod_smoke": 3_861_485_568,
    "sdgm_mnist": 63_456_248,
    "seed_conv": 295_533_312,
    "sigma_fashion": 5_289_536,
    "static_mnist": 8_617_536,
    "unit_fashion": 5_289_536,
    "vae_mnist": 2_228_000,
    "vamp_mnist": 25_975_936,
}
SHAPES = {
    "digits": (8, 8, 1),
    "cifar10": (32, 32, 3),
    "cifar10_20k": (32, 32, 3),
    "imagenet_resized/64x64": (64, 64, 3),
    "synthetic": (64, 64, 3),
}  # others are 28x28x1
TINY = {
    "classifier.name": "none",
    "objective.name": "elbo",
    "encoder.widths": "(16,)",
    "decoder.widths": "(16,)",
    "latent": "3",
    "batch": "8",
    "data.shift": "0",
    "steps_per_call": "1",
}


def shipped():
    """Names of the pages in configs/ that give a config of a model."""
    return sorted(p.stem for p in (ROOT / "configs").glob("*.py") if "def get_config" in p.read_text())


def setup(name, **fields):
    """(config, model, mesh, data set) of a shipped config, with blank images of its data's shape."""
    c = flags.apply(config.load(f"{ROOT}/configs/{name}.py"), list(fields.items()))
    shape = SHAPES.get(c.data.name, (28, 28, 1))
    blank = data.Split(np.zeros((16, *shape), np.uint8), np.zeros(16, np.int32))
    levels = {"digits": 17, "binarized_mnist": 2}.get(c.data.name, 256)
    dataset = data.Dataset(c.data.name, shape, levels, tuple("0123456789"), *[blank] * 3)
    return c, model.build_for(c, dataset), sharding.make_mesh(c.mesh, jax.devices()[:1]), dataset


def tiny(**fields):
    return setup("digits", **TINY | fields)


def program(c, m, mesh, dataset):
    state, places = compile_lib.init(c, m, mesh, dataset)
    return compile_lib.training(c, m, mesh, dataset, state, places), state


# --- the hand count ---


def flops_of(function, *shapes):
    return count.flops(jax.make_jaxpr(function)(*(jnp.zeros(s) for s in shapes)))


def test_a_dense_layer_and_its_backward():
    layer = lambda x, w: jnp.sum(jnp.tanh(x @ w))  # noqa: E731
    once = 2 * 3 * 5 * 7
    assert flops_of(layer, (3, 5), (5, 7)) == once
    assert flops_of(jax.grad(layer, 1), (3, 5), (5, 7)) == 2 * once  # no gradient of the image
    assert flops_of(jax.grad(layer, (0, 1)), (3, 5), (5, 7)) == 3 * once
    assert flops_of(lambda a, b: jnp.einsum("bij,bjk->bik", a, b), (4, 3, 5), (4, 5, 7)) == 4 * once


def conv(x, w, **kwargs):
    return jax.lax.conv_general_dilated(x, w, dimension_numbers=("NHWC", "HWIO", "NHWC"), **kwargs)


def test_a_convolution_and_its_backward_count_no_padding():
    # A row of 8 pixels, kernel 4, stride 2, one of padding at each end: its 4 windows hold 3 + 4 + 4 + 3 pixels.
    layer = lambda x, w: jnp.sum(jnp.tanh(conv(x, w, window_strides=(2, 2), padding="SAME")))  # noqa: E731
    x, w = (2, 8, 8, 3), (4, 4, 3, 5)
    once = 2 * 2 * 3 * 5 * 14**2
    assert flops_of(layer, x, w) == once
    assert flops_of(jax.grad(layer, 1), x, w) == 2 * once
    assert flops_of(jax.grad(layer, (0, 1)), x, w) == 3 * once


def test_an_upsampling_convolution_counts_no_holes():
    from vae_jax.nets.conv import up2

    layer = lambda z, w: jnp.sum(jnp.tanh(up2(z, w)))  # noqa: E731
    z, w = (2, 4, 4, 5), (4, 4, 3, 5)  # the mirror image of the convolution above
    once = 2 * 2 * 3 * 5 * 14**2
    assert flops_of(layer, z, w) == once
    assert flops_of(jax.grad(layer, (0, 1)), z, w) == 3 * once


def test_groups_and_dilated_kernels():
    # 6 pixels, kernel 3 with holes of one between its taps, no padding: 2 windows of 3 pixels.
    got = flops_of(
        lambda x, w: conv(x, w, window_strides=(1, 1), padding="VALID", rhs_dilation=(2, 2), feature_group_count=2),
        *((1, 6, 6, 4), (3, 3, 2, 8)),
    )
    assert got == 2 * 2 * 8 * 6**2


def test_loops_branches_and_nested_functions():
    w = jnp.zeros((5, 5))
    once = 2 * 5**3
    assert flops_of(lambda x: jax.lax.scan(lambda x, _: (x @ w, None), x, length=7)[0], (5, 5)) == 7 * once
    either = lambda x: jax.lax.cond(x[0, 0] > 0, lambda x: x @ w @ w, lambda x: x @ w, x)  # noqa: E731
    assert flops_of(either, (5, 5)) == 2 * once
    assert flops_of(jax.jit(lambda x: x @ w), (5, 5)) == once
    # A checkpointed layer is computed again on the way back.
    again = jax.grad(lambda x: jnp.sum(jax.checkpoint(lambda x: jnp.tanh(jnp.tanh(x @ w) @ w))(x)))
    assert flops_of(again, (5, 5)) == (2 + 2 + 2) * once


def test_what_a_loop_repeats():
    """Seven turns of a product beside one outside: (7 + 1) / (1 + 1) of the FLOPs, but for a sine of 25 numbers."""
    w = jnp.zeros((5, 5))
    looped = lambda x: jnp.sin(jax.lax.scan(lambda x, _: (x @ w, None), x, length=7)[0] @ w)  # noqa: E731
    found = count.repeats(jax.make_jaxpr(looped)(w))
    assert found[0] == (8 * 250 + 25) / (2 * 250 + 25)
    assert found[1] == (8 * 300 + 200) / (2 * 300 + 200)  # of four bytes: 75 numbers a product, 50 a sine
    assert count.repeats(jax.make_jaxpr(lambda x: x @ w)(w)) == (1, 1)


# The deepest takes longer to trace than most of the others together.
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n.startswith("cifar10_vdvae") else ()) for n in shipped()]
)
def test_the_work_of_every_shipped_config(name):
    c, m, mesh, dataset = setup(name)
    traced = count.traced(c, m, mesh, dataset)
    flops = count.flops(traced) / (c.batch + c.data.labelled_batch)
    assert name in GOLDEN, f"new config: add '{name}': {flops:_.0f} to GOLDEN"
    assert flops == pytest.approx(GOLDEN[name], rel=1e-3)
    assert "float64" not in count.dtypes(traced)


def test_the_work_of_the_mlp_is_what_its_widths_say():
    sizes = (784 * 200, 200 * 200, 200 * 2 * 50, 50 * 200, 200 * 200, 200 * 784)
    assert 3 * 2 * sum(sizes) - 2 * sizes[0] == GOLDEN["mnist_dynamic"]


@pytest.mark.parametrize("name", ["mnist_dynamic", "mnist_cnn"])
def test_xla_counts_the_same_work(name):
    """The gradient of the loss, without the optimiser, whose share falls with the batch."""
    c, m, mesh, dataset = setup(name, batch="20")
    terms = step.make_terms(c, m, dataset)
    params = compile_lib.shapes(c, m, mesh)[0].params

    def loss(params, batch, key):
        return jnp.mean(terms(params, batch, key, 0).loss)

    lowered = compile_lib.simple(jax.grad(loss)).lower(params, step.raw_batch(dataset.shape, 20), jax.random.key(0))
    xla = lowered.compile().cost_analysis()["flops"] / 20
    assert xla == pytest.approx(GOLDEN[name], rel=0.05)


def test_the_steps_of_a_call_are_accounted_for():
    figures = []
    for steps, unroll in ((1, True), (2, True), (2, False)):
        c, m, mesh, dataset = tiny(steps_per_call=str(steps), unroll=str(unroll), batch="64")
        run, state = program(c, m, mesh, dataset)
        figures.append(cells.analysis(c, run, state, mesh.size, count.traced(c, m, mesh, dataset)))
    assert figures[0]["alias_bytes"] == figures[0]["state_bytes"] > 0  # the whole state is donated
    for one in figures[1:]:
        assert one["xla_flops_per_image"] == pytest.approx(figures[0]["xla_flops_per_image"], rel=0.2)


GRID = {"data.name": "digits", "batch": "16", "encoder.widths": "(8,)", "decoder.widths": "(8,)"}
GRID |= {"decoder.channels": "3", "encoder.depths": "(1,)", "decoder.depths": "(4,)"}


@pytest.mark.parametrize(
    ("name", "given", "field", "plain", "looped"),
    [
        ("mnist_dynamic", {"batch": "128"}, "accumulate", "1", "4"),
        pytest.param("mnist_vdvae", GRID, "decoder.scan", "False", "True", marks=pytest.mark.slow),
    ],
    ids=["microbatches", "levels"],
)
def test_the_turns_of_loops_are_accounted_for(name, given, field, plain, looped):
    """Microbatches and the levels of a grid in a scan are the work of the same step without one."""
    found = []
    for value in (plain, looped):
        c, m, mesh, dataset = setup(name, **given | {field: value})
        run, state = program(c, m, mesh, dataset)
        traced = count.traced(c, m, mesh, dataset)
        found.append(cells.analysis(c, run, state, mesh.size, traced)["xla_flops_per_image"])
        assert (count.repeats(traced)[0] > 1.5) == (value == looped)
    assert found[1] == pytest.approx(found[0], rel=0.1)


# Between what jaxlib 0.10 and 0.12 need: 2.61 and 2.42 MB, 1.92 and 1.70 MB.
@pytest.mark.parametrize(("name", "peak"), [("mnist_dynamic", 2_510_000), ("digits", 1_810_000)])
def test_peak_temporary_memory(name, peak):
    c, m, mesh, dataset = setup(name, **({"steps_per_call": "1"} if name == "digits" else {}))
    run, state = program(c, m, mesh, dataset)
    found = cells.analysis(c, run, state, mesh.size, count.traced(c, m, mesh, dataset))
    assert found["temp_bytes"] == pytest.approx(peak, rel=0.1)
    assert found["alias_bytes"] == found["state_bytes"]  # the state is donated
    # While a call lasts there are the state, the training set and the temporaries, and little else.
    held = found["state_bytes"] + found["temp_bytes"] + sum(a.nbytes for a in jax.tree.leaves(run.source))
    assert held <= found["peak_bytes"] <= 1.02 * held


def test_dtypes_are_found_and_bfloat16_nets_multiply_in_it():
    with jax.enable_x64(True):
        assert "float64" in count.dtypes(jax.make_jaxpr(jax.jit(jnp.sin))(np.ones(3)))
    assert "bfloat16" not in count.dtypes(count.traced(*tiny()))
    assert "bfloat16" in count.dtypes(count.traced(*tiny(dtype="bfloat16")))


# --- cells ---


def test_a_sweep_is_every_combination():
    assert cells.parse_sweep("") == [()]
    got = cells.parse_sweep("batch=20,128; encoder.widths=(8,8),[16];")
    assert got == [(("batch", b), ("encoder.widths", w)) for b in ("20", "128") for w in ("(8,8)", "[16]")]


def test_a_window_is_blocked_once_at_its_end():
    events = []
    lane = cells.Lane(lambda: events.append("call"), lambda: events.append("wait"), steps=5)
    cells.window(lane, 3)
    assert events == ["call", "wait", "call", "call", "call", "wait"]


def test_cold_and_warm_are_of_the_step_alone():
    """Cells share the small programs beside the step: a hit there is none of the step."""
    sweep = cells.parse_sweep("latent=2,3")
    made = cells.cells(lambda: config.load(f"{ROOT}/configs/digits.py"), [*TINY.items(), ("mesh.data", "1")], sweep)
    with cells.fresh_cache():
        for cell in made:
            cells.build(cell)
            assert min(cell.row[f"{k}_s"] for k in ("lower", "cold", "warm")) > 0
        cells.build(made[0])
    assert made[0].row["cold_s"] is None  # this time the very program was there


FAILING = """
import os, jax, numpy as np
from vae_jax.objectives.evidence import elbo

def broken(model, params, batch, key):
    raise RuntimeError("no such loss")

def later(model, params, batch, key):
    def look(x):
        if os.path.exists({gone!r}):
            raise RuntimeError("the device is gone")
        return np.asarray(x)

    terms = elbo(model, params, batch, key)
    loss = jax.lax.stop_gradient(terms.loss)
    seen = jax.pure_callback(look, jax.ShapeDtypeStruct(loss.shape, loss.dtype), loss)
    return terms._replace(loss=terms.loss + 0 * seen)
"""


def test_what_fails_while_it_is_traced_or_run_is_a_row(tmp_path):
    """A value that no config may hold, a loss that cannot be traced, a program that fails among its windows: the last
    cell is measured all the same."""
    gone, file = tmp_path / "gone", tmp_path / "failing.py"
    file.write_text(FAILING.format(gone=str(gone)))
    losses = [f"{file}:broken", f"{file}:later", "elbo"]
    sweep = [(("batch", "-1"),), *((("objective.name", loss),) for loss in losses)]
    made = cells.cells(lambda: config.load(f"{ROOT}/configs/digits.py"), [*TINY.items(), ("mesh.data", "1")], sweep)
    cells.build_all(made, seconds=0.01, say=lambda _: None)
    assert [bool(cell.row["error"]) for cell in made] == [True, True, False, False]
    gone.touch()
    cells.take_turns(made, rounds=2, say=lambda _: None)
    reasons = [cell.row["error"] for cell in made]
    assert reasons[:2] == ["batch=-1: want a number > 0", "RuntimeError: no such loss"]
    assert "\n" not in reasons[2] and "the device is gone" in made[2].row["traceback"]
    assert reasons[3] == "" and len(made[3].row["windows"]["ours"]) == 2
    peaks = {"float32": 1e9, "bfloat16": 1e9, "bytes": 1e9}
    rows = [cell.row for cell in made]
    lines = present.table(rows, [present.summary(row, peaks, None) for row in rows]).splitlines()
    assert [" failed: " in line for line in lines] == [False, True, True, True, False]


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """One run of the script: two cells of a tiny config, and one that needs more devices than there are."""
    folder = tmp_path_factory.mktemp("benchmark")
    given = [f"--config.{field}={value}" for field, value in TINY.items()]
    argv = ["benchmark.py", f"--config={ROOT}/configs/digits.py", *given, "--rounds=3", "--seconds=0.01"]
    argv += ["--sweep=mesh.data=1,2,64", f"--out={folder}/tiny.json", f"--page={folder}/page"]
    old = jax.config.jax_compilation_cache_dir
    with pytest.MonkeyPatch.context() as patch:  # the peaks are not what is tested here
        patch.setattr(machine, "SIZES", {"cpu": (64, 128)})
        patch.setattr(machine, "COPY", {"cpu": 2**20})
        code = benchmark.run(argv)
    assert jax.config.jax_compilation_cache_dir == old
    return folder, argv, code


def test_a_failing_cell_is_a_row_and_the_others_go_on(swept):
    folder, _, code = swept
    assert code == 0
    figures = results.read(folder / "tiny.json")["figures"]
    assert figures["mesh.data=64.step_ms"]["value"] is None
    for cell in ("mesh.data=1", "mesh.data=2"):
        assert figures[f"{cell}.step_ms"]["n"] == 3
        assert figures[f"{cell}.warm_compile_s"]["value"] is not None  # it did come from the cache
        assert figures[f"{cell}.peak_mb"]["value"] > figures[f"{cell}.temp_mb"]["value"]
        low, middle, high = (figures[f"{cell}.{k}"]["value"] for k in ("p10_ms", "step_ms", "p90_ms"))
        assert 0 < low <= middle <= high
        assert figures[f"{cell}.images_per_s"]["value"] == pytest.approx(8e3 / middle)
    one, two = (figures[f"mesh.data={n}.images_per_s_per_device"]["value"] for n in (1, 2))
    assert one == figures["mesh.data=1.images_per_s"]["value"]
    assert two == figures["mesh.data=2.images_per_s"]["value"] / 2
    # Two devices do the work of one, but for the optimiser, which each does for itself.
    one, two = (figures[f"mesh.data={n}.hand_mflop"]["value"] for n in (1, 2))
    assert one == two


def test_every_window_is_in_the_json_lines(swept):
    facts, *rows = map(json.loads, (swept[0] / "tiny.jsonl").read_text().splitlines())
    assert {"device", "versions", "commit", "command"} <= set(facts)
    settings = json.loads((swept[0] / "tiny.json").read_text())["settings"]
    assert settings.items() <= facts.items() and settings["XLA_FLAGS"] == os.environ["XLA_FLAGS"]
    assert set(settings) == {"XLA_FLAGS", "compiler options", "huge pages", "load"}
    assert re.fullmatch(r"[\d.]+ processes before, [\d.]+ after", settings["load"])
    for option in (compile_lib.options("cpu") or {}).values():
        assert option in settings["compiler options"]
    assert [row["key"] for row in rows] == ["mesh.data=1", "mesh.data=2", "mesh.data=64"]
    assert "does not fit 8 devices" in rows[2]["error"] and rows[2]["summary"] == {}
    assert [len(row["windows"]["ours"]) for row in rows[:2]] == [3, 3]
    s = rows[0]["summary"]
    assert s["flops_per_s"] == pytest.approx(s["images_per_s"] * rows[0]["hand_flops_per_image"])
    assert s["share_of_peak"] == pytest.approx(s["flops_per_s"] / facts["measured"]["float32"])
    assert s["bytes_per_s"] == pytest.approx(s["share_of_copy"] * facts["measured"]["bytes"])
    assert s["side"] in ("compute", "memory") and s["mfu"] is None


def test_the_page_stands_alone(swept):
    html = (swept[0] / "page/index.html").read_text()
    assert "mesh.data=64" in html and "does not fit 8 devices" in html
    assert html.count("data:image/svg+xml;base64,") == 4  # two pictures, light and dark
    links = re.findall(r'(?:src|srcset|href)="(.{5})', html)
    assert links and set(links) == {"data:"} and "<script" not in html


def test_compare_in_the_same_command(swept, monkeypatch, capsys):
    """A file whose steps were a thousand times faster: exit code 1, and the cell is named."""
    folder, argv, _ = swept
    old = json.loads((folder / "tiny.json").read_text())
    for key, one in old["figures"].items():
        if key.endswith("_ms") and one["value"]:
            one["value"] /= 1000
    (folder / "old.json").write_text(json.dumps(old | {"name": "old"}))
    monkeypatch.setattr(machine, "measured", lambda: {"float32": 1e9, "bfloat16": 1e9, "bytes": 1e9})
    assert benchmark.run([*argv[:-3], "--sweep=mesh.data=1", f"--compare={folder}/old.json"]) == 1
    said = capsys.readouterr().out
    assert re.search(r"slower +mesh\.data=1 ", said) and re.search(r"absent +mesh\.data=2 ", said)


def test_another_config_or_device_is_no_older_file(tmp_path):
    page = "configs/digits.py"
    given = {"command": "python benchmark.py --config.batch=8", "config": page, "seed": None, "seconds": 1}
    results.write(tmp_path / "old.json", **given, figures=figures(a=(1, 1, 1)))
    path, keys, pairs = tmp_path / "old.json", ["a", "b"], [("batch", "8")]
    assert present.read_old(path, keys, f"{ROOT}/{page}", pairs)[1] == []
    with pytest.raises(UserError, match=r"is of config digits; want one of mnist$"):
        present.read_old(path, keys, "configs/mnist.py", pairs)
    assert present.read_old(path, keys, page, [("latent", "3")])[1] == [
        "batch: 8 then, as on the page now",
        "latent: as on the page then, 3 now",
    ]
    old = json.loads(path.read_text())
    path.write_text(json.dumps(old | {"versions": old["versions"] | {"jax": "0.1"}}))
    assert present.read_old(path, keys, page, pairs)[1] == [f"jax 0.1 then, {jax.__version__} now"]
    path.write_text(json.dumps(old | {"device": "8 x NVIDIA H100"}))
    with pytest.raises(UserError, match="was measured on 8 x NVIDIA H100; want one of this device, "):
        present.read_old(path, keys, page, pairs)


# --- verdicts ---


def figures(**of):
    """{cell: (p10, median, p90) or None} as figures of results/."""
    made = {}
    for cell, values in of.items():
        low, middle, high = values or (None,) * 3
        named = {"p10_ms": low, "step_ms": middle, "p90_ms": high}
        made |= {f"{cell}.{k}": results.figure(v, "ms") for k, v in named.items() if values or k == "step_ms"}
    return made


@pytest.mark.parametrize(
    ("old", "new", "verdict"),
    [
        ((1.0, 1.1, 1.2), (1.3, 1.4, 1.5), "slower"),
        ((1.3, 1.4, 1.5), (1.0, 1.1, 1.2), "faster"),
        ((1.0, 1.1, 1.2), (1.1, 1.4, 1.5), "same"),  # the spreads meet
        ((1.0, 1.001, 1.002), (1.003, 1.004, 1.005), "same"),  # they do not, by next to nothing
        ((1.0, 1.1, 1.2), None, "fails"),
        (None, (1.0, 1.1, 1.2), "runs"),
        (None, None, "same"),
    ],
)
def test_verdicts(old, new, verdict):
    got = present.compare(figures(a=old, b=(1, 1, 1)), figures(a=new, c=(1, 1, 1)))
    assert [(cell, v) for cell, v, _ in got] == [("a", verdict), ("b", "absent"), ("c", "new")]
    assert present.regressed(got) == (verdict in ("slower", "fails"))


def test_published_peaks_are_those_of_the_device():
    assert machine.published("NVIDIA H100 80GB HBM3")["bfloat16"] == 989e12
    assert machine.published("NVIDIA H100 PCIe")["bfloat16"] == 756e12
    assert machine.published("TPU v5 lite")["bfloat16"] == 197e12
    assert machine.published("cpu") is None


# --- bad input: one line ---


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--sweep=batchh=20"], "batchh=20: unknown field; nearest: batch"),
        (["--sweep=;"], "sweep=;: no field in it"),
        (["--sweep=batch"], "sweep=batch: want FIELD=VALUE"),
        (["--sweep=batch=20,,30"], "sweep=batch=20,,30: want FIELD=VALUE"),
        (["--sweep=batch=20,20"], "sweep: batch=20 is there twice"),
        (["--sweep=batch=1;batch=2"], "batch is there twice"),
        (["--sweep=batch=many"], "batch=many: want int"),
        (["--sweep=batch=-1"], "batch=-1: want a number > 0"),
        (["--sweep=mesh.data=64"], "mesh.data=64: 64 does not fit 8 devices; nearest that fits: 8"),
        (["--target=v9:2x2"], "target=v9:2x2: want CHIP:AxB or AxBxC, such as v5e:16x16"),
        (["--peer=tensorflow"], "peer=tensorflow: unknown; "),
        (["--rounds=0"], "rounds"),
        (["--compare=nothing.json"], "nothing.json: No such file"),
        (["--compare=results/digits.json"], "has none of these cells"),
        (["--startup", "--config.steps_per_call=7", "--rounds=1"], "want a multiple of steps_per_call=7"),
    ],
)
def test_bad_input_is_one_line(given, message):
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        benchmark.run(["benchmark.py", f"--config={ROOT}/configs/digits.py", *given])
    assert "\n" not in str(caught.value)


def test_a_peer_that_is_not_installed_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "benchmarks.peers.torch_step", raising=False)
    with pytest.raises(UserError, match=r"peer=torch: torch is not installed; want -r requirements-peers\.txt"):
        benchmark.run(["benchmark.py", "--peer=torch"])


# --- the peer ---


@pytest.mark.parametrize(
    "changes",
    [
        {"encoder.name": "mlp"},
        {"encoder.name": "mlp", "objective.name": "iwae", "classifier.name": "none", "objective.samples": 3},
        {"encoder.name": "conv", "objective.samples": 2},
    ],
    ids=["mlp", "iwae", "conv"],
)
def test_torch_computes_the_same_loss_and_gradients(changes):
    pytest.importorskip("torch")
    peer = benchmark.find_peer("torch")
    c = config.load(f"{ROOT}/configs/digits.py")
    for section in ("encoder", "classifier", "objective"):
        if f"{section}.name" in changes:
            c[section] = config.call(section, changes[f"{section}.name"])
    c.decoder = config.call("decoder", c.encoder.name)
    for field, value in changes.items():
        config.set_field(c, field, value)
    c.data.shift = 0
    dataset = data.load(c.data)
    m = model.build_for(c, dataset)
    # Biases away from zero, which would hide a wrong order of them.
    rng = np.random.default_rng(0)
    params = m.init(jax.random.key(0))
    params = jax.tree.map(lambda a: np.float32(a + 0.05 * rng.standard_normal(a.shape)), params)
    gaps = cells.agreement(c, dataset, params, peer.Peer(c, dataset, params))
    assert max(gaps.values()) < cells.AGREE
    wrong = jax.tree.map(lambda a: 1.001 * a, params)
    with pytest.raises(UserError, match="the peer is another function"):
        cells.agreement(c, dataset, wrong, peer.Peer(c, dataset, params))


def test_torch_computes_the_same_m2():
    pytest.importorskip("torch")
    peer = benchmark.find_peer("torch")
    c = flags.apply(
        config.load(f"{ROOT}/configs/m2_mnist.py"),
        [("data.name", "digits"), ("encoder.widths", "(32, 16)"), ("decoder.widths", "(16, 32)"), ("latent", "3")],
    )
    dataset = data.load(c.data)
    m = model.build_for(c, dataset)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda a: np.float32(a + 0.05 * rng.standard_normal(a.shape)), m.init(jax.random.key(0)))
    gaps = cells.agreement(c, dataset, params, peer.Peer(c, dataset, params))
    assert max(gaps.values()) < cells.AGREE


def test_torch_computes_the_same_vdvae():
    pytest.importorskip("torch")
    peer = benchmark.find_peer("torch")
    small = {"data.name": "digits", "data.flip": "False", "likelihood.components": "2", "decoder.channels": "3"}
    grids = {"encoder.widths": "(8, 12)", "encoder.depths": "(1, 2)", "decoder.widths": "(12, 8)"}
    given = small | grids | {"decoder.depths": "(2, 1)", "decoder.scan": "False"}
    c = flags.apply(config.load(f"{ROOT}/configs/cifar10_vdvae_20k.py"), list(given.items()))
    dataset = data.load(c.data)
    m = model.build_for(c, dataset)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda a: np.float32(a + 0.05 * rng.standard_normal(a.shape)), m.init(jax.random.key(0)))
    gaps = cells.agreement(c, dataset, params, peer.Peer(c, dataset, params))
    assert max(gaps.values()) < cells.AGREE


# --- the loop and the start ---


def test_the_loop_says_where_its_time_goes():
    given = TINY | {"steps": "20", "log_every": "10", "eval.every": "10", "optim.warmup": "0", "mesh.data": "1"}
    c = flags.apply(config.load(f"{ROOT}/configs/digits.py"), list(given.items()))
    figures = whole.measure(c, rounds=1, seconds=0.01)
    assert figures["kept"]["value"] > 0
    parts = [figures[part]["value"] for part in watch.LOOP]
    assert min(parts) >= 0 < max(parts) and sum(parts) < 1


def test_help_waits_for_no_jax():
    code = (
        "import runpy, sys\n"
        "sys.argv = ['train.py', '--help']\n"
        "try: runpy.run_path('train.py', run_name='__main__')\n"
        "except SystemExit as done: assert not done.code, done.code\n"
        "seen = {name.split('.')[0] for name in sys.modules}\n"
        "assert 'absl' in seen\n"
        "assert not seen & {'jax', 'jaxlib', 'flax', 'optax', 'orbax', 'tensorflow', 'matplotlib'}, seen\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "--workdir" in done.stdout, done.stderr


@pytest.mark.slow
def test_a_run_compiles_each_program_once_and_the_next_takes_them_from_the_users_cache(tmp_path):
    """Three times the steps, with as many more logs, validations and saves, compile nothing more; and a process after
    the first compiles nothing of the same run: every program is in the cache folder of the home that it was given."""
    given = TINY | {"steps_per_call": "5", "log_every": "10", "eval.every": "20", "optim.warmup": "0"}
    words = [f"--config.{field}={value}" for field, value in given.items()]
    env = {k: v for k, v in os.environ.items() if k != "VAE_JAX_CACHE"}
    env |= {"HOME": str(tmp_path), "JAX_LOG_COMPILES": "1"}
    folder = tmp_path / ".cache" / "vae_jax" / "xla"

    def programs(name, steps):
        """(how many programs a run has, those that were compiled and kept)."""
        before = set(folder.glob("*-cache"))
        command = [sys.executable, "train.py", *words, f"--config.steps={steps}", f"--workdir={tmp_path}/{name}"]
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        found = re.findall(r"^(?:WARNING:\S+:)?Finished XLA compilation of (\S+)", done.stderr, re.M)
        return len(found), {p.name.rpartition("-")[0] for p in set(folder.glob("*-cache")) - before}

    first, made = programs("first", 20)
    assert first >= len(made) > 10
    again, more = programs("again", 20)
    assert again == first and not more
    longer, more = programs("longer", 60)
    # Its step is another program, by the learning rate's schedule.
    assert longer == first and "jit_many" in {name.rpartition("-")[0] for name in more}


@pytest.mark.slow
def test_the_start_is_measured():
    figures = startup.measure(config.load(f"{ROOT}/configs/digits.py"), ["--config=configs/digits.py"], rounds=1)
    assert set(figures) == {"cold_start", "warm_start", "help"}
    assert all(f["value"] > 0 for f in figures.values())
