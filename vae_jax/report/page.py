"""The report of a run: one page that a person opens, and its summary on the terminal.

The page (:func:`write`) needs no network and no other file: pictures are inside it, once for a
light screen and once for a dark one. Its only script (:data:`SCRIPTS`) makes the latent
map, the confusion matrix and the decoder interactive; without it the page can still be read.
"""

from __future__ import annotations

import base64
import hashlib
import json
import numbers
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from etils import epath

from vae_jax import config as config_lib
from vae_jax.mesh import store
from vae_jax.report import equation, pictures, words
from vae_jax.report import explorer as explorer_lib
from vae_jax.report import metrics as registry
from vae_jax.report import panels as panels_lib
from vae_jax.report.panels import ROWS, Panel, Pictures
from vae_jax.train import log

FILES = (  # names of panels whose files may be left from an earlier report
    *("reconstructions", "samples", *ROWS, "interpolations", "traversals", "latents", "rates"),
    *("level_rates", "confusion", "film", "curves", "retrieval", "reliability", "recognition"),
    *("robustness", "anomaly", "scenes", "scene_misses", "scene_precision"),
    "densities",
)
KEY_FIGURES = (
    *("accuracy", "elbo_nats", "iw_nats", "bits_per_dim", "knn_accuracy"),
    *("cross_entropy_nats", "ece"),
)
RUN = {  # key of ``run`` → its name on the page
    "name": "Name",
    "dataset": "Data set",
    "parameters": "Parameters",
    "seed": "Seed",
    "checkpoint": "Judged at",
    "device": "Device",
    "seconds": "Duration",
    "training_seconds": "Training",
    "compile_seconds": "Compilation",
    "evaluation_seconds": "Evaluation",
    "images_per_s": "Images per second",
    "date": "Date",
    "commit": "Commit",
    "command": "Command",
    "versions": "Versions",
}
TEMPLATES = os.path.join(os.path.dirname(__file__), "templates")
SCRIPTS = ("tsne.js", "report.js")  # one script, in this order


@dataclass(frozen=True)
class Report:
    """What the page shows.

    Args:
      title: the page's heading.
      metrics: flat, units in the names; None where a figure has no meaning. Keys without a
        registered :class:`~vae_jax.report.metrics.Metric` are shown too.
      pictures: :class:`Pictures`.
      history: rows of ``metrics.jsonl`` (``train.log.read_history``).
      config: nested dict.
      run: facts of the run (:data:`RUN`, others as they are). ``run["why"]`` maps a metric that is
        None to the reason; ``run["replica"]`` describes the run within its sweep;
        ``run["restarts"]`` is how often it was restarted.
      classes: names of the classes, () where there are none.
    """

    title: str
    metrics: Mapping[str, Any]
    pictures: Pictures
    history: Sequence[Mapping[str, Any]]
    config: Mapping[str, Any]
    run: Mapping[str, Any]
    classes: Sequence[str]


# --- figures -------------------------------------------------------------------------------------


def calibration_note(metrics: Mapping[str, Any]) -> str:
    """Whether the fitted temperature helps on the test set, in a sentence; "" where there is none.

    A temperature that is fitted on few images can be worse than none.
    """
    worse = []
    for key in ("cross_entropy_nats", "ece"):
        before = metrics.get(key)
        after = metrics.get(f"calibrated_{key}")
        if before is None or after is None:
            return ""
        metric = registry.lookup(key)
        if after > before:
            change = f"{metric.text(before)} to {metric.text(after)}"
            worse.append(f"{metric.title.lower()} rises from {change}")
    if not worse:
        return "Calibration helps: the temperature is recommended."
    return f"The temperature is not recommended: with it the {' and the '.join(worse)}."


def _metric_rows(report: Report) -> list[dict[str, str]]:
    """Rows of the table: {key, name, text, unit, better, meaning}."""
    why = report.run.get("why") or {}
    rows = []
    for metric in registry.listed(report.metrics):
        value = report.metrics[metric.name]
        meaning = metric.meaning
        if value is None and metric.name in why:
            meaning = str(why[metric.name])
        elif metric.name == "temperature":
            meaning = f"{meaning} {calibration_note(report.metrics)}".strip()
        row = {"key": metric.name, "name": metric.title, "text": metric.text(value)}
        row |= {"unit": metric.unit.replace("%", ""), "better": metric.better, "meaning": meaning}
        rows.append(row)
    return rows


def _key_figures(metrics: Mapping[str, Any]) -> list[dict[str, str]]:
    """Up to four figures for the top of the page, each with a line under it."""
    figures = []
    for key in KEY_FIGURES:
        if metrics.get(key) is None or len(figures) == 4:
            continue
        metric = registry.lookup(key)
        note = metric.unit.replace("%", "")
        if key == "accuracy" and metrics.get("n"):
            note = f"of {metrics['n']:,} test images"
        if key == "iw_nats" and metrics.get("iw_k"):
            note += f", K = {metrics['iw_k']:,}"
        if key == "iw_nats" and metrics.get("iw_nats_se") is not None:
            note += f", standard error {registry.lookup('iw_nats_se').text(metrics['iw_nats_se'])}"
        text = metric.text(metrics[key])
        figures.append({"key": key, "name": metric.title, "text": text, "note": note})
    return figures


def print_summary(metrics: Mapping[str, Any], path: str) -> None:
    """The key figures and where the report is, as plain lines for a terminal."""
    rows = []
    if metrics.get("n") is not None:
        rows.append(("test images", f"{metrics['n']:,}"))
    for figure in _key_figures(metrics):
        name = figure["name"]
        if not name.isupper():
            name = name[:1].lower() + name[1:]
        text = figure["text"]
        if figure["key"] != "accuracy":
            text = f"{text} {figure['note']}"
        rows.append((name, text.replace("−", "-").rstrip()))
    rows.append(("report", path))
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        print(f"{name:<{width}}  {text}")


# --- facts ---------------------------------------------------------------------------------------


def _config_groups(config: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """[(section, [(field, value), ...]), ...]: top-level fields first, others by dotted name."""
    sections = {"": {}}
    for name, value in config.items():
        if isinstance(value, Mapping):
            sections[name] = config_lib.flatten(value)
        else:
            sections[""][name] = value
    groups = []
    for name, fields in sections.items():
        if fields:
            groups.append((name, [(key, words.setting(value)) for key, value in fields.items()]))
    return groups


def changed_fields(config: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(field, value, default) of each field that differs from its default; "" is "no default"."""
    defaults = config_lib.flatten(config_lib.to_json(config_lib.default()))
    rows = []
    for field, value in config_lib.flatten(dict(config)).items():
        if field not in defaults:
            rows.append((field, words.setting(value), ""))
        elif value != defaults[field]:
            rows.append((field, words.setting(value), words.setting(defaults[field])))
    return rows


def _judgement(report: Report) -> str:
    """Which checkpoint the figures are of; "" where the run does not say."""
    checkpoint = report.run.get("checkpoint")
    if not checkpoint:
        return ""
    text = f"All figures are of the checkpoint of {checkpoint}"
    if "steps" in report.config:
        text += f", of {report.config['steps']:,} steps"
    replica = report.run.get("replica")
    if replica:
        text += f". This run is replica {replica}: each replica is judged at a step of its own"
    return f"{text}."


def _run_text(key: str, value: Any, run: Mapping[str, Any]) -> str:
    if key.endswith("seconds") and isinstance(value, numbers.Real):
        return words.duration(float(value))
    if key == "seed":
        return str(value)
    if key == "wall_time" and not run.get("restarts"):
        return words.short(value).replace("restart", "start-up")  # before the first step
    return words.short(value)


def _run_rows(run: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for key in dict.fromkeys([*RUN, *run]):
        if key in run and key != "why":
            name = RUN.get(key, words.title(key))
            code = key in ("command", "commit")
            rows.append({"name": name, "text": _run_text(key, run[key], run), "code": code})
    return rows


def _facts(run: Mapping[str, Any]) -> list[str]:
    """The line under the heading."""
    facts = [run.get("name"), run.get("dataset")]
    if "parameters" in run:
        facts.append(f"{words.short(run['parameters'])} parameters")
    if run.get("seed") is not None:
        facts.append(f"seed {run['seed']}")
    facts += [run.get("device"), str(run.get("date", ""))[:10]]
    return [words.short(fact) for fact in facts if fact]


# --- the page ------------------------------------------------------------------------------------


def _shown(value: Any) -> Any:
    """Text from data with its invisible characters as escapes; the template's own text as it is."""
    return words.visible(value) if type(value) is str else value


def render(template: str, **values: Any) -> str:
    """A template of this folder with these values; text in them is escaped."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    themes = {"light": pictures.LIGHT, "dark": pictures.DARK}
    return environment.get_template(template).render(**themes, **values)


def _script() -> str:
    """The page's only script."""
    parts = []
    for name in SCRIPTS:
        with open(os.path.join(TEMPLATES, name), encoding="utf-8") as file:
            parts.append(file.read())
    return "".join(parts)


def _explorer_json(report: Report) -> str:
    """The script's data as JSON that may stand within HTML; "" where there are too few images."""
    explorer = report.pictures.explorer
    if explorer is None or len(explorer.rows) < 2:
        return ""
    text = json.dumps(explorer_lib.view(explorer, report.classes), separators=(",", ":"))
    return text.replace("<", "\\u003c")


def _html(report: Report, panels: Mapping[str, Panel], tasks: Mapping[str, Panel]) -> str:
    page = dict.fromkeys(FILES)
    page |= {name: panel.view for name, panel in panels.items()}
    script = _script()
    script_hash = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    explorer = report.pictures.explorer
    mistakes = []
    if explorer is not None:
        mistakes = explorer_lib.mistakes(explorer, report.classes)
    return render(
        "report.html.j2",
        title=report.title,
        facts=_facts(report.run),
        judgement=_judgement(report),
        command=report.run.get("command"),
        equation=equation.view(report.config),
        changed=changed_fields(report.config),
        script=script,
        script_hash=script_hash,
        figures=_key_figures(report.metrics),
        metrics=_metric_rows(report),
        page=page,
        explorer=_explorer_json(report) if page["latents"] else "",
        has_decoder=explorer is not None and explorer.decoder is not None,
        has_strips=explorer is not None and explorer.traversals is not None,
        has_levels=explorer is not None and explorer.levels is not None,
        mistakes=mistakes,
        tasks=[panel.view | {"name": name} for name, panel in tasks.items()],
        config=_config_groups(report.config),
        run=_run_rows(report.run),
    )


def _remove_stale(folder: str, names: Sequence[str]) -> None:
    """Remove the pictures of an earlier report that are not among ``names``."""
    known = re.compile(rf"({'|'.join(FILES)}|ood_\w+)\.png")
    for file in store.names(folder):
        if known.fullmatch(file) and file.removesuffix(".png") not in names:
            epath.Path(folder, file).unlink(missing_ok=True)


def write(folder: str, report: Report) -> str:
    """Write ``folder/index.html`` and each picture as a PNG beside it; the path of the page.

    The folder is made where missing. PNGs of an earlier report that this one does not have are
    removed.

    Raises:
      UserError: the folder cannot be written.
    """
    panels = panels_lib.image_panels(report.pictures)
    panels |= panels_lib.figure_panels(report.pictures, report.classes)
    panels |= panels_lib.curve_panel(report.history)
    note = calibration_note(report.metrics)
    tasks = panels_lib.task_panels(report.pictures, note, report.classes)
    html = _html(report, panels, tasks)
    for name, panel in (panels | tasks).items():
        log.replace(os.path.join(folder, f"{name}.png"), panel.png)
    index = os.path.join(folder, "index.html")
    log.replace(index, html.encode())
    _remove_stale(folder, [*panels, *tasks])
    return index
