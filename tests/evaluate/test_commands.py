"""What is wrong with a command's flags is one line, before the work."""

import os

import numpy as np
import pytest

from tests.evaluate import scene_subjects
from vae_jax import config
from vae_jax.config import UserError
from vae_jax.data import scenes
from vae_jax.evaluate import (
    codes,
    corruptions,
    gradients,
    incremental,
    layers,
    more_objects,
    ood_benchmark,
    openset,
    quality,
    sliding,
    tasks,
    verification,
)
from vae_jax.evaluate.subject import Subject
from vae_jax.evaluate.trained import why_unclassified
from vae_jax.tools import clusters, density, export
from vae_jax.train import program
from vae_jax.train import run as workdir

FIXED = (
    *(corruptions, gradients, incremental, layers, more_objects, ood_benchmark),
    *(quality, sliding, verification, clusters, density, export),
)


@pytest.mark.parametrize("module", FIXED, ids=lambda module: module.__name__)
def test_a_field_of_a_trained_run_cannot_be_changed(module):
    argv = ["command", "--workdir=runs/none", "--config.steps=3"]
    with pytest.raises(UserError, match=r"steps: this command takes no --config\.steps"):
        module.run(argv)


@pytest.mark.parametrize("words", [["--config=configs/digits.py"], ["--config.steps=3"]])
def test_noise_is_shown_to_a_run_as_it_is(words):
    with pytest.raises(UserError, match="want --workdir alone"):
        openset.run(["openset", "--noise", "--workdir=runs/none", *words])


@pytest.mark.parametrize(
    ("module", "word", "message"),
    [
        (more_objects, "--counts=", "counts=: want one or more"),
        (incremental, "--samples=", "samples=: want one or more"),
        (incremental, "--samples=²", "samples=²: want whole numbers"),
        (gradients, "--samples=", "samples=: want whole numbers"),
        (corruptions, "--images=0", "images=0: 0 is not a positive integer"),
        (ood_benchmark, "--without=odinn", "without=odinn: no score; nearest: odin"),
        (density, "--densities=", "densities=: want some of mixture"),
    ],
)
def test_a_value_that_means_nothing(module, word, message):
    argv = ["command", "--workdir=runs/none", word]
    if module is density:
        argv.append("--features=runs/none")
    with pytest.raises(UserError, match=message):
        module.run(argv)


@pytest.fixture(scope="module")
def untrained() -> Subject:
    """An ELBO beside a classifier that nothing trains."""
    c = config.load("configs/digits.py")
    c.objective = config.call("objective", "elbo")
    s = workdir.setup(c)
    assert s.model.classify is not None
    params = program.init(s.c, s.model, s.mesh, s.dataset)[0].params
    return Subject.of(s, params)


def test_a_classifier_that_nothing_trained_classifies_nothing(untrained, tmp_path):
    why = "the objective does not train the classifier"
    assert why_unclassified(untrained) == why
    missing = ood_benchmark.reference(untrained, without=ood_benchmark.BOUND).missing
    assert {missing[name] for name in ood_benchmark.CLASSIFIER} == {why}
    s = workdir.setup(untrained.config)
    with pytest.raises(UserError, match=f"what=classifier: {why}; want another"):
        export.program("classifier", s, untrained.params)
    with pytest.raises(UserError, match=f"objective.name=elbo: {why}"):
        openset.measure(untrained.config, str(tmp_path), [(0, 1, 2, 3, 4, 5)], 20)
    assert not os.listdir(tmp_path), "nothing is trained first"
    metrics, _, _ = tasks.perform(["classification"], untrained, say=lambda _: None)[
        "classification"
    ]
    assert metrics["calibrated_ece"] is None


def test_ood_sets_and_rates_are_checked_before_the_work(trained, tmp_path, monkeypatch):
    folder, s, _ = trained
    argv = ["ood", f"--workdir={folder}", "--far=textures", "--images=20"]
    with monkeypatch.context() as patch:
        patch.setattr(ood_benchmark, "reference", None)  # the work, which is not begun
        for word, message in (
            ("--false_alarm=nan", "false_alarm=nan: want a rate"),
            ("--false_alarm=0.01", "20 validation images bear"),
            (f"--background={folder}", "is the run itself"),
        ):
            with pytest.raises(UserError, match=message):
                ood_benchmark.run([*argv, word])
        np.savez(tmp_path / "own.npz", images=np.zeros((4, 8, 8), np.uint8))
        own = s.c.copy_and_resolve_references()
        own.data.name = f"npz:{tmp_path / 'own.npz'}"
        patch.chdir(tmp_path)
        subject = Subject(own, s.model, {}, s.dataset, s.mesh)
        with pytest.raises(UserError, match=r"far=npz:own\.npz: is what the run was trained on"):
            ood_benchmark.ood_sets(subject, (), ("npz:own.npz",), 20)


def test_no_score_is_left(trained):
    folder, _, _ = trained
    argv = ["ood", f"--workdir={folder}", "--far=textures", "--images=20", "--false_alarm=0.2"]
    names = ",".join(ood_benchmark.NAMES)
    with pytest.raises(UserError, match="leaves no score; want fewer"):
        ood_benchmark.run([*argv, f"--without={names}"])


def test_a_file_that_cannot_be_written_is_said_before_the_work(trained, monkeypatch):
    folder, _, _ = trained
    monkeypatch.setattr(layers, "accuracies", None)
    os.mkdir(os.path.join(folder, "layers.json"))
    try:
        with pytest.raises(UserError, match=r"layers\.json: Is a directory; want a folder"):
            layers.run(["layers", f"--workdir={folder}"])
    finally:
        os.rmdir(os.path.join(folder, "layers.json"))


def test_density_checks_all_flags_before_it_writes_a_run(trained, tmp_path):
    folder, _, _ = trained
    argv = ["density", f"--workdir={folder}", f"--into={tmp_path / 'into'}"]
    for words, message in (
        (["--features=runs/none"], r"features=runs/none: no run in it"),
        ([f"--features={folder}", f"--results={tmp_path / 'none' / 'x.json'}"], "no folder"),
    ):
        with pytest.raises(UserError, match=message):
            density.run([*argv, *words])
    assert not (tmp_path / "into").exists()


def test_models_of_scenes_have_no_codes():
    """Their posterior holds functions, which no program returns."""
    lines = []
    subject = scene_subjects.subject_of(scene_subjects.air())
    metrics, _, _ = tasks.perform(["codes"], subject, say=lines.append)["codes"]
    assert metrics == dict.fromkeys(codes.KEYS + codes.POOLED)
    assert "z is not a code" in lines[0]


def test_no_canvas_has_more_objects_than_pixels():
    with pytest.raises(UserError, match="most=9999: want at most 196, one a pixel"):
        scenes.law_of("scenes:digits+most=9999+size=14", 8)


def test_clusters_begin_at_an_autoencoder_of_the_same_nets(tmp_path):
    other = tmp_path / "other.py"
    other.write_text(
        "from configs import ae_mnist\n\n\ndef get_config():\n    c = ae_mnist.get_config()\n"
        "    c.latent = 11\n    return c\n"
    )
    argv = ["clusters", f"--begin={other}", "--config=configs/vade_mnist.py"]
    argv.append(f"--workdir={tmp_path / 'runs'}")
    with pytest.raises(UserError, match="latent: 10 begins at 11; want the same"):
        clusters.run(argv)
    argv[1] = "--begin=configs/ae_mnist.py"
    with pytest.raises(UserError, match="seeds=: want one or more"):
        clusters.run([*argv, "--seeds="])
