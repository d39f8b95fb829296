"""The pictures of a benchmark's page can be read on a light and on a dark page."""

from collections.abc import Callable

import pytest
from matplotlib.colors import to_hex

from benchmarks import page, present
from vae_jax.report import pictures

PEAKS = {"float32": 4e11, "bfloat16": 2e11, "bytes": 2e10}


def report() -> present.Measured:
    """Two cells with intensities less than a decade apart."""
    rows = []
    for batch, seconds in ((20, 0.002), (128, 0.01)):
        rows.append(
            {
                "key": f"batch={batch}",
                "fields": {"batch": str(batch)},
                "error": "",
                "batch": batch,
                "images": batch,
                "dtype": "float32",
                "devices": 1,
                "hand_flops_per_image": 2e6,
                "bytes_per_image": 1e5,
                "windows": {"ours": [seconds, 1.1 * seconds]},
            }
        )
    summaries = [present.summary(row, PEAKS, PEAKS) for row in rows]
    return present.Measured(rows, summaries, PEAKS, PEAKS)


@pytest.mark.parametrize("draw", [page.draw_roofline, page.draw_throughput])
@pytest.mark.parametrize("theme", [pictures.LIGHT, pictures.DARK], ids=["light", "dark"])
def test_every_text_has_a_colour_of_the_theme(draw: Callable, theme: dict[str, str]) -> None:
    """Labels of minor ticks, which axes shorter than a decade show, were black on a dark page."""
    figure = draw(theme, report())
    figure.draw_without_rendering()
    ax = figure.axes[0]
    texts = [ax.xaxis.label, ax.yaxis.label, *ax.texts]
    for axis in (ax.xaxis, ax.yaxis):
        for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
            texts.append(tick.label1)
    colours = {to_hex(text.get_color()) for text in texts if text.get_text()}
    assert colours <= {theme["muted"], theme["ink"]}
