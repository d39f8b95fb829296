"""t-SNE in the page: the paper's equations, and a map as good as scikit-learn's."""

import base64

import numpy as np
import pytest
from sklearn.manifold import TSNE, trustworthiness

from tests.browser import Browser
from vae_jax.report import explorer, page
from vae_jax.report.panels import Pictures

POINTS = 150
PERPLEXITY = 30


@pytest.fixture(scope="module")
def codes() -> np.ndarray:
    """Three groups in ten dimensions, whose plane of most variance hides one of them."""
    generator = np.random.default_rng(0)
    centres = np.zeros((3, 10))
    centres[1, 0] = 30
    centres[2, 1] = 6
    z = centres[np.arange(POINTS) % 3] + generator.normal(size=(POINTS, 10))
    z[:, 2] += generator.normal(size=POINTS) * 8
    return z


@pytest.fixture(scope="module")
def opened(codes, tmp_path_factory):
    images = np.zeros((POINTS, 4, 4, 1), np.uint8)
    e = explorer.Explorer(np.arange(POINTS), images, codes, labels=np.arange(POINTS) % 3)
    report = {"title": "groups", "metrics": {"n": 1}, "history": [], "config": {}, "run": {}}
    report |= {"pictures": Pictures(explorer=e, latents=codes), "classes": tuple("abc")}
    path = page.write(str(tmp_path_factory.mktemp("report")), page.Report(**report))
    with Browser() as browser:
        browser.open(f"file://{path}")
        yield browser


def read(browser: Browser, expression: str) -> np.ndarray:
    return np.array(browser.evaluate(f"[...{expression}]"), np.float64)


@pytest.fixture(scope="module")
def p(opened) -> np.ndarray:
    numbers = f"affinities(readHalves(data.features), {POINTS}, {PERPLEXITY})"
    return read(opened, numbers).reshape(POINTS, POINTS)


def kl(p: np.ndarray, y: np.ndarray) -> float:
    """KL(P ‖ Q) of points y, Px2: eqs. 2 and 4 of the paper."""
    distance = ((y[:, None] - y[None]) ** 2).sum(-1)
    near = 1 / (1 + distance)
    np.fill_diagonal(near, 0)
    q = near / near.sum()
    off = ~np.eye(len(y), dtype=bool)
    return float((p[off] * np.log(p[off] / q[off])).sum())


def test_a_neighbourhood_has_the_perplexity_that_was_asked_for(opened):
    rows = f"squaredDistances(readHalves(data.features), {POINTS})"
    for i in (0, 7, POINTS - 1):
        row = f"{rows}.subarray({i * POINTS}, {(i + 1) * POINTS})"
        near = read(opened, f"neighbourhood({row}, {i}, {PERPLEXITY})")
        assert near[i] == 0 and near.sum() == pytest.approx(1, abs=1e-5)
        near = near[near > 0]
        assert np.exp(-(near * np.log(near)).sum()) == pytest.approx(PERPLEXITY, rel=1e-3)


def test_affinities_are_symmetric_and_sum_to_one(p):
    np.testing.assert_allclose(p, p.T, atol=1e-9)
    assert p.sum() == pytest.approx(1, abs=1e-4)
    assert not np.diag(p).any()


def test_the_gradient_is_that_of_the_divergence(opened, p):
    y = np.random.default_rng(1).normal(size=(POINTS, 2))
    numbers = f"affinities(readHalves(data.features), {POINTS}, {PERPLEXITY})"
    got = read(opened, f"tsneGradient({numbers}, {y.reshape(-1).tolist()}, 1)")
    for place in (0, 1, 2 * POINTS - 1):
        step = np.zeros(2 * POINTS)
        step[place] = 1e-5
        step = step.reshape(y.shape)
        want = (kl(p, y + step) - kl(p, y - step)) / 2e-5
        assert got[place] == pytest.approx(want, rel=1e-4, abs=1e-8)


def test_the_map_is_as_good_as_scikit_learns(opened, codes, p):
    before = read(opened, "map.plane.x")
    buttons = "element('map-planes').querySelectorAll('button')"
    opened.evaluate(f"{buttons}[1].click()")
    opened.wait("tsne.state && !tsne.running")
    assert opened.evaluate(f"[...{buttons}].map((one) => one.ariaPressed)") == ["false", "true"]
    assert "t-SNE, perplexity 30, 400 steps" in opened.evaluate("element('map-axes').textContent")
    y = np.column_stack([read(opened, "map.plane.x"), read(opened, "map.plane.y")])
    other = TSNE(init="pca", random_state=0, method="exact", max_iter=400)
    z = other.fit_transform(codes / codes.std())
    assert kl(p, y) < 1.1 * kl(p, z)
    assert trustworthiness(codes, y) > trustworthiness(codes, z) - 0.02
    opened.evaluate(f"{buttons}[0].click()")
    np.testing.assert_array_equal(read(opened, "map.plane.x"), before)
    assert opened.errors() == []


def test_codes_of_many_dimensions_are_read_by_their_principal_components(codes):
    images = np.zeros((POINTS, 4, 4, 1), np.uint8)
    turn, _ = np.linalg.qr(np.random.default_rng(2).normal(size=(64, 64)))
    wide = np.column_stack([codes, np.zeros((POINTS, 54))]) @ turn
    rows = explorer.features(explorer.Explorer(np.arange(POINTS), images, wide))
    assert rows.shape == (POINTS, explorer.FEATURES)
    centred = codes - codes.mean(0)
    ratio = np.linalg.norm(rows[3] - rows[8]) / np.linalg.norm(rows[1] - rows[2])
    want = np.linalg.norm(centred[3] - centred[8]) / np.linalg.norm(centred[1] - centred[2])
    assert ratio == pytest.approx(want, rel=1e-6)
    flat = explorer.Explorer(np.arange(POINTS), images, codes[:, :2])
    assert explorer.features(flat) is None
    assert "features" not in explorer.view(flat, ())
    packed = explorer.view(explorer.Explorer(np.arange(POINTS), images, codes), ())["features"]
    assert len(base64.b64decode(packed)) == 2 * POINTS * 10
