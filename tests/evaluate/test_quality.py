"""Figures of images against independent libraries, closed forms and written-out loops."""

import json
import re

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import linalg

from vae_jax import config
from vae_jax.config import UserError
from vae_jax.evaluate import quality, record
from vae_jax.tools import assess
from vae_jax.train import checkpoint, loop, step
from vae_jax.train import run as workdir

RNG = np.random.default_rng(0)


def test_frechet_is_scipys_and_zero_for_equal_sets():
    a, b = RNG.normal(size=(200, 4)) @ RNG.normal(size=(4, 4)), 1 + RNG.normal(size=(300, 4))
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    want = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(
        cov_a + cov_b - 2 * linalg.sqrtm(cov_a @ cov_b).real
    )
    assert quality.frechet(a, b) == pytest.approx(want, rel=1e-8)
    assert quality.frechet(a, a) == pytest.approx(0, abs=1e-8)
    assert quality.frechet(a, a + [3, 0, 0, 0]) == pytest.approx(9)
    flat = a * [1, 1, 0, 0]  # features that never move
    assert quality.frechet(flat, 2 * flat) == pytest.approx(
        np.trace(np.cov(flat.T)) + (flat.mean(0) ** 2).sum()
    )


def test_kernel_distance_is_the_double_loop_and_unbiased():
    a, b = RNG.normal(size=(6, 3)), RNG.normal(size=(5, 3)) + 1

    def k(u, v):
        return (u @ v / 3 + 1) ** 3

    def pairs(s):
        return np.mean([k(s[i], s[j]) for i in range(len(s)) for j in range(len(s)) if i != j])

    want = pairs(a) + pairs(b) - 2 * np.mean([k(u, v) for u in a for v in b])
    assert quality.kernel_distance(a, b) == pytest.approx(want)
    same = [quality.kernel_distance(*RNG.normal(size=(2, 50, 3))) for _ in range(200)]
    assert abs(np.mean(same)) < 4 * np.std(same) / np.sqrt(200)


def test_precision_and_recall_written_out():
    """k = 1 on a line: reaches of 0, 1, 3 are 1, 1, 2; of 0.5, 10, 11 they are 9.5, 1, 1."""
    real, made = np.array([[0.0], [1], [3]]), np.array([[0.5], [10], [11]])
    assert quality.precision_recall(real, made, k=1) == pytest.approx((1 / 3, 1.0))


def test_psnr_and_ssim_are_scikit_images():
    """Values of skimage.metrics (0.26) with data_range=1, gaussian_weights, sigma=1.5 and
    population covariances.
    """
    rng = np.random.default_rng(7)
    a = rng.uniform(size=(2, 16, 20, 3))
    b = np.clip(a + rng.normal(size=a.shape) * [[[[0.1]]], [[[0.3]]]], 0, 1)
    np.testing.assert_allclose(
        quality.psnr(a, b), [20.44612235468824, 12.399949829946666], rtol=1e-6
    )
    np.testing.assert_allclose(
        quality.ssim(a, b), [0.942404466713357, 0.7020356410180844], rtol=1e-6
    )
    np.testing.assert_allclose(quality.ssim(a, a), 1)


def test_sharpness_falls_as_an_image_is_blurred():
    x = np.zeros((1, 5, 5, 1))
    x[0, 2, 2, 0] = 1  # its Laplacian: −4 there and 1 at four neighbours, mean 0
    assert quality.sharpness(x) == pytest.approx((16 + 4) / 25)
    assert quality.sharpness(np.ones((2, 5, 5, 3))) == 0


# --- two runs of a few steps, by the command ---


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folders of a VAE of the digits and of a supervised net of them."""
    folder = tmp_path_factory.mktemp("quality")
    for name in ("vae", "net"):
        c = config.load("configs/digits.py")
        c.encoder, c.decoder = (
            config.call(part, "mlp", widths=(32,)) for part in ("encoder", "decoder")
        )
        c.latent, c.steps, c.eval.every, c.log_every, c.optim.warmup, c.eval.iw_k = (
            8,
            100,
            100,
            100,
            20,
            1,
        )
        c.mesh.data = 1
        if name == "vae":
            c.objective, c.classifier = (
                config.call("objective", "elbo"),
                config.call("classifier", "none"),
            )
        else:
            c.objective, c.decoder = (
                config.call("objective", "supervised"),
                config.call("decoder", "none"),
            )
        loop.train(c, str(folder / name))
    return folder


@pytest.fixture(scope="module")
def found(runs):
    assert quality.run(["quality", f"--workdir={runs / 'vae'}", f"--features={runs / 'net'}"]) == 0
    return json.loads((runs / "vae" / "quality.json").read_text())


def test_the_command_measures_a_run_in_the_features_of_another(runs, found):
    """The floors again, from the images and the net as they are.

    Names have the hash of the net's checkpoint.
    """
    s, state, meta = workdir.restore(str(runs / "net"), say=lambda _: None)
    mark = checkpoint.digest(str(runs / "net"), meta["step"])[:8]
    assert set(found) == {"n", "psnr", "sharpness_samples", "sharpness_reconstructions"} | {
        f"{name}_{mark}"
        for name in (
            *("fid", "fid_floor", "fid_halves", "reconstruction_fid"),
            *("kid", "kid_floor", "precision", "recall"),
        )
    }
    test, train = (split.image for split in (s.dataset.test, s.dataset.train))
    n, every = len(test), len(train) // len(test)
    assert found["n"] == n and every >= 2

    def seen(x):
        return s.model.encode(step.averaged(state), jnp.asarray(x[:n], jnp.float32) / 16).mu

    reference, half = seen(train[::every]), seen(train[every // 2 :: every])
    for name, other in (("fid_floor", seen(test)), ("fid_halves", half)):
        assert found[f"{name}_{mark}"] == pytest.approx(quality.frechet(reference, other), rel=1e-3)
        assert 0 < found[f"{name}_{mark}"] < 0.5 * found[f"fid_{mark}"]
    assert abs(found[f"kid_floor_{mark}"]) < 0.5 * found[f"kid_{mark}"]
    assert found["sharpness_reconstructions"] < 1 and 5 < found["psnr"] < 30
    _, shown, images = quality.measure(
        str(runs / "vae"), str(runs / "net"), 60
    )  # the first so many
    assert shown["n"] == 60 and all(len(v) == 60 for v in images.values())
    np.testing.assert_allclose(images["test"], test[:60] / np.float32(16))
    reference = seen(train[:: len(train) // 60][:60])
    rebuilt = s.model.encode(step.averaged(state), images["reconstructions"]).mu
    fid = quality.frechet(reference, rebuilt)
    assert shown[f"reconstruction_fid_{mark}"] == pytest.approx(fid, rel=1e-3)


@pytest.mark.slow
def test_the_figures_reach_the_page_and_stay_there(runs):
    """And stay for a later call without the features."""
    lines = []
    request = assess.Request(tasks=["quality"], features=str(runs / "net"))
    metrics, _ = assess.assess(str(runs / "vae"), request, say=lines.append)
    (name,) = (key for key in metrics if key.startswith("fid_floor_"))
    mark = name.removeprefix("fid_floor_")
    for key in (name, f"kid_{mark}", f"recall_{mark}", "psnr", "quality_images"):
        assert any(line.startswith(f"{key}  ") for line in lines), key
    step_ = int(re.search(r"evaluating checkpoint (\d+)", lines[0])[1])
    kept, _, _ = record.load(str(runs / "vae"), record.mark(str(runs / "vae"), step_))["quality"]
    assert kept[name] == metrics[name]
    page = (runs / "vae" / "report" / "index.html").read_text()
    assert "FID of test images" in page and f"In the features {mark}." in page
    assert json.loads((runs / "vae" / "metrics.json").read_text())[name] == metrics[name]


def test_features_of_the_users_own_function(runs, monkeypatch):
    """Of an image's mean m alone: (E m − E m')² + (σ − σ')², in the function's grey scale."""
    monkeypatch.chdir(runs)
    (runs / "weights.py").write_text(
        "def pool(image):\n    return image.reshape(len(image), -1).mean(1)[:, None]\n"
    )
    assert quality.run(["quality", "--workdir=vae", "--features=weights:pool", "--images=300"]) == 0
    found = json.loads((runs / "vae" / "quality.json").read_text())
    _, _, images = quality.measure("vae", "weights.py:pool", 300)

    def mean(x):
        return np.round(255 * np.asarray(x, np.float64)).mean((1, 2, 3))

    dataset = workdir.restore("vae", say=lambda _: None)[0].dataset
    train = dataset.train.image / 16
    a = mean(train[np.arange(300) * (len(train) // 300)])
    for name, other in (
        ("fid_weights_pool", images["samples"]),
        ("fid_floor_weights_pool", images["test"]),
    ):
        b = mean(other)
        want = (a.mean() - b.mean()) ** 2 + (a.std(ddof=1) - b.std(ddof=1)) ** 2
        assert found[name] == pytest.approx(want, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(
    ("features", "line"),
    [
        ("nothing:pool", r"features=nothing:pool: no file nothing\.py"),
        ("other:pool", r"features=other:pool: other\.py has no function pool"),
        (
            "other:flat",
            r"features=other:flat: gives \(250,\) for 250 images; want finite numbers, one row",
        ),
        (
            "other:wild",
            r"features=other:wild: gives \(250, 1\) for 250 images; want finite numbers",
        ),
        (
            "vae",
            r"features=vae: its latent means know no labels; want a run of supervised or joint",
        ),
        ("", r"features: want --features=FOLDER or FILE:FUNCTION"),
    ],
)
def test_features_that_are_none_are_one_line(runs, monkeypatch, features, line):
    monkeypatch.chdir(runs)
    flat, wild = "return image.mean((1, 2, 3))", "return image[:, :1, 0, 0] * float('nan')"
    text = f"def flat(image):\n    {flat}\ndef wild(image):\n    {wild}\n"
    (runs / "other.py").write_text(text)
    with pytest.raises(UserError, match=line) as error:
        quality.run(["quality", "--workdir=vae", f"--features={features}"])
    assert "\n" not in str(error.value)
