"""The result of a study: one page, and one table as Markdown, CSV and LaTeX.

A study that goes on has a page too: entries whose cells are missing say so.
"""

from __future__ import annotations

import csv
import io
import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from vae_jax.report import page, pictures
from vae_jax.tools import results
from vae_jax.train import log

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from vae_jax.tools.study import Study

Row = Mapping[str, Any]  # the file of a cell
Group = tuple[str, int]  # a method and a budget of labels, 0 being all

MISSING = "…"  # an entry none of whose cells is done


class Column(NamedTuple):
    title: str
    value: Callable[[Row], float | None]
    form: str
    unit: str = ""


class Table(NamedTuple):
    heading: str
    note: str
    head: list[str]
    body: list[list[str]]


def _metric(name: str) -> Callable[[Row], float | None]:
    """The metric of a cell, None where the cell has none."""

    def value(row: Row) -> float | None:
        return row["figures"].get(name)

    return value


def _positive(name: str, divisor: float = 1) -> Callable[[Row], float | None]:
    """The cost of a cell, None where nothing was trained."""

    def value(row: Row) -> float | None:
        return (row[name] or 0) / divisor or None

    return value


ACCURACY = Column("accuracy", _metric("accuracy"), ".2%")
METRICS = {
    "accuracy": ACCURACY,
    "cross_entropy": Column("cross-entropy, nats", _metric("cross_entropy_nats"), ".3f", "nats"),
    "ece": Column("ECE", _metric("ece"), ".3f"),
    "brier": Column("Brier", _metric("brier"), ".3f"),
    "macro_f1": Column("macro F1", _metric("macro_f1"), ".3f"),
    "kept_accuracy": Column("best 90%", _metric("kept_accuracy"), ".2%"),
}
COSTS = {
    "training_seconds": Column("training, s", _positive("training_seconds"), ",.0f", "s"),
    "images_per_s": Column("images/s", _positive("images_per_s"), ",.0f", "images / s"),
    "training_tflop": Column("TFLOP", _positive("training_flops", 1e12), ",.1f", "TFLOP"),
}
DETAIL = METRICS | COSTS
MEAN_NOTE = "On the test set, which each entry read once: mean ± standard deviation over seeds."
KEPT_NOTE = (
    f"{MEAN_NOTE} Best 90%: the accuracy where Bayes' rule answers for the nine tenths of the "
    "images that are most probable under it."
)
COST_NOTE = "Of one seed, with the run that it begins with; seeds of one program share its time."


def planned(study: Study) -> dict[Group, int]:
    """The number of seeds of each entry of the study."""
    seeds = {}
    for labels in study.budgets:
        for name, method in study.methods.items():
            if labels in (method.budgets or study.budgets):
                # Probes of pixels with every label are the same for all seeds.
                same = not labels and method.read.startswith("pixels")
                seeds[name, labels] = 1 if same else len(study.seeds)
    return seeds


def summary(rows: Sequence[Row], column: Column) -> dict[str, Any] | None:
    """Mean over seeds, with the sd of two or more; None where a cell has no such number."""
    values = list(map(column.value, rows))
    if None in values:
        return None
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return results.figure(float(np.mean(values)), column.unit, sd=sd, n=len(values))


def grouped(rows: Sequence[Row]) -> dict[Group, list[Row]]:
    """{(method, labels): rows of its seeds}."""
    groups = {}
    for row in rows:
        groups.setdefault((row["method"], row["labels"]), []).append(row)
    return groups


def named(labels: int) -> str:
    return f"{labels:,} labels" if labels else "all labels"


class _Entries:
    """The texts of a study's entries, of which some cells may be missing."""

    def __init__(self, study: Study, rows: Sequence[Row]) -> None:
        self.planned = planned(study)
        self.groups = grouped(rows)

    def text(self, group: Group, column: Column) -> str:
        """'–' where there is no such number, '…' where no cell is done, else mean ± sd."""
        if group not in self.planned:
            return "–"
        if group not in self.groups:
            return MISSING
        rows = self.groups[group]
        figure = summary(rows, column)
        if figure is None:
            return "–"
        text = results.show(figure, column.form)
        if len(rows) < self.planned[group]:
            text += f" ({len(rows)} of {self.planned[group]} seeds)"
        return text

    def line(self, title: str, groups: Sequence[Group], columns: Sequence[Column]) -> list[str]:
        line = [title]
        for group, column in itertools.product(groups, columns):
            line.append(self.text(group, column))
        return line


def tables(study: Study, rows: Sequence[Row]) -> list[Table]:
    """Accuracy by budget; then, of the budgets of ``detail``, all metrics, and the costs."""
    entries = _Entries(study, rows)
    body = []
    for name, method in study.methods.items():
        groups = [(name, labels) for labels in study.budgets]
        body.append(entries.line(method.title, groups, [ACCURACY]))
    result = [Table("Accuracy", MEAN_NOTE, ["method", *map(named, study.budgets)], body)]
    parts = (("With", KEPT_NOTE, METRICS), ("Training with", COST_NOTE, COSTS))
    for labels in study.budgets:
        for heading, note, columns in parts if labels in study.detail else ():
            body = []
            for name, method in study.methods.items():
                line = entries.line(method.title, [(name, labels)], [*columns.values()])
                if set(line[1:]) != {"–"}:
                    body.append(line)
            head = ["method", *(column.title for column in columns.values())]
            result.append(Table(f"{heading} {named(labels)}", note, head, body))
    return result


def published(study: Study, rows: Sequence[Row]) -> dict[str, Any]:
    """{'METHOD.LABELS.METRIC': figure}: accuracy everywhere, all of the budgets of ``detail``."""
    figures = {}
    for (name, labels), group in grouped(rows).items():
        columns = DETAIL if labels in study.detail else {"accuracy": ACCURACY}
        for key, column in columns.items():
            figure = summary(group, column) or results.figure(None, column.unit)
            figures[f"{name}.{labels or 'all'}.{key}"] = figure
    return figures


# --- files ---------------------------------------------------------------------------------------


def markdown(tables: Sequence[Table]) -> str:
    lines = []
    for table in tables:
        rule = "|---" + "|---:" * (len(table.head) - 1) + "|"
        lines += [f"### {table.heading}", "", f"| {' | '.join(table.head)} |", rule]
        for row in table.body:
            lines.append(f"| {' | '.join(row)} |")
        lines.append("")
    return "\n".join(lines)


def latex(tables: Sequence[Table]) -> str:
    """tabular environments, booktabs' rules."""
    lines = []
    for table in tables:
        lines.append(f"% {table.heading}")
        lines.append(rf"\begin{{tabular}}{{l{'r' * (len(table.head) - 1)}}}")
        lines += [r"\toprule", _latex_row(table.head), r"\midrule"]
        lines += map(_latex_row, table.body)
        lines += [r"\bottomrule", r"\end{tabular}", ""]
    return "\n".join(lines)


def _latex_row(texts: Sequence[str]) -> str:
    return " & ".join(map(_escaped, texts)) + r" \\"


def _escaped(text: str) -> str:
    marks = (("%", r"\%"), ("&", r"\&"), ("_", r"\_"), ("$", r"\$"), ("#", r"\#"))
    for old, new in (*marks, (" ± ", r" $\pm$ "), ("–", "--"), (MISSING, r"\dots")):
        text = text.replace(old, new)
    return text


def comma_separated(rows: Sequence[Row]) -> str:
    """A line for each cell, numbers as they are."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["method", "labels", "seed", *DETAIL])
    for row in rows:
        values = [column.value(row) for column in DETAIL.values()]
        writer.writerow([row["method"], row["labels"] or "all", row["seed"], *values])
    return out.getvalue()


def _draw_accuracy(theme: pictures.Theme, study: Study, rows: Sequence[Row]) -> Figure:
    groups = grouped(rows)
    figure = pictures.new_figure(9, 4.2)
    ax = figure.subplots()
    pictures.style_axes(ax, theme)
    artists = {}
    for i, (name, method) in enumerate(study.methods.items()):
        points = []
        for place, labels in enumerate(study.budgets):
            if (name, labels) in groups:
                accuracy = summary(groups[name, labels], ACCURACY)
                x = place + 0.14 * (i / len(study.methods) - 0.5)  # side by side
                points.append((x, accuracy["value"], accuracy["sd"] or 0))
        if points:
            colour = pictures.CLASS_COLOURS[i % 10]
            style = {"color": colour, "marker": pictures.MARKERS[i // 10 % 8], "markersize": 4}
            x, y, sd = zip(*points, strict=True)
            artists[method.title] = ax.errorbar(x, y, sd, linewidth=1.3, capsize=2, **style)
    ax.set_xticks(range(len(study.budgets)), [*map(named, study.budgets)])
    _style_accuracy(ax)
    if artists:
        style = {"frameon": False, "fontsize": 8, "labelcolor": theme["ink"]}
        place = {"loc": "outside right upper"}
        pictures.legend(figure, [*artists], [*artists.values()], **place, **style)
    return figure


def _style_accuracy(ax: Any) -> None:
    """A logit axis in %: from 98 to 99 % half of the errors go, as from 80 to 90 %."""
    from matplotlib import ticker

    ax.set_yscale("logit", nonpositive="clip")
    ticks = [0.01, 0.1, *np.linspace(0.2, 0.9, 8), 0.95, 0.98, 0.99, 0.995, 0.999]
    ax.yaxis.set_major_locator(ticker.FixedLocator(ticks))
    ax.yaxis.set_minor_locator(ticker.NullLocator())
    ax.yaxis.set_major_formatter(ticker.FuncFormatter(_percent))


def _percent(value: float, _: int) -> str:
    return f"{100 * value:.3g}%"


def picture(study: Study, rows: Sequence[Row]) -> bytes:
    """The page's picture of accuracy against labels, a PNG."""
    return pictures.figure_png(_draw_accuracy(pictures.LIGHT, study, rows))


def _confusions(study: Study, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The confusion matrices of the budgets of ``detail``, all seeds together."""
    confusions = []
    for (name, labels), group in grouped(rows).items():
        if labels in study.detail:
            counts_YxY = np.sum([row["confusion"] for row in group], axis=0)
            table = pictures.confusion_table(counts_YxY, ())
            title = f"{study.methods[name].title}, {named(labels)}"
            confusions.append({"title": title, **table})
    return confusions


def _distinct(rows: Sequence[Row], key: str) -> str:
    return ", ".join(sorted({str(row[key]) for row in rows}))


def _facts(study: Study, rows: Sequence[Row], command: str) -> dict[str, str]:
    total = sum(planned(study).values())
    minutes = sum(row["seconds"] for row in rows) / 60
    cells = f"{len(rows)} of {total}"
    if len(rows) < total:
        cells += f"; entries without any are {MISSING}"
    return {
        "Command": command,
        "Cells": cells,
        "Device": _distinct(rows, "device"),
        "Commit": _distinct(rows, "commit"),
        "Seeds": f"{len(study.seeds)} for each entry, 1 where all seeds would be the same",
        "Time": f"{minutes:,.1f} min in all, training and evaluation",
    }


def write(folder: str, study: Study, rows: Sequence[Row], *, command: str) -> str:
    """Write index.html, table.md, table.csv and table.tex into ``folder``; the path of the page.

    Args:
      rows: of the cells that are done, in the study's order; there may be none.
      command: what was run.
    """
    result = tables(study, rows)

    def draw(theme: pictures.Theme) -> Figure:
        return _draw_accuracy(theme, study, rows)

    html = page.render(
        "study.html.j2",
        title=f"Methods and labels: {study.title}",
        tables=result,
        confusions=_confusions(study, rows),
        picture=pictures.both(draw),
        facts=_facts(study, rows, command),
    )
    texts = {
        "table.md": markdown(result),
        "table.tex": latex(result),
        "table.csv": comma_separated(rows),
        "index.html": html,
    }
    for name, text in texts.items():
        log.replace(os.path.join(folder, name), text.encode())
    return os.path.join(folder, "index.html")
