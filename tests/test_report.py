"""The page stands alone and holds every figure; files are what was given, whole or not at all."""

import base64
import html.parser
import io
import itertools
import json
import os
import re
import resource
import struct

import numpy as np
import pytest
from PIL import Image

from vae_jax.config import UserError
from vae_jax.report import page as report
from vae_jax.report import pictures as draw
from vae_jax.train.log import MetricsLog, read_history, replace

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
CONFIG = {"steps": 2000, "optim": {"lr": 0.0003, "name": "adamw"}, "encoder": {"hidden": [512, 256]}}
HISTORY = [
    {"step": s, "split": split, "loss": 100.0 / s, "elbo": None if s == 30 else -100.0 / s, "accuracy": 1 - 1 / s}
    for s in range(10, 200, 10)
    for split in ("train", "validation")
]


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
    return report.Pictures(x[:16], decoded[:16], decoded[20:40], walks, z[:300], y[:300], confusion, rates)


def write(folder, **changes):
    given = {
        "title": "Joint VAE on digits",
        "metrics": METRICS,
        "pictures": report.Pictures(),
        "history": [],
        "config": CONFIG,
        "run": RUN,
        "classes": tuple("0123456789"),
    }
    return report.write(str(folder), **(given | changes))


VOID = {"meta", "link", "img", "source", "br", "hr"}


class Page(html.parser.HTMLParser):
    """Tags with their attributes, visible text, and a check that every tag is closed in order."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.open, self.words = [], [], []
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
        return [a.get("id") for tag, a in self.tags if tag == "h2" and "id" in a]


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
    assert not {"script", "iframe", "object", "embed"} & {tag for tag, _ in page.tags}
    assert not re.search(r"https?:|url\(|@import", page.source)
    # Nor do the pictures within it: an SVG could name a font or an image.
    for data in re.findall(r"data:image/svg\+xml;base64,([^\"]+)", page.source):
        svg = base64.b64decode(data).decode()
        assert all(ref.startswith(("#", "data:")) for ref in re.findall(r"href=\"([^\"]*)\"", svg))
        assert "<text" in svg  # words stay words


def test_page_holds_every_figure_with_its_unit(full):
    _, page = full
    for key in METRICS:
        assert key in page.text
    # Written by hand from METRICS.
    first = ["10,000", "98.76 %", "0.0456", "1.23 %", "−88.77", "25.43", "63.34", "−86.54"]
    for figure in (*first, "0.22", "5,000", "97.12 %", "23", "1.25"):
        assert figure in page.text
    assert "± 0.22" in page.text and "nats / image, K = 5,000" in page.text
    assert "bits_per_dim – bits / dimension lower Binary pixels have no bits." in page.text
    assert "Rate of change nats rate_of_change_nats 1.25 nats" in page.text  # a key it does not know


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
    images = [a for tag, a in page.tags if tag == "img"]
    plots = [a for a in images if a["class"] == "plot"]
    assert all(a["alt"] for a in images)
    assert len(images) - len(plots) == 3  # tiles are transparent between: one rendering is right on both
    dark = [a for tag, a in page.tags if tag == "source"]
    assert len(dark) == len(plots) == 2 + 3  # latents, rates; loss, ELBO, accuracy
    for light, twin in zip(plots, dark, strict=True):
        assert twin["media"] == "(prefers-color-scheme: dark)" and twin["srcset"] != light["src"]
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h\d", tag)]
    assert levels.count(1) == 1 and all(b - a <= 1 for a, b in itertools.pairwise(levels))


def test_names_are_escaped(tmp_path):
    bad = "<script>alert(1)</script>"
    classes = (bad, *"123456789")
    page = Page(
        write(
            tmp_path, title=bad, pictures=pictures(), classes=classes, config={bad: bad}, run={bad: bad, "dataset": bad}
        )
    )
    assert "script" not in [tag for tag, _ in page.tags]
    assert page.text.count(bad) >= 8


def test_absent_panels_are_left_out(tmp_path, full):
    panels = ["reconstructions", "samples", "interpolations", "latents", "confusion", "rates", "curves"]
    assert full[1].headings() == [f"h-{p}" for p in panels] + ["h-metrics", "h-run"]
    write(tmp_path, pictures=pictures(), history=HISTORY)
    assert sorted(os.listdir(tmp_path)) == sorted(["index.html", *(f"{p}.png" for p in panels)])
    # A report written again with less takes the stale pictures away.
    page = Page(write(tmp_path, pictures=report.Pictures(samples=pictures().samples), config={}, run={}))
    assert page.headings() == ["h-samples", "h-metrics"]
    assert sorted(os.listdir(tmp_path)) == ["index.html", "samples.png"]
    empty = Page(write(tmp_path, metrics={}, pictures=report.Pictures(originals=np.zeros((0, 8, 8, 1))), run={}))
    assert empty.headings() == ["h-metrics"]
    assert os.listdir(tmp_path) == ["index.html"]


def test_rows_of_images_and_the_rates_of_levels_have_panels_of_their_own(tmp_path):
    x = digits()[0]
    rows = {name: [x[:4], x[4:8], x[8:12]] for name in report.ROWS}
    page = Page(
        write(tmp_path, pictures=report.Pictures(**rows, kl_per_level=np.array([3.0, 2, 1])), run={}, config={})
    )
    assert page.headings() == [f"h-{name}" for name in (*report.ROWS, "level_rates")] + ["h-metrics"]
    assert {f"{name}.png" for name in (*report.ROWS, "level_rates")} < set(os.listdir(tmp_path))


def test_same_input_same_bytes(tmp_path):
    a, b = (write(tmp_path / name, pictures=pictures(), history=HISTORY) for name in "ab")
    for name in os.listdir(tmp_path / "a"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    assert a != b


def decode(path):
    with Image.open(path) as image:
        return np.asarray(image)


def test_reconstructions_stand_under_their_originals(full):
    folder, _ = full
    rgba = decode(folder / "reconstructions.png")
    # 16 images of 8x8: 2 bands of 8 columns, a pixel 14x14, gaps of 8, 16 more between bands.
    tile, gap, more = 8 * 14, 8, 16
    assert rgba.shape == (4 * tile + 3 * gap + more, 8 * tile + 7 * gap, 4)
    given = pictures()
    for i in (0, 7, 8, 15):
        for row, images in ((0, given.originals), (1, given.reconstructions)):
            top = i // 8 * (2 * (tile + gap) + more) + row * (tile + gap)
            left = i % 8 * (tile + gap)
            block = rgba[top : top + tile, left : left + tile]
            want = np.rint(255 * np.clip(images[i, ..., 0], 0, 1)).astype(np.uint8)
            for c in range(3):
                np.testing.assert_array_equal(block[7::14, 7::14, c], want)
            assert (block.reshape(8, 14, 8, 14, 4) == block[::14, ::14][:, None, :, None]).all()  # crisp
            assert (block[..., 3] == 255).all()
    assert rgba[tile + gap // 2, 5, 3] == 0  # gaps are transparent


def test_a_grid_keeps_colours_and_survives_bad_pixels(tmp_path):
    images = np.zeros((5, 32, 32, 3))
    images[0] = [1.0, 0.5, 0.0]
    images[4] = np.nan
    images[3] = 7.0
    path = str(tmp_path / "new" / "grid.png")
    replace(path, draw.png(draw.grid([images], columns=3)))
    rgba = decode(path)
    tile, gap = 32 * 4, 8
    assert rgba.shape == (2 * tile + gap, 3 * tile + 2 * gap, 4)
    np.testing.assert_array_equal(rgba[0, 0], [255, 128, 0, 255])
    np.testing.assert_array_equal(rgba[tile + gap, 0], [255, 255, 255, 255])  # image 3, clipped
    np.testing.assert_array_equal(rgba[tile + gap, tile + gap], [0, 0, 0, 255])  # image 4, NaN
    np.testing.assert_array_equal(rgba[-1, -1], [0, 0, 0, 0])  # no image 5


def test_latent_plane_is_pca():
    from sklearn.decomposition import PCA

    z = np.random.default_rng(0).normal(size=(200, 6)) * [5, 3, 1, 1, 1, 1]
    points, names = draw.plane(z)
    reference = PCA(2).fit(z)
    np.testing.assert_allclose(np.abs(points), np.abs(reference.transform(z)), atol=1e-9)
    shares = [f"{s:.0%}" for s in reference.explained_variance_ratio_]
    assert [re.search(r"\d+%", name).group() for name in names] == shares
    np.testing.assert_array_equal(draw.plane(z[:, :2])[0], z[:, :2])


def test_unusual_pictures_are_drawn(tmp_path):
    rng = np.random.default_rng(0)
    many = np.diag(np.arange(30))  # class 0 is empty
    labels = np.where(np.arange(60) % 7, np.arange(60) % 30, -1)  # some have no label
    page = Page(
        write(
            tmp_path, pictures=report.Pictures(latents=rng.normal(size=(60, 3)), latent_labels=labels, confusion=many)
        )
    )
    assert "matrix" not in [a.get("class") for tag, a in page.tags if tag == "table"]  # 900 counts: a picture
    for latents in (rng.normal(size=(50, 1)), np.zeros((5, 4)), np.full((5, 2), np.nan)):
        write(tmp_path, pictures=report.Pictures(latents=latents), classes=())
        assert decode(tmp_path / "latents.png").ndim == 3
    history = [
        {"step": 1, "split": "train", "loss": None},
        {"step": 2, "split": "train", "loss": 3.0, "kl": float("nan")},
    ]
    page = Page(write(tmp_path, history=history))
    assert "train 3" in page.text and "KL(q(z|x) ‖ p(z)) nats" not in page.text  # no finite KL, no panel


def test_confusion_table_counts(full):
    _, page = full
    assert "Most frequent error: 4 taken for 9, 7 of 37." in page.text
    cells = [a for tag, a in page.tags if tag == "td" and "--s" in a.get("style", "")]
    assert len(cells) == 100
    assert cells[44]["style"] == f"--s: {round(30 / 37, 3)}" and cells[44]["class"].startswith("right")
    assert cells[49]["style"] == f"--s: {round((7 / 37) ** 0.5, 3)}" and cells[49]["class"].startswith("wrong")


def test_summary_is_plain_and_aligned(capsys):
    report.print_summary(METRICS, "runs/x/report/index.html")
    assert capsys.readouterr().out.splitlines() == [
        "test images                10,000",
        "accuracy                   98.76 %",
        "ELBO                       -88.77 nats / image",
        "importance-weighted bound  -86.54 +- 0.22 nats / image, K = 5,000",
        "kNN accuracy               97.12 %",
        "report                     runs/x/report/index.html",
    ]


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
    before = {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))  # the page is larger
    try:
        with pytest.raises(UserError, match=r"index\.html"):
            write(tmp_path, title="new")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)} == before


def test_who_reads_the_old_report_reads_it_whole(tmp_path):
    with open(write(tmp_path, title="old"), encoding="utf-8") as reader:
        start = reader.read(100)
        write(tmp_path, title="new", config={})
        old = start + reader.read()
    assert "<h1>old</h1>" in old and old.rstrip().endswith("</html>") and "adamw" in old
    assert "<h1>new</h1>" in (tmp_path / "index.html").read_text()


def events(folder):
    """{step: {tag: value}} of TensorBoard's records: u64 length, u32 crc, Event, u32 crc."""
    from tensorboardX.proto.event_pb2 import Event

    seen = {}
    for name in sorted(os.listdir(folder)):
        stream = io.BytesIO((folder / name).read_bytes())
        while header := stream.read(12):
            event = Event.FromString(stream.read(struct.unpack("<Q", header[:8])[0]))
            stream.read(4)
            for value in event.summary.value:
                seen.setdefault(event.step, {})[value.tag] = value.simple_value
    return seen


def test_log_writes_strict_json_at_once_and_tensorboard(tmp_path):
    log = MetricsLog(str(tmp_path))
    log.write(10, "train", {"loss": np.float32(1.5), "kl": float("nan"), "elbo": float("-inf")})
    row = {"step": 10, "split": "train", "loss": 1.5, "kl": None, "elbo": None}
    assert read_history(str(tmp_path)) == [row]  # before close
    log.write(10, "validation", {"loss": 2.5})
    log.close()

    def refuse(token):
        raise AssertionError(token)

    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line, parse_constant=refuse) for line in lines] == [
        row,
        {"step": 10, "split": "validation", "loss": 2.5},
    ]
    assert events(tmp_path / "tensorboard" / "train") == {10: {"loss": 1.5}}
    assert events(tmp_path / "tensorboard" / "validation") == {10: {"loss": 2.5}}


def test_resumed_log_equals_one_that_was_never_stopped(tmp_path):
    def rows(log, steps):
        for step in steps:
            log.write(step, "train", {"loss": 1 / step})
            if step % 20 == 0:
                log.write(step, "validation", {"loss": 2 / step})
        log.close()

    rows(MetricsLog(str(tmp_path / "straight")), range(10, 101, 10))
    # Killed at step 70 while it wrote a row; the last checkpoint is of step 40.
    rows(MetricsLog(str(tmp_path / "stopped")), range(10, 71, 10))
    path = tmp_path / "stopped" / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 80, "split": "tra')
    assert [r["step"] for r in read_history(str(tmp_path / "stopped"))][-1] == 70
    rows(MetricsLog(str(tmp_path / "stopped"), resume_step=40), range(50, 101, 10))
    assert path.read_bytes() == (tmp_path / "straight" / "metrics.jsonl").read_bytes()
    assert sorted(os.listdir(tmp_path / "stopped")) == ["metrics.jsonl", "tensorboard"]


def test_torn_line_without_later_rows_is_dropped_and_a_new_run_starts_empty(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "split": "train", "loss": 1.0}\n{"step": 2')
    MetricsLog(str(tmp_path), resume_step=5).close()
    assert path.read_text() == '{"step": 1, "split": "train", "loss": 1.0}\n'
    MetricsLog(str(tmp_path)).close()
    assert path.read_text() == ""
    assert read_history(str(tmp_path / "nowhere")) == []


def test_a_broken_line_in_the_middle_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "split": "train"}\nrubbish\n{"step": 2, "split": "train"}\n')
    with pytest.raises(UserError, match="line 2"):
        read_history(str(tmp_path))
