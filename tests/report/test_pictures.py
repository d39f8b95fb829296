"""Grids of images, the latent plane, and names from data in figures."""

import base64
import html
import re

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from vae_jax.report import page as report
from vae_jax.report import pictures as draw
from vae_jax.report import plots
from vae_jax.train.log import replace

NAMES = ("$", r"$\frac$", "a$b$c", r"\$1$", "_hidden", "two\nlines", "byte\udcff", "<b>&", "%s")
DRAWN = ("$", r"$\frac$", "a$b$c", r"\$1$", "_hidden", r"two\nlines", r"byte\udcff", "<b>&", "%s")


def decode(path):
    with Image.open(path) as image:
        return np.asarray(image)


def svg_text(uri):
    """The words of an SVG, of each text element."""
    svg = base64.b64decode(uri.partition(",")[2]).decode()
    texts = re.findall(r"<text[^>]*>(.*?)</text>", svg, re.S)
    return list(map(html.unescape, texts))


def test_the_first_images_show_every_class():
    ordered = np.repeat([0, 1, 2, 3], [50, 30, 2, 18])  # a folder's test set, class by class
    rows = draw.first_images(ordered, 40)
    assert len(set(rows)) == 40
    assert ordered[rows[:8]].tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    assert np.bincount(ordered[rows]).tolist() == [13, 13, 2, 12]  # class 2 has no third image
    assert rows[:4].tolist() == [0, 50, 80, 82]  # of each class the first in the data
    np.testing.assert_array_equal(rows, draw.first_images(ordered, 40))


def test_the_first_images_of_unusual_sets():
    many = np.arange(100)
    assert draw.first_images(many, 4).tolist() == [0, 25, 50, 75]  # more classes than images
    assert draw.first_images(None, 3).tolist() == [0, 1, 2]
    few = draw.first_images(np.array([5, 5, -1]), 40)  # fewer images than wanted
    assert sorted(few) == [0, 1, 2]


def test_names_of_classes_are_drawn_as_they_are(tmp_path):
    rng = np.random.default_rng(0)
    labels = np.arange(60) % len(NAMES)
    counts = np.eye(len(NAMES), dtype=int)
    images = {"latents": rng.normal(size=(60, 2)), "latent_labels": labels, "confusion": counts}
    ood = {"$x_": {"auroc": {"elbo": (0.9, 0.8, 1.0)}, "scores": {"elbo": (labels, labels + 1)}}}
    parts = {"metrics": {}, "history": [{"step": 1, "split": "$a$", "$k$": 1.0}], "config": {}}
    parts |= {"run": {"command": "x\udcff"}, "title": "$t$", "classes": NAMES}
    pictures = report.Pictures(**images, ood=ood)
    report.write(str(tmp_path), report.Report(pictures=pictures, **parts))
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    for name in DRAWN:
        assert f'<th scope="row">{html.escape(name)}</th>' in page

    def latents(theme):
        return plots.draw_latents(theme, images["latents"], labels, NAMES)

    texts = svg_text(draw.both(latents)["light"])
    for name in DRAWN:
        assert texts.count(name) == 1  # in the legend; in the plane it is drawn as outlines


def test_the_ticks_of_a_logarithmic_axis_can_be_read_on_a_dark_page():
    figure = draw.new_figure(4, 3)
    ax = figure.subplots()
    draw.style_axes(ax, draw.DARK)
    ax.set(xscale="log", yscale="log", xlim=(2, 9), ylim=(2, 9))  # less than a decade
    figure.canvas.draw()
    texts = []
    for label in ax.get_xticklabels(which="both"):
        texts.append(label.get_text())
        assert label.get_color() == draw.DARK["muted"]
    assert len(list(filter(None, texts))) > 1


def test_reliability_shows_how_many_images_a_bin_holds():
    n = np.array([0, 5, 2000])
    bins = {"as trained": (n, np.array([np.nan, 0.4, 0.98]), np.array([np.nan, 0.5, 0.99]))}
    above, below = plots.draw_reliability(draw.LIGHT, bins).axes
    assert above.lines[1].get_xydata().tolist() == [[0.5, 0.4], [0.99, 0.98]]  # after the diagonal
    assert below.patches[0].get_data().values.tolist() == [0.5, 5, 2000]  # 0 is at the axis
    assert [t.get_text() for t in below.get_yticklabels()] == ["1", "10", "100", "1,000"]


def test_reconstructions_stand_under_their_originals():
    images = load_digits().images[..., None] / 16
    stacks = (images[:16], images[16:32])
    rgba = draw.grid(stacks, columns=8)
    # 16 images of 8x8: 2 bands of 8 columns, a pixel 14x14, gaps of 8, 16 more between bands.
    tile = 8 * 14
    gap = 8
    more = 16
    assert rgba.shape == (4 * tile + 3 * gap + more, 8 * tile + 7 * gap, 4)
    for i in (0, 7, 8, 15):
        for row, stack in enumerate(stacks):
            top = i // 8 * (2 * (tile + gap) + more) + row * (tile + gap)
            left = i % 8 * (tile + gap)
            block = rgba[top : top + tile, left : left + tile]
            want = np.rint(255 * stack[i, ..., 0]).astype(np.uint8)
            for c in range(3):
                np.testing.assert_array_equal(block[7::14, 7::14, c], want)
            pixels = block[::14, ::14]
            assert (block.reshape(8, 14, 8, 14, 4) == pixels[:, None, :, None]).all()  # crisp
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
    tile = 32 * 4
    gap = 8
    assert rgba.shape == (2 * tile + gap, 3 * tile + 2 * gap, 4)
    np.testing.assert_array_equal(rgba[0, 0], [255, 128, 0, 255])
    np.testing.assert_array_equal(rgba[tile + gap, 0], [255, 255, 255, 255])  # image 3, clipped
    np.testing.assert_array_equal(rgba[tile + gap, tile + gap], [0, 0, 0, 255])  # image 4, NaN
    np.testing.assert_array_equal(rgba[-1, -1], [0, 0, 0, 0])  # no image 5


def test_latent_plane_is_pca():
    from sklearn.decomposition import PCA

    z = np.random.default_rng(0).normal(size=(200, 6)) * [5, 3, 1, 1, 1, 1]
    points, names = plots.plane(z)
    reference = PCA(2).fit(z)
    np.testing.assert_allclose(np.abs(points), np.abs(reference.transform(z)), atol=1e-9)
    for name, share in zip(names, reference.explained_variance_ratio_, strict=True):
        assert f"({share:.0%} of" in name
    np.testing.assert_array_equal(plots.plane(z[:, :2])[0], z[:, :2])
