"""The page stands alone, holds every figure, and shows names as they are; files are whole."""

import base64
import hashlib
import html.parser
import os
import re
import resource

import numpy as np
import pytest
from PIL import Image

from vae_jax.config import UserError, default
from vae_jax.report import metrics as registry
from vae_jax.report import page as report
from vae_jax.report import panels
from vae_jax.train.log import MetricsLog, replace

METRICS = {
    "n": 10000,
    "accuracy": 0.9876,
    "cross_entropy_nats": 0.0456,
    "ece": 0.0123,
    "elbo_nats": -88.765,
    "kl_nats": 25.43,
    "reconstruction_nats": 63.335,
    "iw_nats": -86.543,
    "iw_nats_se": 0.217,
    "iw_k": 5000,
    "bits_per_dim": None,
    "knn_accuracy": 0.9712,
    "active_units": 23,
    "rate_of_change_nats": 1.25,
}
RUN = {
    "dataset": "digits",
    "device": "cpu, 2 cores",
    "versions": {"jax": "0.10.2", "flax": "0.12.8"},
    "training_seconds": 3725,
    "date": "2026-11-22T15:30:30+00:00",
    "images_per_s": 61234.5,
    "command": "python train.py --config=configs/digits.py",
    "parameters": 1234567,
    "favourite_tea": "assam",
    "why": {"bits_per_dim": "Binary pixels have no bits."},
}
CONFIG = {
    "steps": 2000,
    "optim": {"lr": 0.0003, "name": "adamw"},
    "encoder": {"hidden": [512, 256]},
}


def make_history():
    """Rows of ten steps each, of both splits; one ELBO is missing."""
    rows = []
    for step in range(10, 200, 10):
        elbo = None if step == 30 else -100.0 / step
        row = {"step": step, "loss": 100.0 / step, "elbo": elbo, "accuracy": 1 - 1 / step}
        rows += [row | {"split": "train"}, row | {"split": "validation"}]
    return rows


HISTORY = make_history()


def digits():
    from sklearn.datasets import load_digits

    data = load_digits()
    return data.images[..., None] / 16, data.target


def pictures():
    x, y = digits()
    flat = x.reshape(len(x), -1)
    mean = flat.mean(0)
    _, _, axes = np.linalg.svd(flat - mean, full_matrices=False)
    z = (flat - mean) @ axes[:8].T
    decoded = (z @ axes[:8] + mean).reshape(x.shape)
    confusion = 30 * np.eye(10, dtype=int)
    confusion[4, 9] = 7
    walks = np.stack([decoded[:5], decoded[5:10], decoded[10:15]])
    rates = np.sort(np.var(z, axis=0))[::-1]
    images = (x[:16], decoded[:16], decoded[20:40], walks)
    return report.Pictures(*images, z[:300], y[:300], confusion, rates)


def write(folder, **changes):
    parts = {
        "title": "Joint VAE on digits",
        "metrics": METRICS,
        "pictures": report.Pictures(),
        "history": [],
        "config": CONFIG,
        "run": RUN,
        "classes": tuple("0123456789"),
    }
    return report.write(str(folder), report.Report(**(parts | changes)))


def contents(folder):
    """{name of a file: its bytes}."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


VOID = {"meta", "link", "img", "source", "br", "hr"}


class Page(html.parser.HTMLParser):
    """Tags with their attributes, visible text, and a check that every tag is closed in order."""

    def __init__(self, path):
        super().__init__()
        self.tags = []
        self.open = []
        self.words = []
        with open(path, encoding="utf-8") as file:
            self.source = file.read()
        self.feed(self.source)
        self.close()
        assert self.open == []
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    def headings(self):
        return [h2["id"] for h2 in self.named("h2") if "id" in h2]

    def named(self, name):
        """The attributes of each tag of this name."""
        return [attributes for tag, attributes in self.tags if tag == name]


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    path = write(folder, pictures=pictures(), history=HISTORY)
    return folder, Page(path)


def test_page_loads_nothing_from_elsewhere(full):
    _, page = full
    assert page.source.lstrip().startswith("<!doctype html>")
    for _, attributes in page.tags:
        for name in ("src", "srcset", "href", "poster", "data", "action"):
            assert (attributes.get(name) or "data:").startswith("data:")
    for tag in ("iframe", "object", "embed"):
        assert not page.named(tag)
    # The one script is named by its hash: no other would run.
    (script,) = re.findall(r"<script>(.*?)</script>", page.source, re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page.source
    assert not re.search(r"https?:|url\(|@import", page.source)
    # Nor do the pictures within it: an SVG could name a font or an image.
    for data in re.findall(r"data:image/svg\+xml;base64,([^\"]+)", page.source):
        svg = base64.b64decode(data).decode()
        for reference in re.findall(r"href=\"([^\"]*)\"", svg):
            assert reference.startswith(("#", "data:"))
        assert "<text" in svg  # words stay words


def test_page_holds_every_figure_with_its_unit(full):
    _, page = full
    for key in METRICS:
        assert key in page.text
    # Written by hand from METRICS.
    first = ["10,000", "98.76 %", "0.0456", "1.23 %", "−88.77", "25.43", "63.34", "−86.54"]
    for figure in (*first, "0.22", "5,000", "97.12 %", "23", "1.25"):
        assert figure in page.text
    assert "nats / image, K = 5,000, standard error 0.22" in page.text
    assert "±" not in page.text  # it is the standard deviation over seeds, and nothing else
    assert "bits_per_dim – bits / dimension lower Binary pixels have no bits." in page.text
    # A key without a registered metric:
    assert "Rate of change nats rate_of_change_nats 1.25 nats" in page.text


def test_page_holds_config_and_run(full):
    _, page = full
    for words in ("optim", "lr 0.0003", "name adamw", "hidden 512, 256", "steps 2000"):
        assert words in page.text
    for words in (
        "Training 1 h 2 min",
        "2026-11-22T15:30:30+00:00",
        "1,234,567",
        "jax 0.10.2, flax 0.12.8",
        "61,234",
        RUN["command"],
        "Favourite tea assam",
    ):
        assert words in page.text


def test_every_picture_has_words_and_a_dark_twin(full):
    _, page = full
    images = page.named("img")
    plots = [image for image in images if image["class"] == "plot"]
    for image in images:
        assert image["alt"]
    # Grids are transparent between their images: one rendering is right on both pages.
    assert len(images) - len(plots) == 3
    dark = page.named("source")
    assert len(dark) == len(plots) == 2 + 3  # latents, rates; loss, ELBO, accuracy
    for light, twin in zip(plots, dark, strict=True):
        assert twin["media"] == "(prefers-color-scheme: dark)" and twin["srcset"] != light["src"]
    levels = [int(level) for level in re.findall(r"<h(\d)", page.source)]
    assert levels.count(1) == 1 and max(np.diff(levels)) <= 1


def test_names_are_escaped(tmp_path):
    bad = "<script>alert(1)</script>"
    classes = (bad, *"123456789")
    parts = {"title": bad, "config": {bad: bad}, "run": {bad: bad, "dataset": bad}}
    page = Page(write(tmp_path, pictures=pictures(), classes=classes, **parts))
    assert page.named("script") == [{}]  # the page's own
    assert page.text.count(bad) >= 8


def test_absent_panels_are_left_out(tmp_path, full):
    panels = ["reconstructions", "samples", "interpolations", "latents"]
    panels += ["confusion", "rates", "curves"]
    assert full[1].headings() == [f"h-{p}" for p in panels] + ["h-metrics", "h-run"]
    write(tmp_path, pictures=pictures(), history=HISTORY)
    assert sorted(os.listdir(tmp_path)) == sorted(["index.html", *(f"{p}.png" for p in panels)])
    # A report written again with less takes the stale pictures away.
    samples = report.Pictures(samples=pictures().samples)
    page = Page(write(tmp_path, pictures=samples, config={}, run={}))
    assert page.headings() == ["h-samples", "h-metrics"]
    assert sorted(os.listdir(tmp_path)) == ["index.html", "samples.png"]
    nothing = report.Pictures(originals=np.zeros((0, 8, 8, 1)))
    empty = Page(write(tmp_path, metrics={}, pictures=nothing, run={}))
    assert empty.headings() == ["h-metrics"]
    assert os.listdir(tmp_path) == ["index.html"]


def test_rows_of_images_and_the_rates_of_levels_have_panels_of_their_own(tmp_path):
    x = digits()[0]
    rows = {name: [x[:4], x[4:8], x[8:12]] for name in panels.ROWS}
    images = report.Pictures(**rows, kl_per_level=np.array([3.0, 2, 1]))
    page = Page(write(tmp_path, pictures=images, run={}, config={}))
    names = [*panels.ROWS, "level_rates"]
    assert page.headings() == [*(f"h-{name}" for name in names), "h-metrics"]
    assert {f"{name}.png" for name in names} < set(os.listdir(tmp_path))


def test_same_input_same_bytes(tmp_path):
    for name in "ab":
        write(tmp_path / name, pictures=pictures(), history=HISTORY)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def decode(path):
    with Image.open(path) as image:
        return np.asarray(image)


def test_unusual_pictures_are_drawn(tmp_path):
    rng = np.random.default_rng(0)
    many = np.diag(np.arange(30))  # class 0 is empty
    labels = np.where(np.arange(60) % 7, np.arange(60) % 30, -1)  # some have no label
    images = {"latents": rng.normal(size=(60, 3)), "latent_labels": labels, "confusion": many}
    page = Page(write(tmp_path, pictures=report.Pictures(**images)))
    assert {"class": "matrix"} not in page.named("table")  # 900 counts: a picture
    for latents in (rng.normal(size=(50, 1)), np.zeros((5, 4)), np.full((5, 2), np.nan)):
        write(tmp_path, pictures=report.Pictures(latents=latents), classes=())
        assert decode(tmp_path / "latents.png").ndim == 3
    history = [
        {"step": 1, "split": "train", "loss": None},
        {"step": 2, "split": "train", "loss": 3.0, "kl": float("nan")},
    ]
    page = Page(write(tmp_path, history=history))
    assert "train 3" in page.text
    assert "KL(q(z|x) ‖ p(z)) nats" not in page.text  # no finite KL, no panel


def test_confusion_table_counts(full):
    _, page = full
    assert "Most frequent error: 4 taken for 9, 7 of 37." in page.text
    cells = [td for td in page.named("td") if "--s" in td.get("style", "")]
    assert len(cells) == 100
    right = cells[44]
    wrong = cells[49]
    assert right["style"] == f"--s: {round(30 / 37, 3)}"
    assert right["class"].startswith("right")
    assert wrong["style"] == f"--s: {round((7 / 37) ** 0.5, 3)}"
    assert wrong["class"].startswith("wrong")


def test_summary_is_plain_and_aligned(capsys):
    report.print_summary(METRICS, "runs/x/report/index.html")
    assert capsys.readouterr().out.splitlines() == [
        "test images                10,000",
        "accuracy                   98.76 %",
        "ELBO                       -88.77 nats / image",
        "importance-weighted bound  -86.54 nats / image, K = 5,000, standard error 0.22",
        "kNN accuracy               97.12 %",
        "report                     runs/x/report/index.html",
    ]


def test_a_metric_of_a_user_has_its_own_words(tmp_path):
    mine = registry.Metric("test_ndb", "Bins that differ", "%", "lower", "Share of k-means bins.")
    assert registry.register(mine) == registry.register(mine)  # a module may be imported twice
    page = Page(write(tmp_path, metrics={"test_ndb": 0.25, "test_other_s": 1.5}))
    assert "Bins that differ test_ndb 25.00 % lower Share of k-means bins." in page.text
    assert "Test other s test_other_s 1.5 seconds" in page.text  # without a registered metric
    with pytest.raises(UserError, match="test_ndb: another metric"):
        registry.register(registry.Metric("test_ndb", "Something else"))
    with pytest.raises(UserError, match="better=more: want higher"):
        registry.register(registry.Metric("test_up", "Up", better="more"))


def test_a_temperature_that_is_worse_than_none_is_not_recommended(tmp_path):
    metrics = {"cross_entropy_nats": 0.088, "ece": 0.015, "temperature": 0.15}
    bins = {"as trained": (np.array([0, 3, 1234]), np.array([np.nan, 0.3, 0.9]), np.full(3, 0.5))}
    worse = metrics | {"calibrated_cross_entropy_nats": 0.35, "calibrated_ece": 0.031}
    words = (
        "The temperature is not recommended: with it the cross-entropy rises from 0.0880 to 0.3500 "
        "and the calibration error rises from 1.50 % to 3.10 %."
    )
    images = report.Pictures(reliability=bins)
    page = Page(write(tmp_path, metrics=worse, pictures=images))
    assert page.text.count(words) == 2  # in the table and below the diagram
    assert "1,234 of 1,237 images in the last bin" in page.source  # counts, in words too
    better = metrics | {"calibrated_cross_entropy_nats": 0.08, "calibrated_ece": 0.01}
    assert "the temperature is recommended" in Page(write(tmp_path, metrics=better)).text
    assert "recommended" not in Page(write(tmp_path, metrics=metrics)).text


def test_the_top_says_what_was_run_and_at_which_step_it_is_judged(tmp_path):
    run = RUN | {"name": "tea", "seed": 7, "checkpoint": "step 1200 (best)", "replica": "beta=4"}
    config = {"steps": 2000, "latent": default().latent, "optim": {"lr": 0.0123}}
    page = Page(write(tmp_path, run=run, config=config))
    top = page.text.partition("All figures On the test set")[0]
    for words in ("tea digits", "seed 7", RUN["command"], "optim.lr=0.0123 default 0.0"):
        assert words in top
    assert "All figures are of the checkpoint of step 1200 (best), of 2,000 steps." in top
    assert "replica beta=4: each replica is judged at a step of its own" in top
    assert "latent=" not in top  # as the default has it


def test_a_restart_is_only_named_where_there_was_one(tmp_path):
    run = {"wall_time": "steps 81 %, restart 10 %, compile 9 %"}
    text = Page(write(tmp_path, run=run)).text
    assert "restart" not in text and "start-up 10 %" in text
    assert "restart 10 %" in Page(write(tmp_path, run=run | {"restarts": 1})).text


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("mine")
    for call in (
        lambda: write(tmp_path / "file"),
        lambda: write(tmp_path / "file" / "report"),
        lambda: MetricsLog(str(tmp_path / "file")),
        lambda: replace(str(tmp_path / "file" / "x.png"), b""),
    ):
        with pytest.raises(UserError) as error:
            call()
        assert "\n" not in str(error.value) and str(tmp_path / "file") in str(error.value)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_disk_that_fills_keeps_the_old_report(tmp_path):
    write(tmp_path, title="old")
    before = contents(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))  # the page is larger
    try:
        with pytest.raises(UserError, match=r"index\.html"):
            write(tmp_path, title="new")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert contents(tmp_path) == before


def test_who_reads_the_old_report_reads_it_whole(tmp_path):
    with open(write(tmp_path, title="old"), encoding="utf-8") as reader:
        start = reader.read(100)
        write(tmp_path, title="new", config={})
        old = start + reader.read()
    assert "<h1>old</h1>" in old and old.rstrip().endswith("</html>") and "adamw" in old
    assert "<h1>new</h1>" in (tmp_path / "index.html").read_text()
