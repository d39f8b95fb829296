"""Runs side by side on one page, and a list of all runs of a folder.

    python -m vae_jax.tools.compare runs/a runs/b [runs/sweep …] [--out=PAGE.html]
    python -m vae_jax.tools.compare runs --index

The first command writes the fields that differ, the metrics with their spread over seeds, the
curves over each other, the same test images and the same z for each run, and the rate–distortion
plane. A folder of replicas stands for all of its replicas. The second one writes FOLDER/index.html.
"""

import argparse
import datetime
import json
import os
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import numpy as np
from ml_collections import ConfigDict

from vae_jax import cli as flags_lib
from vae_jax import config as config_lib
from vae_jax import data
from vae_jax.config import UserError
from vae_jax.report import metrics as registry
from vae_jax.report import page, pictures, words
from vae_jax.tools import assess, compare_page, library
from vae_jax.tools.compare_page import Column, Entry, Strip, Strips
from vae_jax.train import log, run
from vae_jax.train import program as program_lib

SEEDS = {"seed", "data.labels_seed"}  # runs that differ in nothing else are seeds of one setting
IMAGES = 10  # test images, and samples, of each run
LOADED = 12  # runs that are loaded for their images, at most: each takes some seconds to compile
DATE = "%Y-%m-%d %H:%M"


# --- reading -------------------------------------------------------------------------------------


def read_metrics(folder: str) -> dict[str, Any]:
    """What metrics.json holds; {} where the run is not evaluated yet.

    Raises:
      UserError: the file is damaged.
    """
    path = os.path.join(folder, "metrics.json")
    try:
        with open(path) as file:
            metrics = json.load(file)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        raise UserError(
            f"{path}: not the metrics of a run; want eval.py to write it anew"
        ) from None
    if not isinstance(metrics, dict):
        raise UserError(f"{path}: want an object with metrics; want eval.py to write it anew")
    return metrics


def read(folder: str) -> list[Entry]:
    """The run in a folder, or each of its replicas.

    Raises:
      UserError: there is no run, or a file of it is damaged.
    """
    entries = []
    for c, path in run.members(run.read_config(folder), folder):
        entries.append(Entry(path, "", c, read_metrics(path), log.read_history(path)))
    return entries


def read_all(folders: Sequence[str]) -> list[Entry]:
    """Every run of several folders, each with a name that no other one has.

    Raises:
      UserError: there are fewer than two, or one of them is there twice.
    """
    entries = []
    for folder in folders:
        entries += read(os.path.abspath(folder))
    paths = set()
    for entry in entries:
        path = os.path.realpath(entry.folder)
        if path in paths:
            raise UserError(f"{entry.folder}: is there twice; want each run once")
        paths.add(path)
    if len(entries) < 2:
        raise UserError(f"{len(entries)} run: want two or more, such as runs/a runs/b")
    above = os.path.commonpath([os.path.dirname(entry.folder) for entry in entries])
    return [entry._replace(name=os.path.relpath(entry.folder, above)) for entry in entries]


def fields_of(c: ConfigDict) -> dict[str, Any]:
    """{field: value} of a config, without those that change no number of a run."""
    flat = config_lib.flatten(config_lib.to_json(c))
    return {name: value for name, value in flat.items() if not name.startswith(run.FREE)}


def changed_fields(entries: Sequence[Entry]) -> list[str]:
    """The fields whose values are not the same in all runs, in the order of the config."""
    values: dict[str, list[str]] = {}
    for entry in entries:
        for name, value in fields_of(entry.config).items():
            values.setdefault(name, []).append(repr(value))
    changed = []
    for name, texts in values.items():
        if len(texts) < len(entries) or len(set(texts)) > 1:
            changed.append(name)
    return changed


def changed_settings(entries: Sequence[Entry]) -> list[str]:
    """:func:`changed_fields` without the seeds."""
    return [name for name in changed_fields(entries) if name not in SEEDS]


def columns(entries: Sequence[Entry]) -> list[Column]:
    """A column for each setting, with all seeds of it.

    Where all runs are seeds of one setting, each has a column, and the last one is of all.
    """
    changed = changed_settings(entries)
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        config = fields_of(entry.config)
        setting = repr(list(map(config.get, changed)))
        groups.setdefault(setting, []).append(entry)
    if len(groups) == 1:
        alone = [Column(entry.name, (entry,)) for entry in entries]
        return [*alone, Column(f"all {len(entries)}", tuple(entries))]
    return [Column(_column_name(group, changed), tuple(group)) for group in groups.values()]


def is_sweep(entries: Sequence[Entry]) -> bool:
    """Whether runs differ in one number of the objective alone, such as beta, and in seeds."""
    changed = changed_settings(entries)
    if len(changed) != 1 or not changed[0].startswith("objective."):
        return False
    return isinstance(fields_of(entries[0].config).get(changed[0]), float)


def _column_name(group: Sequence[Entry], changed: Sequence[str]) -> str:
    """The values of one or two fields that differ, else the name of the run; how many seeds."""
    name = group[0].name
    if len(changed) <= 2:
        config = fields_of(group[0].config)
        parts = []
        for field in changed:
            value = words.setting(config.get(field))
            section, _, last = field.rpartition(".")
            title = section if last == "name" else last
            parts.append(f"{title} = {value}")
        name = ", ".join(parts)
    if len(group) > 1:
        name += f", {len(group)} seeds"
    return name


# --- tables --------------------------------------------------------------------------------------


def field_rows(entries: Sequence[Entry], table: Sequence[Column]) -> list[list[str]]:
    """[[field, its value in each column], …] of the fields that differ."""
    rows = []
    for name in changed_fields(entries):
        row = [name]
        for column in table:
            values: dict[str, None] = {}
            for entry in column.entries:
                value = fields_of(entry.config).get(name)
                values["–" if value is None else words.setting(value)] = None
            row.append(", ".join(values))
        rows.append(row)
    return rows


class MetricRow(NamedTuple):
    name: str
    unit: str
    texts: list[str]
    best: int  # the place of the best column; -1 where there is none


def _values(column: Column, key: str) -> list[float]:
    """The finite values of a metric in a column."""
    values = []
    for entry in column.entries:
        value = words.number(entry.metrics.get(key))
        if np.isfinite(value):
            values.append(value)
    return values


def metric_rows(table: Sequence[Column]) -> list[MetricRow]:
    """A row for each metric that a run has: the mean of each column, ± the sd over its seeds."""
    merged: dict[str, Any] = {}
    for column in table:
        for entry in column.entries:
            merged |= entry.metrics
    rows = []
    for metric in registry.listed(merged):
        means = []
        texts = []
        for column in table:
            values = _values(column, metric.name)
            means.append(float(np.mean(values)) if values else np.nan)
            texts.append(_spread(metric, values, len(column.entries)))
        if np.isfinite(means).any():
            unit = metric.unit.replace("%", "")
            rows.append(MetricRow(metric.title, unit, texts, _best(metric, table, means)))
    return rows


def _spread(metric: registry.Metric, values: Sequence[float], seeds: int) -> str:
    if not values:
        return "–"
    mean = float(np.mean(values))
    if float(mean).is_integer() and len(values) == 1:
        mean = int(mean)
    text = metric.text(mean)
    if len(values) > 1:
        text += f" ± {metric.text(float(np.std(values, ddof=1)))}"
    if len(values) < seeds:
        text += f" ({len(values)} of {seeds})"
    return text


def _best(metric: registry.Metric, table: Sequence[Column], means: Sequence[float]) -> int:
    """The place of the best mean; -1 without a better direction, or where all are seeds of one."""
    finite = np.isfinite(means)
    if not metric.better or compare_page.separate(table) != table:
        return -1
    if finite.sum() < 2 or np.ptp(np.array(means)[finite]) == 0:
        return -1
    if metric.better == "higher":
        return int(np.nanargmax(means))
    return int(np.nanargmin(means))


# --- images --------------------------------------------------------------------------------------


def strips(table: Sequence[Column], data_dir: str = "", checkpoint: str = "best") -> Strips:
    """The same test images, and the same noise of the prior, through the first run of each column.

    Runs on images of another shape, without a decoder, or that cannot be loaded, are named in the
    notes.
    """
    notes = []
    rows = []
    dataset = None
    plain = [first.name for _, (first, *_) in table if first.config.decoder.name == "none"]
    if plain:
        notes.append(f"Without a decoder, so without images: {', '.join(plain)}.")
    table = [column for column in table if column.entries[0].name not in plain]
    for name, (entry, *_) in table[:LOADED]:
        try:
            if dataset is None:
                c = entry.config.data.copy_and_resolve_references()
                if data_dir:
                    c.dir = data_dir
                dataset = data.load(c)
                chosen = pictures.first_images(dataset.test.label, IMAGES)
                image = np.asarray(dataset.test.image[np.sort(chosen)])
            trained = library.load_run(entry.folder, checkpoint)
            levels = trained.subject.levels
            if (trained.model.shape, levels) != (dataset.shape, dataset.levels):
                raise UserError(f"its images are of another kind than those of {dataset.name}")
            restored = reconstruct(trained, image)
            samples = trained.sample(IMAGES, seed=0)
            rows.append(Strip(name, entry.name, trained.step, restored, samples))
        except UserError as error:
            notes.append(f"{entry.name}: {error}")
    if len(table) > LOADED:
        notes.append(f"Images of the first {LOADED} columns only.")
    if not rows:
        return Strips(None, [], notes)
    return Strips(image.astype(np.float32) / (dataset.levels - 1), rows, notes)


def reconstruct(trained: library.Run, image_NxHxWxC: np.ndarray) -> np.ndarray:
    """The mean of p(x|z) at the mean of q(z|x), at the most probable class where x has one."""
    labels = None
    if trained.model.spec.labelled:
        labels = trained.classify(image_NxHxWxC).argmax(1)
    return trained.decode(trained.encode(image_NxHxWxC), labels)


# --- pages ---------------------------------------------------------------------------------------


def default_out(folders: Sequence[str]) -> str:
    """compare.html in the folder that holds the runs: that of the replicas, or the one above."""
    paths = list(map(os.path.abspath, folders))
    above = paths[0]
    if len(paths) > 1:
        above = os.path.commonpath(list(map(os.path.dirname, paths)))
    return os.path.join(above, "compare.html")


def write(folders: Sequence[str], out: str = "", *, data_dir: str = "", command: str = "") -> str:
    """Write the page of several runs, or of the replicas of one folder; the path of the page.

    Args:
      out: the file; "" is :func:`default_out`.
      data_dir: where the data are now; "" is where they were.
      command: what was run.
    Raises:
      UserError: there are fewer than two runs, or a file of one is damaged.
    """
    entries = read_all(folders)
    out = out or default_out(folders)
    title = f"{len(entries)} runs side by side"
    command = command or assess.command()
    return write_entries(entries, out, title=title, data_dir=data_dir, command=command)


def write_entries(
    entries: Sequence[Entry],
    out: str,
    *,
    title: str,
    checkpoint: str = "best",
    data_dir: str = "",
    command: str,
) -> str:
    """Write the page of runs that are read already; its path.

    Args:
      checkpoint: 'best' or 'latest', of the images.

    Others are as of :func:`write`.
    """
    log.check_writable(out)
    table = columns(entries)
    html = page.render(
        "compare.html.j2",
        title=title,
        names=[column.name for column in table],
        runs=[_links(column, os.path.dirname(os.path.abspath(out))) for column in table],
        fields=field_rows(entries, table),
        metrics=metric_rows(table),
        curves=compare_page.curves(table),
        colours=compare_page.keys(table),
        plane=compare_page.plane(table, connected=is_sweep(entries)),
        strips=compare_page.strips(strips(compare_page.separate(table), data_dir, checkpoint)),
        checkpoint=checkpoint,
        command=command,
    )
    log.replace(out, html.encode())
    return out


def _links(column: Column, folder: str) -> list[tuple[str, str]]:
    """(name, address of its report from ``folder``) of each run of a column."""
    links = []
    for entry in column.entries:
        report = os.path.join(entry.folder, "report", "index.html")
        address = ""
        if os.path.isfile(report):
            address = urllib.parse.quote(os.path.relpath(report, folder))
        links.append((entry.name, address))
    return links


INDEX = ("accuracy", "elbo_nats", "iw_nats", "bits_per_dim")


def write_index(folder: str) -> str:
    """Write FOLDER/index.html, a list of the runs below it, the newest first; the page's path.

    Raises:
      UserError: there is no such folder.
    """
    if not os.path.isdir(folder):
        raise UserError(f"{folder}: no such folder; want one that holds runs")
    rows = []
    for path in _run_folders(folder):
        rows.append((_written(path), _index_row(folder, path)))
    rows.sort(key=lambda row: row[0], reverse=True)
    titles = [registry.lookup(name).title for name in INDEX]
    html = page.render(
        "runs.html.j2",
        title=f"Runs in {os.path.basename(os.path.abspath(folder))}",
        heads=["run", "data", "objective", "steps", *titles, "written"],
        rows=[row for _, row in rows],
        command=assess.command(),
    )
    out = os.path.join(folder, "index.html")
    log.replace(out, html.encode())
    return out


def _run_folders(folder: str) -> list[str]:
    """Folders with a config.json: those below ``folder``, and the replicas in them."""
    folders = []
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if not os.path.isfile(os.path.join(entry.path, "config.json")):
            continue
        replicas = []
        for inner in os.scandir(entry.path):
            known = os.path.isfile(os.path.join(inner.path, "config.json"))
            if inner.name.startswith("replica_") and known:
                replicas.append(inner.path)
        folders += sorted(replicas) or [entry.path]
    return folders


def _written(path: str) -> float:
    """When a run last wrote a row or its metrics, in seconds of the epoch."""
    times = [0.0]
    for name in ("config.json", log.METRICS_FILE, "metrics.json"):
        file = os.path.join(path, name)
        if os.path.isfile(file):
            times.append(os.path.getmtime(file))
    return max(times)


def _index_row(folder: str, path: str) -> Mapping[str, Any]:
    """What the list says of one run; of a damaged one its error."""
    row: dict[str, Any] = {"name": os.path.relpath(path, folder), "address": "", "error": ""}
    report = os.path.join(path, "report", "index.html")
    if os.path.isfile(report):
        row["address"] = urllib.parse.quote(os.path.relpath(report, folder))
    try:
        c = run.read_config(path)
        metrics = read_metrics(path)
        history = log.read_history(path)
    except UserError as error:
        return row | {"error": str(error)}
    done = max((one["step"] for one in history), default=0)
    steps = f"{done:,} of {c.steps:,}"
    if done == c.steps:
        steps = f"{done:,}"
    texts = [c.data.name, c.objective.name, steps]
    for name in INDEX:
        texts.append(registry.lookup(name).text(metrics.get(name)))
    texts.append(datetime.datetime.fromtimestamp(_written(path)).strftime(DATE))
    return row | {"texts": texts}


# --- the command ---------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def main(argv: list[str]) -> int:
    """Write the page that the command line asks for; returns the exit code."""
    parser = _Parser(prog="compare", description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", help="folders of runs, or of replicas")
    parser.add_argument("--out", default="", help="the page; compare.html beside the runs")
    parser.add_argument("--index", action="store_true", help="list all runs of one folder")
    parser.add_argument("--data_dir", default="", help="where TFDS data is, if it moved")
    values = parser.parse_args(argv[1:])
    if values.index:
        if len(values.folders) > 1 or values.out:
            raise UserError("index: wants one folder and no --out; it writes FOLDER/index.html")
        print(write_index(values.folders[0]))
        return 0
    program_lib.use_cache()
    print(write(values.folders, values.out, data_dir=values.data_dir))
    return 0


if __name__ == "__main__":
    flags_lib.main(main)
