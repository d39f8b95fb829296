"""A user's own metrics: one function in one file, shown wherever a metric is shown."""

import json

import pytest

from vae_jax import config
from vae_jax.config import UserError
from vae_jax.tools import assess
from vae_jax.train import loop

OWN = """
from vae_jax.evaluate.subject import metric


@metric("mean_pixel", unit="%", meaning="Mean grey level of the test images.")
def mean_pixel(subject):
    return subject.data.test.image.mean() / (subject.data.levels - 1)


def latents(subject):
    return subject.model.latent


def words(subject):
    return "many"


def accuracy(subject):
    return 1.0
"""


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    c = config.default()
    c.steps = 20
    c.eval.every = 20
    c.log_every = 20
    c.latent = 3
    c.eval.iw_k = 2
    folder = tmp_path_factory.mktemp("run")
    (folder / "own_metrics.py").write_text(OWN)
    assert loop.train(c, str(folder / "run"), say=lambda line: None)
    return folder


def evaluated(folder, *names):
    lines = []
    own = [f"{folder}/own_metrics.py:{name}" for name in names]
    metrics, _ = assess.assess(str(folder / "run"), assess.Request(metrics=own), say=lines.append)
    return metrics, lines


def test_own_metrics_reach_the_file_the_terminal_and_the_page(workdir):
    metrics, lines = evaluated(workdir, "mean_pixel", "latents")
    assert metrics["latents"] == 3 and 0.25 < metrics["mean_pixel"] < 0.35
    assert json.loads((workdir / "run/metrics.json").read_text())["latents"] == 3
    assert any(line.startswith("mean_pixel  ") and line.endswith(" %") for line in lines)
    assert "Mean grey level of the test images." in (workdir / "run/report/index.html").read_text()


@pytest.mark.parametrize(
    ("name", "line"), [("words", "returned str; want one number"), ("none", "no function none")]
)
def test_a_metric_that_is_none_is_one_line(workdir, name, line):
    with pytest.raises(UserError, match=line):
        evaluated(workdir, name)


@pytest.mark.parametrize("names", [("accuracy",), ("latents", "latents"), ("none",)])
def test_a_name_that_is_taken_or_not_there_is_told_before_the_evaluation(workdir, names):
    """An own metric never takes the place of one of ours."""
    own = [f"{workdir}/own_metrics.py:{name}" for name in names]
    lines = []
    with pytest.raises(UserError, match=r"metrics=.*(another metric has the name|no function)"):
        assess.assess(str(workdir / "run"), assess.Request(metrics=own), say=lines.append)
    assert lines == []
