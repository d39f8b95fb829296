"""The study: cells that resume, splits that are saved, a test set that trains nothing."""

import json
import os
import pathlib

import jax
import numpy as np
import pytest
from PIL import Image

from configs import study_digits
from tests.processes import ROOT, silent
from vae_jax import config, data
from vae_jax.config import UserError
from vae_jax.tools import study
from vae_jax.train import checkpoint, step
from vae_jax.train import run as workdir


def small(**changes):
    """Seven cells: three methods with 20 labels, two seeds each.

    ``pixels_knn`` has all labels too, where its two seeds are one.
    """
    whole = study_digits.study(steps=20, budgets=(20, 0), seeds=(0, 1), detail=(20, 0), iw_k=2)
    methods = {name: whole.methods[name] for name in ("net", "m1_svm", "pixels_knn")}
    for name in ("net", "m1_svm"):
        methods[name] = methods[name]._replace(budgets=(20,))
    return whole._replace(**({"methods": methods} | changes))


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """(Folder, lines) of a small study that is done."""
    root = str(tmp_path_factory.mktemp("study"))
    lines = []
    assert study.run(small(), root, say=lines.append)
    return root, lines


def read(root, name):
    with open(os.path.join(root, "cells", f"{name}.json")) as file:
        return json.load(file)


def modified(root):
    """{file of a cell: when it was written}."""
    folder = pathlib.Path(root, "cells")
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_a_study_does_every_cell_and_says_what_is_left(done):
    root, lines = done
    names = {"pixels_knn-all-0.json"}
    for method in small().methods:
        names |= {f"{method}-20-0.json", f"{method}-20-1.json"}
    assert set(modified(root)) == names
    assert any("cell 7 of 7" in line and "about 0 min left" in line for line in lines)
    one = read(root, "net-20-0")
    other = read(root, "net-20-1")
    assert one["figures"]["accuracy"] != other["figures"]["accuracy"]
    assert one["figures"]["accuracy"] == np.trace(one["confusion"]) / 359
    assert np.sum(one["confusion"]) == 359
    assert one["training_flops"] > 0
    assert read(root, "m1_svm-20-0")["figures"]["ece"] is None, "no probabilities"
    # M1 sees no labels: one program of two seeds serves every budget.
    assert sorted(os.listdir(f"{root}/runs")) == ["index.html", "m1", "net-20-0", "net-20-1"]
    assert read(root, "m1_svm-20-1")["config"]["seed"] == 1
    assert os.path.isdir(f"{root}/runs/m1/replica_1")


def test_the_page_and_the_tables_hold_the_cells(done, tmp_path):
    root, _ = done
    assert study.run(small(), root, publish=str(tmp_path / "small.json"), say=silent)
    figures = json.loads((tmp_path / "small.json").read_text())["figures"]
    m1_svm = [read(root, f"m1_svm-20-{seed}")["figures"]["accuracy"] for seed in (0, 1)]
    assert figures["m1_svm.20.accuracy"]["value"] == pytest.approx(np.mean(m1_svm))
    assert Image.open(tmp_path / "small.png").size[0] > 500
    net = [read(root, f"net-20-{seed}")["figures"]["accuracy"] for seed in (0, 1)]
    entry = f"{np.mean(net):.2%} ± {np.std(net, ddof=1):.2%}"
    report = pathlib.Path(root, "report")
    page = (report / "index.html").read_text()
    assert entry in page
    assert entry in (report / "table.md").read_text()
    assert "\\pm" in (report / "table.tex").read_text()
    rows = (report / "table.csv").read_text().splitlines()
    line = next(row for row in rows if row.startswith("net,20,0"))
    assert line.split(",")[3] == str(net[0])
    assert "http" not in page.split("<main>")[1].replace("http://www.w3.org", "")


@pytest.mark.parametrize(
    "path", sorted(ROOT.glob("configs/study_*.py")), ids=lambda path: path.stem
)
def test_the_cells_of_every_study_are_valid(path):
    whole = config.load(str(path), "get_study")
    study.check(whole)
    cells = study.cells(whole, "runs")
    assert len({cell.name for cell in cells}) == len(cells) >= len(whole.methods)
    for cell in cells:
        config.validate(cell.config)


@pytest.mark.parametrize(
    "path", sorted(ROOT.glob("configs/study_*.py")), ids=lambda path: path.stem
)
def test_no_two_runs_of_a_study_train_the_same(path):
    whole = config.load(str(path), "get_study")
    for labels in whole.budgets:
        trained = [
            (repr(config.to_json(run.config(labels))), run.steps, run.begin)
            for run in whole.runs.values()
        ]
        assert len(set(trained)) == len(trained)


def test_a_study_goes_on_where_it_was(done):
    root, _ = done
    older = read(root, "net-20-0")
    del older["config"]["auxiliary"]  # of a version that had no such field
    checkpoint.write_json(f"{root}/cells/net-20-0.json", older)
    before = modified(root)
    row = read(root, "m1_svm-20-1")
    os.unlink(f"{root}/cells/m1_svm-20-1.json")
    lines = []
    assert study.run(small(), root, only=["net", "m1_svm"], say=lines.append)
    written = {name for name, time in modified(root).items() if before[name] != time}
    assert written == {"m1_svm-20-1.json"}
    assert not any("training" in line for line in lines), "its run was there"
    again = read(root, "m1_svm-20-1")
    for key in ("figures", "confusion", "config"):
        assert again[key] == row[key]


def test_splits_are_saved_and_held_against_the_data(done):
    root, _ = done
    c = config.default().data
    c.labels = 20
    c.labels_seed = 1
    dataset = data.load(c)
    with open(f"{root}/splits/20-1.json") as file:
        saved = json.load(file)
    for name, split in (("train", dataset.train), ("validation", dataset.validation)):
        assert saved[name] == np.flatnonzero(split.label >= 0).tolist()
        assert len(saved[name]) == 10
    assert saved["images"]["test"][0] == 359
    cell = next(cell for cell in study.cells(small(), root) if cell.name == "net-20-1")
    flipped = data.Split(255 - np.asarray(dataset.train.image), dataset.train.label)
    with pytest.raises(UserError, match=r"20-1\.json: the data are others"):
        study.save_split(root, cell, dataset._replace(train=flipped))


def test_the_page_is_written_after_every_tenth_cell(tmp_path):
    """Twelve cells that train nothing: nearest neighbours among pixels, a seed each."""
    whole = small(seeds=tuple(range(12)), budgets=(20,))
    whole = whole._replace(methods={"pixels_knn": whole.methods["pixels_knn"]})
    page = tmp_path / "report" / "index.html"
    pages = []

    def say(line):
        if line.startswith("cell "):
            pages.append(page.exists() and page.stat().st_mtime_ns)

    assert study.run(whole, str(tmp_path), say=say)
    assert pages[:10] == [False] * 10 and pages[10] == pages[11] < page.stat().st_mtime_ns


@pytest.mark.parametrize(
    ("part", "net"), [("encoder", "residual"), ("decoder", "residual"), ("decoder", "vdvae")]
)
def test_seeds_of_convolutional_nets_are_not_one_program_on_a_cpu(part, net):
    c = study_digits.vae(0)
    assert study.fits(c)
    c[part] = config.call(part, net)
    assert not study.fits(c)


LONGER = study.Run(lambda labels: study_digits.vae(labels, steps=40), labels=False)
UNKNOWN_RUN = {"methods": {"a": study.Method("A", "m3")}}
UNKNOWN_READER = {"methods": {"a": study.Method("A", "m1", "code:knm")}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (UNKNOWN_RUN, r"methods\.a: run=m3: nearest: m"),
        (UNKNOWN_READER, r"read=code:knm: nearest: code:knn"),
        (
            {"runs": small().runs | {"m1": LONGER}},
            r"m1_svm-20-0\.json: of another config .*steps: 20 -> 40",
        ),
    ],
    ids=["run", "read", "config"],
)
def test_a_study_that_cannot_be_is_one_line(done, changes, message):
    with pytest.raises(UserError, match=message):
        study.run(small(**changes), done[0], say=silent)


def permuted_test(dataset):
    label = np.random.default_rng(0).permutation(dataset.test.label)
    return dataset._replace(test=data.Split(dataset.test.image, label))


@pytest.mark.slow
def test_the_labels_of_the_test_set_train_nothing(tmp_path, monkeypatch):
    """Test labels permuted: the state and the averages are the same to the last bit.

    The figures are not.
    """
    load = data.load
    whole = study_digits.study(steps=20, budgets=(20,), seeds=(1,), detail=(20,), iw_k=2)
    whole = whole._replace(methods={"m2": whole.methods["m2"]})
    true = str(tmp_path / "true")
    permuted = str(tmp_path / "permuted")
    assert study.run(whole, true, say=silent)
    monkeypatch.setattr(data, "load", lambda c: permuted_test(load(c)))
    assert study.run(whole, permuted, say=silent)
    with pytest.raises(UserError, match="its data changed since it was trained"):
        workdir.restore(f"{true}/runs/m2-20-1", "latest")
    os.unlink(f"{true}/runs/m2-20-1/data.json")  # a person means it
    state = workdir.restore(f"{true}/runs/m2-20-1", "latest")[1]
    other = workdir.restore(f"{permuted}/runs/m2-20-1", "latest")[1]
    jax.tree.map(np.testing.assert_array_equal, step.averaged(state), step.averaged(other))
    jax.tree.map(np.testing.assert_array_equal, state.params, other.params)
    figures = read(true, "m2-20-1")["figures"]
    others = read(permuted, "m2-20-1")["figures"]
    assert figures["cross_entropy_nats"] != others["cross_entropy_nats"]
