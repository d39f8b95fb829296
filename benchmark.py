"""Time the compiled training step of a config: a sweep of cells in turns, beside the machine's limits and a peer.

    python benchmark.py --config=configs/digits.py --sweep='batch=20,128;dtype=float32,bfloat16'
        [--config.x=y] [--rounds=10] [--seconds=0.3] [--out=results/NAME.json] [--page=DIR]
        [--compare=old.json] [--peer=torch]
    python benchmark.py --config=configs/imagenet64.py --target=v5e:16x16 [--sweep='mesh.fsdp=1,8']
    python benchmark.py --startup --config=configs/digits.py --out=results/startup.json
    python benchmark.py --loop --config=configs/digits.py --rounds=5 --out=results/loop.json

Exit codes: 0, done; 1, --compare found a cell slower or failing, no cell could be measured, or a target's memory is too
small; 2, bad input.
"""

import importlib
import os
import pathlib
import re
import time

from absl import flags

from vae_jax import cli as flags_lib


def define(values):
    flags.DEFINE_string("config", "configs/digits.py", "a page of configs/", flag_values=values)
    flags.DEFINE_string("data_dir", "", "where TFDS data is (same as --config.data.dir)", flag_values=values)
    flags.DEFINE_string("sweep", "", "FIELD=VALUE,VALUE;FIELD=...: every combination", flag_values=values)
    flags.DEFINE_integer("rounds", 10, "windows of each cell", lower_bound=1, flag_values=values)
    flags.DEFINE_float("seconds", 0.3, "length of a window, about", lower_bound=0.001, flag_values=values)
    flags.DEFINE_string("out", "", "write the figures to this NAME.json, all windows to NAME.jsonl", flag_values=values)
    flags.DEFINE_string("page", "", "write a page with pictures into this folder", flag_values=values)
    flags.DEFINE_string("compare", "", "an older --out: mark what changed, exit 1 on a regression", flag_values=values)
    flags.DEFINE_string("peer", "", "torch: time the PyTorch step in turns with ours", flag_values=values)
    flags.DEFINE_string("target", "", "v5e:16x16 …: compile for these TPUs, run nothing", flag_values=values)
    flags.DEFINE_bool("startup", False, "time the start of train.py instead", flag_values=values)
    flags.DEFINE_bool("loop", False, "time the whole training loop beside the bare step instead", flag_values=values)


def find_peer(name):
    """benchmarks/peers/NAME_step.py as a module."""
    from vae_jax.config import UserError, nearest

    folder = pathlib.Path(__file__).parent / "benchmarks" / "peers"
    known = [path.name.removesuffix("_step.py") for path in folder.glob("*_step.py")]
    if name not in known:
        raise UserError(f"peer={name}: unknown; {nearest(name, known)}")
    try:
        return importlib.import_module(f"benchmarks.peers.{name}_step")
    except ModuleNotFoundError as error:
        raise UserError(f"peer={name}: {error.name} is not installed; want -r requirements-peers.txt") from None


def run(argv):
    values, pairs = flags_lib.parse(argv, define)
    import jax

    from benchmarks import cells, machine, present, startup, target, whole
    from vae_jax import config
    from vae_jax.tools import assess, results
    from vae_jax.train import program as compile

    began, command, load = time.perf_counter(), assess.command(), [os.getloadavg()[0]]
    written = {"command": command, "config": values.config, "seed": None}

    def settings():
        load.append(os.getloadavg()[0])
        asked = None if values.target else compile.options(jax.default_backend())
        return {
            "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
            "compiler options": ", ".join(f"{k}={v}" for k, v in (asked or {}).items()),
            "huge pages": flags_lib.huge_pages(),
            "load": f"{load[0]:.2f} processes before, {load[1]:.2f} after",
        }

    if values.startup or values.loop:
        c = flags_lib.apply(config.load(values.config), pairs)
        if values.startup:
            given = [f"--config={values.config}", f"--data_dir={values.data_dir}"]
            given += [f"{flags_lib.PREFIX}{field}={value}" for field, value in pairs]
            figures = startup.measure(c, given, values.rounds)
        else:
            c.data.dir = values.data_dir or c.data.dir
            figures = whole.measure(c, values.rounds, values.seconds)
        print("\n".join(f"{name}: {results.show(one)} {one['unit']}" for name, one in figures.items()))
        if values.out:
            seconds = time.perf_counter() - began
            results.write(values.out, **written, seconds=seconds, figures=figures, settings=settings())
        return 0

    sweep = cells.parse_sweep(values.sweep)
    if values.target:
        found, fits = {}, True
        made = cells.cells(lambda: config.load(values.config), pairs, sweep, values.data_dir)
        for error in filter(None, (cell.row["error"] for cell in made)):
            raise config.UserError(error)
        for cell in made:
            name = re.sub(r"\W+", "_", cell.row["key"])
            try:
                row = target.measure(cell.c, values.target)
            except jax.errors.JaxRuntimeError as error:  # more memory than the chip has, as a rule; the others go on
                print(f"{cell.row['key']}: DOES NOT COMPILE: {cells.line(error)}", flush=True)
                fits, found[f"{name}_fits"] = False, results.figure(0, "1: yes")
                continue
            print(target.words(cell.row["key"], row), flush=True)
            fits = fits and row["fits"]
            found |= target.figures(name, row)
        if values.out:
            results.write(values.out, **written, seconds=time.perf_counter() - began, figures=found)
        return int(not fits)
    peer = find_peer(values.peer) if values.peer else None
    made = cells.cells(lambda: config.load(values.config), pairs, sweep, values.data_dir)
    keys = [cell.row["key"] for cell in made]
    if peer:  # before the first array: XLA would take most of an accelerator's memory
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    old, notes = present.read_old(values.compare, keys, values.config, pairs) if values.compare else (None, [])
    with cells.fresh_cache():
        cells.build_all(made, seconds=values.seconds, peer=peer)
        before = machine.measured()
        cells.take_turns(made, rounds=values.rounds)
        measured, published = machine.better(before, machine.measured()), machine.published()
    rows = [cell.row for cell in made]
    how = settings()
    summaries = [present.summary(row, measured, published) for row in rows]
    figures = present.figures(rows, summaries, measured, load)
    print(present.table(rows, summaries))
    facts = {
        "device": results.device(),
        "peaks": machine.words(measured),
        "versions": ", ".join(f"{k} {v}" for k, v in results.versions().items()),
        "peer": "" if peer is None else peer.describe(),
        **how,
        "commit": results.commit() or "",
        "command": command,
    }
    print("\n".join(f"{name}: {text}" for name, text in facts.items() if text and name != "command"))
    for row in rows:
        for name, reason in row.get("peer_errors", {}).items():
            print(f"{row['key']}: {name} failed: {reason}")
    verdicts = present.compare(old["figures"], figures) if old else []
    for note in notes:
        print(f"compare: {note}")
    for cell, verdict, words in verdicts:
        print(f"{verdict:<7} {cell}  {words}")
    if values.out:
        seconds = time.perf_counter() - began
        results.write(values.out, **written, seconds=seconds, figures=figures, settings=how)
        present.write_lines(f"{values.out}l", facts | {"measured": measured, "published": published}, rows, summaries)
    if values.page:
        title = f"Training step of {pathlib.Path(values.config).stem}"
        where = present.page(
            values.page,
            title=title,
            facts={name: text for name, text in facts.items() if text},
            rows=rows,
            summaries=summaries,
            measured=measured,
            published=published,
            verdicts=verdicts,
        )
        print(f"page: {where}")
    return int(present.regressed(verdicts) or not any(summaries))


if __name__ == "__main__":
    flags_lib.main(run)
