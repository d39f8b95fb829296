"""Densities fitted to codes, against scikit-learn and on a run; RAE against its equation."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vae_jax import config, models
from vae_jax.config import UserError
from vae_jax.distributions.full_mixture import MixtureOfFullNormals
from vae_jax.evaluate import quality, record, tasks
from vae_jax.evaluate.subject import restored
from vae_jax.objectives import OBJECTIVES
from vae_jax.objectives.rae import squared_jacobian
from vae_jax.report.densities import SHOWN
from vae_jax.report.panels import Pictures, task_panels
from vae_jax.tools import code_density, density, results
from vae_jax.train import loop

RNG = np.random.default_rng(0)


def mixture():
    """Two components in two dimensions."""
    scale_tril = jnp.array([[[1.0, 0.0], [0.8, 0.5]], [[0.3, 0.0], [-0.2, 0.7]]])
    return MixtureOfFullNormals(
        jnp.log(jnp.array([0.3, 0.7])), jnp.array([[-2.0, 0], [1, 1]]), scale_tril
    )


def test_the_density_integrates_to_one():
    side = np.linspace(-8, 8, 400)
    grid = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2)
    p = np.exp(np.asarray(mixture().log_prob(jnp.asarray(grid, jnp.float32)), np.float64))
    assert p.sum() * (side[1] - side[0]) ** 2 == pytest.approx(1, abs=1e-3)


def test_draws_have_the_moments_of_the_mixture():
    p = mixture()
    z = np.asarray(jax.jit(p.sample)(jax.random.split(jax.random.key(0), 40_000)), np.float64)
    weight = np.array([0.3, 0.7])
    mean = weight @ np.asarray(p.mu)
    second = sum(
        w * (l @ l.T + np.outer(m, m))
        for w, m, l in zip(weight, np.asarray(p.mu), np.asarray(p.scale_tril), strict=True)
    )
    error = z.std(0) / np.sqrt(len(z))
    assert (np.abs(z.mean(0) - mean) < 4 * error).all()
    np.testing.assert_allclose(z.T @ z / len(z), second, atol=0.08)


def test_the_fit_is_scikit_learns():
    from sklearn.mixture import GaussianMixture

    z = np.concatenate(
        [RNG.normal(size=(300, 3)) @ RNG.normal(size=(3, 3)), RNG.normal(size=(200, 3)) + 4]
    )
    fit = code_density.fit_mixture(z, 2, seed=0)
    ridge = 1e-4 * z.var(0).mean()
    theirs = GaussianMixture(2, reg_covar=ridge, random_state=0).fit(z)
    got = jax.jit(fit.log_prob)(jnp.asarray(z, jnp.float32))
    np.testing.assert_allclose(got, theirs.score_samples(z), rtol=1e-3, atol=1e-3)
    with pytest.raises(UserError, match="components=600: want at most the 500 codes"):
        code_density.fit_mixture(z, 600, seed=0)


def test_a_run_gets_densities_and_their_figures(trained, tmp_path, capsys, monkeypatch):
    """The run's own classifier gives the features."""
    monkeypatch.setattr(code_density, "STEPS", 20)
    folder, _, _ = trained
    flags = ["--densities=mixture,realnvp,two_stage"]
    flags += ["--images=60", "--components=8", f"--results={tmp_path}/density_digits.json"]
    density.run(["density", f"--workdir={folder}", f"--features={folder}", *flags])
    printed = capsys.readouterr().out
    with open(f"{folder}/density.json") as file:
        figures = json.load(file)
    assert '"mixture_precision_' in printed
    (prior,) = [value for key, value in figures.items() if key.startswith("prior_fid_")]
    (fitted,) = [value for key, value in figures.items() if key.startswith("mixture_fid_")]
    (floor,) = [value for key, value in figures.items() if key.startswith("fid_floor_")]
    assert fitted < prior, "a mixture fits the codes of eight digits better than one Gaussian"
    assert (
        floor > 0 and figures["components"] == 8 and np.isfinite(figures["mixture_validation_nats"])
    )
    for name in ("realnvp", "two_stage"):
        assert np.isfinite(figures[f"{name}_validation_nats"])
        (fid,) = [value for key, value in figures.items() if key.startswith(f"{name}_fid_")]
        assert np.isfinite(fid) and fid != fitted
    with open(f"{folder}/tasks/density/result.json") as file:
        which = json.load(file)["checkpoint"]
    samples = record.load(folder, which)["density"][2]["densities"]
    assert list(samples) == ["prior", "mixture", "realnvp", "two_stage"]
    panels = task_panels(Pictures(densities=samples))
    assert "prior, mixture, realnvp, two_stage" in panels["densities"].view["alt"]
    for name, images in samples.items():
        assert images.shape == (SHOWN, 8, 8, 1) and images.max() <= 1, name
    with pytest.raises(UserError, match="densities=gan: want some of mixture, realnvp, two_stage"):
        density.run(["density", f"--workdir={folder}", f"--features={folder}", "--densities=gan"])
    (rebuilt,) = [value for key, value in figures.items() if key.startswith("reconstruction_fid_")]
    assert rebuilt > 0
    published = results.read(tmp_path / "density_digits.json")["figures"]
    assert {key: one["value"] for key, one in published.items()} == figures
    with np.load(f"{folder}/density.npz") as arrays:
        assert arrays["scale_tril"].shape == (8, 8, 8)


def test_the_figures_of_a_run_are_those_of_its_parts(subject):
    """Training images as samples have a FID of 0, under a grey veil of c one of c² a pixel."""

    def pixels(x):
        return np.asarray(x).reshape(len(x), -1)

    known = quality.ground(subject, pixels, 100)
    for c in (0.0, 0.1):
        figures = quality.of_samples(known, pixels, known.images["reference"] + c, "pixels")
        assert figures["fid_pixels"] == pytest.approx(64 * c**2, abs=1e-3)
    values, images = quality.figures(subject, pixels, "pixels", 100)
    drawn = quality.of_samples(known, pixels, images["samples"], "pixels")
    assert values == quality.of_ground(known, "pixels") | drawn
    assert list(images) == ["test", "reconstructions", "samples"]


@pytest.mark.slow
def test_a_run_is_written_under_a_mixture_and_training_begins_from_it(trained, tmp_path):
    """Its prior is scikit-learn's mixture; its clusters and VaDE's after it are the digits."""
    from sklearn.mixture import GaussianMixture

    folder, s, params = trained
    into = str(tmp_path / "mixture")
    density.run(["density", f"--workdir={folder}", f"--into={into}", "--components=8"])
    subject = restored(into)
    assert subject.config.prior.name == "mixture"
    for part in ("encoder", "decoder"):
        jax.tree.map(np.testing.assert_array_equal, subject.params[part], params[part])
    z = density.codes(subject, s.dataset.train, draws=False)
    ridge = 1e-4 * z.var(0).mean() + 1e-12
    options = {"covariance_type": "diag", "reg_covar": ridge, "random_state": s.c.seed}
    theirs = GaussianMixture(8, **options).fit(z)
    prior = subject.model.prior(subject.params)
    got = jax.jit(prior.log_prob)(jnp.asarray(z, jnp.float32))
    np.testing.assert_allclose(got, theirs.score_samples(z), rtol=1e-3, atol=1e-2)
    metrics, _, _ = tasks.perform(["clusters"], subject)["clusters"]
    assert metrics["prior_cluster_accuracy"] > 0.6
    with pytest.raises(UserError, match="holds a run; want another folder"):
        density.write_run(folder, into, density.Fit(8))

    c = subject.config.copy_and_resolve_references()
    c.objective = config.call("objective", "vade")
    c.init_from = into
    c.steps = 40
    c.eval.every = 40
    c.eval.select = "elbo"
    loop.train(c, str(tmp_path / "vade"), say=lambda line: None)
    after = restored(str(tmp_path / "vade"))
    moved = np.abs(after.params["prior"]["mu"] - subject.params["prior"]["mu"]).max()
    assert 0 < moved < 0.5, "VaDE began at the mixture"
    metrics, _, _ = tasks.perform(["clusters"], after)["clusters"]
    assert metrics["prior_cluster_accuracy"] > 0.6


def rae_model():
    c = config.default()
    c.latent = 3
    c.encoder = config.call("encoder", "mlp", widths=(8,))
    c.decoder = config.call("decoder", "mlp", widths=(8,))
    c.objective = config.call("objective", "rae")
    m = models.build(c, shape=(4, 4, 1), levels=17, classes=0, binary=False)
    return m, jax.jit(m.init)(jax.random.key(0))


def test_rae_is_its_equation_and_has_no_noise_and_no_bound():
    m, params = rae_model()
    batch = {"image": jax.random.uniform(jax.random.key(1), (5, 4, 4, 1))}
    options = {"beta": 0.5, "decoder_l2": 0.1}
    t = jax.jit(lambda p: OBJECTIVES["rae"](m, p, batch, None, **options))(params)
    z = m.encode(params, batch["image"]).mu
    log_px = m.likelihood.log_prob(m.decode(params, z), batch["image"])
    weights = sum(float((leaf**2).sum()) for leaf in jax.tree.leaves(params["decoder"]))
    want = 0.25 * (z**2).sum(-1) + 0.1 * weights - log_px
    np.testing.assert_allclose(t.loss, want, rtol=1e-5)
    assert t.elbo is None and t.kl is None
    grads = jax.jit(jax.grad(lambda p: OBJECTIVES["rae"](m, p, batch, None).loss.sum()))(params)
    assert all(
        np.abs(grads[part]["Layer_0"]["dense"]["kernel"]).max() > 0
        for part in ("encoder", "decoder")
    )
    out = grads["posterior"]["Dense_0"]["kernel"]
    assert np.abs(out[:, :3]).max() > 0 and np.abs(out[:, 3:]).max() == 0, "nothing trains log σ²"


def test_rae_gp_is_its_equation_with_the_square_of_the_jacobian():
    """Of many directions the mean is autodiff's ‖J‖²; one direction is in the loss."""
    m, params = rae_model()
    x = jax.random.uniform(jax.random.key(1), (5, 4, 4, 1))
    options = {"beta": 0.5, "gradient_penalty": 0.3}

    @jax.jit
    def everything(params, keys_KxB):
        z = m.encode(params, x).mu

        def mean(z_D):
            return m.likelihood.mean(m.decode(params, z_D[None]))[0]

        exact = jnp.sum(jax.vmap(jax.jacobian(mean))(z) ** 2, axis=(1, 2, 3, 4))
        directions = jax.lax.map(lambda k: squared_jacobian(m, params, z, k), keys_KxB)
        log_px = m.likelihood.log_prob(m.decode(params, z), x)
        t = OBJECTIVES["rae_gp"](m, params, {"image": x}, keys_KxB[0], **options)
        return t, exact, directions, 0.25 * (z**2).sum(-1) - log_px

    keys = jax.random.split(jax.random.key(2), (4000, 5))
    t, exact, directions, plain = everything(params, keys)
    error = directions.std(0) / np.sqrt(len(directions))
    assert (np.abs(directions.mean(0) - exact) < 4 * error + 1e-3 * exact).all()
    assert (exact > 10 * error).all(), "else the mean says little"
    np.testing.assert_allclose(t.loss, plain + 0.3 * directions[0], rtol=1e-5)
    assert t.elbo is None


def test_what_has_no_single_code_is_one_line():
    m, _ = rae_model()
    with pytest.raises(UserError, match="a model with labels; want one with"):
        density.check(m._replace(spec=m.spec._replace(labelled=True)), "runs/a")
    with pytest.raises(UserError, match="makes no images"):
        density.check(m._replace(decode=None), "runs/a")
