"""The result of a study: one page, and one table as Markdown, CSV and LaTeX.

A study that goes on has a page too: entries whose cells are missing say so.
"""

from __future__ import annotations

import csv
import io
import itertools
import os
from collections.abc import Callable, Collection, Mapping, Sequence
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
    better: str = ""  # "higher" or "lower"


class Table(NamedTuple):
    heading: str
    note: str
    head: list[str]
    body: list[list[str]]
    best: set[tuple[int, int]]  # places (row, column) of the best entries of their columns


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


ACCURACY = Column("accuracy", _metric("accuracy"), ".2%", better="higher")
METRICS = {
    "accuracy": ACCURACY,
    "cross_entropy": Column(
        "cross-entropy, nats", _metric("cross_entropy_nats"), ".3f", "nats", "lower"
    ),
    "ece": Column("ECE", _metric("ece"), ".3f", better="lower"),
    "brier": Column("Brier", _metric("brier"), ".3f", better="lower"),
    "macro_f1": Column("macro F1", _metric("macro_f1"), ".3f", better="higher"),
    "kept_accuracy": Column("best 90%", _metric("kept_accuracy"), ".2%", better="higher"),
}
COSTS = {
    "training_seconds": Column("training, s", _positive("training_seconds"), ",.0f", "s"),
    "images_per_s": Column("images/s", _positive("images_per_s"), ",.0f", "images / s"),
    "training_tflop": Column("TFLOP", _positive("training_flops", 1e12), ",.1f", "TFLOP"),
}
DETAIL = METRICS | COSTS
MEAN_NOTE = (
    "On the test set, which each entry read once: mean ± standard deviation over seeds. "
    "The best of a column is bold."
)
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

    def best(self, groups: Sequence[Sequence[Group]], columns: Sequence[Column]) -> set:
        """The places (row, column) of the best means of :meth:`line`, row by row of ``groups``.

        A column with fewer than two means has none.
        """
        means = []
        for line in groups:
            values = []
            for group, column in itertools.product(line, columns):
                figure = None
                if group in self.groups:
                    figure = summary(self.groups[group], column)
                values.append(figure["value"] if figure else np.nan)
            means.append(values)
        places = set()
        for j, values in enumerate(np.array(means, float).T):
            sign = {"higher": 1, "lower": -1, "": 0}[columns[j % len(columns)].better]
            if sign and np.isfinite(values).sum() > 1:
                top = np.nanmax(sign * values)
                for i in np.flatnonzero(sign * values == top):
                    places.add((int(i), j + 1))
        return places


def tables(study: Study, rows: Sequence[Row]) -> list[Table]:
    """Accuracy by budget; then, of the budgets of ``detail``, all metrics, and the costs."""
    entries = _Entries(study, rows)
    every = [list(itertools.product([name], study.budgets)) for name in study.methods]
    head = ["method", *map(named, study.budgets)]
    result = [_table(study, entries, ("Accuracy", MEAN_NOTE), head, every, [ACCURACY])]
    parts = (("With", KEPT_NOTE, METRICS), ("Training with", COST_NOTE, COSTS))
    for labels in study.budgets:
        if labels not in study.detail:
            continue
        groups = [[(name, labels)] for name in study.methods]
        for heading, note, columns in parts:
            head = ["method", *(column.title for column in columns.values())]
            words = (f"{heading} {named(labels)}", note)
            result.append(_table(study, entries, words, head, groups, [*columns.values()]))
    return result


def _table(
    study: Study,
    entries: _Entries,
    words: tuple[str, str],
    head: list[str],
    groups: Sequence[Sequence[Group]],
    columns: Sequence[Column],
) -> Table:
    """A table of (heading, note); methods without any number are left out."""
    body = []
    kept = []
    for line in groups:
        texts = entries.line(study.methods[line[0][0]].title, line, columns)
        if len(line) > 1 or set(texts[1:]) != {"–"}:
            body.append(texts)
            kept.append(line)
    return Table(*words, head, body, entries.best(kept, columns))


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
        for i, row in enumerate(table.body):
            texts = []
            for j, text in enumerate(row):
                mark = "**" if (i, j) in table.best else ""
                texts.append(mark + text + mark)
            lines.append(f"| {' | '.join(texts)} |")
        lines.append("")
    return "\n".join(lines)


def latex(tables: Sequence[Table]) -> str:
    """tabular environments, booktabs' rules."""
    lines = []
    for table in tables:
        lines.append(f"% {table.heading}")
        lines.append(rf"\begin{{tabular}}{{l{'r' * (len(table.head) - 1)}}}")
        lines += [r"\toprule", _latex_row(table.head), r"\midrule"]
        for i, row in enumerate(table.body):
            bold = [j for j in range(len(row)) if (i, j) in table.best]
            lines.append(_latex_row(row, bold))
        lines += [r"\bottomrule", r"\end{tabular}", ""]
    return "\n".join(lines)


def _latex_row(texts: Sequence[str], bold: Collection[int] = ()) -> str:
    """A row of a tabular, the places of ``bold`` in bold."""
    cells = []
    for j, text in enumerate(texts):
        cell = _escaped(text)
        if j in bold:
            cell = rf"\textbf{{{cell}}}"
        cells.append(cell)
    return " & ".join(cells) + r" \\"


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


def ranked(study: Study, rows: Sequence[Row]) -> list[str]:
    """Names of the methods with a cell that is done, the best first.

    By the accuracy with the first budget of ``detail``; methods without it follow by their
    own first.
    """
    groups = grouped(rows)
    order = [*study.detail[:1], *study.budgets]
    ranks = {}
    for name in study.methods:
        for place, labels in enumerate(order):
            if (name, labels) in groups:
                mean = summary(groups[name, labels], ACCURACY)["value"]
                ranks[name] = (min(place, 1), -mean)
                break
    return sorted(ranks, key=ranks.get)


def _draw_accuracy(theme: pictures.Theme, study: Study, rows: Sequence[Row]) -> Figure:
    """A row for each method, sorted; a colour for each budget; the best of a budget is ringed."""
    names = ranked(study, rows)
    groups = grouped(rows)
    figure = pictures.new_figure(9, 1.1 + 0.27 * max(len(names), 1))
    ax = figure.subplots()
    pictures.style_axes(ax, theme)
    ax.grid(axis="x", color=theme["line"], linewidth=0.6)
    artists = {}
    bold = set()
    for i, labels in enumerate(study.budgets):
        points = []
        for y, name in enumerate(names):
            if (name, labels) in groups:
                accuracy = summary(groups[name, labels], ACCURACY)
                points.append((accuracy["value"], y, accuracy["sd"] or 0))
        if points:
            x, y, sd = zip(*points, strict=True)
            style = {"color": pictures.CLASS_COLOURS[i % 10], "marker": pictures.MARKERS[i // 10]}
            dots = ax.errorbar(x, y, xerr=sd, linestyle="", elinewidth=1, markersize=5, **style)
            artists[named(labels)] = dots
            best = int(np.argmax(x))
            ring = {"markeredgecolor": theme["ink"], "markerfacecolor": "none", "zorder": 4}
            ax.plot(x[best], y[best], "o", markersize=9, **ring)
            bold.add(y[best])
    titles = [pictures.literal(study.methods[name].title) for name in names]
    ax.set_yticks(range(len(names)), titles)
    for y, text in enumerate(ax.get_yticklabels()):
        text.set_color(theme["ink"])
        text.set_fontweight("bold" if y in bold else "normal")
    ax.set_ylim(max(len(names), 1) - 0.5, -0.5)
    _style_accuracy(ax)
    if artists:
        style = {"frameon": False, "fontsize": 8, "labelcolor": theme["ink"], "ncols": 4}
        place = {"loc": "outside lower center"}
        pictures.legend(figure, [*artists], [*artists.values()], **place, **style)
    return figure


def _style_accuracy(ax: Any) -> None:
    """A logit axis in %: from 98 to 99 % half of the errors go, as from 80 to 90 %."""
    from matplotlib import ticker

    ax.set_xscale("logit", nonpositive="clip")
    ticks = [0.01, 0.1, *np.linspace(0.2, 0.9, 8), 0.95, 0.98, 0.99, 0.995, 0.999]
    ax.xaxis.set_major_locator(ticker.FixedLocator(ticks))
    ax.xaxis.set_minor_locator(ticker.NullLocator())
    ax.xaxis.set_major_formatter(ticker.FuncFormatter(_percent))


def _percent(value: float, _: int) -> str:
    return f"{100 * value:.3g}%"


def picture(study: Study, rows: Sequence[Row]) -> bytes:
    """The page's picture of accuracy by method and budget, a PNG."""
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

    The page has a link to the runs side by side where the folder has their page.

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
        order=named(study.detail[0]) if study.detail else "",
        picture=pictures.both(draw),
        facts=_facts(study, rows, command),
        beside=os.path.isfile(os.path.join(folder, "compare.html")),
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
