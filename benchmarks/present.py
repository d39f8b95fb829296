"""The figures of a benchmark: for results/, as a table, and as verdicts against an older file."""

import json
import pathlib
import shlex
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks.common import FIGURES
from benchmarks.machine import Peaks
from vae_jax import cli
from vae_jax.config import UserError
from vae_jax.tools import results
from vae_jax.train import log

LEAST = 0.02  # a smaller change of the median is none, however small the spreads are

Row = dict[str, Any]  # cells.Cell.row
Summary = dict[str, Any]  # summary()'s


class Measured(NamedTuple):
    """Everything that a benchmark measured."""

    rows: list[Row]
    summaries: list[Summary]
    measured: Peaks
    published: Peaks | None

    def pairs(self) -> list[tuple[Row, Summary]]:
        return list(zip(self.rows, self.summaries, strict=True))


def shares(row: Row) -> int:
    """By how many devices' peaks a cell is judged; virtual CPU devices share one machine."""
    return 1 if jax.default_backend() == "cpu" else row["devices"]


def summary(row: Row, measured: Peaks, published: Peaks | None) -> Summary:
    """What follows from a cell's windows; {} where it failed.

    ``flops_per_s`` counts dense and convolutional layers, which the model needs whatever the
    compiler does. ``share_of_peak`` is relative to the measured matrix products, ``mfu`` to the
    published ones, both in the cell's dtype. The roofline is min(peak, intensity x copy bandwidth),
    measured, with XLA's bytes.
    """
    if row["error"]:
        return {}
    step_S = np.array(row["windows"]["ours"])
    p10, median, p90 = np.quantile(step_S, (0.1, 0.5, 0.9))
    images = row["images"] / median
    flops = row["hand_flops_per_image"]
    speed = images * flops
    peak = shares(row) * measured[row["dtype"]]
    values = {
        "step_s": median,
        "p10_s": p10,
        "p90_s": p90,
        "images_per_s": images,
        "images_per_s_per_device": images / row["devices"],
        "flops_per_s": speed,
        "share_of_peak": speed / peak,
        "mfu": None,
    }
    if published:
        values["mfu"] = speed / (shares(row) * published[row["dtype"]])
    if row["bytes_per_image"]:
        copy = shares(row) * measured["bytes"]
        intensity = flops / row["bytes_per_image"]
        bytes_per_s = images * row["bytes_per_image"]
        values["intensity"] = intensity
        values["bytes_per_s"] = bytes_per_s
        values["share_of_copy"] = bytes_per_s / copy
        values["side"] = "compute" if intensity >= peak / copy else "memory"
        values["share_of_roofline"] = speed / min(peak, intensity * copy)
    return values | _against_peers(row, step_S)


def _against_peers(row: Row, step_S: np.ndarray) -> Summary:
    """Throughput of the peers' lanes, and the ratios to the best, window by window of a round."""
    peers = {name: np.array(w) for name, w in row["windows"].items() if name != "ours"}
    if not peers:
        return {}
    medians = {name: float(np.median(seconds)) for name, seconds in peers.items()}
    best = min(medians, key=medians.get)
    return {
        "peers": {name: row["images"] / seconds for name, seconds in medians.items()},
        "best_peer": best,
        "ratios": (peers[best] / step_S).tolist(),
    }


def _spread(values: list[float]) -> float:
    """The standard deviation of a normal distribution with these 10th and 90th percentiles."""
    low, high = np.quantile(values, (0.1, 0.9))
    return float(high - low) / 2.5631


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


# --- figures -------------------------------------------------------------------------------------


def figures(report: Measured, load: list[float]) -> FIGURES:
    """{'batch=20.step_ms': figure, ...} of all cells, null where a cell failed.

    ``load``: runnable processes before the first cell and after the last window.
    """
    peaks = report.measured
    values = {
        "machine.float32": results.figure(peaks["float32"] / 1e9, "GFLOP/s"),
        "machine.bfloat16": results.figure(peaks["bfloat16"] / 1e9, "GFLOP/s"),
        "machine.copy": results.figure(peaks["bytes"] / 1e9, "GB/s"),
        "machine.load": results.figure(load[0], "processes"),
        "machine.load_after": results.figure(load[1], "processes"),
    }
    for row, s in report.pairs():
        cell = {"step_ms": results.figure(None, "ms")}
        if s:
            cell = _timings(row, s) | _sizes(row) | _efficiency(row, s) | _peer_figures(row, s)
        values |= {f"{row['key']}.{name}": figure for name, figure in cell.items()}
    return values


def _timings(row: Row, s: Summary) -> FIGURES:
    windows = row["windows"]["ours"]
    n = len(windows)
    sd = _spread(windows)
    images = s["images_per_s"]
    images_sd = images * sd / s["step_s"]
    return {
        "step_ms": results.figure(1e3 * s["step_s"], "ms", sd=1e3 * sd, n=n),
        "p10_ms": results.figure(1e3 * s["p10_s"], "ms", n=n),
        "p90_ms": results.figure(1e3 * s["p90_s"], "ms", n=n),
        "images_per_s": results.figure(images, "images/s", sd=images_sd, n=n),
        "images_per_s_per_device": results.figure(s["images_per_s_per_device"], "images/s", n=n),
        "lower_s": results.figure(row["lower_s"], "s"),
        "cold_compile_s": results.figure(row["cold_s"], "s"),
        "warm_compile_s": results.figure(row["warm_s"], "s"),
        "first_call_ms": results.figure(1e3 * row["first_s"], "ms"),
    }


def _sizes(row: Row) -> FIGURES:
    return {
        "hand_mflop": results.figure(row["hand_flops_per_image"] / 1e6, "MFLOP/image"),
        "xla_mflop": results.figure(_scaled(row["xla_flops_per_image"], 1e-6), "MFLOP/image"),
        "xla_mb": results.figure(_scaled(row["bytes_per_image"], 1e-6), "MB/image"),
        "temp_mb": results.figure(row["temp_bytes"] / 1e6, "MB"),
        "peak_mb": results.figure(row["peak_bytes"] / 1e6, "MB"),
    }


def _efficiency(row: Row, s: Summary) -> FIGURES:
    n = len(row["windows"]["ours"])
    roofline = s.get("share_of_roofline")
    return {
        "share_of_peak": results.figure(s["share_of_peak"], "of measured products", n=n),
        "mfu": results.figure(s["mfu"], "of published products", n=n),
        "gb_per_s": results.figure(_scaled(s.get("bytes_per_s"), 1e-9), "GB/s", n=n),
        "share_of_copy": results.figure(s.get("share_of_copy"), "of measured copy", n=n),
        "share_of_roofline": results.figure(roofline, "of measured roofline", n=n),
    }


def _peer_figures(row: Row, s: Summary) -> FIGURES:
    if "ratios" not in s:
        return {}
    n = len(s["ratios"])
    median = float(np.median(s["ratios"]))
    ratio = results.figure(median, "ours / best peer", sd=_spread(s["ratios"]), n=n)
    values = {
        "ratio": ratio,
        "peer_loss_gap": results.figure(row["peer_loss_gap"], "relative"),
        "peer_gradient_gap": results.figure(row["peer_gradient_gap"], "relative"),
    }
    for name, images in s["peers"].items():
        values[f"{name}.images_per_s"] = results.figure(images, "images/s", n=n)
    return values


# --- the terminal --------------------------------------------------------------------------------


def _text(value: float | None) -> str:
    """Three digits, or a dash where there is no figure."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _percent(value: float | None, digits: int = 0) -> str:
    return "-" if value is None else f"{value:.{digits}%}"


def _roofline_text(row: Row, s: Summary) -> str:
    return f"{s['share_of_roofline']:.0%} {s['side']}" if "side" in s else "-"


def _peer_text(row: Row, s: Summary) -> str:
    if "ratios" not in s:
        return "-"
    return f"{np.median(s['ratios']):.2f} ± {_spread(s['ratios']):.2f} {s['best_peer']}"


def _flops_text(row: Row, s: Summary) -> str:
    xla = _text(_scaled(row["xla_flops_per_image"], 1e-6))
    return f"{_text(row['hand_flops_per_image'] / 1e6)}, {xla}"


COLUMNS: dict[str, Callable[[Row, Summary], str]] = {
    "cell": lambda r, s: r["key"],
    "lower s": lambda r, s: _text(r["lower_s"]),
    "cold s": lambda r, s: _text(r["cold_s"]),
    "warm s": lambda r, s: _text(r["warm_s"]),
    "first ms": lambda r, s: _text(1e3 * r["first_s"]),
    "step ms": lambda r, s: _text(1e3 * s["step_s"]),
    "p10-p90": lambda r, s: f"{_text(1e3 * s['p10_s'])}-{_text(1e3 * s['p90_s'])}",
    "images/s": lambda r, s: f"{s['images_per_s']:,.0f}",
    "/device": lambda r, s: f"{s['images_per_s_per_device']:,.0f}",
    "MFLOP/image, XLA": _flops_text,
    "GFLOP/s": lambda r, s: _text(s["flops_per_s"] / 1e9),
    "of peak": lambda r, s: _percent(s["share_of_peak"]),
    "MFU": lambda r, s: _percent(s["mfu"], 1),
    "GB/s": lambda r, s: _text(_scaled(s.get("bytes_per_s"), 1e-9)),
    "of copy": lambda r, s: _percent(s.get("share_of_copy")),
    "of roofline": _roofline_text,
    "peak MB, temp": lambda r, s: f"{_text(r['peak_bytes'] / 1e6)}, {_text(r['temp_bytes'] / 1e6)}",
    "ours / best peer": _peer_text,
}


def columns(report: Measured) -> tuple[list[str], list[list[str]]]:
    """(heads, texts of each row); a failed cell has its reason; columns of dashes are left out."""
    texts = []
    used = {"cell"}
    for row, s in report.pairs():
        if not s:
            texts.append({"cell": row["key"]})
            continue
        texts.append({head: show(row, s) for head, show in COLUMNS.items()})
        used |= {head for head, text in texts[-1].items() if text != "-"}
    heads = [head for head in COLUMNS if head in used]
    lines = []
    for row, text in zip(report.rows, texts, strict=True):
        if row["error"]:
            lines.append([row["key"], row["error"]])
        else:
            lines.append([text[head] for head in heads])
    return heads, lines


def table(report: Measured) -> str:
    """The cells as lines of text."""
    heads, texts = columns(report)
    widths = [len(head) for head in heads]
    for row, cells in zip(report.rows, texts, strict=True):
        widths[0] = max(widths[0], len(cells[0]))
        if not row["error"]:
            widths = [max(w, len(text)) for w, text in zip(widths, cells, strict=True)]
    lines = [_aligned(heads, widths)]
    for row, cells in zip(report.rows, texts, strict=True):
        if row["error"]:
            lines.append(f"{cells[0]:<{widths[0]}}  failed: {cells[1]}")
        else:
            lines.append(_aligned(cells, widths))
    return "\n".join(lines)


def _aligned(cells: list[str], widths: list[int]) -> str:
    """The first cell to the left, the others to the right."""
    texts = [f"{cells[0]:<{widths[0]}}"]
    for text, width in zip(cells[1:], widths[1:], strict=True):
        texts.append(f"{text:>{width}}")
    return "  ".join(texts)


# --- against an older file -----------------------------------------------------------------------

Verdict = tuple[str, str, str]  # cell, verdict, in words


def compare(old: FIGURES, new: FIGURES) -> list[Verdict]:
    """[(cell, verdict, in words)] for every cell of ``old`` and of ``new``.

    - 'slower', 'faster': the intervals from the 10th to the 90th percentile do not meet, and the
      medians are more than :data:`LEAST` apart;
    - 'fails': it was measured, and now it cannot be; 'runs': the other way round;
    - 'absent': it is not in ``new``; 'new': it is not in ``old``; 'same': none of these.

    'slower' and 'fails' are regressions.
    """
    verdicts = []
    for key in dict.fromkeys((*old, *new)):
        cell, dot, name = key.rpartition(".")
        if not dot or name != "step_ms":
            continue
        if key not in old:
            verdicts.append((cell, "new", "not in the older file"))
        elif key not in new:
            verdicts.append((cell, "absent", "not measured now"))
        else:
            verdicts.append((cell, *_change(cell, old, new)))
    return verdicts


def _change(cell: str, old: FIGURES, new: FIGURES) -> tuple[str, str]:
    """(verdict, in words) of a cell that is in both."""
    before = old[f"{cell}.step_ms"]["value"]
    now = new[f"{cell}.step_ms"]["value"]
    words = f"{_text(before)} -> {_text(now)} ms"
    if now is None:
        return ("same" if before is None else "fails"), words
    if before is None:
        return "runs", words
    change = now / before - 1
    words = f"{words}, {change:+.1%}"
    if new[f"{cell}.p10_ms"]["value"] > old[f"{cell}.p90_ms"]["value"] and change > LEAST:
        return "slower", words
    if new[f"{cell}.p90_ms"]["value"] < old[f"{cell}.p10_ms"]["value"] and change < -LEAST:
        return "faster", words
    return "same", words


def regressed(verdicts: list[Verdict]) -> bool:
    return any(verdict in ("slower", "fails") for _, verdict, _ in verdicts)


def read_old(
    path: str | pathlib.Path, keys: list[str], config: str, pairs: list[tuple[str, str]]
) -> tuple[dict[str, Any], list[str]]:
    """(an older result, lines about what else differs from now).

    Args:
      path: the file of the older result.
      keys: of the cells to be measured now.
      config: path of the config file.
      pairs: its overrides, [(field, text)].
    Raises:
      UserError: it is no result, has none of the cells, or is of another config or device.
    """
    old = results.read(path)
    device = results.device()
    if not any(f"{key}.step_ms" in old["figures"] for key in keys):
        raise UserError(f"compare={path}: has none of these cells; want a file of the same sweep")
    old_config = pathlib.PurePath(str(old["config"])).stem
    name = pathlib.PurePath(config).stem
    if old_config != name:
        raise UserError(f"compare={path}: is of config {old_config}; want one of {name}")
    if old["device"] != device:
        raise UserError(
            f"compare={path}: was measured on {old['device']}; want one of this device, {device}"
        )
    notes = []
    for package, now in results.versions().items():
        before = old["versions"].get(package)
        if before != now:
            notes.append(f"{package} {before} then, {now} now")
    then = dict(cli.overrides(shlex.split(old["command"])))
    now = dict(pairs)
    for field in sorted(set(then) | set(now)):
        if then.get(field) != now.get(field):
            words = [values.get(field, "as on the page") for values in (then, now)]
            notes.append(f"{field}: {words[0]} then, {words[1]} now")
    return old, notes


def write_lines(path: str, facts: dict[str, Any], report: Measured) -> None:
    """Everything, window by window: a line of the facts, then a line for each cell."""
    peaks = {"measured": report.measured, "published": report.published}
    lines = [facts | peaks]
    for row, s in report.pairs():
        lines.append(row | {"summary": s})
    log.replace(path, "".join(json.dumps(line) + "\n" for line in lines).encode())
