"""Kill a real training run with SIGKILL at random moments, resume it, and compare every leaf with a run
that was left alone.

    python -m tests.kill_resume --times=20 --out=results/resume.json
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np

STEPS = 200
COMMAND = [
    *("train.py", "--config=configs/digits.py", f"--config.steps={STEPS}", "--config.eval.every=20"),
    *("--config.log_every=20", "--config.optim.warmup=20", "--config.eval.iw_k=1"),
    *("--config.encoder.widths=(32,)", "--config.decoder.widths=(32,)"),
]


def start(workdir):
    return subprocess.Popen(
        [sys.executable, *COMMAND, f"--workdir={workdir}"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(workdir):
    process = start(workdir)
    out, _ = process.communicate(timeout=300)
    if process.returncode:
        raise RuntimeError(out)
    return out


def final_leaves(workdir):
    """Every leaf of the last checkpoint's state, read by Orbax without the code that wrote it."""
    import orbax.checkpoint as ocp

    with ocp.CheckpointManager(os.path.join(os.path.abspath(workdir), "checkpoints")) as manager:
        assert manager.latest_step() == STEPS
        restored = manager.restore(STEPS, args=ocp.args.Composite(state=ocp.args.StandardRestore()))
    import jax

    return {jax.tree_util.keystr(p): np.asarray(x) for p, x in jax.tree_util.tree_leaves_with_path(restored["state"])}


def saved_steps(workdir):
    folder = os.path.join(workdir, "manifests")
    return [int(n.split(".")[0]) for n in os.listdir(folder) if n.endswith(".json")] if os.path.isdir(folder) else []


def kill_once(workdir, rng):
    """Start, wait until this run has saved something new, kill it a random moment later; its last step."""
    before = max(saved_steps(workdir), default=0)
    process = start(workdir)
    limit = time.monotonic() + 120
    while max(saved_steps(workdir), default=0) <= before and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.005)
    time.sleep(rng.uniform(0, 0.5))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return process.returncode == -signal.SIGKILL


def trial(reference, folder, rng, kills=2):
    """One run killed up to ``kills`` times and then finished: (kills that hit, leaves that differ, rows equal)."""
    workdir = os.path.join(folder, "run")
    hits = sum(kill_once(workdir, rng) for _ in range(kills))
    finish(workdir)
    want, got = final_leaves(reference), final_leaves(workdir)
    different = [
        k for k in want if k not in got or want[k].dtype != got[k].dtype or want[k].tobytes() != got[k].tobytes()
    ]
    different += [k for k in got if k not in want]
    return hits, different, losses(reference) == losses(workdir)


def losses(workdir):
    """The logged rows without the wall clock: what a resumed log must equal."""
    with open(os.path.join(workdir, "metrics.jsonl")) as f:
        rows = [json.loads(line) for line in f]
    return [{k: v for k, v in row.items() if k not in ("images_per_s", "time")} for row in rows]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="results/resume.json")
    args = parser.parse_args()
    from vae_jax import results

    rng, hits, exact, began = random.Random(args.seed), 0, 0, time.time()
    with tempfile.TemporaryDirectory() as folder:
        reference = os.path.join(folder, "reference")
        finish(reference)
        trials = 0
        while hits < args.times:
            with tempfile.TemporaryDirectory() as inner:
                n, different, rows = trial(reference, inner, rng)
            trials, hits, exact = trials + 1, hits + n, exact + (not different and rows) * n
            print(f"trial {trials}: {n} kills, {len(different)} leaves differ, log rows equal: {rows}", flush=True)
    results.write(
        args.out,
        command=f"python -m tests.kill_resume --times={args.times}",
        config=" ".join(COMMAND[1:]),
        seed=args.seed,
        seconds=time.time() - began,
        figures={
            "kills": results.figure(hits, "kill -9", n=trials),
            "bit_exact": results.figure(exact, "resumed bit for bit", n=hits),
        },
    )
    return 0 if exact == hits else 1


if __name__ == "__main__":
    sys.exit(main())
