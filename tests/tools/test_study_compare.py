"""The runs of a study side by side: which runs, with which figures, linked from its page."""

import pytest

from configs import study_digits
from tests.processes import silent
from vae_jax.tools import study, study_compare


def small() -> study.Study:
    """A net, and a VAE that two methods read."""
    whole = study_digits.study(steps=20, budgets=(20, 0), seeds=(0, 1), detail=(20,), iw_k=2)
    methods = {name: whole.methods[name] for name in ("net", "m1_svm", "m1_knn", "pixels_knn")}
    return whole._replace(methods=methods)


def row(method: str, labels: int, seed: int, accuracy: float) -> dict:
    return {
        "method": method,
        "labels": labels,
        "seed": seed,
        "figures": {"accuracy": accuracy},
    }


def test_a_run_is_one_entry_with_the_figures_of_its_best_method():
    table = study.cells(small(), "root")
    rows = [row("net", 20, 0, 0.5), row("m1_svm", 20, 0, 0.6), row("m1_knn", 20, 0, 0.7)]
    rows += [row("pixels_knn", 20, 0, 0.9), row("net", 20, 1, 0.95), row("net", 0, 0, 0.99)]
    entries = study_compare.entries(small(), table, rows)
    found = [(entry.name, entry.metrics["accuracy"]) for entry in entries]
    net, m1 = small().methods["net"].title, small().methods["m1_knn"].title
    assert found == [(net, 0.5), (m1, 0.7)]  # by the means of their seeds; pixels train nothing
    assert entries[0].folder == "root/runs/net-20-0"
    assert entries[0].config.seed == 0


def test_the_page_has_eight_runs_at_most(monkeypatch):
    monkeypatch.setattr(study_compare, "RUNS", 1)
    table = study.cells(small(), "root")
    rows = [row("net", 20, 0, 0.5), row("m1_svm", 20, 0, 0.6)]
    assert len(study_compare.entries(small(), table, rows)) == 1


@pytest.mark.slow
def test_a_study_writes_the_page_and_links_to_it(tmp_path):
    methods = {name: small().methods[name] for name in ("net", "m1_svm")}
    one = small()._replace(methods=methods, seeds=(0,), budgets=(20,))
    assert study.run(one, str(tmp_path), say=silent)
    report = tmp_path / "report"
    assert 'href="compare.html"' in (report / "index.html").read_text()
    html = (report / study_compare.FILE).read_text()
    cells = study.cells(one, str(tmp_path))
    for cell in cells:
        figures = study.done(cell, str(tmp_path))["figures"]
        assert f"{100 * figures['accuracy']:.2f} %" in html
    assert f"Without a decoder, so without images: {one.methods['net'].title}." in html
    assert html.count('alt="Their reconstructions by') == 1
    assert "its last checkpoint" in html and "best checkpoint" not in html


@pytest.mark.parametrize("rows", [[], [row("net", 20, 0, 0.5)]])
def test_one_run_has_no_page(tmp_path, rows):
    table = study.cells(small(), str(tmp_path))
    assert study_compare.write(small(), str(tmp_path), table, rows, command="") == ""
    assert not (tmp_path / "report").exists()
