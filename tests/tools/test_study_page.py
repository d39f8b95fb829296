"""The page of a study that goes on: what is there, and what is missing."""

import html
import pathlib

import numpy as np

from configs import study_digits
from vae_jax.tools import study as studies
from vae_jax.tools import study_page


def small():
    return study_digits.study(steps=20, budgets=(20, 0), seeds=(0, 1), detail=(20,), iw_k=2)


def row(method, labels, seed, accuracy):
    """A cell's file, as ``study.perform`` writes it."""
    metrics = {"accuracy": accuracy, "cross_entropy_nats": 0.5, "ece": 0.1, "brier": 0.2}
    return {
        "method": method,
        "labels": labels,
        "seed": seed,
        "figures": metrics | {"macro_f1": accuracy},
        "confusion": (10 * np.eye(10, dtype=int)).tolist(),
        "training_seconds": 1.0,
        "images_per_s": 100,
        "training_flops": 10**12,
        "seconds": 2.0,
        "device": "cpu",
        "commit": None,
    }


def write(folder, rows):
    study_page.write(str(folder), small(), rows, command="study --config=$HOME")
    names = ("index.html", "table.md", "table.tex", "table.csv")
    return {name: pathlib.Path(folder, name).read_text() for name in names}


def test_what_is_planned_is_what_the_study_does(tmp_path):
    cells = studies.cells(small(), str(tmp_path))
    counts = {}
    for cell in cells:
        counts[cell.method, cell.labels] = counts.get((cell.method, cell.labels), 0) + 1
    assert study_page.planned(small()) == counts


def test_a_study_without_a_cell_has_a_page(tmp_path):
    texts = write(tmp_path, [])
    total = sum(study_page.planned(small()).values())
    assert f"0 of {total}" in texts["index.html"]
    for method in small().methods.values():
        assert html.escape(method.title) in texts["index.html"].replace("&#39;", "&#x27;")


def test_missing_cells_are_named(tmp_path):
    method = next(iter(small().methods))
    texts = write(tmp_path, [row(method, 20, 0, 0.75)])
    title = small().methods[method].title
    assert f"| {title} | 75.00% (1 of 2 seeds) | … |" in texts["table.md"]
    assert "75.00% (1 of 2 seeds)" in texts["index.html"]
    assert r"75.00\% (1 of 2 seeds) & \dots" in texts["table.tex"]
    assert len(texts["table.csv"].splitlines()) == 2
    both = write(tmp_path, [row(method, 20, 0, 0.75), row(method, 20, 1, 0.85)])
    assert f"| {title} | 80.00% ± 7.07% | … |" in both["table.md"]


def test_the_best_of_a_column_is_bold_and_methods_are_sorted(tmp_path):
    first, second, third = [*small().methods][:3]
    rows = [row(first, 20, 0, 0.75), row(second, 20, 0, 0.85), row(third, 0, 0, 0.95)]
    rows[0]["figures"]["ece"] = 0.05  # lower is better
    texts = write(tmp_path, rows)
    titles = {name: small().methods[name].title for name in (first, second, third)}
    assert f"| {titles[second]} | **85.00% (1 of 2 seeds)** | " in texts["table.md"]
    assert f"| {titles[first]} | 75.00% (1 of 2 seeds) | " in texts["table.md"]
    assert "**0.050 (1 of 2 seeds)**" in texts["table.md"] and "**0.100" not in texts["table.md"]
    assert r"\textbf{85.00\% (1 of 2 seeds)}" in texts["table.tex"]
    assert "<b>85.00% (1 of 2 seeds)</b>" in texts["index.html"]
    assert "| 95.00% |" in texts["table.md"] and "**95.00%" not in texts["table.md"]  # alone
    assert study_page.ranked(small(), rows) == [second, first, third]  # third has no such budget
    assert study_page.picture(small(), rows).startswith(b"\x89PNG")
