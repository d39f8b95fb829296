"""The page of a benchmark: roofline, throughput, the table, and how it was measured."""

import os
from typing import Any

import jinja2
import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks import present
from benchmarks.machine import Peaks
from vae_jax.report import pictures
from vae_jax.train import log

Theme = dict[str, str]  # name of a part of the page -> colour


def new_axes(theme: Theme) -> tuple[Figure, Axes]:
    """A figure with logarithmic axes in the theme's colours.

    Axes shorter than a decade label their minor ticks too.
    """
    figure = pictures.new_figure(5.6, 4)
    ax = figure.subplots()
    pictures.style_axes(ax, theme)
    ax.set(xscale="log", yscale="log")
    ax.tick_params(which="both", colors=theme["muted"], length=0, labelsize=8)
    return figure, ax


def draw_roofline(theme: Theme, report: present.Measured) -> Figure:
    """FLOP/s against intensity: the cells beneath the measured and the published roofs."""
    figure, ax = new_axes(theme)
    pairs = [(row, s) for row, s in report.pairs() if "intensity" in s]
    intensities = [s["intensity"] for _, s in pairs]
    counts = sorted({present.shares(row) for row, _ in pairs})
    for i, dtype in enumerate(sorted({row["dtype"] for row, _ in pairs})):
        above = -10 if i == 0 else 4  # bfloat16 under its line, float32 over its own
        for devices in counts:
            name = f"{dtype} x {devices}" if devices > 1 else dtype
            x, roof = roof_line(report.measured, dtype, devices, intensities)
            draw_roof(ax, theme, x, roof, f"{name}, measured", "-", above)
            if report.published:
                x, roof = roof_line(report.published, dtype, devices, intensities)
                draw_roof(ax, theme, x, roof, f"{name}, published", ":", above)
    for i, (row, s) in enumerate(pairs):
        colour = pictures.CLASS_COLOURS[i % 10]
        marker = pictures.MARKERS[i // 10 % len(pictures.MARKERS)]
        speed = s["flops_per_s"] / 1e9
        ax.plot(s["intensity"], speed, marker, linestyle="", color=colour, label=row["key"])
    words = "FLOP of dense and convolutional layers for each byte that XLA counts"
    ax.set_xlabel(words, fontsize=8)
    ax.set_ylabel("GFLOP/s", fontsize=8)
    add_legend(figure, ax, theme)
    return figure


def roof_line(
    peaks: Peaks, dtype: str, devices: int, intensities: list[float]
) -> tuple[np.ndarray, np.ndarray]:
    """(intensities around the cells' and the ridge, the roof in GFLOP/s there)."""
    ridge = peaks[dtype] / peaks["bytes"]
    x = np.geomspace(min(*intensities, ridge) / 3, max(*intensities, ridge) * 5, 200)
    return x, devices * np.minimum(peaks[dtype], x * peaks["bytes"]) / 1e9


def draw_roof(
    ax: Axes, theme: Theme, x: np.ndarray, roof: np.ndarray, name: str, style: str, above: int
) -> None:
    """Draw one roof and its name at the right end, ``above`` points over the line."""
    ax.plot(x, roof, style, color=theme["muted"], linewidth=1.3)
    ax.annotate(
        name,
        (x[-1], roof[-1]),
        (0, above),
        textcoords="offset points",
        ha="right",
        fontsize=7.5,
        color=theme["muted"],
    )


def throughput_series(report: present.Measured) -> dict[tuple[str, str], list[tuple]]:
    """{(name, line style): [(batch, images/s, at p90, at p10), ...]} of ours and the peers."""
    series = {}
    for row, s in report.pairs():
        if not s:
            continue
        batch = row["batch"]
        images = row["images"]
        fields = [f"{field}={v}" for field, v in row["fields"].items() if field != "batch"]
        rest = ",".join(fields)
        point = (batch, s["images_per_s"], images / s["p90_s"], images / s["p10_s"])
        series.setdefault((rest or "ours", "-"), []).append(point)
        for peer, speed in s.get("peers", {}).items():
            name = f"{peer}, {rest}" if rest else peer
            series.setdefault((name, "--"), []).append((batch, speed, speed, speed))
    return series


def draw_throughput(theme: Theme, report: present.Measured) -> Figure:
    """Images per second against the batch; broken lines are peers."""
    figure, ax = new_axes(theme)
    for i, ((name, style), points) in enumerate(throughput_series(report).items()):
        batch, middle, low, high = np.array(sorted(points)).T
        ax.errorbar(
            batch,
            middle,
            (middle - low, high - middle),
            fmt=f"o{style}",
            color=pictures.CLASS_COLOURS[i % 10],
            markersize=4,
            label=name,
        )
    batches = sorted({row["batch"] for row in report.rows if not row["error"]})
    ax.set_xticks(batches, [f"{b:,}" for b in batches])
    ax.minorticks_off()
    ax.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(ticker.EngFormatter(sep=""))
    ax.set_xlabel("batch", fontsize=8)
    ax.set_ylabel("images/s, median; bars to the 10th and 90th percentile", fontsize=8)
    add_legend(figure, ax, theme)
    return figure


def add_legend(figure: Figure, ax: Axes, theme: Theme) -> None:
    """Colour the axes' labels, and add a legend of up to 24 entries below."""
    ax.xaxis.label.set_color(theme["muted"])
    ax.yaxis.label.set_color(theme["muted"])
    handles, _ = ax.get_legend_handles_labels()
    if 1 <= len(handles) <= 24:
        figure.legend(
            loc="outside lower center",
            ncols=2,
            frameon=False,
            fontsize=7.5,
            labelcolor=theme["ink"],
        )


def draw_pictures(report: present.Measured) -> dict[str, dict[str, str]]:
    """{'roofline', 'throughput': {'light', 'dark': data URI}}, where there is something to draw."""

    def roofline(theme: Theme) -> Figure:
        return draw_roofline(theme, report)

    def throughput(theme: Theme) -> Figure:
        return draw_throughput(theme, report)

    both = {}
    if any("intensity" in s for s in report.summaries):
        both["roofline"] = pictures.both(roofline)
    if any(report.summaries):
        both["throughput"] = pictures.both(throughput)
    return both


def write(
    folder: str,
    title: str,
    facts: dict[str, Any],
    report: present.Measured,
    verdicts: list[present.Verdict],
) -> str:
    """Write ``folder/index.html``: the two pictures, the table, and the facts; its path."""
    heads, texts = present.columns(report)
    rows = []
    for row, text in zip(report.rows, texts, strict=True):
        rows.append((bool(row["error"]), text))
    templates = os.path.join(os.path.dirname(pictures.__file__), "templates")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(templates),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = environment.get_template("benchmark.html.j2").render(
        title=title,
        facts=facts,
        heads=heads,
        rows=rows,
        pictures=draw_pictures(report),
        verdicts=verdicts,
        light=pictures.LIGHT,
        dark=pictures.DARK,
    )
    index = os.path.join(folder, "index.html")
    log.replace(index, html.encode())
    return index
