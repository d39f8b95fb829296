"""What was measured, as figures of results/, as a table, as verdicts against an older file, and as a page."""

import json
import os
import pathlib
import shlex

import jax
import numpy as np

from vae_jax import cli as flags
from vae_jax.config import UserError
from vae_jax.report import pictures as draw
from vae_jax.tools import results
from vae_jax.train import log

LEAST = 0.02  # a change of the median below this is none, however small the spreads are


def summary(row, measured, published):
    """What follows from a cell's windows: {} where it failed.

    ``flops`` are those of dense and convolutional layers, which the model needs and no compiler invents;
    ``share_of_peak`` is theirs of the measured matrix products, ``mfu`` of the published ones, both in the
    cell's dtype. The roofline is min(peak, intensity x copy bandwidth), measured, with XLA's bytes.
    """
    if row["error"]:
        return {}
    step_S = np.array(row["windows"]["ours"])
    low, middle, high = np.quantile(step_S, (0.1, 0.5, 0.9))
    images, flops = row["images"] / middle, row["hand_flops_per_image"]
    whole = 1 if jax.default_backend() == "cpu" else row["devices"]  # virtual CPU devices share one machine
    peak, copy = (whole * measured[k] for k in (row["dtype"], "bytes"))
    found = {
        "step_s": middle,
        "p10_s": low,
        "p90_s": high,
        "images_per_s": images,
        "images_per_s_per_device": images / row["devices"],
        "flops_per_s": images * flops,
        "share_of_peak": images * flops / peak,
        "mfu": images * flops / (whole * published[row["dtype"]]) if published else None,
    }
    if row["bytes_per_image"]:
        intensity = flops / row["bytes_per_image"]
        found |= {
            "intensity": intensity,
            "bytes_per_s": images * row["bytes_per_image"],
            "share_of_copy": images * row["bytes_per_image"] / copy,
            "side": "compute" if intensity >= peak / copy else "memory",
            "share_of_roofline": images * flops / min(peak, intensity * copy),
        }
    others = {name: np.array(w) for name, w in row["windows"].items() if name != "ours"}
    if others:
        best = min(others, key=lambda name: np.median(others[name]))
        found |= {
            "peers": {name: row["images"] / float(np.median(w)) for name, w in others.items()},
            "best_peer": best,
            "ratios": (others[best] / step_S).tolist(),  # window by window of the same round
        }
    return found


def _spread(values):
    """The standard deviation of a normal distribution with these values' 10th and 90th percentile."""
    low, high = np.quantile(values, (0.1, 0.9))
    return float(high - low) / 2.5631


def figures(rows, summaries, measured, load):
    """{key: results.figure} of all cells: 'batch=20.step_ms' and so on, null where a cell failed.

    ``load``: processes that wanted to run, (before the first cell, after the last window).
    """
    made = {
        "machine.float32": results.figure(measured["float32"] / 1e9, "GFLOP/s"),
        "machine.bfloat16": results.figure(measured["bfloat16"] / 1e9, "GFLOP/s"),
        "machine.copy": results.figure(measured["bytes"] / 1e9, "GB/s"),
        "machine.load": results.figure(load[0], "processes"),
        "machine.load_after": results.figure(load[1], "processes"),
    }
    for row, s in zip(rows, summaries, strict=True):
        key = row["key"]
        if row["error"]:
            made[f"{key}.step_ms"] = results.figure(None, "ms")
            continue
        windows = row["windows"]["ours"]
        n, sd = len(windows), _spread(windows)
        cell = {
            "step_ms": results.figure(1e3 * s["step_s"], "ms", sd=1e3 * sd, n=n),
            "p10_ms": results.figure(1e3 * s["p10_s"], "ms", n=n),
            "p90_ms": results.figure(1e3 * s["p90_s"], "ms", n=n),
            "images_per_s": results.figure(s["images_per_s"], "images/s", sd=s["images_per_s"] * sd / s["step_s"], n=n),
            "images_per_s_per_device": results.figure(s["images_per_s_per_device"], "images/s", n=n),
            "lower_s": results.figure(row["lower_s"], "s"),
            "cold_compile_s": results.figure(row["cold_s"], "s"),
            "warm_compile_s": results.figure(row["warm_s"], "s"),
            "first_call_ms": results.figure(1e3 * row["first_s"], "ms"),
            "hand_mflop": results.figure(row["hand_flops_per_image"] / 1e6, "MFLOP/image"),
            "xla_mflop": results.figure(_scaled(row["xla_flops_per_image"], 1e6), "MFLOP/image"),
            "xla_mb": results.figure(_scaled(row["bytes_per_image"], 1e6), "MB/image"),
            "temp_mb": results.figure(row["temp_bytes"] / 1e6, "MB"),
            "peak_mb": results.figure(row["peak_bytes"] / 1e6, "MB"),
            "share_of_peak": results.figure(s["share_of_peak"], "of measured products", n=n),
            "mfu": results.figure(s["mfu"], "of published products", n=n),
            "gb_per_s": results.figure(_scaled(s.get("bytes_per_s"), 1e9), "GB/s", n=n),
            "share_of_copy": results.figure(s.get("share_of_copy"), "of measured copy", n=n),
            "share_of_roofline": results.figure(s.get("share_of_roofline"), "of measured roofline", n=n),
        }
        if "ratios" in s:
            ratio = results.figure(float(np.median(s["ratios"])), "ours / best peer", sd=_spread(s["ratios"]), n=n)
            cell |= {
                "ratio": ratio,
                "peer_loss_gap": results.figure(row["peer_loss_gap"], "relative"),
                "peer_gradient_gap": results.figure(row["peer_gradient_gap"], "relative"),
            }
            for name, images in s["peers"].items():
                cell[f"{name}.images_per_s"] = results.figure(images, "images/s", n=n)
        made |= {f"{key}.{name}": one for name, one in cell.items()}
    return made


def _scaled(value, by):
    return None if value is None else value / by


# --- the terminal --------------------------------------------------------------------------------

COLUMNS = {
    "cell": lambda r, s: r["key"],
    "lower s": lambda r, s: _text(r["lower_s"]),
    "cold s": lambda r, s: _text(r["cold_s"]),
    "warm s": lambda r, s: _text(r["warm_s"]),
    "first ms": lambda r, s: _text(1e3 * r["first_s"]),
    "step ms": lambda r, s: _text(1e3 * s["step_s"]),
    "p10-p90": lambda r, s: f"{_text(1e3 * s['p10_s'])}-{_text(1e3 * s['p90_s'])}",
    "images/s": lambda r, s: f"{s['images_per_s']:,.0f}",
    "/device": lambda r, s: f"{s['images_per_s_per_device']:,.0f}",
    "MFLOP/image, XLA": lambda r, s: (
        f"{_text(r['hand_flops_per_image'] / 1e6)}, {_text(_scaled(r['xla_flops_per_image'], 1e6))}"
    ),
    "GFLOP/s": lambda r, s: _text(s["flops_per_s"] / 1e9),
    "of peak": lambda r, s: f"{s['share_of_peak']:.0%}",
    "MFU": lambda r, s: "-" if s["mfu"] is None else f"{s['mfu']:.1%}",
    "GB/s": lambda r, s: _text(_scaled(s.get("bytes_per_s"), 1e9)),
    "of copy": lambda r, s: f"{s['share_of_copy']:.0%}" if "share_of_copy" in s else "-",
    "of roofline": lambda r, s: f"{s['share_of_roofline']:.0%} {s['side']}" if "side" in s else "-",
    "peak MB, temp": lambda r, s: f"{_text(r['peak_bytes'] / 1e6)}, {_text(r['temp_bytes'] / 1e6)}",
    "ours / best peer": lambda r, s: (
        f"{np.median(s['ratios']):.2f} ± {_spread(s['ratios']):.2f} {s['best_peer']}" if "ratios" in s else "-"
    ),
}


def _text(value):
    """Three digits, or a dash where there is no figure."""
    return "-" if value is None else f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def columns(rows, summaries):
    """(the heads, the texts of each row); a failed cell has its reason instead. Columns of dashes are left out."""
    texts = [
        None if row["error"] else [show(row, s) for show in COLUMNS.values()]
        for row, s in zip(rows, summaries, strict=True)
    ]
    used = [i for i in range(len(COLUMNS)) if any(t and t[i] != "-" for t in texts)] or [0]
    kept = [[t[i] for i in used] if t else [row["key"], row["error"]] for row, t in zip(rows, texts, strict=True)]
    return [list(COLUMNS)[i] for i in used], kept


def table(rows, summaries):
    """The cells as lines of text."""
    heads, texts = columns(rows, summaries)
    good = [heads, *(t for row, t in zip(rows, texts, strict=True) if not row["error"])]
    first = max(len(t[0]) for t in [heads, *texts])
    widths = [first, *(max(map(len, column)) for column in list(zip(*good, strict=True))[1:])]
    lines = []
    for row, t in zip([None, *rows], [heads, *texts], strict=True):
        if row and row["error"]:
            lines.append(f"{t[0]:<{first}}  failed: {t[1]}")
        else:
            lines.append(
                "  ".join([f"{t[0]:<{first}}", *(f"{x:>{w}}" for x, w in zip(t[1:], widths[1:], strict=True))])
            )
    return "\n".join(lines)


# --- against an older file -----------------------------------------------------------------------


def compare(old, new):
    """[(cell, verdict, in words)] for every cell of ``old`` and of ``new``, two ``figures`` of results/.

    - 'slower', 'faster': the intervals from the 10th to the 90th percentile of the two do not meet, and the
      medians are more than :data:`LEAST` apart;
    - 'fails': it was measured, and now it cannot be; 'runs': the other way round;
    - 'absent': it is not in ``new``; 'new': it is not in ``old``; 'same': none of these.

    'slower' and 'fails' are regressions.
    """
    found = []
    for key in dict.fromkeys((*old, *new)):
        cell, dot, name = key.rpartition(".")
        if not dot or name != "step_ms":
            continue
        if key not in old:
            found.append((cell, "new", "not in the older file"))
            continue
        before = old[key]["value"]
        if key not in new:
            found.append((cell, "absent", "not measured now"))
            continue
        now = new[key]["value"]
        if before is None or now is None:
            verdict = "same" if before == now else "fails" if now is None else "runs"
            found.append((cell, verdict, f"{_text(before)} -> {_text(now)} ms"))
            continue
        (old_low, old_high), (low, high) = ([f[f"{cell}.{p}_ms"]["value"] for p in ("p10", "p90")] for f in (old, new))
        change = now / before - 1
        verdict = "slower" if low > old_high and change > LEAST else "same"
        verdict = "faster" if high < old_low and change < -LEAST else verdict
        found.append((cell, verdict, f"{_text(before)} -> {_text(now)} ms, {change:+.1%}"))
    return found


def regressed(verdicts):
    return any(verdict in ("slower", "fails") for _, verdict, _ in verdicts)


def read_old(path, keys, config, pairs):
    """(an older result that has one of these cells at least, lines that say what else is other than it was).

    Args:
      config: the page of the config; pairs: its overrides, [(field, text)].
    Raises:
      UserError: it is no result, has none of the cells, or is of another config or device: no step to compare with.
    """
    old, device = results.read(path), results.device()
    if not any(f"{key}.step_ms" in old["figures"] for key in keys):
        raise UserError(f"compare={path}: has none of these cells; want a file of the same sweep")
    stem = lambda page: pathlib.PurePath(str(page)).stem  # noqa: E731
    if stem(old["config"]) != stem(config):
        raise UserError(f"compare={path}: is of config {stem(old['config'])}; want one of {stem(config)}")
    if old["device"] != device:
        raise UserError(f"compare={path}: was measured on {old['device']}; want one of this device, {device}")
    before, now = old["versions"], results.versions()
    notes = [f"{name} {before.get(name)} then, {now[name]} now" for name in now if before.get(name) != now[name]]
    words = [dict(flags.overrides(shlex.split(old["command"]))), dict(pairs)]
    for field in sorted(set(words[0]) | set(words[1])):
        then, given = (w.get(field, "as on the page") for w in words)
        notes += [f"{field}: {then} then, {given} now"] if then != given else []
    return old, notes


# --- files ---------------------------------------------------------------------------------------


def write_lines(path, facts, rows, summaries):
    """Everything, window by window: a line of the machine's facts, then a line for each cell."""
    lines = [facts, *(row | {"summary": s} for row, s in zip(rows, summaries, strict=True))]
    log.replace(path, "".join(json.dumps(line) + "\n" for line in lines).encode())


def _draw_roofline(theme, rows, summaries, measured, published):
    figure = draw.new_figure(5.6, 4)
    ax = figure.subplots()
    draw.style_axes(ax, theme)
    ax.set(xscale="log", yscale="log")
    good = [(r, s) for r, s in zip(rows, summaries, strict=True) if "intensity" in s]
    at = [s["intensity"] for _, s in good]
    whole = [1 if jax.default_backend() == "cpu" else r["devices"] for r, _ in good]
    for i, dtype in enumerate(sorted({r["dtype"] for r, _ in good})):
        for n in sorted(set(whole)):
            for peaks, style in ((measured, "-"), (published, ":")):
                if peaks:
                    ridge = peaks[dtype] / peaks["bytes"]
                    x = np.geomspace(min(*at, ridge) / 3, max(*at, ridge) * 5, 200)
                    roof = n * np.minimum(peaks[dtype], x * peaks["bytes"]) / 1e9
                    ax.plot(x, roof, style, color=theme["muted"], linewidth=1.3)
                    name = f"{dtype}{f' x {n}' if n > 1 else ''}, {'measured' if style == '-' else 'published'}"
                    above = -10 if i == 0 else 4  # bfloat16 under its line, float32 over its own
                    ax.annotate(name, (x[-1], roof[-1]), (0, above), textcoords="offset points", ha="right")
                    ax.texts[-1].set(fontsize=7.5, color=theme["muted"])
    for i, (r, s) in enumerate(good):
        colour, marker = draw.CLASS_COLOURS[i % 10], draw.MARKERS[i // 10 % len(draw.MARKERS)]
        ax.plot(s["intensity"], s["flops_per_s"] / 1e9, marker, linestyle="", color=colour, label=r["key"])
    ax.set_xlabel("FLOP of dense and convolutional layers for each byte that XLA counts", fontsize=8)
    ax.set_ylabel("GFLOP/s", fontsize=8)
    _legend(figure, ax, theme)
    return figure


def _draw_throughput(theme, rows, summaries):
    from matplotlib import ticker

    figure = draw.new_figure(5.6, 4)
    ax = figure.subplots()
    draw.style_axes(ax, theme)
    ax.set(xscale="log", yscale="log")
    series = {}
    for row, s in zip(rows, summaries, strict=True):
        if s:
            rest = ",".join(f"{f}={v}" for f, v in row["fields"].items() if f != "batch") or "ours"
            point = (row["batch"], s["images_per_s"], row["images"] / s["p90_s"], row["images"] / s["p10_s"])
            series.setdefault((rest, "-"), []).append(point)
            for name, images in s.get("peers", {}).items():
                series.setdefault((f"{name}{'' if rest == 'ours' else f', {rest}'}", "--"), []).append(
                    (row["batch"], images, images, images)
                )
    for i, ((name, style), points) in enumerate(series.items()):
        batch, middle, low, high = map(np.array, zip(*sorted(points), strict=True))
        colour = draw.CLASS_COLOURS[i % 10]
        ax.errorbar(
            batch, middle, (middle - low, high - middle), fmt=f"o{style}", color=colour, markersize=4, label=name
        )
    batches = sorted({row["batch"] for row in rows if not row["error"]})
    ax.set_xticks(batches, [f"{b:,}" for b in batches])
    ax.minorticks_off()
    ax.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(ticker.EngFormatter(sep=""))
    ax.set_xlabel("batch", fontsize=8)
    ax.set_ylabel("images/s, median; bars to the 10th and 90th percentile", fontsize=8)
    _legend(figure, ax, theme)
    return figure


def _legend(figure, ax, theme):
    for label in (ax.xaxis.label, ax.yaxis.label):
        label.set_color(theme["muted"])
    count = len(ax.get_legend_handles_labels()[0])
    if 1 <= count <= 24:
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=7.5, labelcolor=theme["ink"])


def page(folder, *, title, facts, rows, summaries, measured, published, verdicts=()):
    """Write ``folder/index.html``: the two pictures, the table, and how it was measured; the path of it.

    Args:
      facts: {name: text} of the machine and the command.
      verdicts: :func:`compare`'s.
    """
    import jinja2

    heads, texts = columns(rows, summaries)
    pictures = {}
    if any("intensity" in s for s in summaries):
        pictures["roofline"] = draw.both(lambda t: _draw_roofline(t, rows, summaries, measured, published))
    if any(summaries):
        pictures["throughput"] = draw.both(lambda t: _draw_throughput(t, rows, summaries))
    loader = jinja2.FileSystemLoader(os.path.join(os.path.dirname(draw.__file__), "templates"))
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    html = environment.get_template("benchmark.html.j2").render(
        title=title,
        facts=facts,
        heads=heads,
        rows=[(bool(row["error"]), text) for row, text in zip(rows, texts, strict=True)],
        pictures=pictures,
        verdicts=verdicts,
        light=draw.LIGHT,
        dark=draw.DARK,
    )
    index = os.path.join(folder, "index.html")
    log.replace(index, html.encode())
    return index
