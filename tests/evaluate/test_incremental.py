"""A VAE for each class: what separate training needs, and Bayes' rule by the number of samples."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from tests.tiny import LABEL, SHAPE, X, log_evidence, m2
from vae_jax import config, data, objectives
from vae_jax.config import UserError
from vae_jax.distributions import example_keys, sample_keys
from vae_jax.evaluate import generative, incremental
from vae_jax.evaluate.subject import Subject
from vae_jax.mesh import rules
from vae_jax.train import program

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def subject():
    """Two VAEs of 6 binary pixels on five images."""
    model, params = m2("per_class")
    c = config.default()
    c.data.binarize = "threshold"
    c.model = config.call("model", "per_class")
    split = data.Split((255 * X).astype(np.uint8), LABEL)
    dataset = data.Dataset("", SHAPE, 256, ("0", "1"), split, split, split)
    mesh = rules.make_mesh(c.mesh, jax.devices()[:1])
    return Subject(c, model, params, dataset, mesh)


def test_a_class_learns_from_its_own_images_only(subject):
    """So training side by side is training one class after the other, with nothing kept."""
    keys = jax.random.split(KEY, 3)

    @program.simple
    def gradient(params, x, label):
        def loss(params):
            batch = {"image": x, "label": label}
            return objectives.OBJECTIVES["m2"](subject.model, params, batch, keys).loss.sum()

        return jax.grad(loss)(params)["per_class"]

    ones = jnp.ones(3, int)
    leaves = jax.tree.leaves(gradient(subject.params, X[:3], ones))
    for leaf in leaves:
        assert (leaf[0] == 0).all()
    assert max(float(jnp.abs(leaf[1]).max()) for leaf in leaves) > 0


def test_evidence_by_the_number_of_samples(subject, monkeypatch):
    """Each S has the first S samples, in chunks; with many it is the evidence by quadrature."""
    test = subject.data.test
    monkeypatch.setattr(incremental, "CHUNK", 2)
    few = incremental.evidence(subject, test, KEY, (1, 3, 5))
    for samples, got in few.items():
        want = generative.class_evidence(subject, test, KEY, k=samples)
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    monkeypatch.setattr(incremental, "CHUNK", 1000)
    # q = p: its samples reach wherever the posterior is.
    nets = subject.params["per_class"]
    wide = nets | {"posterior": jax.tree.map(jnp.zeros_like, nets["posterior"])}
    params = subject.params | {"per_class": wide}
    broad = dataclasses.replace(subject, params=params)
    many = incremental.evidence(broad, test, KEY, (3000,))[3000]
    exact = log_evidence(subject.model, params, X.reshape(5, -1))
    np.testing.assert_allclose(many, exact, atol=0.1)


def test_weights_of_a_unit_gaussian_are_written_out(subject):
    """log (1/S) Σ N(x; E[x|y, z], I) p(z) / q(z|x, y), of the draws that the model's own has."""
    model, params = subject.model, subject.params
    x = subject.data.test.image / 255.0
    keys = sample_keys(example_keys(KEY, jnp.arange(len(x))), jnp.arange(3))
    other = dataclasses.replace(subject, model=incremental.with_unit_gaussian(model))
    got = incremental.evidence(other, subject.data.test, KEY, (3,))[3]
    for y in range(2):

        @program.simple
        def parts(params, y=y):
            d = model.draw(params, jnp.asarray(x, jnp.float32), keys, jnp.asarray(y))
            logits = jax.vmap(lambda z: model.decode(params, z, jnp.asarray(y)))(d.z)
            return d.log_w - d.log_px, jax.nn.sigmoid(logits)

        ratio, mean = (np.asarray(part, np.float64) for part in parts(params))
        log_px = stats.norm.logpdf(x, mean).sum((-3, -2, -1))
        want = special.logsumexp(ratio + log_px, axis=0) - np.log(3)
        np.testing.assert_allclose(got[:, y], want, rtol=1e-4, atol=1e-4)


def test_accuracy_after_each_class():
    log_pxy = np.log([[0.6, 0.3, 0.1], [0.5, 0.4, 0.1], [0.1, 0.2, 0.7], [0.2, 0.5, 0.3]])
    label = np.array([0, 1, 2, 2])
    got = incremental.accuracies(log_pxy, label)
    np.testing.assert_allclose(got, [1, 0.5, 0.5])
    assert np.isnan(incremental.accuracies(log_pxy, label + 1)[0])


def test_a_classifier_that_is_fine_tuned_in_sequence_forgets():
    """Ten digits one after another: little but the last is left."""
    c = config.load("configs/digits.py")
    c.decoder = config.call("decoder", "none")
    c.encoder = config.call("encoder", "mlp", widths=(32,))
    c.objective = config.call("objective", "supervised")
    c.batch = 32
    dataset = data.load(c.data)
    values = incremental.fine_tuned(c, dataset, steps=20)
    assert values.shape == (10,) and values[0] == 1.0
    assert values[-1] < 0.4
    share = (dataset.test.label == 9).mean()
    assert values[-1] >= share - 0.02, "the class that came last is still known"


def test_the_page_of_a_run(subject):
    page = incremental.measure(subject, [1, 4])
    assert page["images"] == 5 and set(page["accuracy"]) == {"1", "4"}
    assert (
        page["by_classes"]["4"][0] == 1.0 and page["by_classes"]["4"][-1] == page["accuracy"]["4"]
    )
    shared = subject.config.copy_and_resolve_references()
    shared.model = config.call("model", "m2")
    with pytest.raises(UserError, match=r"model\.name=m2: classes share its nets"):
        incremental.measure(dataclasses.replace(subject, config=shared), [1])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["x"], "workdir: want --workdir=FOLDER"),
        (["x", "--workdir=runs/x", "--samples=1,ten"], "samples=ten: want whole numbers >= 1"),
        (["x", "--workdir=runs/x", "--samples=0"], "samples=0: want whole numbers >= 1"),
    ],
)
def test_wrong_flags_are_one_line(words, message):
    with pytest.raises(UserError, match=message):
        incremental.run(words)
