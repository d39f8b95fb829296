"""Figures over seeds: every number of a JSON file, its mean, spread, median and each seed's."""

import json

import numpy as np
import pytest

from benchmarks import seeds
from tests.processes import python


def test_numbers_are_found_at_any_depth_and_words_are_not():
    found = seeds.numbers({"a": 1, "b": {"c": [0.5, None, "x"]}, "d": True})
    assert found == {"a": 1.0, "b.c.0": 0.5}


def test_a_summary_leaves_no_seed_out():
    rows = {0: {"x": 1.0, "only": 2.0}, 1: {"x": 2.0}, 2: {"x": 6.0}}
    figures = seeds.summary(rows)
    assert figures["x"]["value"] == 3.0
    assert np.isclose(figures["x"]["sd"], np.std([1, 2, 6], ddof=1))
    assert figures["x"]["n"] == 3
    assert figures["x.median"]["value"] == 2.0
    assert [figures[f"x.seed_{seed}"]["value"] for seed in rows] == [1.0, 2.0, 6.0]
    assert not any(key.startswith("only") for key in figures)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_seeds_of_digits_are_trained_and_asked(tmp_path):
    out = tmp_path / "digits.json"
    words = ["--config=configs/digits.py", "--seeds=2", f"--workdir={tmp_path / 'runs'}"]
    words += ["--then=eval.py --tasks=clusters", "--figures=accuracy,cluster*", f"--out={out}"]
    fast = ["--config.steps=20", "--config.steps_per_call=10", "--config.eval.every=20"]
    fast += ["--config.log_every=20", "--config.eval.iw_k=1", "--config.optim.warmup=2"]
    done = python("-m", "benchmarks.seeds", *words, *fast)
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert result["seed"] == [0, 1]
    one = json.loads((tmp_path / "runs/seed_1/metrics.json").read_text())
    assert result["figures"]["accuracy.seed_1"]["value"] == one["accuracy"]
    assert "cluster_accuracy" in {key.partition(".")[0] for key in result["figures"]}
    log = tmp_path / "runs/seed_0/metrics.jsonl"
    before = log.stat().st_mtime_ns
    words[3:5] = ["--then=-m vae_jax.evaluate.layers", "--figures=*"]
    done = python("-m", "benchmarks.seeds", *words, "--file=layers.json", *fast)
    assert done.returncode == 0, done.stderr
    assert log.stat().st_mtime_ns == before, "the runs are asked, not trained again"
    assert (tmp_path / "runs/seed_1/layers.json").exists()


def publish(tmp_path, *words: str, source: str = 'file.write_text(\'{"a": {"b": 2}, "c": 1}\')'):
    """``benchmarks.publish`` of a script of one line that writes ``file``."""
    script = tmp_path / "script.py"
    file = tmp_path / "found.json"
    script.write_text(f"import pathlib, sys\nfile = pathlib.Path(sys.argv[1])\n{source}\n")
    options = [f"--file={file}", f"--out={tmp_path / 'out.json'}", *words]
    return python("-m", "benchmarks.publish", *options, "--", str(script), str(file))


def test_what_a_command_writes_is_published(tmp_path):
    done = publish(tmp_path, "--figures=a*")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out.json").read_text())
    assert {key: figure["value"] for key, figure in result["figures"].items()} == {"a.b": 2}
    assert "script.py" in result["command"]


def test_a_file_of_before_is_not_published(tmp_path):
    (tmp_path / "found.json").write_text('{"a": {"b": 1}}')
    done = publish(tmp_path, source="pass")
    assert done.returncode == 2 and "did not write" in done.stderr
    done = publish(tmp_path, source="sys.exit('no such run')")
    assert done.returncode == 1 and done.stderr.strip() == "no such run"
    assert not (tmp_path / "out.json").exists()


def test_no_figure_of_that_name_is_one_line(tmp_path):
    done = publish(tmp_path, "--figures=z*")
    assert done.returncode == 2 and "figures=z*" in done.stderr
    damaged = publish(tmp_path, source="file.write_text('{')")
    assert damaged.returncode == 2 and f"file={tmp_path / 'found.json'}" in damaged.stderr
    assert len(damaged.stderr.splitlines()) == 1


def test_where_nothing_can_be_written_nothing_is_run(tmp_path):
    done = publish(tmp_path, f"--out={tmp_path / 'none' / 'out.json'}")
    assert done.returncode == 2 and "no folder" in done.stderr
    assert not (tmp_path / "found.json").exists()


def test_a_seed_is_of_the_command_that_trained_it(tmp_path):
    """Other words for training are refused, other words for the measurement are not."""
    folder = tmp_path / "seed_0"
    folder.mkdir()
    train = ["--config=configs/digits.py", "--config.seed=0"]
    (folder / "measured.json").write_text(json.dumps({"train": train, "then": ""}))
    (folder / "metrics.json").write_text('{"accuracy": 0.5}')
    words = ["--config=configs/digits.py", "--seeds=1", f"--workdir={tmp_path}"]
    words.append(f"--out={tmp_path / 'digits.json'}")
    done = python("-m", "benchmarks.seeds", *words)
    assert done.returncode == 0, done.stderr
    done = python("-m", "benchmarks.seeds", *words, "--config.objective.beta=4.0")
    assert done.returncode == 2 and "was trained by --config=configs/digits.py" in done.stderr
    done = python("-m", "benchmarks.seeds", *words, "--then=train.py --help")
    assert done.returncode == 2 and "did not write it" in done.stderr
    assert json.loads((folder / "measured.json").read_text())["then"] == ""
    assert python("-m", "benchmarks.seeds", *words, "--seeds=0").returncode == 2
