"""A classifier that the objective does not train has no accuracy."""

import jax
import pytest

from vae_jax import config, data, models
from vae_jax.evaluate import evaluate
from vae_jax.evaluate.subject import Subject
from vae_jax.evaluate.trained import trains_classifier
from vae_jax.mesh import rules

LOSSES = '''
from vae_jax.objectives import OBJECTIVES
from vae_jax.objectives.terms import Terms


def quiet(model, params, batch, keys, *, gamma=1.0):
    """The joint loss without its metrics of the classifier."""
    joint = OBJECTIVES["joint"](model, params, batch, keys, gamma=gamma)
    return Terms(joint.loss, joint.elbo, joint.log_px, joint.kl)
'''


def subject(objective, dataset):
    c = config.default()
    c.latent = 3
    c.eval.batch = 128
    c.mesh.data = 1
    c.encoder = config.call("encoder", "mlp", widths=(16,))
    c.decoder = config.call("decoder", "mlp", widths=(16,))
    c.classifier = config.call("classifier", "mlp")
    c.objective = objective
    model = models.build_for(c, dataset)
    params = model.init(jax.random.key(0))
    return Subject(c, model, params, dataset, rules.make_mesh(c.mesh))


@pytest.fixture(scope="module")
def digits():
    return data.load(config.default().data)


def test_a_classifier_without_a_gradient_is_known(digits, tmp_path):
    (tmp_path / "own.py").write_text(LOSSES)
    own = f"{tmp_path}/own.py:quiet"
    for name, gamma, trained in (
        ("joint", 1.0, True),
        ("joint", 0.0, False),
        (own, 1.0, True),
        (own, 0.0, False),
    ):
        objective = config.call("objective", name, gamma=gamma)
        assert trains_classifier(subject(objective, digits)) == trained, (name, gamma)
    assert not trains_classifier(subject(config.call("objective", "elbo"), digits))


def test_what_is_not_trained_is_left_out(digits):
    metrics, why, pictures = evaluate(subject(config.call("objective", "elbo"), digits), iw_k=2)
    assert metrics["accuracy"] is None and pictures["confusion"] is None
    assert why["accuracy"] == "the objective does not train the classifier"
    assert metrics["knn_accuracy"] is not None
    assert pictures["explorer"].predicted is None and pictures["explorer"].labels is not None
