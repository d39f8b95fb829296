"""What ``eval.py --tasks`` adds: attacks, then one trained run through eval.py."""

import functools
import importlib
import inspect
import json
import operator
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tiny import SHAPE, semi_supervised
from tests.tiny import m2 as tiny
from vae_jax import config, data, models
from vae_jax.config import UserError
from vae_jax.evaluate import ood, record, robustness, tasks
from vae_jax.evaluate.subject import Subject
from vae_jax.train import program as compile_lib
from vae_jax.train import run as workdir

KEY = jax.random.key(3)
RNG = np.random.default_rng


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
    """The gradient of the mean over draws is that of finite differences at the same draws: it goes
    through z.
    """
    _, s, params = trained
    log_p = jax.jit(robustness.log_probabilities(s.model, 4))
    x = jnp.asarray(s.dataset.test.image[:1], jnp.float32) / 16

    def f(x):
        return log_p(params, x, KEY)[0, 0]

    way = jax.random.normal(KEY, x.shape)
    slope = (f(x + 1e-2 * way) - f(x - 1e-2 * way)) / 2e-2
    assert jnp.vdot(jax.grad(f)(x), way) == pytest.approx(float(slope), rel=0.05)


def rows_of_pixels(image):
    """Features of an image: its mean over each row."""
    return np.asarray(image).reshape(len(image), 8, -1).mean(2)


@pytest.mark.slow
def test_every_subject_through_eval(trained, tmp_path, monkeypatch, capsys):
    folder, _, _ = trained
    features = tmp_path / "features.py"
    features.write_text("import numpy as np\n\n\n" + inspect.getsource(rows_of_pixels))
    monkeypatch.setattr(tasks, "IMAGES", 64)
    monkeypatch.setattr(tasks, "ATTACKED", 32)
    monkeypatch.setattr(ood, "STEPS", 10)
    monkeypatch.setattr(robustness, "EPSILON", (0.05, 0.3))
    evaluate = importlib.import_module("eval")
    flags = [f"--tasks={','.join(tasks.TASKS)}", "--ood=synthetic"]
    flags.append(f"--features={features}:rows_of_pixels")
    evaluate.run(["eval.py", f"--workdir={folder}", *flags])
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


@pytest.mark.slow
def test_a_later_call_adds_to_what_earlier_ones_found(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tasks, "IMAGES", 48)
    monkeypatch.setattr(ood, "STEPS", 2)
    folder = str(tmp_path / "run")
    shutil.copytree(trained[0], folder)
    shutil.rmtree(f"{folder}/tasks", ignore_errors=True)
    evaluate = importlib.import_module("eval")

    def metrics_after(*flags):
        evaluate.run(["eval.py", f"--workdir={folder}", *flags])
        with open(f"{folder}/metrics.json") as f:
            return json.load(f)

    first = metrics_after("--tasks=classification,ood", "--ood=synthetic")
    which = record.mark(folder, 400)
    panels = record.load(folder, which)["ood"][2]["ood"]
    other_set = ({"ood_latent_auroc@other": 0.5}, {}, {"ood": {"other": panels["synthetic"]}})
    record.save(folder, "ood", which, other_set, {})
    both = metrics_after("--tasks=recognition")
    assert first.items() <= both.items() and both["ood_latent_auroc@other"] == 0.5
    assert both["map_at_10"] > 0.9
    with open(f"{folder}/report/index.html") as f:
        page = f.read()
    for panel in ("reliability", "retrieval", "recognition", "ood_synthetic", "ood_other"):
        assert f'id="h-{panel}"' in page
    capsys.readouterr()
    with open(f"{folder}/tasks/recognition/arrays.npz", "ab") as f:
        f.write(b"more")
    with pytest.raises(UserError, match="tasks/recognition: damaged; remove it"):
        metrics_after()
    assert "ELBO" not in capsys.readouterr().out, "looked at before the evaluation"
    mark = {"step": 400, "sha256": "of another checkpoint"}
    assert record.load(folder, mark) == {}


def other(kind):
    """A config of another kind of model on digits, as small as it can be."""
    c = semi_supervised()
    c.data.labels, c.data.labelled_batch, c.latent, c.eval.iw_k = 0, 0, 2, 2
    c.encoder, c.decoder = (
        config.call(part, "mlp", widths=(8,)) for part in ("encoder", "decoder")
    )
    labelled = kind in models.MODELS
    c.model = config.call("model", kind if labelled else "vae")
    c.objective = config.call("objective", "m2" if labelled else "joint")
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


SLOW = ("adgm", "m1m2", "per_class", "hierarchy")


KINDS = ["cnn", "m2", *(pytest.param(k, marks=pytest.mark.slow) for k in SLOW)]


@pytest.mark.slow
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
    needs = {"others": strange, "features": ("rows", rows_of_pixels)}
    results = tasks.perform(list(tasks.TASKS), subject, **needs, say=lambda _: None)
    m = functools.reduce(operator.or_, [metrics for metrics, _, _ in results.values()])
    why = functools.reduce(operator.or_, [why for _, why, _ in results.values()])
    assert all(m[k] is None for k in why) and all(
        m[k] is not None and np.isfinite(m[k]) for k in set(m) - set(why)
    )
    generative = kind in models.MODELS
    draws = kind not in ("cnn", "m2", "per_class")
    assert ("bayes_accuracy" in m) == ("pgd_bayes_accuracy" in m) == generative
    assert ("pgd_drawn_accuracy" in m) == draws
    assert ("ood_regret_auroc@inverted" in m) == (kind not in ("cnn", "hierarchy"))


@pytest.mark.slow
def test_bayes_rule_can_be_attacked_and_an_auxiliary_draws():
    """The gradient of each reading is that of finite differences at the same draws, not 0."""
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
