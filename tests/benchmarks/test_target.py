"""Programs compiled ahead of time for chips that are not here."""

import importlib

import pytest

from benchmarks import target
from benchmarks.parity import small
from vae_jax.config import UserError
from vae_jax.tools import results


def test_a_target_without_libtpu_or_of_no_chip_is_one_line(monkeypatch):
    with pytest.raises(UserError, match=r"target=v9:2x2: want CHIP:AxB"):
        target.devices("v9:2x2")
    monkeypatch.setattr(target.importlib.util, "find_spec", lambda name: None)
    line = r"needs libtpu; want: pip install '\.\[tpu-aot\]'"
    with pytest.raises(UserError, match=line):
        target.devices("v5e:2x2")
    with pytest.raises(UserError, match=r"needs jaxlib's CUDA plugin"):
        target.devices("h100:1x2x4")
    with pytest.raises(UserError, match=r"h100:8: want"):
        target.devices("h100:8")


@pytest.mark.slow
def test_a_bfloat16_program_for_tpus_sums_in_float32():
    pytest.importorskip("libtpu", reason="needs the extra tpu-aot")
    row = target.measure(small(dtype="bfloat16", mesh__fsdp=2), "v5e:2x2")
    assert row["fits"]
    assert row["devices"] == 4
    assert row["flops"] > 0
    for kind, dtype in row["collectives"]:
        if kind in ("all-reduce", "reduce-scatter"):
            assert dtype == "f32", kind


@pytest.mark.slow
def test_a_program_that_needs_more_memory_than_a_chip_has_is_a_row(tmp_path, capsys):
    pytest.importorskip("libtpu", reason="needs the extra tpu-aot")
    out = tmp_path / "t.json"
    fields = ["--config.optim.warmup=0", "--config.data.shift=0"]
    sweep = ["--target=v5e:2x2", "--sweep=batch=33554432,64", f"--out={out}"]
    argv = ["benchmark.py", "--config=configs/digits.py", *fields, *sweep]
    assert importlib.import_module("benchmark").run(argv) == 1
    figures = results.read(out)["figures"]
    assert figures["batch_33554432_fits"]["value"] == 0
    assert figures["batch_64_fits"]["value"] == 1
    line = "batch=33554432: DOES NOT COMPILE: JaxRuntimeError: RESOURCE_EXHAUSTED"
    assert line in capsys.readouterr().out
