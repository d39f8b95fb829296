"""Kill a real training run with SIGKILL at random moments, resume it, and compare every leaf with a run
that was left alone. With --processes the run is several under the launcher, one of which, any one, is killed, or
asked by SIGTERM to stop: then all save the same step, and the same command goes on.

    python -m benchmarks.kill_resume --times=20 --out=results/resume.json
    python -m benchmarks.kill_resume --times=30 --processes=2 --out=results/kills.json
    python -m benchmarks.kill_resume --times=30 --processes=4 --out=results/kills_4.json
    python -m benchmarks.kill_resume --times=10 --processes=2 --stop --out=results/stops.json
"""

import argparse
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import numpy as np

STEPS = 200
COMMAND = [
    *("train.py", "--config=configs/digits.py", f"--config.steps={STEPS}", "--config.eval.every=20"),
    *("--config.log_every=20", "--config.optim.warmup=20", "--config.eval.iw_k=1"),
    *("--config.encoder.widths=(32,)", "--config.decoder.widths=(32,)"),
]


def start(workdir, processes=None):
    launcher = (
        ["-m", "vae_jax.tools.launch", f"--processes={processes}", "--devices_per_process=2", "--"] if processes else []
    )
    argv = [sys.executable, *launcher, *COMMAND, f"--workdir={workdir}"]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(workdir, processes=None):
    process = start(workdir, processes)
    try:
        out, _ = process.communicate(timeout=600)
    finally:
        process.terminate()
    if process.returncode:
        raise RuntimeError(out)
    return out


def final_leaves(workdir):
    """Every leaf of the last checkpoint's state, read by Orbax without the code that wrote it."""
    import jax
    import orbax.checkpoint as ocp

    from vae_jax.mesh import store

    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])  # where the devices that saved it are not
    with ocp.CheckpointManager(os.path.join(store.absolute(workdir), "checkpoints")) as manager:
        assert manager.latest_step() == STEPS
        restored = manager.restore(
            STEPS, args=ocp.args.Composite(state=ocp.args.StandardRestore(fallback_sharding=here))
        )
    return {jax.tree_util.keystr(p): np.asarray(x) for p, x in jax.tree_util.tree_leaves_with_path(restored["state"])}


def saved_steps(workdir):
    from vae_jax.mesh import store

    return [int(n.split(".")[0]) for n in store.names(os.path.join(workdir, "manifests")) if n.endswith(".json")]


def until_saved(workdir, process, before, rng, longest=0.5):
    """Wait until the run has saved something new, and a random moment longer."""
    limit = time.monotonic() + 120
    while max(saved_steps(workdir), default=0) <= before and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.005)
    time.sleep(rng.uniform(0, longest))


def kill_once(workdir, rng):
    """Start, wait until this run has saved something new, kill it a random moment later; its last step."""
    before = max(saved_steps(workdir), default=0)
    process = start(workdir)
    until_saved(workdir, process, before, rng)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return process.returncode == -signal.SIGKILL


def trial(reference, folder, rng, kills=2):
    """One run killed up to ``kills`` times and then finished: (kills that hit, leaves that differ, rows equal)."""
    workdir = os.path.join(folder, "run")
    hits = sum(kill_once(workdir, rng) for _ in range(kills))
    finish(workdir)
    return hits, *compare(reference, workdir)


def compare(reference, workdir):
    """(leaves of the final state that differ, whether the logged rows are equal)."""
    want, got = final_leaves(reference), final_leaves(workdir)
    different = [
        k for k in want if k not in got or want[k].dtype != got[k].dtype or want[k].tobytes() != got[k].tobytes()
    ]
    different += [k for k in got if k not in want]
    return different, losses(reference) == losses(workdir)


def signal_one(launcher, number, rng):
    """Send a signal to a random process of a launcher; when, or None where there was none to be met."""
    with open(f"/proc/{launcher.pid}/task/{launcher.pid}/children") as f:
        found = [int(pid) for pid in f.read().split()]
    if launcher.poll() is not None or not found:
        return None
    os.kill(rng.choice(found), number)
    return time.monotonic()


def launched(reference, folder, rng, processes, stop, kills=5):
    """One job of several processes: (signals that hit, leaves that differ, rows equal, seconds from each to a step).

    Killed, it is the launcher that begins again; asked to stop, it ends with 75, its last step saved and good.
    """
    from vae_jax.mesh import hosts
    from vae_jax.train import checkpoint

    workdir, lines = os.path.join(folder, "run"), []
    process = start(workdir, processes)
    reader = threading.Thread(target=lambda: lines.extend((time.monotonic(), line) for line in process.stdout))
    reader.start()
    sent = []
    for _ in range(1 if stop else kills):
        # A run that is done still evaluates, and can be killed; to be asked to stop it must be at its steps.
        until_saved(workdir, process, max(saved_steps(workdir), default=0), rng, longest=0.1 if stop else 0.5)
        sent.append(signal_one(process, signal.SIGTERM if stop else signal.SIGKILL, rng))
    try:
        code = process.wait(timeout=1800)
    except subprocess.TimeoutExpired:
        code = None
    finally:
        process.terminate()
    reader.join()
    text = "".join(line for _, line in lines)
    if code is None:
        raise RuntimeError(f"no end within half an hour of the last signal:\n{text}")
    if stop:
        found = re.search(r"stopped at step (\d+) and saved", text)
        good = found and code == hosts.STOPPED and checkpoint.fault(workdir, int(found[1])) is None
        hits = 0 if code == 0 else 1  # 0: it was done before it was asked
        if hits and not good:
            raise RuntimeError(text)
        finish(workdir, processes)
    else:
        hits = text.count("launch: a process ended with")
        if code:
            raise RuntimeError(text)
    steps = [at for at, line in lines if "] step" in line]
    again = [min((at - t for at in steps if at > t), default=None) for t in sent if t]
    return hits, *compare(reference, workdir), [s for s in again if s is not None]


def losses(workdir):
    """The logged rows without the wall clock: what a resumed log must equal."""
    from etils import epath

    from vae_jax.train import clock as watch

    rows = [json.loads(line) for line in epath.Path(workdir, "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in (*watch.ROW, "time")} for row in rows]


def record(args, began, trials, hits, exact, again):
    from vae_jax.tools import results

    sent = "SIGTERM to one process" if args.stop else "kill -9"
    figures = {
        "stops" if args.stop else "kills": results.figure(hits, sent, n=trials),
        "bit_exact": results.figure(exact, "resumed bit for bit", n=hits),
    }
    flags = f" --processes={args.processes}{' --stop' * args.stop} --out={args.out}" if args.processes else ""
    if again and not args.stop:
        spread = statistics.stdev(again) if len(again) > 1 else None
        figures["restart_seconds"] = results.figure(statistics.median(again), "s", sd=spread, n=len(again))
    results.write(
        args.out,
        command=f"python -m benchmarks.kill_resume --times={args.times}{flags}",
        config=" ".join(COMMAND[1:]),
        seed=args.seed,
        seconds=time.time() - began,
        figures=figures,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, help="under the launcher, two devices each")
    parser.add_argument("--stop", action="store_true", help="SIGTERM to one of them in place of kill -9")
    parser.add_argument("--out", default="results/resume.json")
    args = parser.parse_args()
    rng, hits, exact, began, again = random.Random(args.seed), 0, 0, time.time(), []
    with tempfile.TemporaryDirectory() as folder:
        reference = os.path.join(folder, "reference")
        finish(reference, args.processes)
        trials = 0
        while hits < args.times:
            with tempfile.TemporaryDirectory() as inner:
                if args.processes:
                    n, different, rows, seconds = launched(reference, inner, rng, args.processes, args.stop)
                    again += seconds
                else:
                    n, different, rows = trial(reference, inner, rng)
            trials, hits, exact = trials + 1, hits + n, exact + (not different and rows) * n
            print(f"trial {trials}: {n} hits, {len(different)} leaves differ, log rows equal: {rows}", flush=True)
            record(args, began, trials, hits, exact, again)  # what is done is not lost
    return 0 if exact == hits else 1


if __name__ == "__main__":
    sys.exit(main())
