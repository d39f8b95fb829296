"""The cells of a sweep: combinations, compile times, windows, failures. No time is asserted."""

import pathlib
from typing import Any

import jax
import pytest

from benchmarks import cells, present
from tests.benchmarks.tiny import DIGITS, TINY, Setup, compiled, setup, setup_tiny
from vae_jax import config
from vae_jax.train import flops as count


def test_a_sweep_is_every_combination() -> None:
    assert cells.parse_sweep("") == [()]
    sweep = cells.parse_sweep("batch=20,128; encoder.widths=(8,8),[16];")
    assert sweep == [
        (("batch", "20"), ("encoder.widths", "(8,8)")),
        (("batch", "20"), ("encoder.widths", "[16]")),
        (("batch", "128"), ("encoder.widths", "(8,8)")),
        (("batch", "128"), ("encoder.widths", "[16]")),
    ]


def load_cells(sweep: list[cells.Pairs]) -> list[cells.Cell]:
    pairs = [*TINY.items(), ("mesh.data", "1")]
    return cells.cells(lambda: config.load(DIGITS), pairs, sweep)


def test_a_window_is_blocked_once_at_its_end() -> None:
    events = []
    lane = cells.Lane(lambda: events.append("call"), lambda: events.append("wait"), steps=5)
    cells.window(lane, 3)
    assert events == ["call", "wait", "call", "call", "call", "wait"]


def test_cold_and_warm_are_of_the_step_alone() -> None:
    """Cells share the small programs beside the step: a hit there is no hit of the step."""
    both = load_cells(cells.parse_sweep("latent=2,3"))
    with cells.fresh_cache():
        for cell in both:
            cells.build(cell)
            assert cell.row["lower_s"] > 0
            assert cell.row["cold_s"] > 0
            assert cell.row["warm_s"] > 0
        cells.build(both[0])
    assert both[0].row["cold_s"] is None  # this time its own program was in the cache


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


def test_what_fails_while_it_is_traced_or_run_is_a_row(tmp_path: pathlib.Path) -> None:
    """A value that no config may hold, a loss that cannot be traced, a program that fails among its
    windows: the last cell is measured all the same."""
    gone = tmp_path / "gone"
    file = tmp_path / "failing.py"
    file.write_text(FAILING.format(gone=str(gone)))
    sweep = [(("batch", "-1"),)]
    for loss in (f"{file}:broken", f"{file}:later", "elbo"):
        sweep.append((("objective.name", loss),))
    four = load_cells(sweep)
    cells.build_all(four, seconds=0.01, log=lambda _: None)
    assert [bool(cell.row["error"]) for cell in four] == [True, True, False, False]
    gone.touch()
    cells.take_turns(four, rounds=2, log=lambda _: None)
    rows = [cell.row for cell in four]
    reasons = [row["error"] for row in rows]
    assert reasons[:2] == ["batch=-1: want a number > 0", "RuntimeError: no such loss"]
    assert "\n" not in reasons[2] and "the device is gone" in rows[2]["traceback"]
    assert reasons[3] == "" and len(rows[3]["windows"]["ours"]) == 2
    peaks = {"float32": 1e9, "bfloat16": 1e9, "bytes": 1e9}
    summaries = [present.summary(row, peaks, None) for row in rows]
    lines = present.table(present.Measured(rows, summaries, peaks, None)).splitlines()
    assert [" failed: " in line for line in lines] == [False, True, True, True, False]


def analyse(s: Setup) -> dict[str, Any]:
    """cells.analysis of a config on one device."""
    c, _, mesh, _ = s
    run, state = compiled(*s)
    return cells.analysis(c, run, state, mesh.size, count.traced(*s))


def test_the_steps_of_a_call_are_accounted_for() -> None:
    figures = []
    for steps, unroll in (("1", "True"), ("2", "True"), ("2", "False")):
        figures.append(analyse(setup_tiny(steps_per_call=steps, unroll=unroll, batch="64")))
    assert figures[0]["alias_bytes"] == figures[0]["state_bytes"] > 0  # the whole state is donated
    for one in figures[1:]:
        assert one["xla_flops_per_image"] == pytest.approx(
            figures[0]["xla_flops_per_image"], rel=0.2
        )


slow = pytest.mark.slow
GRID = {
    "data.name": "digits",
    "batch": "16",
    "encoder.widths": "(8,)",
    "encoder.depths": "(1,)",
    "decoder.widths": "(8,)",
    "decoder.depths": "(4,)",
    "decoder.channels": "3",
}


@pytest.mark.parametrize(
    ("name", "fields", "field", "plain", "looped"),
    [
        ("mnist_dynamic", {"batch": "128"}, "accumulate", "1", "4"),
        pytest.param("mnist_vdvae", GRID, "decoder.scan", "False", "True", marks=slow),
    ],
    ids=["microbatches", "levels"],
)
def test_the_turns_of_loops_are_accounted_for(
    name: str, fields: dict[str, str], field: str, plain: str, looped: str
) -> None:
    """Microbatches and the levels of a grid in a scan are the work of the same step without one."""
    flops = []
    for value in (plain, looped):
        s = setup(name, **fields | {field: value})
        flops.append(analyse(s)["xla_flops_per_image"])
        assert (count.repeats(count.traced(*s))[0] > 1.5) == (value == looped)
    assert flops[1] == pytest.approx(flops[0], rel=0.1)


# Between what jaxlib 0.10 and 0.12 need: 2.61 and 2.42 MB, 1.92 and 1.70 MB.
@pytest.mark.parametrize(
    ("name", "fields", "peak"),
    [("mnist_dynamic", {}, 2_510_000), ("digits", {"steps_per_call": "1"}, 1_810_000)],
    ids=["mnist_dynamic", "digits"],
)
def test_peak_temporary_memory(name: str, fields: dict[str, str], peak: int) -> None:
    s = setup(name, **fields)
    run, _ = compiled(*s)
    sizes = analyse(s)
    assert sizes["temp_bytes"] == pytest.approx(peak, rel=0.1)
    assert sizes["alias_bytes"] == sizes["state_bytes"]  # the state is donated
    # A call needs the state, the training set, the temporaries, and little else.
    source = sum(a.nbytes for a in jax.tree.leaves(run.source))
    needed = sizes["state_bytes"] + sizes["temp_bytes"] + source
    assert needed <= sizes["peak_bytes"] <= 1.02 * needed


def test_a_tuple_of_the_sweep_replaces_the_base_and_the_cell_is_what_its_label_says() -> None:
    """A tuple flag that is given twice was appended, so that (16,) was measured as (8, 16)."""
    sweep = cells.parse_sweep("encoder.widths=(16,),(32, 32)")
    pairs = [*TINY.items(), ("encoder.widths", "(8,)")]
    one, two = cells.cells(lambda: config.load(DIGITS), pairs, sweep)
    assert (one.row["key"], one.c.encoder.widths) == ("encoder.widths=(16,)", (16,))
    assert (two.row["key"], two.c.encoder.widths) == ("encoder.widths=(32,32)", (32, 32))
