"""A model of scenes asked about more objects than it has seen."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from tests.evaluate.scene_subjects import air, grid, subject_of
from vae_jax.config import UserError
from vae_jax.evaluate import more_objects
from vae_jax.train import loop


@pytest.mark.parametrize("make", [air, grid])
def test_the_canvases_have_so_many_objects_and_the_nets_are_the_runs(make):
    subject = subject_of(make())
    asked = more_objects.with_objects(subject, 3, images=10, steps=4)
    objects = asked.data.test.objects
    assert len(objects) == 10 and ((objects[..., 4] >= 0).sum(-1) == 3).all()
    assert asked.data.shape == subject.data.shape
    shapes = jax.tree.map(np.shape, jax.eval_shape(asked.model.init, jax.random.key(0)))
    assert shapes == jax.tree.map(np.shape, subject.params)
    figures = more_objects.measure(asked, 3)
    assert set(figures) == {"count_accuracy", "ap50_any_class", "ap_any_class"}


def test_true_boxes_have_all_that_can_be_had(monkeypatch: pytest.MonkeyPatch):
    asked = more_objects.with_objects(subject_of(air()), 3, images=10, steps=4)
    objects = asked.data.test.objects
    found = {
        "box": objects[..., :4].astype(np.float32),
        "label": np.maximum(objects[..., 4], 0),
        "score": np.ones(objects.shape[:2]),
        "logit": np.ones(objects.shape[:2]),
        "keep": objects[..., 4] >= 0,
    }
    monkeypatch.setattr(more_objects, "detect", lambda subject: found)
    assert set(more_objects.measure(asked, 3).values()) == {1.0}
    found["keep"][:, 0] = False
    figures = more_objects.measure(asked, 3)
    assert figures["count_accuracy"] == 0 and figures["ap50_any_class"] < 0.7


@pytest.mark.slow
def test_a_run_is_measured(tmp_path, capsys):
    c = air()
    c.steps = c.eval.every = c.log_every = 2
    c.batch = 8
    c.optim.warmup = 0
    loop.train(c, str(tmp_path), say=lambda line: None)
    words = [f"--workdir={tmp_path}", "--counts=2,3", "--images=4"]
    assert more_objects.run(["more_objects", *words]) == 0
    assert "count_accuracy" in capsys.readouterr().out
    assert set(json.loads((tmp_path / "more_objects.json").read_text())) == {"2", "3"}
    with pytest.raises(UserError, match="counts=many: want whole numbers"):
        more_objects.run(["more_objects", f"--workdir={tmp_path}", "--counts=many"])


def test_a_run_of_no_scenes_is_one_line():
    subject = subject_of(air())
    c = subject.config.copy_and_resolve_references()
    c.data.name = "digits"
    with pytest.raises(UserError, match=r"data\.name=digits: want a run that finds objects"):
        more_objects.with_objects(dataclasses.replace(subject, config=c), 3, images=1, steps=4)
