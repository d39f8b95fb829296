"""Seconds and peak memory of the test set's IW-K, and the peak at K / 10.

python -m benchmarks.iw --workdir=RUN --k=5000 --images=10000 --out=results/iw.json

The share of the peak counts the decoder alone: K passes an image, of the FLOPs that XLA counts,
against the best float32 matrix product.
"""

import concurrent.futures
import multiprocessing

from benchmarks import common, machine
from vae_jax.tools import results


def measure(workdir: str, k: int, images: int, data_dir: str) -> tuple[dict, common.FIGURES]:
    """(config of the run, figures), each K in a process of its own.

    The peak memory of a process never falls, so one process could not tell the two apart.
    """
    fresh = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, fresh, max_tasks_per_child=1) as processes:
        calls = []
        for samples in (max(1, k // 10), k):
            given = (workdir, samples, images, data_dir)
            calls.append(processes.submit(common.importance_bound, *given))
        tenth, whole = (call.result() for call in calls)
    n = whole["n"]
    draws = n * k / whole["seconds"]
    peak = machine.measured()["float32"]
    share = draws * whole["flops"] / peak / whole["devices"]
    return whole["config"], {
        "seconds": results.figure(whole["seconds"], "s", n=n),
        "k": results.figure(k, "samples / image"),
        "draws_per_s": results.figure(draws, "images x samples / s"),
        "iw_nats": results.figure(whole["mean"], "nats / image", sd=whole["sd"], n=n),
        "peak_memory": results.figure(whole["mib"], "MiB"),
        "peak_memory_at_a_tenth_of_k": results.figure(tenth["mib"], "MiB"),
        "matmul_peak": results.figure(peak / 1e9, "GFLOP / s / device"),
        "share_of_peak": results.figure(share, ""),
    }


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--workdir", required=True, help="a finished run with a decoder")
    parser.add_argument("--k", type=int, default=5000, help="samples of an image")
    parser.add_argument("--images", type=int, default=10_000, help="test images, from the first")
    parser.add_argument("--data_dir", default="", help="where the data is, if it moved")
    args = parser.parse_args()
    recorder = common.Recorder("iw", args.out)
    recorder.write(*measure(args.workdir, args.k, args.images, args.data_dir))


if __name__ == "__main__":
    common.script(main)
