"""What a study found: one page, and one table as Markdown, CSV and LaTeX."""

import csv
import io
import os
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from vae_jax.report import pictures as draw
from vae_jax.tools import results
from vae_jax.train import log


class Column(NamedTuple):
    title: str
    value: Callable  # row of a cell → number or None
    form: str
    unit: str = ""


ACCURACY = Column("accuracy", lambda r: r["figures"]["accuracy"], ".2%")
ANSWERS = {
    "accuracy": ACCURACY,
    "cross_entropy": Column("cross-entropy, nats", lambda r: r["figures"]["cross_entropy_nats"], ".3f", "nats"),
    "ece": Column("ECE", lambda r: r["figures"]["ece"], ".3f"),
    "brier": Column("Brier", lambda r: r["figures"]["brier"], ".3f"),
    "macro_f1": Column("macro F1", lambda r: r["figures"]["macro_f1"], ".3f"),
    "kept_accuracy": Column("best 90%", lambda r: r["figures"].get("kept_accuracy"), ".2%"),
}
COSTS = {
    "training_seconds": Column("training, s", lambda r: r["training_seconds"] or None, ",.0f", "s"),
    "images_per_s": Column("images/s", lambda r: r["images_per_s"], ",.0f", "images / s"),
    "training_tflop": Column("TFLOP", lambda r: r["training_flops"] / 1e12 or None, ",.1f", "TFLOP"),
}
DETAIL = ANSWERS | COSTS
READ = "On the test set, which each entry read once: mean ± standard deviation over seeds."
BEST = READ + " Best 90%: the accuracy where Bayes' rule answers for the nine tenths that it finds most probable."
TOOK = "One seed's, with the run that it begins with; seeds trained in one program share its time."


def summary(rows, column):
    """A figure of the seeds of one method and budget: mean, and sd where there are two or more; None: not there."""
    values = [v for v in map(column.value, rows) if v is not None]
    if not values or len(values) < len(rows):
        return None
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return results.figure(float(np.mean(values)), column.unit, sd=sd, n=len(values))


def grouped(rows):
    """{(method, labels): rows of its seeds}."""
    found = {}
    for row in rows:
        found.setdefault((row["method"], row["labels"]), []).append(row)
    return found


def named(labels):
    return f"{labels:,} labels" if labels else "all labels"


def tables(study, rows):
    """[(heading, note, [head, ...], [[method, text, ...], ...])]: accuracy by budget, then of some budgets all answers,
    and what training took of those that were trained."""
    cells = grouped(rows)

    def text(key, column):
        one = summary(cells[key], column) if key in cells else None
        return "–" if one is None else results.show(one, column.form)

    budgets = [b for b in study.budgets if any(labels == b for _, labels in cells)]
    methods = [(name, m.title) for name, m in study.methods.items() if any(n == name for n, _ in cells)]
    body = [[title, *(text((name, b), ACCURACY) for b in budgets)] for name, title in methods]
    found = [("Accuracy", READ, ["method", *map(named, budgets)], body)]
    for b in (b for b in study.detail if b in budgets):
        for heading, note, columns in (("With", BEST, ANSWERS), ("Training with", TOOK, COSTS)):
            body = [[title, *(text((n, b), c) for c in columns.values())] for n, title in methods if (n, b) in cells]
            body = [row for row in body if set(row[1:]) != {"–"}]
            found.append((f"{heading} {named(b)}", note, ["method", *(c.title for c in columns.values())], body))
    return found


def published(study, rows):
    """{'METHOD.LABELS.FIGURE': figure} for ``results.write``: accuracy everywhere, all of the budgets of ``detail``."""
    found = {}
    for (name, labels), group in grouped(rows).items():
        for key, column in DETAIL.items():
            if key == "accuracy" or labels in study.detail:
                found[f"{name}.{labels or 'all'}.{key}"] = summary(group, column) or results.figure(None, column.unit)
    return found


def markdown(found):
    lines = []
    for heading, _, head, body in found:
        lines += [f"### {heading}", "", f"| {' | '.join(head)} |", "|---" + "|---:" * (len(head) - 1) + "|"]
        lines += [*(f"| {' | '.join(row)} |" for row in body), ""]
    return "\n".join(lines)


def latex(found):
    """tabular environments, booktabs' rules."""
    lines = []
    for heading, _, head, body in found:
        lines += [f"% {heading}", rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}", r"\toprule"]
        head, *body = [" & ".join(map(_escaped, row)) + r" \\" for row in (head, *body)]
        lines += [head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}", ""]
    return "\n".join(lines)


def _escaped(text):
    for old, new in (("%", r"\%"), ("&", r"\&"), ("_", r"\_"), (" ± ", r" $\pm$ "), ("–", "--")):
        text = text.replace(old, new)
    return text


def comma_separated(rows):
    """A line for each cell, numbers as they are."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["method", "labels", "seed", *DETAIL])
    for row in rows:
        writer.writerow([row["method"], row["labels"] or "all", row["seed"], *(c.value(row) for c in DETAIL.values())])
    return out.getvalue()


def _draw_accuracy(theme, study, rows):
    from matplotlib import ticker

    cells = grouped(rows)
    figure = draw.new_figure(9, 4.2)
    ax = figure.subplots()
    draw.style_axes(ax, theme)
    at, n = {b: i for i, b in enumerate(study.budgets)}, len(study.methods)
    for i, (name, method) in enumerate(study.methods.items()):
        points = [(at[b], summary(cells[name, b], ACCURACY)) for b in study.budgets if (name, b) in cells]
        if points:
            x, y, sd = zip(*((x, one["value"], one["sd"] or 0) for x, one in points), strict=True)
            x = np.array(x) + 0.14 * (i / n - 0.5)  # side by side
            style = {"color": draw.CLASS_COLOURS[i % 10], "marker": draw.MARKERS[i // 10 % 8], "markersize": 4}
            ax.errorbar(x, y, sd, label=method.title, linewidth=1.3, capsize=2, **style)
    ax.set_xticks(list(at.values()), [named(b) for b in at])
    ax.set_yscale("logit", nonpositive="clip")  # from 98 to 99 % half of the errors go, as from 80 to 90 %
    ax.yaxis.set_major_locator(
        ticker.FixedLocator([0.01, 0.1, *np.linspace(0.2, 0.9, 8), 0.95, 0.98, 0.99, 0.995, 0.999])
    )
    ax.yaxis.set_minor_locator(ticker.NullLocator())
    ax.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g}%")
    figure.legend(loc="outside right upper", frameon=False, fontsize=8, labelcolor=theme["ink"])
    return figure


def picture(study, rows):
    """The page's picture of accuracy against labels, a PNG."""
    return draw.figure_png(_draw_accuracy(draw.LIGHT, study, rows))


def write(folder, study, rows, *, command):
    """Write index.html, table.md, table.csv and table.tex into ``folder``; the path of the page.

    Args:
      rows: of the cells that are done, in the study's order.
      command: what was run.
    """
    import jinja2

    found = tables(study, rows)
    confusions = []
    for (name, labels), group in grouped(rows).items():
        if labels in study.detail:
            counts_YxY = np.sum([row["confusion"] for row in group], axis=0)
            table = draw.confusion_table(counts_YxY, tuple(map(str, range(len(counts_YxY)))))
            confusions.append({"title": f"{study.methods[name].title}, {named(labels)}", **table})
    loader = jinja2.FileSystemLoader(os.path.join(os.path.dirname(draw.__file__), "templates"))
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    seeds = {len(group) for group in grouped(rows).values()}
    facts = {
        "Command": command,
        "Device": ", ".join(sorted({row["device"] for row in rows})),
        "Commit": ", ".join(sorted({str(row["commit"]) for row in rows})),
        "Seeds": f"{min(seeds)} to {max(seeds)} for each entry" if len(seeds) > 1 else f"{max(seeds)} for each entry",
        "Time": f"{sum(row['seconds'] for row in rows) / 60:,.1f} min in all, training and reading",
    }
    html = environment.get_template("study.html.j2").render(
        title=f"Methods and labels: {study.title}",
        tables=found,
        confusions=confusions,
        picture=draw.both(lambda theme: _draw_accuracy(theme, study, rows)),
        facts=facts,
        light=draw.LIGHT,
        dark=draw.DARK,
    )
    for name, text in (
        ("table.md", markdown(found)),
        ("table.tex", latex(found)),
        ("table.csv", comma_separated(rows)),
        ("index.html", html),
    ):
        log.replace(os.path.join(folder, name), text.encode())
    return os.path.join(folder, "index.html")
