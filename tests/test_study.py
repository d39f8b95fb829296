"""The study: cells that resume, splits that are saved, a test set that trains nothing; Bayes' rule as a classifier."""

import json
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import stats

from configs import study_digits
from tests.test_semi import KEY, LABEL, PIXELS, SHAPE, log_evidence, tiny
from vae_jax import config, data
from vae_jax.config import UserError
from vae_jax.evaluate import generative, probes
from vae_jax.evaluate.subject import Subject
from vae_jax.mesh import rules as sharding
from vae_jax.tools import study
from vae_jax.train import checkpoint, step
from vae_jax.train import run as workdir


def small(**changes):
    """Seven cells: three methods with 20 labels, one of them with all labels too, where its two seeds are one."""
    whole = study_digits.study(steps=20, budgets=(20, 0), seeds=(0, 1), detail=(20, 0), iw_k=2)
    methods = {name: whole.methods[name]._replace(budgets=(20,)) for name in ("net", "m1_svm")}
    return whole._replace(methods=methods | {"pixels_knn": whole.methods["pixels_knn"]}, **changes)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """(folder, what was said) of a small study that is done."""
    root, said = str(tmp_path_factory.mktemp("study")), []
    assert study.run(small(), root, say=said.append)
    return root, said


def read(root, name):
    with open(os.path.join(root, "cells", f"{name}.json")) as file:
        return json.load(file)


def test_a_study_does_every_cell_and_says_what_is_left(done):
    root, said = done
    names = {f"{m}-20-{s}" for m in small().methods for s in (0, 1)} | {"pixels_knn-all-0"}
    assert {f.removesuffix(".json") for f in os.listdir(f"{root}/cells")} == names
    assert any("cell 7 of 7" in line and "about 0 min left" in line for line in said)
    one, other = read(root, "net-20-0"), read(root, "net-20-1")
    assert one["figures"]["accuracy"] != other["figures"]["accuracy"] and one["training_flops"] > 0
    assert (
        np.sum(one["confusion"]) == 359
        and one["figures"]["accuracy"] == np.trace(one["confusion"]) / 359
    )
    assert read(root, "m1_svm-20-0")["figures"]["ece"] is None, "no probabilities"
    # M1 sees no labels: one program of two seeds serves every budget.
    assert sorted(os.listdir(f"{root}/runs")) == ["m1", "net-20-0", "net-20-1"]
    assert read(root, "m1_svm-20-1")["config"]["seed"] == 1 and os.path.isdir(
        f"{root}/runs/m1/replica_1"
    )


def test_the_page_and_the_tables_hold_the_cells(done, tmp_path):
    root, _ = done
    assert study.run(small(), root, publish=str(tmp_path / "small.json"), say=lambda _: None)
    figures = json.loads((tmp_path / "small.json").read_text())["figures"]
    found = [read(root, f"m1_svm-20-{s}")["figures"]["accuracy"] for s in (0, 1)]
    assert figures["m1_svm.20.accuracy"]["value"] == pytest.approx(np.mean(found))
    assert Image.open(tmp_path / "small.png").size[0] > 500
    accuracy = [read(root, f"net-20-{s}")["figures"]["accuracy"] for s in (0, 1)]
    entry = f"{np.mean(accuracy):.2%} ± {np.std(accuracy, ddof=1):.2%}"
    names = ("index.html", "table.md", "table.tex", "table.csv")
    pages = {name: pathlib.Path(root, "report", name).read_text() for name in names}
    assert (
        entry in pages["index.html"] and entry in pages["table.md"] and "\\pm" in pages["table.tex"]
    )
    line = next(row for row in pages["table.csv"].splitlines() if row.startswith("net,20,0"))
    assert line.split(",")[3] == str(accuracy[0])
    assert "http" not in pages["index.html"].split("<main>")[1].replace("http://www.w3.org", "")


@pytest.mark.parametrize(
    "page",
    sorted(pathlib.Path(__file__).parents[1].glob("configs/study_*.py")),
    ids=lambda p: p.stem,
)
def test_every_study_page_can_be_meant(page):
    whole = config.load(str(page), "get_study")
    study.check(whole)
    found = study.cells(whole, "runs")
    assert len({cell.name for cell in found}) == len(found) >= len(whole.methods)
    for cell in found:
        config.validate(cell.config)


def test_a_study_goes_on_where_it_was(done):
    root, _ = done
    older = read(root, "net-20-0")
    del older["config"]["auxiliary"]  # of a version that had no such field
    checkpoint.write_json(f"{root}/cells/net-20-0.json", older)
    before = {f: os.stat(f"{root}/cells/{f}").st_mtime_ns for f in os.listdir(f"{root}/cells")}
    row = read(root, "m1_svm-20-1")
    os.unlink(f"{root}/cells/m1_svm-20-1.json")
    said = []
    assert study.run(small(), root, only=["net", "m1_svm"], say=said.append)
    after = {f: os.stat(f"{root}/cells/{f}").st_mtime_ns for f in os.listdir(f"{root}/cells")}
    assert {f for f in after if after[f] != before[f]} == {"m1_svm-20-1.json"}
    assert not any("training" in line for line in said), "its run was there"
    again = read(root, "m1_svm-20-1")
    assert all(again[k] == row[k] for k in ("figures", "confusion", "config"))


def test_splits_are_saved_and_held_against_the_data(done):
    root, _ = done
    c = config.default().data
    c.labels, c.labels_seed = 20, 1
    found = data.load(c)
    with open(f"{root}/splits/20-1.json") as file:
        saved = json.load(file)
    for name in ("train", "validation"):
        assert (
            saved[name] == np.flatnonzero(getattr(found, name).label >= 0).tolist()
            and len(saved[name]) == 10
        )
    assert saved["images"]["test"][0] == 359
    cell = next(c for c in study.cells(small(), root) if c.name == "net-20-1")
    flipped = data.Split(255 - np.asarray(found.train.image), found.train.label)
    with pytest.raises(UserError, match=r"20-1\.json: the data are others"):
        study.save_split(root, cell, found._replace(train=flipped))


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s._replace(methods={"a": study.Method("A", "m3")}),
            r"methods\.a: run=m3: nearest: m",
        ),
        (
            lambda s: s._replace(methods={"a": study.Method("A", "m1", "code:knm")}),
            r"read=code:knm: nearest: code:knn",
        ),
        (
            lambda s: s._replace(runs=s.runs | {"m1": LONGER}),
            r"m1_svm-20-0\.json: of another config .*steps: 20 -> 40",
        ),
    ],
)
def test_what_cannot_be_meant_is_said(done, change, message):
    with pytest.raises(UserError, match=message):
        study.run(change(small()), done[0], say=lambda _: None)


def test_the_labels_of_the_test_set_train_nothing(tmp_path, monkeypatch):
    """The test labels permuted: all that was trained and averaged is the same to the last bit, the figures are not."""
    load = data.load

    def permuted(c):
        found = load(c)
        label = np.random.default_rng(0).permutation(found.test.label)
        return found._replace(test=data.Split(found.test.image, label))

    whole = study_digits.study(steps=20, budgets=(20,), seeds=(1,), detail=(20,), iw_k=2)
    only = whole._replace(methods={"m2": whole.methods["m2"]})
    roots = [str(tmp_path / name) for name in ("true", "permuted")]
    for root, loads in zip(roots, (load, permuted), strict=True):
        monkeypatch.setattr(data, "load", loads)
        assert study.run(only, root, say=lambda _: None)
    with pytest.raises(UserError, match="its data changed since it was trained"):
        workdir.restore(f"{roots[0]}/runs/m2-20-1", "latest")
    (tmp_path / "true/runs/m2-20-1/data.json").unlink()  # a person means it
    states = [workdir.restore(f"{root}/runs/m2-20-1", "latest")[1] for root in roots]
    jax.tree.map(np.testing.assert_array_equal, *(step.averaged(s) for s in states))
    jax.tree.map(np.testing.assert_array_equal, *(s.params for s in states))
    one, other = (read(root, "m2-20-1")["figures"] for root in roots)
    assert one["cross_entropy_nats"] != other["cross_entropy_nats"]


# ---- what reads a cell ----------------------------------------------------------------------------


def test_a_probe_takes_its_setting_from_validation():
    rng = np.random.default_rng(0)
    label = np.arange(40) % 2
    x = (label * 2.0 - 1)[:, None] + 0.1 * rng.normal(size=(40, 1))
    noisy = np.where(
        np.arange(40) < 4, 1 - label, label
    )  # single neighbours are misled, five are not
    for validation, want in (((x, label), 5), (None, 5), ((x[:4], noisy[:4]), 1)):
        predict, setting = probes.fit("knn", (x, noisy), validation)
        assert setting == want or (want == 1 and setting in (1, 3))
    predicted, p = predict(x)
    np.testing.assert_allclose(p.sum(1), 1)
    assert predicted.shape == (40,)


def test_bayes_rule_on_the_model_is_that_of_the_two_gaussians():
    """p(x|y,z) = N(w z + c_y, s²): log p(x|y) and the best decision are known. q is p(z|x,y): exact at K = 1."""
    rng = np.random.default_rng(0)
    s2, w, centre = 0.5, rng.normal(size=PIXELS), 0.5 + 0.3 * rng.normal(size=(2, PIXELS))
    parts = {
        "likelihood": config.call("likelihood", "gaussian", logvar=float(np.log(s2))),
        "encoder": config.call("encoder", "mlp", widths=(2 * PIXELS,), activation="relu"),
    }
    model, params = tiny(**parts)
    variance = 1 / (1 + w @ w / s2)
    gain, both = variance * w / s2, np.concatenate([np.eye(PIXELS), -np.eye(PIXELS)], 1)

    def layer(kernel):
        return {"kernel": kernel, "bias": np.zeros(kernel.shape[1])}

    params |= {
        "encoder": {"Layer_0": {"dense": layer(both), "label": {"kernel": -centre @ both}}},
        "posterior": {
            "Dense_0": {
                "kernel": np.stack([np.r_[gain, -gain], np.zeros(2 * PIXELS)], 1),
                "bias": np.array([0, np.log(variance)]),
            }
        },
        "decoder": {
            "Layer_0": {
                "dense": layer(np.array([[1.0, -1, 0, 0]])),
                "label": {"kernel": np.eye(4)[2:]},
            },
            "out": layer(np.stack([w, -w, *centre])),
        },
    }
    params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), params)
    levels = 256
    x = np.clip(rng.normal(size=(30, *SHAPE)) * 60 + 128, 0, 255).astype(np.uint8)
    label = np.tile(np.asarray(LABEL), 6)
    c = config.default()
    split = data.Split(x, label)
    dataset = data.Dataset("", SHAPE, levels, (), split, split, split)
    mesh = sharding.make_mesh(c.mesh, jax.devices()[:1])
    found = generative.class_evidence(Subject(c, model, params, dataset, mesh), split, KEY, k=1)
    flat = x.reshape(30, PIXELS) / (levels - 1.0)
    cov = np.outer(w, w) + s2 * np.eye(PIXELS)
    exact = np.stack([stats.multivariate_normal(m, cov).logpdf(flat) for m in centre], 1)
    np.testing.assert_allclose(found, exact, rtol=2e-5, atol=5e-4)
    best = exact.argmax(1)
    assert 0 < best.sum() < 30 and (found.argmax(1) == best).all()
    kept = np.argsort(-np.logaddexp(*exact.T), kind="stable")[:27]
    assert generative.kept_accuracy(found, best, 0.9) == 1.0
    assert generative.kept_accuracy(found, label, 0.9) == pytest.approx(
        (best == label)[kept].mean()
    )


def test_bayes_rule_on_a_grey_image_is_below_the_mean_evidence_of_its_binary_draws():
    """E log p(x'|y) over x' ~ Bernoulli(x), exactly: all 2^6 images, each by quadrature over z."""
    model, params = tiny()
    params["posterior"] = jax.tree.map(
        jnp.zeros_like, params["posterior"]
    )  # q = p, and a decoder that sees little of
    params["decoder"]["out"] = jax.tree.map(
        lambda a: 0.4 * a, params["decoder"]["out"]
    )  # z: weights of small variance
    grey = np.random.default_rng(3).integers(0, 256, (4, *SHAPE)).astype(np.uint8)
    grey[:, 0, 0] = 255
    c = config.default()
    c.data.binarize = "dynamic"
    x, every = grey.reshape(4, PIXELS) / 255, np.array(list(np.ndindex(*[2] * PIXELS)))
    chance = np.where(every, x[:, None], 1 - x[:, None]).prod(2)
    np.testing.assert_allclose(chance.sum(1), 1)
    exact, soft = chance @ log_evidence(model, params, every), log_evidence(model, params, x)
    assert (soft < exact - 0.05).all()
    mesh = sharding.make_mesh(c.mesh, jax.devices()[:1])
    split = data.Split(grey, np.zeros(4, np.int32))
    dataset = data.Dataset("", SHAPE, 256, (), split, split, split)
    subject = Subject(c, model, params, dataset, mesh)
    found = generative.class_evidence(subject, split, KEY, k=4000)
    np.testing.assert_allclose(found, soft, atol=0.03)
    c.data.binarize = "threshold"
    other = generative.class_evidence(subject, split, KEY, k=4000)
    assert abs(other - soft).max() > 0.5, "of one binary image it is another figure"
