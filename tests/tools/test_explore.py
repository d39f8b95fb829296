"""The server that asks a trained model, with real requests and in a real browser."""

import base64
import http.client
import io
import json
import threading
from collections.abc import Iterator

import numpy as np
import PIL.Image
import pytest

from tests import tiny
from tests.browser import Browser
from vae_jax.config import UserError
from vae_jax.tools import explore
from vae_jax.train import loop


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    workdir = str(tmp_path_factory.mktemp("explore") / "run")
    assert loop.train(tiny.short(1), workdir, lambda line: None)
    return workdir


@pytest.fixture(scope="module")
def server(folder: str) -> Iterator[explore.Server]:
    with explore.Server(explore.open_run(folder), "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def request(server, method, path, body=None, headers=None):
    """(status, headers, body) of one real request."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    if isinstance(body, dict):
        body = json.dumps(body)
    sent = {"Content-Type": "application/json"} | (headers or {})
    connection.request(method, path, body, sent)
    response = connection.getresponse()
    blob = response.read()
    connection.close()
    return response.status, response.headers, blob


def ask(server, path, question):
    status, headers, blob = request(server, "POST", path, question)
    assert status == 200, blob
    if headers["Content-Type"] == "image/png":
        return np.asarray(PIL.Image.open(io.BytesIO(blob)))
    return json.loads(blob)


def pixels(address):
    """The array of a data: address."""
    blob = base64.b64decode(address.removeprefix("data:image/png;base64,"))
    return np.asarray(PIL.Image.open(io.BytesIO(blob)))


def file_of(image, kind="PNG"):
    """Base64 of an image file of a digit's 17 grey levels."""
    stream = io.BytesIO()
    grey = np.rint(np.asarray(image)[..., 0] * (255 / 16)).astype(np.uint8)
    PIL.Image.fromarray(grey).save(stream, kind)
    return base64.b64encode(stream.getvalue()).decode()


def test_an_image_is_read_as_in_python(server):
    run = server.explorer.run
    image = server.explorer.reference.test.image[3]
    answer = ask(server, "/encode", {"image": file_of(image)})
    np.testing.assert_allclose(answer["z"], run.encode(image)[0], atol=1e-6)
    assert answer == ask(server, "/encode", {"test": 3})
    p_Y = run.classify(image)[0]
    assert answer["label"] == p_Y.argmax() and len(answer["classes"]) == 5
    assert answer["classes"][0]["p"] == pytest.approx(p_Y.max())
    restored = pixels(answer["reconstruction"])[::14, ::14, 0]  # a pixel is a block of 14
    expected = np.rint(255 * run.decode(run.encode(image))[0, ..., 0])
    np.testing.assert_array_equal(restored, expected)
    assert 0 <= answer["familiarity"] <= 1


def test_neighbours_are_the_nearest_training_codes(server):
    known = server.explorer.reference
    training = np.asarray(known.split.image[5])
    answer = ask(server, "/encode", {"image": file_of(training)})
    distance = np.linalg.norm(known.code_NxD - np.array(answer["z"]), axis=1)
    nearest = np.argsort(distance, kind="stable")[: explore.NEAREST]
    assert nearest[0] == 5 and len(answer["neighbours"]) == explore.NEAREST
    assert answer["neighbours"][0]["image"] == answer["input"]
    names = [str(known.split.label[i]) for i in nearest]
    assert [one["name"] for one in answer["neighbours"]] == names


@pytest.mark.slow
def test_noise_is_less_familiar_than_test_images(server):
    """A model of twelve steps has no good bound, but its validation ranks are uniform."""
    answers = [ask(server, "/encode", {"test": i}) for i in range(0, 40, 2)]
    shares = [answer["familiarity"] for answer in answers]
    assert 0.2 < np.mean(shares) < 0.8
    rng = np.random.default_rng(0)
    noise = ask(server, "/encode", {"image": file_of(rng.integers(0, 17, (8, 8, 1)))})
    assert noise["familiarity"] < np.quantile(shares, 0.2)


def test_codes_mixes_and_samples_are_the_models_own(server):
    run = server.explorer.run
    a = ask(server, "/encode", {"test": 0})["z"]
    b = ask(server, "/encode", {"test": 1})["z"]
    row = ask(server, "/mix", {"a": a, "b": b, "steps": 9})
    block = 8 * 14
    assert row.shape == (block, 9 * block + 8 * 8, 4)
    for place, z in ((0, a), (8, b), (4, (np.array(a) + np.array(b)) / 2)):
        left = place * (block + 8)
        alone = ask(server, "/decode", {"z": list(z)})
        part = row[:, left : left + block].astype(int)
        assert np.abs(part - alone).max() <= 1
    grid = ask(server, "/sample", {"n": 4, "seed": 7})
    expected = np.rint(255 * run.sample(4, seed=7)[3, ..., 0])
    np.testing.assert_array_equal(grid[block + 8 :: 14, block + 8 :: 14, 0], expected)
    cold = ask(server, "/sample", {"n": 4, "temperature": 0.0})
    origin = ask(server, "/decode", {"z": [0.0] * run.model.latent})
    assert np.abs(cold[:block, :block].astype(int) - origin).max() <= 1
    warm = ask(server, "/sample", {"n": 4, "temperature": 0.999999, "seed": 7})
    assert np.abs(warm.astype(int) - grid).max() <= 1


def test_the_page_carries_its_policy(server):
    for path, kind in (("/", "text/html"), ("/explore.js", "text/javascript"), ("/model", "app")):
        status, headers, body = request(server, "GET", path)
        assert status == 200 and headers["Content-Type"].startswith(kind) and body
        policy = headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'self';") and "http" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
    assert request(server, "GET", "/../pyproject.toml")[0] == 404
    assert request(server, "POST", "/shell", {})[0] == 404
    assert b"http" not in request(server, "GET", "/explore.js")[2]


@pytest.mark.parametrize(
    ("path", "question", "message"),
    [
        ("/encode", "{", "body: not JSON"),
        ("/encode", "[" * 100_000, "body: not JSON"),
        ("/encode", "[1]", "body: want an object"),
        ("/encode", {}, "image: want a file in base64"),
        ("/encode", {"image": "§"}, "image: not base64"),
        ("/encode", {"image": "AAAA"}, "image: not a readable image; want PNG"),
        ("/encode", {"test": 10**9}, "test: want a whole number from 0 to"),
        ("/encode", {"test": True}, "test: want a whole number"),
        ("/decode", {"z": [0.0]}, "z: want 4 numbers"),
        ("/decode", {"z": "0000"}, "z: want 4 numbers"),
        ("/decode", {"z": [0, 0, 0, None]}, "z: want 4 numbers"),
        ("/decode", {"z": [0, 0, 0, 1e9]}, "z: want 4 numbers, none beyond 10000"),
        ("/decode", '{"z": [NaN, 0, 0, 0]}', "body: not JSON"),
        ("/mix", {"a": [0] * 4, "b": [0] * 4, "steps": 1000}, "steps: want a whole number"),
        ("/mix", {"a": [0] * 4}, "b: want 4 numbers"),
        ("/sample", {"n": 101}, "n: want a whole number from 1 to 100"),
        ("/sample", {"temperature": -1}, "temperature: want a number from 0 to 4"),
        ("/sample", {"seed": 2**31}, "seed: want a whole number"),
    ],
)
def test_bad_input_is_one_line_of_json(server, path, question, message):
    status, headers, body = request(server, "POST", path, question)
    assert status == 400 and headers["Content-Type"] == "application/json"
    error = json.loads(body)["error"]
    assert error.startswith(message) and "\n" not in error


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({"Content-Length": str(10**9)}, "body: want a Content-Length of at most"),
        ({"Content-Length": "-1"}, "body: want a Content-Length"),
        ({"Content-Type": "text/plain"}, "body: want Content-Type: application/json"),
        ({"Host": "example.org"}, "host=example.org: want localhost"),
        ({"Host": "127.0.0.1.example.org:80"}, "host=127.0.0.1.example.org:80: want localhost"),
        ({"Host": "[::1"}, "host: not an address"),
        ({"Origin": "http://example.org"}, "origin=http://example.org: want this server's own"),
        ({"Origin": "null"}, "origin=null: want this server's own"),
    ],
)
def test_other_sites_and_large_bodies_are_refused(server, headers, message):
    status, _, body = request(server, "POST", "/sample", {"n": 1}, headers)
    assert status == 400 and json.loads(body)["error"].startswith(message)


def test_large_images_are_refused_before_they_are_decoded(server):
    stream = io.BytesIO()
    PIL.Image.new("1", (8000, 6000)).save(stream, "PNG")
    blob = base64.b64encode(stream.getvalue()).decode()
    status, _, body = request(server, "POST", "/encode", {"image": blob})
    assert status == 400 and b"8000 x 6000 pixels; want 40,000,000 at most" in body
    postscript = base64.b64encode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n").decode()
    assert request(server, "POST", "/encode", {"image": postscript})[0] == 400


def test_without_its_data_a_run_still_decodes(folder):
    run = explore.open_run(folder).run
    explorer = explore.Explorer(run, None, "data: gone\x1b[2J")
    facts = explorer.describe()
    assert facts["tests"] == 0 and facts["why"] == r"data: gone\x1b[2J"
    answer = explorer.encode({"image": file_of(np.zeros((8, 8, 1)))})
    assert answer["familiarity"] is None and "neighbours" not in answer and answer["classes"]
    with pytest.raises(explore.BadRequest, match=r"^test: the data are not there \(data: gone"):
        explorer.encode({"test": 0})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "^workdir: want --workdir=FOLDER"),
        (["--workdir=/nowhere"], "^workdir=/nowhere: no run in it"),
        (["--workdir=x", "--checkpoint=first"], "^checkpoint=first: want best, latest or a step"),
        (["--workdir=x", "--config.steps=3"], r"^steps: the run's config is fixed"),
        (["--workdir=x", "--port=70000"], "port"),
    ],
)
def test_bad_flags_are_one_line(words, message):
    with pytest.raises(UserError, match=message) as error:
        explore.main(["explore", *words])
    assert "\n" not in str(error.value)


def test_an_address_that_is_taken_is_one_line(server):
    with pytest.raises(UserError, match="Address already in use; want another"):
        explore.Server(server.explorer, "127.0.0.1", server.server_port)
    assert not explore.is_loopback("0.0.0.0") and not explore.is_loopback("example.org")
    assert explore.is_loopback("127.0.0.1") and explore.is_loopback("::1")


DROP = """
(async () => {{
  const bytes = Uint8Array.from(atob("{0}"), (letter) => letter.charCodeAt(0));
  const files = new DataTransfer();
  files.items.add(new File([bytes], "digit.png", {{ type: "image/png" }}));
  const event = new DragEvent("drop", {{ dataTransfer: files, cancelable: true }});
  document.getElementById("drop").dispatchEvent(event);
}})()
"""
PIXELS = """
(() => {
  const image = document.getElementById("decoded");
  const canvas = document.createElement("canvas");
  canvas.width = image.naturalWidth;
  canvas.height = image.naturalHeight;
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0);
  return Array.from(context.getImageData(0, 0, canvas.width, canvas.height).data);
})()
"""
SLIDE = """
(() => {
  const input = document.querySelector('#sliders input[data-dimension="2"]');
  window.before = document.getElementById("decoded").src;
  input.value = 1.5;
  input.dispatchEvent(new Event("input"));
})()
"""
LOADED = 'document.getElementById("decoded").complete'


def text(name):
    return f'document.getElementById("{name}").textContent'


def test_the_page_in_a_browser(server):
    """Drop an image, drag a slider, mix, sample, an error; only this server is asked."""
    image = np.asarray(server.explorer.reference.test.image[3])
    run = server.explorer.run
    address = f"http://127.0.0.1:{server.server_port}/"
    with Browser() as browser:
        browser.open(address, width=390, dark=True)
        browser.wait('document.body && document.body.dataset.ready === "yes"')
        browser.evaluate(DROP.format(file_of(image)))
        browser.wait(f'document.getElementById("decoded").src && {LOADED}')
        top = str(run.classify(image)[0].argmax())
        assert browser.evaluate('document.querySelector("#classes span").textContent') == top
        assert browser.evaluate(text("familiarity")).endswith(" %")
        count = 'document.querySelectorAll("#neighbours img").length'
        assert browser.evaluate(count) == explore.NEAREST
        browser.evaluate(SLIDE)
        browser.wait(f'document.getElementById("decoded").src !== before && {LOADED}')
        z = run.encode(image)
        z[0, 2] = 1.5
        drawn = np.array(browser.evaluate(PIXELS)).reshape(112, 112, 4)[::14, ::14, 0]
        assert np.abs(drawn - 255 * run.decode(z)[0, ..., 0]).max() <= 1
        browser.evaluate('document.getElementById("keep-a").click()')
        browser.evaluate('document.getElementById("reset").click()')
        browser.evaluate('document.getElementById("keep-b").click()')
        browser.wait('!document.getElementById("mix").hidden')
        assert browser.evaluate(text("kept")) == "A and B kept"
        browser.evaluate('document.getElementById("draw").click()')
        browser.wait('!document.getElementById("samples").hidden')
        fits = "document.documentElement.scrollWidth <= window.innerWidth"
        assert browser.evaluate(fits), "the page is wider than a phone"
        assert browser.errors() == []
        browser.evaluate(DROP.format(base64.b64encode(b"no image").decode()))
        browser.wait(f'{text("error")} !== ""')
        assert browser.evaluate(text("error")).startswith("image: not a readable image")
        local = (address, "data:", "blob:")
        assert all(one.startswith(local) for one in browser.requests()), browser.requests()
