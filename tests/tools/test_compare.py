"""Runs side by side: the fields that differ, spread over seeds, images, the list of runs."""

import json
import pathlib
import re

import jax
import numpy as np
import pytest

from tests import tiny
from vae_jax import config as config_lib
from vae_jax import distributions
from vae_jax.config import UserError
from vae_jax.tools import compare, compare_page, library
from vae_jax.train import loop


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two replicas of twelve steps that differ in beta, with metrics written by hand."""
    folder = tmp_path_factory.mktemp("compare") / "sweep"
    c = tiny.short(1)
    config_lib.replicate(c, "objective.beta", (1.0, 4.0))
    assert loop.train(c, str(folder), lambda line: None)
    for r, (kl, reconstruction) in enumerate(((9.0, 100.0), (6.0, 107.0))):
        metrics = {"kl_nats": kl, "reconstruction_nats": reconstruction, "n": 359}
        metrics |= {
            "elbo_nats": -kl - reconstruction,
            "accuracy": 0.5 + 0.25 * r,
            "bayes_ece": None,
        }
        (folder / f"replica_{r}" / "metrics.json").write_text(json.dumps(metrics))
    return str(folder)


def entry(name: str, metrics: dict, **fields: object) -> compare_page.Entry:
    c = config_lib.default()
    for field, value in fields.items():
        config_lib.set_field(c, field.replace("__", "."), value)
    return compare_page.Entry(f"/runs/{name}", name, c, metrics, [])


def test_a_sweep_is_one_page(sweep):
    path = compare.write([sweep], command="compare 'a & b'")
    assert path == f"{sweep}/compare.html"
    html = pathlib.Path(path).read_text()
    assert "beta = 1.0" in html and "beta = 4.0" in html
    assert "<b>75.00 %</b>" in html and "<b>−109.00</b>" in html
    assert "compare &#39;a &amp; b&#39;" in html
    assert "Rate and distortion" in html and "The same z" in html
    assert not re.search(r'(src|srcset|href)="(?!data:|[\w./%-]+report/index.html)', html)
    assert "<script" not in html and "bayes" not in html.lower()


def test_each_run_shows_the_same_images_and_the_same_noise(sweep):
    entries = compare.read_all([sweep])
    images = compare.strips(compare.columns(entries))
    assert images.notes == [] and images.originals.shape == (10, 8, 8, 1)
    uint8 = np.rint(images.originals * 16).astype(np.uint8)
    for entry, one in zip(entries, images.rows, strict=True):
        run = library.load(entry.folder)
        assert (run.step, entry.name) == (one.step, one.run)
        np.testing.assert_allclose(one.reconstructions, compare.reconstruct(run, uint8), atol=1e-6)
        keys = distributions.example_keys(jax.random.key(0), np.arange(10))
        z = np.asarray(run.model.sample(run.params, keys))  # of the prior alone: equal in both runs
        np.testing.assert_allclose(one.samples, run.decode(z), atol=1e-5)
    first, second = images.rows
    assert np.abs(first.reconstructions - second.reconstructions).max() > 1e-3


def test_seeds_of_one_setting_are_one_column_with_their_spread():
    entries = []
    for beta, accuracies in ((1.0, (0.9, 0.92, 0.94)), (2.0, (0.8, 0.8, 0.8))):
        for seed, accuracy in enumerate(accuracies):
            name = f"b{beta:g}-{seed}"
            metrics = {"accuracy": accuracy, "ece": 0.1 * beta}
            entries.append(entry(name, metrics, seed=seed, objective__beta=beta))
    table = compare.columns(entries)
    assert [column.name for column in table] == ["beta = 1.0, 3 seeds", "beta = 2.0, 3 seeds"]
    rows = {row.name: row for row in compare.metric_rows(table)}
    assert rows["Accuracy"].texts == ["92.00 % ± 2.00 %", "80.00 % ± 0.00 %"]
    assert rows["Accuracy"].best == 0 and rows["Calibration error"].best == 0  # lower is better
    fields = {row[0]: row[1:] for row in compare.field_rows(entries, table)}
    assert fields["seed"] == ["0, 1, 2", "0, 1, 2"]
    assert fields["objective.beta"] == ["1.0", "2.0"]
    assert compare.is_sweep(entries)


def test_runs_that_differ_in_their_seed_alone_stand_beside_their_mean():
    entries = [entry(f"run{seed}", {"accuracy": 0.5 + seed / 10}, seed=seed) for seed in (0, 1)]
    table = compare.columns(entries)
    assert [column.name for column in table] == ["run0", "run1", "all 2"]
    row = compare.metric_rows(table)[0]
    assert row.texts == ["50.00 %", "60.00 %", "55.00 % ± 7.07 %"] and row.best == -1
    assert [name for name, _ in compare_page.keys(table)] == ["run0", "run1"]
    assert not compare.is_sweep(entries)


def test_fields_that_change_no_number_are_left_out():
    entries = [entry("a", {}, log_every=10), entry("b", {}, log_every=20, optim__lr=0.5)]
    assert compare.changed_fields(entries) == ["optim.lr"]


def test_a_run_on_other_images_is_a_note(sweep, tmp_path):
    entries = compare.read_all([sweep])
    other = entries[1]._replace(folder=str(tmp_path / "gone"), name="gone")
    images = compare.strips([compare_page.Column(e.name, (e,)) for e in (entries[0], other)])
    assert len(images.rows) == 1 and len(images.notes) == 1 and images.notes[0].startswith("gone: ")


def test_the_list_of_runs(sweep):
    folder = pathlib.Path(sweep).parent
    (folder / "damaged").mkdir(exist_ok=True)
    (folder / "damaged" / "config.json").write_text("[]")
    (folder / "notes").mkdir(exist_ok=True)
    report = folder / "sweep" / "replica_1" / "report"
    report.mkdir(exist_ok=True)
    (report / "index.html").write_text("")
    html = pathlib.Path(compare.write_index(str(folder))).read_text()
    assert "3 runs" in html and "sweep/replica_0" in html and "notes" not in html
    assert '<a href="sweep/replica_1/report/index.html">' in html
    assert "config.json: want an object" in html and "75.00 %" in html


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{sweep}/replica_0"], "^1 run: want two or more"),
        (["{sweep}", "{sweep}/replica_0"], "replica_0: is there twice"),
        (["{sweep}", "/nowhere"], "^workdir=/nowhere: no run in it"),
        (["{sweep}", "--index", "--out=a.html"], "^index: wants one folder"),
        (["/nowhere", "--index"], "^/nowhere: no such folder"),
        (["{sweep}", "--metric=x"], "unrecognized arguments: --metric=x"),
        ([], "required: folders"),
    ],
)
def test_bad_words_are_one_line(sweep, words, message):
    with pytest.raises(UserError, match=message) as error:
        compare.main(["compare", *(word.format(sweep=sweep) for word in words)])
    assert "\n" not in str(error.value)


def test_damaged_metrics_are_one_line(tmp_path):
    for text in ("{", "[1]"):
        (tmp_path / "metrics.json").write_text(text)
        with pytest.raises(UserError, match=r"metrics\.json: .*want eval\.py to write it anew"):
            compare.read_metrics(str(tmp_path))
