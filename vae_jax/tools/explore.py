"""A page that asks a trained model: codes, reconstructions, classes, neighbours, samples.

    python -m vae_jax.tools.explore --workdir=runs/digits [--port=8008]

The page is served to this machine alone (``--host`` opens it to others). Its server reads JSON and
answers with JSON or a PNG; bad input is status 400 and ``{"error": "one line"}``. Images are
decoded by Pillow alone, in five formats; nothing that is read is run, and no request leaves for
another host.

    GET  /model    what the model is of
    POST /encode   {"image": BASE64} or {"test": 3} → code, classes, familiarity, images as base64
    POST /decode   {"z": [D numbers], "label": 3} → PNG
    POST /mix      {"a": [D numbers], "b": [D numbers], "steps": 9, "label": 3} → PNG, a row
    POST /sample   {"n": 16, "temperature": 0.8, "seed": 0} → PNG, a grid

``label`` is a class, of a model with labels only.
"""

import base64
import dataclasses
import functools
import http.server
import io
import ipaddress
import json
import math
import os
import socket
import sys
import threading
import urllib.parse
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import flags

from vae_jax import cli as flags_lib
from vae_jax import data, distributions
from vae_jax.config import UserError
from vae_jax.data import predict
from vae_jax.evaluate import ood, recognition
from vae_jax.report import page, pictures, words
from vae_jax.tools import library
from vae_jax.train import program as program_lib

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
BODY = 12 * 2**20  # bytes of a request, at most: an image of 9 MB in base64
PIXELS = 40_000_000  # of an image, at most
SAMPLES = 100  # images of one grid, at most
SLIDERS = 256  # dimensions that the page can drag, at most
STEPS = 32  # images of one mix, at most
LARGEST = 1e4  # of a number in z: beyond it float32 nets give nothing that could be seen
GALLERY = 20_000  # training images among which neighbours are searched, at most
VALIDATION = 2_000  # validation images by which familiarity is measured, at most
NEAREST = 8  # training images beside an image
DRAWS = 4  # of z, for the bound on log p(x) in familiarity
SLOW = 30  # seconds until a request that does not come is given up
POLICY = "default-src 'none'; script-src 'self'; style-src 'unsafe-inline'; "
POLICY += "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; "
POLICY += "form-action 'none'; frame-ancestors 'none'"


class BadRequest(Exception):
    """Bad input, in one line."""


# --- what the model is asked ---------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Reference:
    """What needs the data set: codes of training images, and what scores are usual.

    Args:
      code_NxD: means of q(z|x) of training images, the dimensions that are compared.
      split: these images and their labels.
      density: of the codes.
      usual: quantiles of the scores of validation images, for ``predict.familiarity``.
      test: the test images.
    """

    code_NxD: np.ndarray
    split: data.Split
    density: Callable[[np.ndarray], np.ndarray]
    usual: dict[str, Any]
    test: data.Split


def scores(
    run: library.Run, density: Callable[[np.ndarray], np.ndarray], image: np.ndarray
) -> dict[str, np.ndarray]:
    """How unusual images are, N numbers by each score: the code's distance, −log p(x)."""
    code = run.encode(image)[:, : run.model.spec.code]
    result = {"distance": np.asarray(density(code))}
    if run.model.decode is not None:
        result["neg_log_prob"] = -run.log_prob(image, k=DRAWS)
    return result


def reference(run: library.Run, dataset: data.Dataset) -> Reference:
    """Codes of the training images, and the scores of the validation images."""
    split = dataset.train
    if split.label is not None:
        split = data.labelled(split)
    split = data.some(split, GALLERY)
    code_NxD = run.encode(np.asarray(split.image))[:, : run.model.spec.code]
    density = ood.Gaussians(code_NxD, split.label)
    validation = np.asarray(data.some(dataset.validation, VALIDATION).image)
    result = scores(run, density, validation)
    levels = np.linspace(0, 1, 1001)
    usual: dict[str, Any] = {"quantiles": {}}
    for name, score_N in result.items():
        usual["quantiles"][name] = np.quantile(score_N, levels).tolist()
    smallest = predict.smallest_rank(result, usual["quantiles"])
    usual["smallest"] = np.quantile(smallest, levels).tolist()
    return Reference(code_NxD, split, density, usual, dataset.test)


class Explorer:
    """A run, and what the page asks of it. One question at a time: programs take all cores.

    Args:
      run: the trained model.
      dataset: its data; None where they are not there, and ``why`` says so.
    """

    def __init__(self, run: library.Run, dataset: data.Dataset | None, why: str = "") -> None:
        self.run = run
        self.why = why
        self.reference = None
        if dataset is not None:
            self.reference = reference(run, dataset)

    def describe(self) -> dict[str, Any]:
        """What the page must know before it asks: sizes, classes, sliders."""
        model = self.run.model
        low = np.full(model.latent, -3.0)
        high = np.full(model.latent, 3.0)
        order = np.arange(model.latent)
        if self.reference is not None and self.reference.code_NxD.shape[1] == model.latent:
            code_NxD = self.reference.code_NxD
            sd = code_NxD.std(0)
            low = np.minimum(low, code_NxD.mean(0) - 3 * sd)
            high = np.maximum(high, code_NxD.mean(0) + 3 * sd)
            order = np.argsort(-sd, kind="stable")  # those that tell images apart come first
        sliders = []
        for place in order[:SLIDERS].tolist():
            sliders.append({"dimension": place, "low": low[place], "high": high[place]})
        return {
            "name": os.path.basename(os.path.abspath(self.run.workdir)),
            "objective": self.run.config.objective.name,
            "data": self.run.config.data.name,
            "step": self.run.step,
            "shape": list(model.shape),
            "latent": model.latent,
            "classes": list(map(words.visible, self.run.classes)),
            "labelled": model.spec.labelled,
            "decoder": model.decode is not None,
            "temperature": self._temperature(),
            "tests": len(self.reference.test.image) if self.reference else 0,
            "sliders": sliders,
            "why": words.visible(self.why),
        }

    def _temperature(self) -> bool:
        """Whether samples have a temperature: of a Gaussian prior, or of a hierarchy."""
        model = self.run.model
        if model.decode is None:
            return False
        if model.levels > 1:
            return model.complete is not None
        return isinstance(model.prior(self.run.params), distributions.Normal)

    def encode(self, request: dict[str, Any]) -> dict[str, Any]:
        """The code of an image, and what is said of it."""
        image = self._image(request)
        run = self.run
        code_D = run.encode(image)[0]
        answer: dict[str, Any] = {"z": code_D.tolist(), "input": _address(image, self._top)}
        answer |= dict.fromkeys(("label", "familiarity", "reconstruction"))
        if run.model.classify is not None:
            p_Y = run.classify(image)[0]
            best = np.argsort(-p_Y)[:5]
            answer["label"] = int(best[0])
            answer["classes"] = [{"name": self._class(y), "p": float(p_Y[y])} for y in best]
        if run.model.decode is not None:
            label = answer["label"] if run.model.spec.labelled else None
            answer["reconstruction"] = _address(run.decode(code_D, label), 1)
        if self.reference is not None:
            answer |= self._compared(image, code_D)
        return answer

    def _compared(self, image: np.ndarray, code_D: np.ndarray) -> dict[str, Any]:
        """Familiarity, and the training images whose codes are the nearest."""
        known = self.reference
        score = scores(self.run, known.density, image[None])
        share = float(predict.familiarity(score, known.usual)[0])
        query = code_D[None, : known.code_NxD.shape[1]]
        near = recognition.neighbours(known.code_NxD, query, NEAREST)[0]
        neighbours = []
        for i in near:
            name = ""
            if known.split.label is not None:
                name = self._class(known.split.label[i])
            address = _address(np.asarray(known.split.image[i]), self._top)
            neighbours.append({"image": address, "name": name})
        return {"familiarity": share, "neighbours": neighbours}

    def decode(self, request: dict[str, Any]) -> bytes:
        """The mean of p(x|z) as a PNG."""
        self._want_decoder()
        return _png(self.run.decode(self._code(request, "z"), self._label(request)), 1)

    def mix(self, request: dict[str, Any]) -> bytes:
        """Means of p(x|z) along the straight line from a to b, both ends included."""
        self._want_decoder()
        a_D = self._code(request, "a")
        b_D = self._code(request, "b")
        t_K = np.linspace(0, 1, _whole(request, "steps", 9, 2, STEPS))[:, None]
        z_KxD = (1 - t_K) * a_D + t_K * b_D
        return _png(self.run.decode(z_KxD, self._label(request)), len(z_KxD))

    def sample(self, request: dict[str, Any]) -> bytes:
        """Means of p(x|z) of draws from the prior, a grid. Image i depends on (seed, i) alone."""
        self._want_decoder()
        n = _whole(request, "n", 16, 1, SAMPLES)
        seed = _whole(request, "seed", 0, 0, 2**31 - 1)
        temperature = _number(request, "temperature", 1.0, 0.0, 4.0)
        label = self._label(request)
        if temperature != 1 and not self._temperature():
            raise BadRequest(f"temperature={temperature:g}: the prior has none; want 1")
        columns = math.isqrt(n - 1) + 1  # a square, or nearly
        if temperature == 1:
            return _png(self.run.sample(n, seed, label), columns)
        labels = None
        if self.run.model.spec.labelled:
            turns = np.arange(n) % self.run.model.classes
            labels = turns if label is None else np.full(n, label)
        keys_N = distributions.example_keys(jax.random.key(seed), np.arange(n))
        z_NxD = self._tempered(self.run.params, keys_N, labels, np.float32(temperature))
        return _png(self.run.decode(np.asarray(z_NxD), labels), columns)

    @functools.cached_property
    def _tempered(self) -> Callable[..., jax.Array]:
        """params, keys_N, labels, temperature → z_NxD, the prior's deviations times temperature."""
        model = self.run.model

        def draw(params: Any, keys_N: jax.Array, y: Any, temperature: jax.Array) -> jax.Array:
            if model.levels > 1:
                return model.complete(params, None, keys_N, y, first=0, temperature=temperature)
            mu = model.prior(params).mu
            return mu + temperature * (model.sample(params, keys_N, y) - mu)

        return program_lib.simple(draw)

    # --- input -----------------------------------------------------------------------------------

    @property
    def _top(self) -> int:
        return self.run.subject.levels - 1

    def _class(self, y: int) -> str:
        return words.visible(pictures.class_name(self.run.classes, int(y)))

    def _want_decoder(self) -> None:
        if self.run.model.decode is None:
            raise BadRequest("the model has no decoder")

    def _image(self, request: dict[str, Any]) -> np.ndarray:
        """uint8 HxWxC of the request's image, or of a test image."""
        if "test" in request:
            if self.reference is None:
                raise BadRequest(f"test: the data are not there ({self.why})")
            images = self.reference.test.image
            return np.asarray(images[_whole(request, "test", 0, 0, len(images) - 1)])
        text = request.get("image")
        if not isinstance(text, str):
            raise BadRequest("image: want a file in base64, or test=NUMBER")
        try:
            blob = base64.b64decode(text, validate=True)
        except ValueError:
            raise BadRequest("image: not base64") from None
        return read_image(blob, self.run.model.shape, self.run.subject.levels)

    def _code(self, request: dict[str, Any], name: str) -> np.ndarray:
        """D finite numbers."""
        size = self.run.model.latent
        value = request.get(name)
        numbers = isinstance(value, list) and len(value) == size
        if not numbers or not all(map(_is_number, value)) or np.abs(value).max() > LARGEST:
            raise BadRequest(f"{name}: want {size} numbers, none beyond {LARGEST:g}")
        return np.asarray(value, np.float32)

    def _label(self, request: dict[str, Any]) -> int | None:
        """The class of a model with labels; None where none is named or there are none."""
        if not self.run.model.spec.labelled or request.get("label") is None:
            return None
        return _whole(request, "label", 0, 0, self.run.model.classes - 1)


def read_image(blob: bytes, shape: tuple[int, int, int], levels: int) -> np.ndarray:
    """uint8 HxWxC of an image file, as training reads folders of images.

    Raises:
      BadRequest: it is none, of another format than :data:`FORMATS`, or too large.
    """
    import PIL.Image

    try:
        with PIL.Image.open(io.BytesIO(blob), formats=FORMATS) as image:
            if image.width * image.height > PIXELS:
                size = f"{image.width} x {image.height}"
                raise BadRequest(f"image: {size} pixels; want {PIXELS:,} at most")
            return predict.convert(image, shape, levels)
    except BadRequest:
        raise
    except Exception:  # Pillow raises many kinds for a damaged file
        known = ", ".join(FORMATS)
        raise BadRequest(f"image: not a readable image; want {known}") from None


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _number(request: dict[str, Any], name: str, default: float, low: float, high: float) -> float:
    value = request.get(name, default)
    if not _is_number(value) or not low <= value <= high:
        raise BadRequest(f"{name}: want a number from {low:g} to {high:g}")
    return float(value)


def _whole(request: dict[str, Any], name: str, default: int, low: int, high: int) -> int:
    value = request.get(name, default)
    if type(value) is not int or not low <= value <= high:
        raise BadRequest(f"{name}: want a whole number from {low} to {high}")
    return value


def _png(image_NxHxWxC: np.ndarray, columns: int) -> bytes:
    """Images in [0, 1] as one PNG."""
    return pictures.png(pictures.grid([image_NxHxWxC], columns))


def _address(image: np.ndarray, top: int) -> str:
    """A data: address of an image in 0 .. top, HxWxC or one in a batch."""
    image = np.asarray(image, np.float32).reshape(-1, *image.shape[-3:])
    return pictures.uri(_png(image / top, 1), "png")


# --- the server ----------------------------------------------------------------------------------


def _no_constant(name: str) -> None:
    raise ValueError(name)


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers one request; ``server.explorer`` knows the model, ``server.lock`` lets one ask it."""

    protocol_version = "HTTP/1.1"
    server_version = "vae_jax"
    sys_version = ""
    timeout = SLOW

    def do_GET(self) -> None:
        """The page, its script, and what the model is of."""
        try:
            self._check_host()
            if self.path == "/":
                self._answer(200, "text/html; charset=utf-8", self.server.html)
            elif self.path == "/explore.js":
                self._answer(200, "text/javascript; charset=utf-8", self.server.script)
            elif self.path == "/model":
                self._answer_json(200, self.server.explorer.describe())
            else:
                self._answer_json(404, {"error": f"{self.path:.80}: no such page"})
        except BadRequest as error:
            self._refuse(error)

    def do_POST(self) -> None:
        """A question to the model."""
        explorer = self.server.explorer
        questions = {
            "/encode": explorer.encode,
            "/decode": explorer.decode,
            "/mix": explorer.mix,
            "/sample": explorer.sample,
        }
        try:
            self._check_host()
            request = self._read()
            if self.path not in questions:
                self._answer_json(404, {"error": f"{self.path:.80}: no such question"})
                return
            with self.server.lock:
                answer = questions[self.path](request)
        except (BadRequest, UserError) as error:
            self._refuse(error)
            return
        if isinstance(answer, bytes):
            self._answer(200, "image/png", answer)
        else:
            self._answer_json(200, answer)

    def _check_host(self) -> None:
        """Refuse what another site's page asks through this browser (DNS rebinding)."""
        host = self.headers.get("Host", "")
        origin = self.headers.get("Origin", f"http://{host}")
        try:
            name = urllib.parse.urlsplit(f"//{host}").hostname
            site = urllib.parse.urlsplit(origin).netloc
        except ValueError:
            raise BadRequest("host: not an address") from None
        if self.server.local and name not in ("localhost", "127.0.0.1", "::1"):
            raise BadRequest(f"host={host:.80}: want localhost")
        if site != host:
            raise BadRequest(f"origin={origin:.80}: want this server's own page")

    def _read(self) -> dict[str, Any]:
        """The request's JSON object."""
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or len(length) > 12 or int(length) > BODY:
            raise BadRequest(f"body: want a Content-Length of at most {BODY:,} bytes")
        body = self.rfile.read(int(length))
        if self.headers.get_content_type() != "application/json":  # asks before it crosses sites
            raise BadRequest("body: want Content-Type: application/json")
        try:
            request = json.loads(body, parse_constant=_no_constant)
        except (ValueError, RecursionError):
            raise BadRequest("body: not JSON") from None
        if not isinstance(request, dict):
            raise BadRequest("body: want an object of JSON")
        return request

    def _refuse(self, error: Exception) -> None:
        self.close_connection = True  # the rest of a body may still come
        self._answer_json(400, {"error": words.visible(str(error))})

    def _answer_json(self, status: int, value: dict[str, Any]) -> None:
        self._answer(status, "application/json", json.dumps(value, allow_nan=False).encode())

    def _answer(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Cache-Control", "no-store")
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: what a request asks for is nobody else's."""


class Server(http.server.ThreadingHTTPServer):
    """Serves the page of one model.

    Raises:
      UserError: the address is taken, or none of this machine.
    """

    daemon_threads = True

    def __init__(self, explorer: Explorer, host: str, port: int) -> None:
        self.explorer = explorer
        self.lock = threading.Lock()
        self.local = is_loopback(host)
        folder = os.path.join(os.path.dirname(page.__file__), "templates")
        with open(os.path.join(folder, "explore.js"), "rb") as file:
            self.script = file.read()
        title = f"Explore {explorer.describe()['name']}"
        self.html = page.render("explore.html.j2", title=title).encode()
        if ":" in host:
            self.address_family = socket.AF_INET6
        try:
            super().__init__((host, port), Handler)
        except (OSError, OverflowError) as error:
            why = getattr(error, "strerror", None) or error
            raise UserError(f"host={host}, port={port}: {why}; want another") from None

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that leaves before its answer is no error; all else is told."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


def is_loopback(host: str) -> bool:
    """Whether an address is of this machine alone."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def open_run(workdir: str, which: str | int = "best", data_dir: str = "") -> Explorer:
    """The run of a folder, with its data where they are there.

    Raises:
      UserError: there is no run, or no good checkpoint in it.
    """
    run = library.load(workdir, which)
    c = run.config.data.copy_and_resolve_references()
    if data_dir:
        c.dir = data_dir
    try:
        dataset = data.load(c)
    except UserError as error:
        return Explorer(run, None, str(error))
    if (dataset.shape, dataset.levels) != (run.model.shape, run.subject.levels):
        return Explorer(
            run, None, f"{c.name}: its images are not those that the run was trained on"
        )
    return Explorer(run, dataset)


# --- the command ---------------------------------------------------------------------------------


def define(values: flags.FlagValues) -> None:
    """Declare the flags of this script."""
    texts = {
        "workdir": (None, "folder of the run"),
        "checkpoint": ("best", "best, latest or a step"),
        "data_dir": ("", "where TFDS data is, if it moved"),
        "host": ("127.0.0.1", "the address to serve; 0.0.0.0 lets other machines ask"),
    }
    for name, (default, meaning) in texts.items():
        flags.DEFINE_string(name, default, meaning, flag_values=values)
    port = {"lower_bound": 0, "upper_bound": 65535, "flag_values": values}
    flags.DEFINE_integer("port", 8008, "the port; 0 takes a free one", **port)


def main(argv: list[str]) -> int:
    """Serve until Ctrl-C; returns the exit code."""
    values, pairs = flags_lib.parse(argv, define)
    if pairs:
        raise UserError(f"{pairs[0][0]}: the run's config is fixed; want no --config.*")
    if not values.workdir:
        raise UserError("workdir: want --workdir=FOLDER")
    which = values.checkpoint
    if which.isdecimal():
        which = int(which)
    elif which not in ("best", "latest"):
        raise UserError(f"checkpoint={which}: want best, latest or a step")
    program_lib.use_cache()
    explorer = open_run(values.workdir, which, values.data_dir)
    with Server(explorer, values.host, values.port) as server:
        host = f"[{values.host}]" if ":" in values.host else values.host
        print(f"http://{host}:{server.server_port}  (Ctrl-C ends it)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()
    return 0


if __name__ == "__main__":
    flags_lib.main(main)
