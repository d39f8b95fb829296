"""The interactive page in headless Chromium: the right images, Python's pixels, no network."""

import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from tests.browser import Browser
from vae_jax import config, data, models
from vae_jax.models import Model
from vae_jax.report import decoder, explorer, page, strips
from vae_jax.report.panels import Pictures
from vae_jax.train.film import Frames

SCALE = 1.5  # of fresh parameters, whose images are nearly grey

FILM_IMAGES = np.random.default_rng(0).integers(0, 256, (3, 4, 8, 8, 1), np.uint8)
FILM = Frames([100, 200, 3000], FILM_IMAGES)


def digits() -> data.Dataset:
    return data.load(config.default().data)


def settings(**changes) -> ConfigDict:
    c = config.default()
    c.latent = 6
    c.encoder = config.call("encoder", "mlp", widths=(32,))
    c.decoder = config.call("decoder", "mlp", widths=(32, 24), activation="tanh")
    c.classifier = config.call("classifier", "mlp")
    for name, value in changes.items():
        c[name] = value
    return c


def built(c: ConfigDict, dataset: data.Dataset, scale: float = SCALE) -> tuple[Model, dict]:
    """A model with parameters of ordinary size: those of a fresh one, larger."""
    model = models.build_for(c, dataset)
    params = jax.jit(model.init)(jax.random.key(3))
    return model, jax.tree.map(lambda leaf: scale * leaf, params)


def logits_of(model: Model, params: dict, dataset: data.Dataset) -> np.ndarray:
    x = jnp.asarray(dataset.test.image) / (dataset.levels - 1)
    return np.asarray(jax.jit(model.classify)(params, x))


def write(folder: str, e: explorer.Explorer, dataset: data.Dataset) -> str:
    confusion = np.zeros((10, 10), int)
    test = dataset.test
    if e.predicted is not None:
        np.add.at(confusion, (test.label[e.rows], e.predicted), 1)
    parts = {"latents": e.codes, "latent_labels": e.labels, "confusion": confusion}
    images = Pictures(explorer=e, film=FILM, **parts)
    run = {"command": "python train.py"}
    report = {"title": "digits", "metrics": {"n": 1}, "history": [], "config": {}, "run": run}
    report |= {"pictures": images, "classes": dataset.classes}
    return page.write(folder, page.Report(**report))


@pytest.fixture(scope="module")
def subject():
    """(data, model, parameters, explorer) of a net of random weights: most images are errors."""
    dataset = digits()
    c = settings()
    model, params = built(c, dataset)
    source = explorer.Source(c, model, params, dataset)
    return dataset, model, params, explorer.collect(source, logits_of(model, params, dataset))


@pytest.fixture(scope="module")
def browser():
    with Browser() as one:
        yield one


@pytest.fixture(scope="module")
def path(subject, tmp_path_factory):
    dataset, _, _, e = subject
    return write(str(tmp_path_factory.mktemp("report")), e, dataset)


@pytest.fixture
def opened(browser, path):
    browser.open(f"file://{path}")
    return browser


def pixels(browser: Browser, name: str) -> np.ndarray:
    """HxW bytes of a canvas, its red channel; waits until sprites are drawn."""
    decoded = "Promise.all(Object.values(sprites).map((sprite) => sprite.decode()))"
    browser.evaluate(f"{decoded}.then(() => new Promise((done) => setTimeout(done, 0)))")
    context = f"element({name!r}).getContext('2d')"
    size = browser.evaluate(f"[element({name!r}).height, element({name!r}).width]")
    values = browser.evaluate(f"[...{context}.getImageData(0, 0, {size[1]}, {size[0]}).data]")
    return np.reshape(values, (*size, 4))[..., 0]


def test_a_point_shows_its_image_reconstruction_and_classes(opened, subject):
    dataset, _, _, e = subject
    i = 40
    opened.evaluate("element('map-canvas').scrollIntoView({block: 'center'})")
    x, y = opened.evaluate(
        "(() => { const box = element('map-canvas').getBoundingClientRect();"
        f" const [x, y] = placeOf({i}); return [box.left + x, box.top + y]; }})()"
    )
    opened.mouse(x, y)
    assert opened.evaluate("map.selected") == i
    np.testing.assert_array_equal(pixels(opened, "map-image"), e.images[i, ..., 0])
    difference = pixels(opened, "map-reconstruction") - e.reconstructions[i, ..., 0].astype(int)
    assert np.abs(difference).max() <= 1
    text = opened.evaluate("element('map-text').textContent")
    row = e.rows[i]
    assert text.startswith(f"Test image {row}; true class {dataset.test.label[row]}; predicted ")
    assert f"{e.predicted[i]}, confidence {e.confidence[i]:.1%}".replace("%", " %") in text


def test_arrow_keys_go_to_the_next_point_that_way(opened):
    opened.evaluate("element('map-canvas').focus()")
    before = opened.evaluate("placeOf(map.selected)")
    opened.key("ArrowRight")
    after = opened.evaluate("placeOf(map.selected)")
    assert after[0] > before[0]
    opened.key("ArrowDown")
    assert opened.evaluate("placeOf(map.selected)")[1] > after[1]


def test_a_class_can_be_hidden(opened, subject):
    e = subject[3]
    shown = "[...Array(data.count).keys()].filter(isVisible).map(labelOf)"
    assert set(opened.evaluate(shown)) == set(range(10))
    opened.evaluate("element('map-classes').children[3].click()")
    assert set(opened.evaluate(shown)) == set(range(10)) - {3}
    assert opened.evaluate("element('map-classes').children[3].ariaPressed") == "false"
    opened.evaluate("[...element('map-classes').children].at(-1).click()")  # errors only
    wrong = (e.labels != e.predicted) & (e.labels != 3)
    assert len(opened.evaluate(shown)) == wrong.sum()


def test_a_cell_of_the_confusion_matrix_shows_its_images(opened, subject):
    e = subject[3]
    y, taken = e.labels[0], e.predicted[0]
    rows = "document.querySelectorAll('table.matrix tbody tr')"
    opened.evaluate(f"{rows}[{y}].querySelectorAll('td[style]')[{taken}].firstChild.click()")
    titles = opened.evaluate(
        "[...element('cell-images').querySelectorAll('button')].map((b) => b.title)"
    )
    images = np.flatnonzero((e.labels == y) & (e.predicted == taken))
    assert len(titles) == min(len(images), 60)
    for title, i in zip(titles, images, strict=False):
        assert title.startswith(f"Test image {e.rows[i]}; true class {y}; predicted {taken}")


def test_a_slider_changes_pixels_as_python_does(opened, subject):
    _, model, params, e = subject
    one = e.ranges[1]
    z = e.codes[0].copy()
    for value in np.linspace(one.low, one.high, 4):
        z[one.dim] = value
        opened.evaluate(
            f"(() => {{ const input = element('sliders').querySelectorAll('input')[1];"
            f" input.value = {value}; input.dispatchEvent(new Event('input')); }})()"
        )
        mean = model.likelihood.mean(model.decode(params, z[None]))[0, ..., 0]
        want = np.clip(np.asarray(mean), 0, 1)
        np.testing.assert_allclose(pixels(opened, "code-image") / 255, want, atol=1 / 255)


def test_the_walk_between_two_images_is_the_straight_line_of_their_codes(opened, subject):
    _, model, params, e = subject
    opened.evaluate("setEnd(0, 5), setEnd(1, 9), element('walk-place').value = 0.3, showWalk()")
    z = 0.7 * e.codes[5] + 0.3 * e.codes[9]
    want = np.clip(
        np.asarray(model.likelihood.mean(model.decode(params, z[None])))[0, ..., 0], 0, 1
    )
    np.testing.assert_allclose(pixels(opened, "walk-image") / 255, want, atol=1 / 255)
    np.testing.assert_array_equal(pixels(opened, "walk-end-1"), e.images[9, ..., 0])


def test_the_film_shows_the_row_of_a_step(opened):
    assert not opened.evaluate("element('film-still').checkVisibility()")
    for i, words in ((1, "step 200"), (2, "step 3,000")):
        opened.evaluate(
            f"element('film-place').value = {i},"
            " element('film-place').dispatchEvent(new Event('input'))"
        )
        assert opened.evaluate("element('film-step').textContent") == words
        row = pixels(opened, "film-image")
        np.testing.assert_array_equal(row, np.hstack(FILM.images[i, ..., 0]))


DECODERS = {
    "mlp": {"widths": (16,), "activation": "relu"},
    "gated": {"name": "mlp", "widths": (16, 12), "activation": "gated"},
    "gelu": {"name": "mlp", "widths": (16, 12), "activation": "gelu"},
    "softplus": {"name": "mlp", "widths": (), "activation": "softplus"},
    "conv": {"widths": (8, 4), "dense": 16, "kernel": 4, "activation": "silu"},
    "conv5": {"name": "conv", "widths": (6, 4, 4), "dense": 16, "kernel": 5},
    "conv3": {"name": "conv", "widths": (6,), "dense": 16, "kernel": 3},
}
LIKELIHOODS = ("bernoulli", "gaussian", "gaussian_learned", "gaussian_optimal")


def script_and_python(
    opened: Browser, c: ConfigDict, shape: tuple[int, int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Means of p(x|z) of 5 codes by the page's script and by Python, clipped to [0, 1]."""
    binary = c.likelihood.name == "bernoulli"
    model = models.build(c, shape=shape, levels=256, classes=10, binary=binary)
    params = jax.tree.map(lambda leaf: SCALE * leaf, model.init(jax.random.key(1)))
    z = np.asarray(jax.random.normal(jax.random.key(2), (5, c.latent)))
    python = np.clip(model.likelihood.mean(model.decode(params, z)), 0, 1)
    packed = json.dumps(decoder.pack(c, params, model.spec).view())
    script = opened.evaluate(f"data.decoder = {packed}, {z.tolist()}.map((z) => [...decode(z)])")
    return np.reshape(script, python.shape), python


@pytest.mark.parametrize("name", DECODERS)
def test_every_decoder_in_the_page_is_pythons(opened, name):
    fields = {"name": name} | DECODERS[name]
    c = settings(decoder=config.call("decoder", fields.pop("name"), **fields))
    script, python = script_and_python(opened, c, (9, 11, 3))
    np.testing.assert_allclose(script, python, atol=1 / 255)
    assert python.std() > 0.05  # images that differ, not one grey


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_every_likelihoods_mean_in_the_page_is_pythons(opened, name):
    c = settings(likelihood=config.call("likelihood", name))
    script, python = script_and_python(opened, c, (8, 8, 1))
    np.testing.assert_allclose(script, python, atol=1 / 255)


def test_nothing_is_requested_and_nothing_fails(opened):
    opened.evaluate("document.querySelectorAll('table.matrix button')[0].click()")
    (request,) = opened.requests()
    assert request.startswith("file://")
    assert opened.errors() == []
    refused = opened.evaluate(
        "new Promise((done) => { const event = 'securitypolicyviolation';"
        " document.addEventListener(event, (one) => done(one.effectiveDirective));"
        " fetch('https://example.com').catch(() => setTimeout(done, 500)); })"
    )
    assert refused == "connect-src"  # by the policy of the page, not for want of a network
    opened.evaluate("element('copy').setAttribute('onclick', 'window.ran = 1')")
    assert opened.evaluate("element('copy').click(), window.ran") is None


def test_every_control_has_a_name_and_the_page_fits_a_phone(browser, path):
    for width in (390, 1280):
        browser.open(f"file://{path}", width)
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
    nameless = browser.evaluate(
        "[...document.querySelectorAll('button, input, canvas')].filter((one) =>"
        " !one.textContent && !one.ariaLabel && !(one.labels && one.labels.length)"
        " && !one.closest('button')).map((one) => one.outerHTML)"
    )
    assert nameless == []


def test_without_script_the_page_is_read_as_it_is(browser, path):
    browser.open(f"file://{path}", script=False)
    browser.call("Emulation.setScriptExecutionDisabled", value=False)  # for the questions below
    assert browser.evaluate("typeof startMap") == "undefined"
    seen = "[...document.querySelectorAll('h2')].filter((h) => h.checkVisibility())"
    headings = browser.evaluate(f"{seen}.map((h) => h.id)")
    assert {"h-latents", "h-confusion", "h-mistakes", "h-traversals"} <= set(headings)
    assert not {"h-code", "h-cell"} & set(headings)
    assert browser.evaluate("document.querySelector('#map-still img').checkVisibility()")
    assert not browser.evaluate("document.querySelector('#map').checkVisibility()")
    errors = browser.evaluate("document.querySelectorAll('#h-mistakes ~ ul li').length")
    assert errors == explorer.MISTAKES


def test_points_are_errors_first_then_each_class_in_turn():
    labels = np.repeat([0, 1], [90, 10])
    rows = explorer.choose(np.array([7, 3]), labels, 100, 12)
    assert rows[:2].tolist() == [7, 3]
    assert len(set(rows.tolist())) == 12
    assert labels[rows[2:]].tolist() == [0, 1] * 5
    many = explorer.choose(np.arange(50), labels, 100, 12)
    assert many[:6].tolist() == [0, 1, 2, 3, 4, 5]
    assert explorer.choose(np.arange(0), None, 100, 4).tolist() == [0, 25, 50, 75]


def test_a_sprite_holds_every_image():
    images = np.random.default_rng(0).integers(0, 256, (95, 5, 7, 3), np.uint8)
    sheet = np.asarray(Image.open(io.BytesIO(strips.sprite(images, explorer.COLUMNS))))
    for i in (0, 39, 40, 94):
        y, x = divmod(i, explorer.COLUMNS)
        tile = sheet[5 * y : 5 * y + 5, 7 * x : 7 * x + 7]
        np.testing.assert_array_equal(tile, images[i])


def test_large_images_are_fewer_and_large_decoders_stay_out():
    noise = np.random.default_rng(0).integers(0, 256, (300, 64, 64, 3), np.uint8)
    e = explorer.Explorer(np.arange(300), noise, np.zeros((300, 2)), noise)
    assert 20 < explorer.fitting(e) < 100  # 12 kB an image, twice, of 1.5 MB
    c = settings(decoder=config.call("decoder", "mlp", widths=(2000, 2000)))
    model, params = built(c, digits())
    assert decoder.pack(c, params, model.spec) is None
    sphere = settings(posterior=config.call("posterior", "von_mises_fisher"))
    assert decoder.pack(sphere, params, model.spec) is None


def test_the_page_grid_of_traversals_is_pythons(subject):
    _, model, params, e = subject
    one = e.ranges[0]
    start = int((e.labels != e.predicted).sum())
    z = np.repeat(e.codes[start : start + 1], strips.STOPS, 0)
    z[:, one.dim] = np.linspace(one.low, one.high, strips.STOPS)
    want = np.asarray(model.likelihood.mean(model.decode(params, z)))
    np.testing.assert_allclose(e.traversals[0] / 255, np.clip(want, 0, 1), atol=0.51 / 255)


def test_a_decoder_that_half_precision_changes_stays_out(subject):
    dataset, _, _, e = subject
    assert e.decoder is not None
    c = settings()
    model, params = built(c, dataset, scale=8.0)  # steep: a small change moves an edge far
    steep = explorer.collect(explorer.Source(c, model, params, dataset), None)
    assert steep.decoder is None and steep.reconstructions is not None
