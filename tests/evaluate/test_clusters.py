"""Clusters and codes in use, on arrays with known answers and on models."""

import itertools

import jax
import numpy as np
import pytest

from vae_jax import config
from vae_jax.evaluate import clusters, codes, tasks
from vae_jax.evaluate.subject import Subject
from vae_jax.train import program
from vae_jax.train import run as workdir


def test_the_assignment_is_the_best_of_all_permutations():
    rng = np.random.default_rng(0)
    cluster, label = rng.integers(0, 4, (2, 60))
    best = max(
        np.mean(np.array(order)[cluster] == label) for order in itertools.permutations(range(4))
    )
    assert clusters.assignment_accuracy(cluster, label) == pytest.approx(best)


def test_renamed_classes_are_perfect_and_one_cluster_is_not():
    label = np.arange(40) % 4
    perfect = clusters.agreement((label + 1) % 4, label)
    assert perfect == pytest.approx(dict.fromkeys(clusters.KEYS, 1.0))
    one = clusters.agreement(np.zeros(40, int), label)
    assert list(one.values()) == pytest.approx([0.25, 0, 0])


def test_use_and_perplexity_count_each_variable():
    index = np.array([[0, 0], [1, 0], [2, 0], [3, 0]])
    use, perplexity = codes.usage(index, 8)
    assert use == pytest.approx((4 / 8 + 1 / 8) / 2)
    assert perplexity == pytest.approx((4 + 1) / 2)
    assert codes.usage(index.reshape(-1, 1), 8)[0] == 4 / 8, "together"


def subject_of(**parts):
    c = config.default()
    c.encoder = config.call("encoder", "mlp", widths=(16,))
    c.decoder = config.call("decoder", "mlp", widths=(16,))
    for part, section in parts.items():
        c[part] = section
    s = workdir.setup(c)
    params = program.init(s.c, s.model, s.mesh, s.dataset)[0].params
    return Subject(s.c, s.model, params, s.dataset, s.mesh)


CATEGORICAL = {
    "latent": 15,
    "posterior": config.call("posterior", "categorical", codes=5),
    "prior": config.call("prior", "categorical", codes=5),
}
GRID = {
    "latent": 4,
    "posterior": config.call("posterior", "fsq", grid=(4, 3)),
    "prior": config.call("prior", "grid", grid=(4, 3)),
}


CODEBOOK = {
    "latent": 8,
    "model": config.call("model", "vq", codes=6, width=4),
    "objective": config.call("objective", "vq"),
}


@pytest.mark.parametrize(("parts", "size"), [(CATEGORICAL, 5), (GRID, 12), (CODEBOOK, 6)])
def test_the_tasks_of_a_model_of_codes(parts, size):
    subject = subject_of(**parts)
    results = tasks.perform(["codes", "clusters"], subject)
    metrics, why, _ = results["codes"]
    assert metrics["code_size"] == size
    if parts is CODEBOOK:
        assert not why and metrics["code_use"] <= metrics["codebook_use"] <= 1
        assert metrics["codebook_perplexity"] <= size * metrics["codebook_use"] + 1e-9
    else:
        assert set(why) == set(codes.POOLED)
    assert 1 / size <= metrics["code_use"] <= 1
    assert 1 <= metrics["code_perplexity"] <= size
    if parts is CATEGORICAL:
        assert metrics["code_use"] == 1, "360 draws near the uniform distribution"
    metrics, why, _ = results["clusters"]
    assert not why and 0.1 < metrics["cluster_accuracy"] <= 1
    x = jax.numpy.zeros((2, *subject.model.shape))
    assert subject.model.encode(subject.params, x).mu.shape == (2, parts["latent"])


def test_a_model_without_codes_is_one_line():
    lines = []
    metrics, _, _ = tasks.perform(["codes"], subject_of(), say=lines.append)["codes"]
    assert metrics == dict.fromkeys(codes.KEYS + codes.POOLED)
    assert "z is not a code" in lines[0]


def test_clusters_of_trained_codes_are_better_than_chance(trained):
    """Eight digits: the code of a joint model tells them apart."""
    _, s, params = trained
    subject = Subject(s.c, s.model, params, s.dataset, s.mesh)
    metrics, _, _ = tasks.perform(["clusters"], subject)["clusters"]
    assert metrics["cluster_accuracy"] > 0.6 and metrics["cluster_nmi"] > 0.5
