"""Images computed ahead: a slider shows Python's image at each stop, level and temperature."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from tests.browser import Browser
from vae_jax import config, data, distributions, models
from vae_jax.report import explorer, page, strips
from vae_jax.report.panels import Pictures


def ladder() -> config.ConfigDict:
    c = config.default()
    c.encoder = config.call("encoder", "mlp", widths=(16, 16, 16))
    c.decoder = config.call("decoder", "ladder", latents=(2, 3, 4), width=16, inner=16)
    c.classifier = config.call("classifier", "none")
    c.objective = config.call("objective", "elbo")
    return c


@pytest.fixture(scope="module")
def subject() -> tuple[strips.Source, explorer.Explorer]:
    """A ladder of three levels with larger parameters than it begins with, and its explorer."""
    c = ladder()
    dataset = data.load(c.data)
    model = models.build_for(c, dataset)
    params = jax.tree.map(lambda leaf: 2.0 * leaf, jax.jit(model.init)(jax.random.key(3)))
    source = strips.Source(c, model, params, dataset)
    return source, explorer.collect(source, None)


@pytest.fixture(scope="module")
def browser():
    with Browser() as one:
        yield one


@pytest.fixture(scope="module")
def path(subject, tmp_path_factory) -> str:
    source, e = subject
    rows = [image[None] for image in e.images[:2] / 255]
    images = Pictures(explorer=e, latents=e.codes, levels=rows, temperatures=rows)
    report = {"title": "ladder", "metrics": {"n": 1}, "history": [], "config": {}, "run": {}}
    report |= {"pictures": images, "classes": source.dataset.classes}
    return page.write(str(tmp_path_factory.mktemp("report")), page.Report(**report))


def pixels(browser: Browser, canvas: str) -> np.ndarray:
    """HxW bytes of a canvas, its red channel."""
    size = browser.evaluate(f"[{canvas}.height, {canvas}.width]")
    box = f"0, 0, {size[1]}, {size[0]}"
    values = browser.evaluate(f"[...{canvas}.getContext('2d').getImageData({box}).data]")
    return np.reshape(values, (*size, 4))[..., 0]


def move(browser: Browser, slider: str, value: int) -> None:
    event = "dispatchEvent(new Event('input'))"
    browser.evaluate(f"element('{slider}').value = {value}, element('{slider}').{event}")


def test_levels_are_qs_means_and_then_the_priors(subject):
    """All levels from q are the reconstruction, cold samples are the same for every image."""
    _, e = subject
    one = e.levels
    assert one.counts == (0, 1, 2, 3) and one.temperatures[0] == 0
    n = len(one.originals)
    start = e.images[:n]
    np.testing.assert_array_equal(one.originals, start)
    for t in range(len(one.temperatures)):
        difference = one.images[-1, t] - e.reconstructions[:n].astype(int)
        assert np.abs(difference).max() <= 1
    assert np.ptp(one.images[0, 0].astype(int), axis=0).max() <= 1
    assert np.ptp(one.images[0, -1].astype(int), axis=0).max() > 20
    spread = one.images[0].astype(float).std(axis=1).mean(axis=(1, 2, 3))
    assert np.all(np.diff(spread) > 0)  # a warmer prior differs more from image to image


def test_a_traversal_moves_one_dimension_and_no_other(subject):
    source, e = subject
    model = source.model
    image = source.dataset.test.image[e.rows[:1]] / (source.dataset.levels - 1)
    one = e.ranges[1]
    values = np.linspace(one.low, one.high, strips.STOPS)

    @jax.jit
    def decoded(params: dict, x: jax.Array) -> jax.Array:
        z = jnp.repeat(model.encode(params, x).mu, strips.STOPS, axis=0)
        return model.likelihood.mean(model.decode(params, z.at[:, one.dim].set(values)))

    want = np.clip(decoded(source.params, image), 0, 1)
    np.testing.assert_allclose(e.traversals[1] / 255, want, atol=0.6 / 255)


def test_ranges_are_two_deviations_of_the_dimensions_with_the_most_kl():
    codes = np.array([[0.0, 1.0], [2.0, 5.0]])
    first, second = strips.ranges(codes, np.array([3.0, 0.5]))
    assert (first.dim, first.low, first.high, first.kl) == (0, -1.0, 3.0, 3.0)
    assert (second.dim, second.low, second.high) == (1, -1.0, 7.0)
    assert [one.dim for one in strips.ranges(codes)] == [1, 0]


def test_the_kl_of_a_dimension_is_its_integral():
    c = config.default()
    c.latent = 2
    model = models.build_for(c, data.load(c.data))
    params = jax.jit(model.init)(jax.random.key(0))
    q = distributions.Normal(jnp.array([[0.7, -1.1]]), jnp.array([[-0.4, 0.3]]))
    kl_D = np.asarray(strips.kl_of(model, params, q))[0]
    for d in range(2):
        one = stats.norm(float(q.mu[0, d]), float(np.exp(0.5 * q.logvar[0, d])))

        def integrand(z: float, one: stats.norm = one) -> float:
            return one.pdf(z) * (one.logpdf(z) - stats.norm.logpdf(z))

        assert kl_D[d] == pytest.approx(integrate.quad(integrand, -12, 12)[0], abs=1e-6)


def test_sliders_show_pythons_images(browser, path, subject):
    _, e = subject
    browser.open(f"file://{path}")
    browser.wait("!element('strips').hidden && !element('levels').hidden")
    for row, stop in ((0, 0), (2, 8), (1, 3)):
        slider = f"strip-{e.ranges[row].dim}"
        move(browser, slider, stop)
        canvas = f"element('{slider}').closest('figure').querySelector('canvas')"
        np.testing.assert_array_equal(pixels(browser, canvas), e.traversals[row, stop, ..., 0])
    one = e.levels
    for j, t in ((0, 5), (2, 1), (3, 0)):
        move(browser, "levels-first", j)
        move(browser, "levels-heat", t)
        sheet = pixels(browser, "element('levels-image')")
        height = e.images.shape[1]
        np.testing.assert_array_equal(sheet[:height], np.hstack(one.originals[..., 0]))
        np.testing.assert_array_equal(sheet[-height:], np.hstack(one.images[j, t, ..., 0]))
        assert browser.evaluate("element('levels-count').textContent") == f"{j} of 3"
    for still in ("traversals-still", "levels-still"):
        assert not browser.evaluate(f"element('{still}').checkVisibility()")
    assert browser.errors() == [] and len(browser.requests()) == 1


def test_a_slider_is_moved_by_keys_and_says_its_value(browser, path, subject):
    one = subject[1].ranges[0]
    for width in (390, 1280):
        browser.open(f"file://{path}", width)
        browser.wait("!element('strips').hidden && !element('levels').hidden")
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
    browser.evaluate(f"element('strip-{one.dim}').focus()")
    browser.key("ArrowRight")
    said = browser.evaluate(f"element('strip-{one.dim}').getAttribute('aria-valuetext')")
    assert said == f"{np.linspace(one.low, one.high, strips.STOPS)[5]:.2f}"
    nameless = browser.evaluate(
        "[...document.querySelectorAll('button, input, canvas')].filter((one) =>"
        " !one.textContent && !one.ariaLabel && !(one.labels && one.labels.length)"
        " && one.checkVisibility() && !one.closest('button')).map((one) => one.outerHTML)"
    )
    assert nameless == []


def test_without_script_the_rows_of_images_are_shown(browser, path):
    browser.open(f"file://{path}", script=False)
    browser.call("Emulation.setScriptExecutionDisabled", value=False)
    for still in ("traversals-still", "levels-still"):
        assert browser.evaluate(f"document.getElementById('{still}').checkVisibility()")
    for alive in ("strips", "levels"):
        assert not browser.evaluate(f"document.getElementById('{alive}').checkVisibility()")


def test_large_images_of_levels_are_few(subject, monkeypatch):
    source, e = subject
    monkeypatch.setattr(strips, "BYTES", 3000)
    one = strips.levels(source, e.rows)
    assert 1 <= len(one.originals) < strips.IMAGES
    assert one.images.shape[2] == len(one.originals)
