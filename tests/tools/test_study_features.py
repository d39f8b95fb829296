"""The study of pretraining: one encoder for all arms, and runs that begin with each other's."""

import pytest

from configs import study_features, study_features_mnist
from tests.processes import silent
from vae_jax import config
from vae_jax.tools import study
from vae_jax.tools.study_plan import cells, check, needed

STUDIES = {"digits": study_features.get_study, "mnist": study_features_mnist.get_study}


@pytest.mark.parametrize("name", STUDIES)
def test_all_arms_have_one_encoder_and_tuned_ones_begin_with_a_run(name):
    plan = STUDIES[name]()
    check(plan)
    kinds = set()
    encoders = set()
    for cell in cells(plan, "root"):
        config.validate(cell.config)
        encoders.add(str(cell.config.encoder))
        runs = needed(cell, "root", plan)
        if cell.method.endswith("_tuned"):
            first, second = runs
            assert second.config.init_from == first.folder
            assert second.config.data.labels == cell.labels and not first.config.data.labels
            assert first.config.latent == second.config.latent
            assert first.config.posterior == second.config.posterior
            kinds.add(first.config.objective.name)
        if cell.method == "scratch":
            assert not cell.config.init_from
    assert kinds == {"elbo", "masked", "contrastive"}
    assert len(encoders) == 1
    frozen = {method for method in plan.methods if method.endswith("_frozen")}
    assert frozen == {"random_frozen", "vae_frozen", "masked_frozen", "contrastive_frozen"}


@pytest.mark.slow
def test_a_small_study_of_digits_is_done(tmp_path):
    plan = study_features.digits(40, budgets=(100,), seeds=(0, 1), detail=(100,))
    assert study.run(plan, str(tmp_path), say=silent)
    rows = [study.done(cell, str(tmp_path)) for cell in cells(plan, str(tmp_path))]
    assert len(rows) == 2 * 8
    for row in rows:
        assert 0.1 < row["figures"]["accuracy"] <= 1
