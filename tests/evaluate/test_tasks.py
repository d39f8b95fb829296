"""Recognition, calibration, strangers, attacks and exported files: oracles, then one trained run through eval.py."""

import dataclasses
import functools
import importlib
import json
import operator
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export as jax_export
from PIL import Image
from scipy import stats
from sklearn.covariance import EmpiricalCovariance
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from tests.test_semi import SHAPE, semi_supervised, tiny
from vae_jax import config, data, objectives
from vae_jax import distributions as densities
from vae_jax.config import UserError
from vae_jax.data import predict
from vae_jax.evaluate import classification, likelihood, ood, recognition, robustness, tasks
from vae_jax.evaluate.subject import Subject
from vae_jax.mesh import rules as sharding
from vae_jax.models import model as model_lib
from vae_jax.tools import export
from vae_jax.train import loop, step
from vae_jax.train import program as compile_lib
from vae_jax.train import run as workdir

KEY = jax.random.key(3)
RNG = np.random.default_rng


# --- figures ---


def test_brier_and_f1():
    p = np.array([[0.5, 0.5, 0.0], [0.0, 0.2, 0.8]])
    assert classification.brier(p, np.array([0, 1])) == pytest.approx((0.5 + (0.64 + 0.64)) / 2)
    rng = RNG(0)
    label, predicted = (
        rng.integers(0, 5, 300),
        rng.integers(0, 4, 300),
    )  # one class that nobody names
    counts = classification.confusion(label, predicted, 5)
    assert classification.macro_f1(counts) == pytest.approx(
        f1_score(label, predicted, average="macro")
    )


def test_temperature_undoes_a_scale_and_a_perfect_validation_set_asks_for_none():
    rng = RNG(0)
    logits = 2 * rng.normal(size=(20_000, 4))
    label = (logits + rng.gumbel(size=logits.shape)).argmax(
        1
    )  # Gumbel-max: labels of softmax(logits)
    t = classification.temperature(3 * logits, label)
    assert t == pytest.approx(3, rel=0.05)
    before, after = (classification.figures(3 * logits / s, label)[0] for s in (1, t))
    assert before["ece"] > 0.1 > 0.02 > after["ece"] and before["accuracy"] == after["accuracy"]
    assert classification.temperature(logits, logits.argmax(1)) == 1


def test_auroc_and_its_interval():
    rng = RNG(0)
    a, b = np.round(rng.normal(size=500), 1), np.round(rng.normal(1, 1, 300), 1)  # ties
    want = roc_auc_score(np.repeat([0, 1], [500, 300]), np.concatenate([a, b]))
    assert ood.auroc(a, b) == pytest.approx(want) and ood.auroc(b, a) == pytest.approx(1 - want)
    true = stats.norm.cdf(1 / np.sqrt(2))  # P(b > a) of N(1, 1) and N(0, 1)
    low, high = ood.interval(rng.normal(size=2000), rng.normal(1, 1, 2000))
    assert low < true < high and high - low == pytest.approx(
        4 * 0.0075, rel=0.2
    )  # Hanley & McNeil's error: 0.0075


def test_retrieval_against_scikit_learn():
    rel = RNG(0).integers(0, 2, (40, 10)).astype(bool)
    rel[0] = False
    want = [average_precision_score(r, -np.arange(10)) if r.any() else 0 for r in rel]
    assert recognition.mean_average_precision(rel) == pytest.approx(np.mean(want))


def test_verification_written_out():
    """Codes at the angles 0, 20, 90 and 130 degrees, two of each class: pairs by cosine are 20, 40, 70, …"""
    angle = np.deg2rad([0, 20, 90, 130])
    found = recognition.verification(
        np.stack([np.cos(angle), np.sin(angle)], 1), np.array([0, 0, 1, 1])
    )
    assert found["auroc"] == 1 and found["eer"] == 0
    assert found["same"] == 2 and found["different"] == 4 and found["auroc_interval"] is None
    mixed = recognition.verification(
        np.stack([np.cos(angle), np.sin(angle)], 1), np.array([0, 1, 0, 1])
    )
    # Same: 90 and 110 degrees; different: 20, 130, 70, 40. Ranks of the same: 4 and 5 of 6, so AUROC = 2 / 8.
    assert mixed["auroc"] == pytest.approx(2 / 8)
    assert mixed["eer"] == pytest.approx(0.75)  # three of four pass before the first that should


def test_verification_says_how_much_its_classes_vary():
    """16 sets of 10 classes: intervals of 95 % hold most of their true AUROC and are not narrow."""
    rng = RNG(0)

    def codes(classes, each):
        label = np.repeat(np.arange(classes), each)
        # Easy classes lie close together about their mean, hard ones do not.
        width = np.where(np.arange(classes) % 2, 0.2, 2.0)[label][:, None]
        return rng.normal(size=(classes, 4))[label] + width * rng.normal(
            size=(len(label), 4)
        ), label

    true = np.mean([recognition.verification(*codes(60, 4), 1)["auroc"] for _ in range(5)])
    hits = 0
    for _ in range(16):
        low, high = recognition.verification(*codes(10, 6))["auroc_interval"]
        hits += low <= true <= high
        assert 0.02 < high - low < 0.4
    assert hits >= 12
    alone = recognition.verification(rng.normal(size=(5, 2)), np.zeros(5, int))
    assert alone["auroc"] is None and (alone["same"], alone["different"]) == (10, 0)


def test_the_usual_map_is_that_of_whole_rankings():
    rng = RNG(0)
    gallery, query = rng.normal(size=(50, 3)), rng.normal(size=(7, 3))
    label, asked = rng.integers(0, 3, 50), rng.integers(0, 3, 7)
    near = -((query[:, None] - gallery) ** 2).sum(-1)
    want = [average_precision_score(label == y, row) for y, row in zip(asked, near, strict=True)]
    got = recognition.retrieval_map(gallery, label, query, asked)
    assert got == pytest.approx(np.mean(want))


def test_rejection_written_out():
    share, accuracy = recognition.rejection(
        np.array([0.2, 0.9, 0.5, 0.7]), np.array([False, True, True, False])
    )
    np.testing.assert_allclose(share, [0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(accuracy, [1, 1 / 2, 2 / 3, 1 / 2])


def test_latent_distance_is_that_of_mahalanobis_to_the_nearest_class():
    rng = RNG(0)
    mu, label = rng.normal(size=(400, 3)) @ rng.normal(size=(3, 3)), rng.integers(0, 2, 400)
    mu[label == 1] += 9
    other = rng.normal(size=(50, 3))
    np.testing.assert_allclose(
        ood.Gaussians(mu)(other), EmpiricalCovariance().fit(mu).mahalanobis(other), rtol=1e-3
    )
    centred = np.concatenate([mu[label == y] - mu[label == y].mean(0) for y in (0, 1)])
    tied = EmpiricalCovariance(assume_centered=True).fit(centred)
    want = np.minimum(*(tied.mahalanobis(other - mu[label == y].mean(0)) for y in (0, 1)))
    np.testing.assert_allclose(ood.Gaussians(mu, label)(other), want, rtol=1e-3)
    inside = compile_lib.simple(lambda m: ood.Gaussians(mu, label)(m, jnp))(
        other.astype(np.float32)
    )
    np.testing.assert_allclose(inside, want, rtol=1e-3)


# --- scores of a model whose posterior is known ---

LOADINGS = np.array([[1.0, 0.5], [-0.5, 1.0], [0.5, 0.25], [-0.25, 0.5]])  # columns are orthogonal


def linear():
    """p(z) = N(0, I), p(x|z) = N(W z, I): log p(x) = N(0, I + W Wᵀ), and p(z|x) is a diagonal Gaussian."""
    spread = 1 / (1 + (LOADINGS**2).sum(0))

    def encode(params, x):
        mu = spread * (x.reshape(len(x), -1) @ LOADINGS)
        return densities.Normal(mu + params["off"], jnp.log(spread) + params["wide"] + 0 * mu)

    return model_lib.Model(
        shape=(2, 2, 1),
        classes=0,
        latent=2,
        likelihood=densities.LIKELIHOODS["gaussian"](logvar=0.0),
        init=None,
        encode=encode,
        prior=lambda params: densities.Normal(jnp.zeros(2), jnp.zeros(2)),
        decode=lambda params, z: (z @ LOADINGS.T).reshape(-1, 2, 2, 1),
        classify=None,
    ), spread


def test_likelihood_regret_is_the_divergence_from_the_posterior():
    """L = log p(x) − KL(q ‖ p(z|x)), so what is won by the best q is that KL: here known, another for each setting."""
    model, spread = linear()
    c = config.default()
    mesh = sharding.make_mesh(c.mesh, jax.devices()[:1])
    split = data.Split(RNG(0).integers(0, 17, (6, 2, 2, 1)).astype(np.uint8), None)
    dataset = data.Dataset("", (2, 2, 1), 17, (), split, split, split)

    def run(params, **options):
        subject = Subject(c, model, params, dataset, mesh)
        return ood.regret(subject, split, KEY, **options)["regret"]

    params = {"off": jnp.array([0.8, -0.5]), "wide": jnp.array([0.0, 0.7])}
    want = (
        0.5
        * (np.array([0.8, -0.5]) ** 2 / spread + np.exp([0, 0.7]) - 1 - np.array([0, 0.7])).sum()
    )
    got = run(params, steps=80, judges=1000)
    np.testing.assert_allclose(got, want, rtol=0.12)
    np.testing.assert_allclose(
        run({"off": jnp.zeros(2), "wide": jnp.zeros(2)}, steps=80, judges=1000), 0, atol=0.05
    )
    few = run({"off": jnp.zeros(2), "wide": jnp.zeros(2)}, steps=5, judges=4)
    assert (few >= 0).all(), "the encoder's own q is a candidate"


def test_likelihood_regret_tells_whether_it_has_converged():
    model, _ = linear()
    c = config.default()
    mesh = sharding.make_mesh(c.mesh, jax.devices()[:1])
    split = data.Split(RNG(0).integers(0, 17, (6, 2, 2, 1)).astype(np.uint8), None)
    dataset = data.Dataset("", (2, 2, 1), 17, (), split, split, split)
    params = {"off": jnp.array([3.0, -3.0]), "wide": jnp.zeros(2)}
    subject = Subject(c, model, params, dataset, mesh)
    few = ood.regret(subject, split, KEY, steps=8, judges=100)
    enough = ood.regret(subject, split, KEY, steps=ood.STEPS, judges=100)
    share = [np.mean(rows["late"]) / np.mean(rows["regret"]) for rows in (few, enough)]
    assert share[0] > 0.03 > 0.01 > abs(share[1])


def test_an_ensemble_is_its_members():
    model, _ = linear()
    c = config.default()
    mesh = sharding.make_mesh(c.mesh, jax.devices()[:1])
    split = data.Split(RNG(0).integers(0, 17, (6, 2, 2, 1)).astype(np.uint8), None)
    members = [{"off": jnp.full(2, v), "wide": jnp.zeros(2)} for v in (0.0, 0.9)]
    stacked = jax.tree.map(lambda *a: jnp.stack(a), *members)
    dataset = data.Dataset("", (2, 2, 1), 17, (), split, split, split)
    subject = Subject(c, model, stacked, dataset, mesh)
    got = ood.ensemble_bound(subject, stacked, split, KEY, k=5)
    for row, params in zip(got, members, strict=True):
        member = dataclasses.replace(subject, params=params)
        want = likelihood.log_likelihood(member, split, KEY, k=5)["iw"]
        np.testing.assert_allclose(row, want, rtol=1e-5)
    x = split.image.reshape(6, -1) / 16  # member 0 is exact
    exact = stats.multivariate_normal(np.zeros(4), np.eye(4) + LOADINGS @ LOADINGS.T).logpdf(x)
    np.testing.assert_allclose(got[0], exact, rtol=1e-4)
    np.testing.assert_allclose(ood.waic(np.array([[1.0, 2.0], [3.0, 2.0]])), [1 - 2, 0 - 2])


def test_corruptions_keep_the_grey_scale_and_do_nothing_at_strength_0():
    image = RNG(0).integers(0, 17, (5, 12, 12, 1)).astype(np.uint8)
    for name, (_, strengths) in robustness.CORRUPTIONS.items():
        np.testing.assert_array_equal(robustness.corrupted(image, 17, name, 0.0), image)
        worse = robustness.corrupted(image, 17, name, strengths[-1])
        assert (
            worse.dtype == np.uint8 and worse.max() <= 16 and (worse != image).any((1, 2, 3)).all()
        )
    hidden = robustness.corrupted(np.zeros_like(image), 17, "occlusion", 0.5)
    assert (hidden.sum((1, 2, 3)) == 36 * 8).all()  # a square of 6 x 6, each pixel half of 16


# --- one trained run ---


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A joint VAE on the digits 0 to 7, and what is restored of it."""
    folder = str(tmp_path_factory.mktemp("runs") / "open")
    c = config.load("configs/digits.py")
    c.encoder, c.decoder = (
        config.call(part, "mlp", widths=(64,)) for part in ("encoder", "decoder")
    )
    c.latent, c.data.hold_out, c.data.shift = 8, (8, 9), 0
    c.steps, c.eval.every, c.log_every, c.optim.warmup, c.eval.iw_k = 400, 400, 200, 20, 2
    c.mesh.data = 1
    loop.train(c, folder)
    s, state, _ = workdir.restore(folder, say=lambda _: None)
    return folder, s, jax.tree.map(np.asarray, step.averaged(state))


def test_attacks_mislead_within_their_bounds(trained):
    _, s, params = trained
    split = data.some(s.dataset.test, 100)
    x = jnp.asarray(split.image, jnp.float32) / 16

    def hit(log_p, x):
        return np.asarray(log_p(params, x, KEY)).argmax(1) == split.label

    for samples in (0, 8):
        log_p = jax.jit(robustness.log_probabilities(s.model, samples))
        np.testing.assert_allclose(np.exp(log_p(params, x, KEY)).sum(1), 1, rtol=1e-4)
        run, clean = robustness.attacks(log_p), hit(log_p, x)
        assert clean.mean() > 0.9
        grad = jax.jit(jax.grad(lambda x, f=log_p: f(params, x, KEY)[:, 0].sum()))(x)
        assert (jnp.abs(grad).max((1, 2, 3)) > 0).all()
        for epsilon in (0.1, 0.3):
            fgsm, pgd = run(params, x, split.label, KEY, epsilon, steps=6)
            for moved in (fgsm, pgd):
                assert (
                    jnp.abs(moved - x).max() <= epsilon + 1e-6
                    and moved.min() >= 0
                    and moved.max() <= 1
                )
            a, b = hit(log_p, fgsm), hit(log_p, pgd)
            assert a.mean() < clean.mean() - 0.02
            if samples:
                assert b.mean() <= a.mean() + 0.02  # another draw may be misled otherwise
            else:
                assert not (b & ~a).any()  # what FGSM misleads, PGD does
        assert b.mean() < 0.2


def test_drawing_the_code_hides_no_gradient(trained):
    """The gradient of the mean over draws is that of finite differences at the same draws: it goes through z."""
    _, s, params = trained
    log_p = jax.jit(robustness.log_probabilities(s.model, 4))
    x = jnp.asarray(s.dataset.test.image[:1], jnp.float32) / 16

    def f(x):
        return log_p(params, x, KEY)[0, 0]

    way = jax.random.normal(KEY, x.shape)
    slope = (f(x + 1e-2 * way) - f(x - 1e-2 * way)) / 2e-2
    assert jnp.vdot(jax.grad(f)(x), way) == pytest.approx(float(slope), rel=0.05)


def test_every_subject_through_eval(trained, monkeypatch, capsys):
    folder, _, _ = trained
    monkeypatch.setattr(tasks, "IMAGES", 64)
    monkeypatch.setattr(tasks, "ATTACKED", 32)
    monkeypatch.setattr(ood, "STEPS", 10)
    monkeypatch.setattr(robustness, "EPSILON", (0.05, 0.3))
    evaluate = importlib.import_module("eval")
    evaluate.run(
        ["eval.py", f"--workdir={folder}", f"--tasks={','.join(tasks.TASKS)}", "--ood=synthetic"]
    )
    said = capsys.readouterr().out
    assert (
        "without ood_waic_auroc: there is no ensemble; want a replica" in said
        and "verification_eer_high: 2 held-out classes have no spread" in said
    )
    with open(f"{folder}/metrics.json") as f:
        m = json.load(f)
    shares = [
        k
        for k in m
        if k.partition("@")[0].endswith(("accuracy", "auroc", "eer", "map_at_10", "f1"))
    ]
    assert len(shares) > 40 and all(0 <= m[k] <= 1 for k in shares if m[k] is not None)
    assert (
        m["verification_classes"] == 2
        and m["verification_auroc_low"] is None
        and 0 < m["map"] <= m["map_at_10"]
        and m["open_set_confidence_auroc"] > 0.7
        and m["verification_auroc"] > 0.5
        and m["map_at_10"] > 0.9
    )
    assert m["ood_latent_auroc@synthetic"] > 0.9 and m["ood_images@synthetic"] == 64
    for score in ood.SCORES:
        if score != "waic":
            low, value, high = (
                m[f"ood_{score}_auroc{end}@synthetic"] for end in ("_low", "", "_high")
            )
            assert low <= value <= high
    strengths = [m[f"pgd_accuracy@{e}"] for e in robustness.EPSILON]
    assert strengths == sorted(strengths, reverse=True)
    with open(f"{folder}/report/index.html") as f:
        page = f.read()
    for panel in ("retrieval", "reliability", "recognition", "robustness", "ood_synthetic"):
        assert f'id="h-{panel}"' in page
    assert "pgd_accuracy@" not in page and "pgd_accuracy" in page


def other(kind):
    """A config of another kind of model on digits, as small as it can be."""
    c = semi_supervised()
    c.data.labels, c.data.labelled_batch, c.latent, c.eval.iw_k = 0, 0, 2, 2
    c.encoder, c.decoder = (
        config.call(part, "mlp", widths=(8,)) for part in ("encoder", "decoder")
    )
    c.objective = config.call("objective", kind if kind in objectives.OBJECTIVES else "joint")
    if kind == "m2":
        c.objective.labelled = 1.0
    if kind in ("adgm", "m1m2"):
        c.auxiliary, c.classifier = 3, config.call("classifier", "mlp", widths=(8,))
    if kind == "cnn":
        c.decoder, c.objective = (
            config.call("decoder", "none"),
            config.call("objective", "supervised"),
        )
    if kind == "hierarchy":
        c.latent, c.encoder = config.default().latent, config.call("encoder", "mlp", widths=(8, 8))
        c.decoder = config.call("decoder", "ladder", latents=(2, 2), width=8, inner=8)
    config.validate(c)
    return c


SLOW = ("adgm", "m1m2", "apart", "hierarchy")
KINDS = ["cnn", "m2", *(pytest.param(k, marks=pytest.mark.slow) for k in SLOW)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model_goes_through_every_subject(kind, monkeypatch):
    """What has a meaning for it is there, what has none is None with a reason."""
    monkeypatch.setattr(tasks, "IMAGES", 16)
    monkeypatch.setattr(tasks, "ATTACKED", 8)
    monkeypatch.setattr(ood, "STEPS", 2)
    monkeypatch.setattr(robustness, "EPSILON", (0.1,))
    s = workdir.setup(other(kind))
    params = compile_lib.init(s.c, s.model, s.mesh, s.dataset)[0].params
    strange = {"inverted": data.Split(16 - np.asarray(s.dataset.test.image[:16]), None)}
    subject = Subject(s.c, s.model, params, s.dataset, s.mesh)
    results = tasks.perform(list(tasks.TASKS), subject, others=strange, say=lambda _: None)
    m = functools.reduce(operator.or_, [metrics for metrics, _, _ in results.values()])
    why = functools.reduce(operator.or_, [why for _, why, _ in results.values()])
    assert all(m[k] is None for k in why) and all(
        m[k] is not None and np.isfinite(m[k]) for k in set(m) - set(why)
    )
    generative, draws = kind in ("m2", "adgm", "m1m2", "apart"), kind not in ("cnn", "m2", "apart")
    assert ("bayes_accuracy" in m) == ("pgd_bayes_accuracy" in m) == generative
    assert ("pgd_drawn_accuracy" in m) == draws
    assert ("ood_regret_auroc@inverted" in m) == (kind not in ("cnn", "hierarchy"))


def test_bayes_rule_can_be_attacked_and_an_auxiliary_draws():
    """The gradient of each reading is that of finite differences at the same draws, and is not 0."""
    x = jax.random.uniform(KEY, (2, *SHAPE))
    way = jax.random.normal(KEY, x.shape)
    for kind, samples, bayes in (("m2", 4, True), ("adgm", 4, True), ("adgm", 4, False)):
        more = (
            {"auxiliary": 2, "classifier": config.call("classifier", "mlp", widths=(4,))}
            if kind == "adgm"
            else {}
        )
        model, params = tiny(kind, **more)
        log_p = jax.jit(robustness.log_probabilities(model, samples, bayes))
        np.testing.assert_allclose(np.exp(log_p(params, x, KEY)).sum(1), 1, rtol=1e-5)

        def f(x, log_p=log_p, params=params):
            return log_p(params, x, KEY)[:, 0].sum()

        slope = (f(x + 1e-2 * way) - f(x - 1e-2 * way)) / 2e-2
        assert abs(slope) > 1e-3 and jnp.vdot(jax.grad(f)(x), way) == pytest.approx(
            float(slope), rel=0.05
        )
        assert robustness.drawing(model) == (kind == "adgm")


def test_without_held_out_classes_one_line_says_so(trained):
    _, s, params = trained
    said = []
    subject = Subject(s.c, s.model, params, s.dataset._replace(unseen=None), s.mesh)
    results = tasks.perform(["recognition"], subject, say=said.append)
    metrics, why, pictures = results["recognition"]
    assert (
        len(said) == 1 and "no class was held out of training" in said[0] and "hold_out" in said[0]
    )
    assert (
        metrics["verification_eer"] is None and why["rejection_accuracy"] == why["verification_eer"]
    )
    asked, found, same = pictures["retrieval"]
    assert asked.shape == (8, 8, 8, 1) and found.shape == (8, 9, 8, 8, 1) and same.shape == (8, 9)


# --- files to take away ---


def test_an_exported_program_is_the_live_one(trained):
    folder, s, params = trained
    for what in ("classifier", "encoder", "sampler"):
        path = export.write(folder, what, say=lambda _: None)
        with open(path, "rb") as f:
            loaded = jax_export.deserialize(bytearray(f.read()))
        assert loaded.platforms == export.PLATFORMS
        image = s.dataset.test.image[:5]
        if what == "sampler":
            a, b = (
                np.asarray(loaded.call(np.array(seeds, np.uint32))["image"])
                for seeds in ([7, 8, 9], [9])
            )
            np.testing.assert_allclose(a[2], b[0], atol=1e-5)  # an image is a function of its seed
            assert (
                a.shape == (3, 8, 8, 1)
                and a.min() >= 0
                and a.max() <= 1
                and np.abs(a[0] - a[1]).max() > 0.1
            )
            continue
        q = s.model.encode(params, jnp.asarray(image, jnp.float32) / 16)
        one, all_ = (jax.tree.map(np.asarray, loaded.call(image[:n])) for n in (1, 5))
        for name, value in all_.items():
            np.testing.assert_allclose(one[name][0], value[0], rtol=1e-4)
        if what == "encoder":
            np.testing.assert_allclose(all_["mu"], q.mu, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(all_["logvar"], q.logvar, rtol=1e-4, atol=1e-5)
        else:
            t = predict.load(path)[1]["temperature"]
            np.testing.assert_allclose(
                all_["probabilities"],
                jax.nn.softmax(s.model.classify(params, q.mu) / t),
                rtol=1e-3,
                atol=1e-5,
            )


def test_predictions_without_the_model_code(trained, tmp_path):
    folder, s, _ = trained
    path = export.write(folder, "classifier", say=lambda _: None)
    (tmp_path / "more").mkdir()
    image, label = s.dataset.test.image[0, :, :, 0], s.dataset.test.label[0]
    grey = Image.fromarray(np.rint(image / 16 * 255).astype(np.uint8))
    grey.save(tmp_path / "same.png")
    grey.resize((64, 64), Image.Resampling.BICUBIC).convert("RGBA").save(
        tmp_path / "more" / "large.png"
    )
    Image.fromarray(RNG(0).integers(0, 255, (9, 30, 3), np.uint8)).save(
        tmp_path / "more" / "noise.bmp"
    )
    (tmp_path / "more" / "broken.png").write_bytes(b"GIF89a")
    (tmp_path / "more" / "notes.txt").write_text("no image")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import predict\n"
        "code = predict.main(sys.argv[2:])\n"
        "seen = {name.split('.')[0] for name in sys.modules}\n"
        "assert not seen & {'vae_jax', 'flax', 'orbax', 'optax', 'ml_collections', 'absl'}, seen\n"
        "sys.exit(code)"
    )
    given = [f"{folder}/export", path, str(tmp_path / "same.png"), str(tmp_path / "more")]
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, *given], capture_output=True, text=True
    )
    assert done.returncode == 1, done.stderr
    assert (
        done.stderr.startswith(f"error: {tmp_path}/more/broken.png: not a readable image")
        and "Trace" not in done.stderr
    )
    rows = {line.split()[0].rpartition("/")[2]: line.split() for line in done.stdout.splitlines()}
    assert set(rows) == {"same.png", "large.png", "noise.bmp"}
    assert rows["same.png"][1] == rows["large.png"][1] == str(label)
    (tmp_path / "empty").mkdir()
    assert predict.main([path, str(tmp_path / "empty")]) == 2
    familiar = {name: float(words[-1].rstrip("%")) for name, words in rows.items()}
    assert familiar["noise.bmp"] <= 1 < familiar["same.png"]


def test_a_damaged_or_wrong_export_is_one_line(trained, capsys):
    folder, _, _ = trained
    path = export.write(folder, "encoder", say=lambda _: None)
    assert predict.main([path, "x.png"]) == 2
    assert "--what=encoder; want one of --what=classifier" in capsys.readouterr().err
    with open(path, "r+b") as f:
        f.seek(99)
        f.write(b"\0\1\2")
    assert predict.main([path, "x.png"]) == 2
    assert "damaged" in capsys.readouterr().err
    assert predict.main([f"{folder}/none.jaxexport", "x.png"]) == 2
    assert capsys.readouterr().err.strip().endswith("none.jaxexport: No such file or directory")
    with pytest.raises(UserError, match="workdir: want"):
        export.run(["export"])


def test_familiarity_is_a_share():
    old = {"of": "distance", "quantiles": [0, 5, 10]}
    got = predict.familiarity({"distance": np.array([0, 5, 10, 99])}, old)
    np.testing.assert_allclose(got, [1, 0.5, 0, 0])
    rng = RNG(0)
    usual = {"distance": rng.normal(size=4000), "neg_elbo": rng.normal(size=4000)}
    levels = np.linspace(0, 1, 1001)
    quantiles = {name: np.quantile(score, levels) for name, score in usual.items()}
    smallest = np.quantile(predict.smallest_rank(usual, quantiles), levels)
    fresh = {name: rng.normal(size=4000) for name in usual}
    got = predict.familiarity(fresh, {"quantiles": quantiles, "smallest": smallest})
    for share in (0.01, 0.05, 0.5):  # two scores, and yet so many false alarms
        assert (got < share).mean() == pytest.approx(share, abs=4 * np.sqrt(share / 4000) + 0.003)
    odd = {"distance": np.array([0.0, 9.0]), "neg_elbo": np.array([np.nan, 0.0])}
    assert predict.familiarity(odd, {"quantiles": quantiles, "smallest": smallest}).max() < 0.001


def test_images_of_other_kinds_are_not_familiar(trained):
    """The distance of the code alone called flat grey images familiar."""
    folder, s, _ = trained
    path = export.write(folder, "classifier", say=lambda _: None)
    call, meta = predict.load(path)
    reference = meta["familiarity"]
    rng = RNG(1)
    test = s.dataset.test.image
    kinds = {
        "flat": np.broadcast_to(np.arange(17, dtype=np.uint8)[3:, None, None, None], (14, 8, 8, 1)),
        "noise": rng.integers(0, 17, (40, 8, 8, 1)).astype(np.uint8),
        "inverted": 16 - test[:40],
    }
    for image in kinds.values():
        out = {name: np.asarray(v) for name, v in call(np.array(image)).items()}
        assert np.median(predict.familiarity(out, reference)) <= 0.01
    assert 0 < reference["false_alarms"]["0.05"] < 0.15
