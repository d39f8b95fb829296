"""A study of detection: cells that resume, and one table of them."""

import os

import pytest

from configs import study_scenes
from tests.processes import silent
from vae_jax.config import UserError
from vae_jax.tools import detection_study, study
from vae_jax.tools.study_plan import cells, needed


@pytest.fixture(autouse=True)
def small_scenes(monkeypatch):
    monkeypatch.setattr(study_scenes, "SCENES", 60)
    monkeypatch.setattr(study_scenes, "TEST", 20)
    make = study_scenes.scenes

    def fewer(data, train, test=20):
        return make(data, train, test).replace("validation=200", "validation=20")

    monkeypatch.setattr(study_scenes, "scenes", fewer)


def plan():
    """Two arms with 40 scenes, two seeds."""
    steps = (20, 20)
    whole = study_scenes.study("few", study_scenes.nets, 3, 6, steps, budgets=(40,), seeds=(0, 1))
    return whole._replace(methods={n: whole.methods[n] for n in ("scratch", "masked_frozen")})


def test_scenes_with_boxes_are_the_budget_and_pretraining_sees_all():
    scratch, _, frozen, _ = cells(plan(), "root")
    assert "train=40+" in scratch.config.data.name and not scratch.config.data.labels
    first, second = needed(frozen, "root", plan())
    assert "train=60+" in first.config.data.name
    assert first.config.objective.name == "masked" and first.config.model.name == "vae"
    assert second.config.init_from == first.folder and second.config.model.frozen
    assert not second.config.optim.weight_decay


@pytest.mark.slow
def test_a_study_does_its_cells_once(tmp_path):
    root = str(tmp_path)
    assert detection_study.run(plan(), root, say=silent, publish=str(tmp_path / "few.json"))
    text = (tmp_path / "table.md").read_text()
    assert "| from scratch | 0." in text and "| masked autoencoder, frozen | 0." in text
    assert "…" not in text and "2 seeds" in text
    before = os.stat(tmp_path / "cells" / "scratch-40-0.json").st_mtime_ns
    lines = []
    assert detection_study.run(plan(), root, say=lines.append)
    assert lines[0] == "4 cells are done, 0 are left"
    assert os.stat(tmp_path / "cells" / "scratch-40-0.json").st_mtime_ns == before


def test_a_wrong_arm_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"^only=sratch: .*scratch"):
        detection_study.run(plan(), str(tmp_path), only=["sratch"], say=silent)
    with pytest.raises(UserError, match=r"^workdir=gs://b/x: a study wants a folder of a disk"):
        detection_study.run(plan(), "gs://b/x", say=silent)
    with pytest.raises(UserError, match=r"want python -m vae_jax\.tools\.detection_study"):
        study.run(plan(), str(tmp_path), say=silent)
