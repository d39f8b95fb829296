"""Metrics of evaluation against independent libraries and written-out values, on any mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp
from sklearn.metrics import accuracy_score, confusion_matrix, log_loss

from vae_jax import config, data, models
from vae_jax import distributions as densities
from vae_jax.data import evaluation
from vae_jax.evaluate import classification, evaluate, latent, likelihood, recognition
from vae_jax.evaluate.run import forward
from vae_jax.evaluate.subject import Subject
from vae_jax.mesh import rules as sharding
from vae_jax.train import program as compile_lib

KEY = jax.random.key(1)


def digits(images, binarize="none", **parts):
    """(config, dataset cut to so many test images, model, parameters) of a small MLP on digits."""
    c = config.default()
    c.latent, c.data.binarize = 3, binarize
    c.encoder, c.decoder = (
        config.call(part, "mlp", widths=(8,)) for part in ("encoder", "decoder")
    )
    for part, (name, fields) in parts.items():
        c[part] = config.call(part, name, **fields)
    dataset = data.load(c.data)
    dataset = dataset._replace(
        test=data.Split(dataset.test.image[:images], dataset.test.label[:images])
    )
    model = models.build_for(c, dataset)

    @compile_lib.simple
    def parameters(
        key,
    ):  # fresh flows are the identity and fresh mixtures symmetric: not what a test wants
        leaves, tree = jax.tree.flatten(model.init(jax.random.key(0)))
        noise = [
            0.3 * jax.random.normal(jax.random.fold_in(key, i), a.shape)
            for i, a in enumerate(leaves)
        ]
        return jax.tree.unflatten(tree, [a + n for a, n in zip(leaves, noise, strict=True)])

    return c, dataset, model, parameters(KEY)


def test_classification_figures_against_scikit_learn():
    rng = np.random.default_rng(0)
    logits, label = 3 * rng.normal(size=(500, 7)), rng.integers(0, 7, 500)
    figures, confusion = classification.figures(logits, label)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert figures["accuracy"] == pytest.approx(accuracy_score(label, p.argmax(1)))
    assert figures["cross_entropy_nats"] == pytest.approx(log_loss(label, p))
    np.testing.assert_array_equal(confusion, confusion_matrix(label, p.argmax(1)))


def test_cross_entropy_survives_extreme_logits():
    figures, _ = classification.figures(np.array([[1e4, 0.0], [0.0, -1e4]]), np.array([0, 1]))
    assert figures["cross_entropy_nats"] == pytest.approx(5e3)


def test_ece_written_out():
    # Bins of width 1/15: 0.95 in the last (two right of three), 0.5 in the eighth (one right of
    # one).
    got = classification.expected_calibration_error(
        np.array([0.95, 0.95, 0.95, 0.5]), np.array([1, 1, 0, 1])
    )
    assert got == pytest.approx((3 * abs(2 / 3 - 0.95) + abs(1 - 0.5)) / 4)
    assert classification.expected_calibration_error(np.array([1.0]), np.array([1])) == 0


def test_ece_of_a_calibrated_classifier_is_within_sampling_error():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.1, 1, 100_000)
    correct = rng.uniform(size=100_000) < confidence
    # E|gap| of a bin is sqrt(2 p q / (pi n)); the sum over 15 bins is below 0.4 / sqrt(n / 15).
    assert classification.expected_calibration_error(confidence, correct) < 0.4 / np.sqrt(
        100_000 / 15
    )


def test_neighbours_against_a_double_loop():
    rng = np.random.default_rng(0)
    a, ya, b, yb = (
        rng.normal(size=(60, 3)),
        rng.integers(0, 2, 60),
        rng.normal(size=(20, 3)),
        rng.integers(0, 2, 20),
    )
    hits = 0
    for x, y in zip(b, yb, strict=True):
        votes = ya[np.argsort(((a - x) ** 2).sum(1))[:5]]
        hits += int(np.bincount(votes, minlength=2).argmax() == y)
    assert recognition.knn_accuracy(a, ya, b, yb) == pytest.approx(hits / 20)


def test_active_units():
    mu = np.stack([np.linspace(-1, 1, 50), np.full(50, 3.0), 0.05 * np.linspace(-1, 1, 50)], 1)
    assert recognition.active_units(mu) == 1


def test_the_rate_is_mutual_information_plus_aggregate_kl_and_the_closed_forms():
    """x ~ N(0, 1), q(z|x) = N(a x, s²): q(z) = N(0, a² + s²), I = ½ log(1 + a²/s²), both exact for
    N → ∞.
    """
    a, s, n = 0.8, 0.5, 4000
    x = np.random.default_rng(0).normal(size=(n, 1))
    q = densities.Normal(
        jnp.asarray(a * x, jnp.float32), jnp.full((n, 1), 2 * np.log(s), jnp.float32)
    )
    prior = densities.Normal(jnp.zeros(1), jnp.zeros(1))
    got = latent.surgery(q, prior, jax.random.key(0))
    assert got["rate"] == pytest.approx(got["mutual_information"] + got["aggregate_kl"], abs=1e-6)
    v = a**2 + s**2
    assert got["mutual_information"] == pytest.approx(0.5 * np.log(v / s**2), abs=0.05)
    assert got["aggregate_kl"] == pytest.approx(0.5 * (v - 1 - np.log(v)), abs=0.05)
    assert latent.kl_per_dimension(q.mu, q.logvar, prior)[0] == pytest.approx(got["rate"], abs=0.05)


def test_a_collapsed_code_carries_nothing():
    q = densities.Normal(jnp.zeros((200, 3)), jnp.zeros((200, 3)))
    prior = densities.Normal(jnp.zeros(3), jnp.zeros(3))
    got = latent.surgery(q, prior, jax.random.key(0), chunk=64)
    assert got == pytest.approx(dict.fromkeys(got, 0), abs=1e-5)


def test_the_aggregate_kl_has_little_noise_and_says_how_much():
    """Codes that match the prior in 30 dimensions: the noise of log p(z) alone is sqrt(D / 2N)."""
    rng = np.random.default_rng(0)
    n, d, variance = 400, 30, 0.2
    mu = jnp.asarray(np.sqrt(1 - variance) * rng.normal(size=(n, d)), jnp.float32)
    q = densities.Normal(mu, jnp.full((n, d), np.log(variance), jnp.float32))
    prior = densities.Normal(jnp.zeros(d), jnp.zeros(d))
    runs = [latent.surgery(q, prior, jax.random.key(i)) for i in range(30)]
    noise = np.std([run["aggregate_kl"] for run in runs], ddof=1)
    assert noise < 0.5 * np.sqrt(d / (2 * n))
    # The stated error counts the choice of the 400 images too, so it is not below the noise.
    assert all(0.7 * noise < run["aggregate_kl_se"] < 1 for run in runs)


# Importance weights


@pytest.mark.parametrize(
    ("posterior", "prior"),
    [
        (("gaussian", {}), ("normal", {})),
        (("full", {}), ("mixture", {"components": 5})),
        (
            ("iaf", {"steps": 2, "hidden": (8,), "context": 4}),
            ("realnvp", {"steps": 2, "hidden": (8,)}),
        ),
        (("gaussian", {}), ("vamp", {"components": 5})),
    ],
)
def test_streamed_figures_are_the_direct_ones_whatever_q_and_p(posterior, prior):
    """Chunks that do not divide K against all K at once in float64; the encoder's KL where it is
    analytic.
    """
    n, k = 5, 11
    c, dataset, model, params = digits(n, posterior=posterior, prior=prior)
    mesh = sharding.make_mesh(c.mesh, jax.devices()[:1])
    subject = Subject(c, model, params, dataset, mesh)
    got = likelihood.log_likelihood(subject, dataset.test, KEY, k=k, chunk=4)
    x = jnp.asarray(dataset.test.image, jnp.float32) / (dataset.levels - 1)
    direct = compile_lib.simple(
        lambda p, x: likelihood.draws(model, p, x, jnp.arange(n), KEY, 0, k)
    )(params, x)
    log_w, log_px, kl = (
        np.asarray(a, np.float64) for a in (direct.log_w, direct.log_px, direct.kl.sum(-1))
    )
    close = {"rtol": 2e-5, "atol": 1e-4}
    np.testing.assert_allclose(got["iw"], logsumexp(log_w, axis=1) - np.log(k), **close)
    np.testing.assert_allclose(
        got["ess"], np.exp(2 * logsumexp(log_w, axis=1) - logsumexp(2 * log_w, axis=1)), 1e-3
    )
    np.testing.assert_allclose(got["log_px"], log_px.mean(1), **close)
    np.testing.assert_allclose(got["kl"], kl.mean(1), **close)
    np.testing.assert_allclose(got["elbo"], log_px.mean(1) - kl.mean(1), **close)
    assert log_w.std(1).min() > 1e-2 and got["iw"].std() > 1  # samples differ, and examples


def test_a_draw_is_a_function_of_its_example_and_its_number():
    """Not of the order of the examples, of who is beside them, nor of the number of samples."""
    _, dataset, model, params = digits(6)
    x, ids = jnp.asarray(dataset.test.image, jnp.float32) / (dataset.levels - 1), jnp.arange(6)

    def draws(x, ids, first, k):
        return likelihood.draws(model, params, x, ids, KEY, first, k)

    whole = compile_lib.simple(functools.partial(draws, k=9))(x, ids, 0)
    some, order = compile_lib.simple(functools.partial(draws, k=5)), jnp.array([4, 1, 5])
    for first in (0, 4):
        part = some(x[order], order, first)
        for a, b in zip(jax.tree.leaves(part), jax.tree.leaves(whole), strict=True):
            np.testing.assert_allclose(a, b[order, first : first + 5], rtol=2e-5, atol=1e-5)
    q = compile_lib.simple(model.encode)(params, x)
    noise = (whole.z - q.mu[:, None]) * jnp.exp(-0.5 * q.logvar[:, None])
    assert len(np.unique(np.round(noise, 5))) == noise.size  # none is used twice


def test_samples_over_the_model_axis_are_those_of_one_device():
    """Each of eight devices makes an eighth of the draws; the parameters stay where they were."""
    n, k = 6, 18  # the last chunk, of two samples, does not divide over the devices
    c, dataset, model, params = digits(n)

    def run(devices, d, m):
        c.mesh.data, c.mesh.model = d, m
        mesh = sharding.make_mesh(c.mesh, jax.devices()[:devices])
        places = sharding.shardings(params, mesh)
        here = jax.device_put(params, places)
        subject = Subject(c, model, here, dataset, mesh)
        out = likelihood.log_likelihood(subject, dataset.test, KEY, k=k, chunk=8)
        assert jax.tree.map(lambda a: a.sharding, here) == places
        x, carry = jnp.zeros((n, *dataset.shape)), (jnp.zeros(n),) * 4

        def f(p, x, i, carry):
            keys_KxB = densities.sample_keys(densities.example_keys(KEY, i), jnp.arange(64))
            return likelihood.add_samples(carry, model, p, x, keys_KxB, mesh)

        batch = jax.device_put((x, jnp.arange(n), carry), sharding.over_batch(mesh))
        return out, compile_lib.simple(f).lower(here, *batch).compile(), places

    one, alone, _ = run(1, 1, 1)
    for d, m in ((2, 4), (1, 8)):
        out, program, places = run(8, d, m)
        for name in one:
            np.testing.assert_allclose(out[name], one[name], rtol=1e-3 if name == "ess" else 2e-5)
        assert "model" in places["decoder"]["Layer_0"]["dense"]["kernel"].spec  # split at rest
        assert program.cost_analysis()["flops"] < 1.1 / 8 * alone.cost_analysis()["flops"]


@pytest.mark.parametrize(("d", "m"), [(1, 1), (2, 4), (8, 1)])
def test_what_a_device_makes_in_a_call_does_not_grow_with_the_number_of_samples(d, m):
    _, _, model, _ = digits(1)
    c = config.default().mesh
    c.data, c.model = d, m
    mesh = sharding.make_mesh(c, jax.devices()[: d * m])
    for k in (1, 7, 100, 5000, 100_003, 10**7):
        images, samples = likelihood.call_size(model, mesh, k)
        draws = images // d * -(-samples // m)
        assert images % d == 0 and samples <= k
        share = draws * 64 * model.likelihood.outputs(1) / likelihood.VALUES["cpu"]
        assert share <= 1 and (k < 100 or share > 0.5)


def test_batches_are_every_example_once_with_its_place_and_no_label_of_its_own_making():
    split = data.Split(np.arange(10, dtype=np.uint8).reshape(10, 1, 1, 1), None)
    mesh = sharding.make_mesh(config.default().mesh, jax.devices()[:2])
    for every, want in ((1, range(10)), (3, (0, 3, 6, 9))):
        found = [
            (b["id"][:real], b["image"].ravel()[:real])
            for b, real in evaluation.batches(split, 3, mesh, every)
        ]
        for got in zip(*found, strict=True):
            assert np.concatenate(got).tolist() == list(want)
    assert all(
        "label" not in b and b["mask"].sum() == real
        for b, real in evaluation.batches(split, 3, mesh)
    )
    labelled = split._replace(label=np.arange(10, dtype=np.int32))
    assert all((b["label"] == b["id"]).all() for b, _ in evaluation.batches(labelled, 4, mesh, 3))


@pytest.mark.parametrize("binarize", ["none", "dynamic"])
def test_the_rate_is_the_sum_of_its_dimensions_and_one_image_has_no_error(binarize):
    likelihood = {"none": ("discretized_logistic", {}), "dynamic": ("bernoulli", {})}[binarize]
    c, dataset, model, params = digits(1, binarize=binarize, likelihood=likelihood)
    mesh = sharding.make_mesh(c.mesh, jax.devices()[:1])
    dataset = dataset._replace(train=data.Split(dataset.train.image[:40], dataset.train.label[:40]))
    metrics, why, pictures = evaluate(Subject(c, model, params, dataset, mesh), iw_k=2)
    kl_D = pictures["kl_per_dimension"]
    assert kl_D.shape == (3,) and (np.diff(kl_D) <= 0).all()
    assert kl_D.sum() == pytest.approx(metrics["kl_nats"], rel=1e-5)
    assert metrics["iw_nats_se"] is None and "one image" in why["iw_nats_se"]


def test_codes_and_classes_are_read_from_the_grey_image_of_which_training_draws():
    parts = {"likelihood": ("bernoulli", {}), "classifier": ("mlp", {})}
    c, dataset, model, params = digits(20, binarize="dynamic", **parts)
    mesh = sharding.make_mesh(c.mesh, jax.devices()[:1])
    x = np.asarray(dataset.test.image, np.float32) / (dataset.levels - 1)
    assert ((x > 0) & (x < 1)).any()
    subject = Subject(c, model, params, dataset, mesh)
    got = forward(subject)(dataset.test)
    mu = model.encode(params, jnp.asarray(x)).mu
    np.testing.assert_allclose(got["mu"], mu, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got["logits"], model.classify(params, x), rtol=1e-5, atol=1e-6)
    shown = evaluation.inputs(c, dataset.levels)({"image": dataset.test.image, "id": np.arange(20)})
    assert set(np.unique(shown)) == {0, 1}, "the bound is one on binary images"
    c.data.binarize = "static"  # one draw is the data set: there is nothing else to be seen
    fixed = forward(subject)(dataset.test)["mu"]
    np.testing.assert_allclose(fixed, model.encode(params, shown).mu, rtol=1e-5, atol=1e-6)
