"""The runs of a study side by side: its best methods with one budget of labels and one seed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vae_jax.tools import compare, study_page
from vae_jax.tools.compare_page import Entry
from vae_jax.train import log

if TYPE_CHECKING:
    from vae_jax.tools.study_page import Row
    from vae_jax.tools.study_plan import Cell, Study

FILE = "compare.html"
RUNS = 8  # at most: the page has a column of figures and a row of images for each


def entries(study: Study, table: Sequence[Cell], rows: Sequence[Row]) -> list[Entry]:
    """The trained runs of the best methods, the best first, each with the figures of its cell.

    They are those of the first seed and the first budget of ``study.detail``. Methods that read the
    same run are one entry, which has the name and the figures of the best of them.
    """
    labels = (*study.detail, *study.budgets)[0]
    places = {}
    for cell in table:
        if cell.labels == labels and cell.seed == study.seeds[0] and cell.together is not None:
            places[cell.method] = cell
    figures = {}
    for row in rows:
        if (row["labels"], row["seed"]) == (labels, study.seeds[0]):
            figures[row["method"]] = row["figures"]
    result = {}
    for method in study_page.ranked(study, rows):
        if method in places and method in figures:
            cell = places[method]
            history = log.read_history(cell.folder)
            name = study.methods[method].title
            entry = Entry(cell.folder, name, cell.config, figures[method], history)
            result.setdefault(cell.folder, entry)
    return list(result.values())[:RUNS]


def write(
    study: Study, root: str, table: Sequence[Cell], rows: Sequence[Row], *, command: str
) -> str:
    """Write ``root/report/compare.html``; its path, or "" where fewer than two runs are done."""
    runs = entries(study, table, rows)
    if len(runs) < 2:
        return ""
    labels = (*study.detail, *study.budgets)[0]
    title = f"{study.title}: {len(runs)} runs with {study_page.named(labels)} side by side"
    path = os.path.join(root, "report", FILE)
    return compare.write_entries(runs, path, title=title, checkpoint="latest", command=command)
