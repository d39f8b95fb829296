"""Figures that no training run gives by itself.

python -m benchmarks.measure clone --out=results/clone.json     # git clone, make train: seconds to the report
python -m benchmarks.measure step --out=results/step.json       # one against eight devices, recompilations
python -m benchmarks.measure replicas --out=results/replicas.json    # five seeds at once, and one by one
python -m benchmarks.measure sigma --workdir=RUN --twin=RUN --out=results/sigma.json    # two Gaussian decoders
python -m benchmarks.measure quality --runs=RUN,RUN,... --features=RUN --out=results/quality.json    # FID, PSNR, ...
python -m benchmarks.measure gradients --workdir=RUN --out=results/gradients.json   # variance, SNR of estimators
python -m benchmarks.measure iw --workdir=RUN --k=5000 --images=10000 --out=results/iw.json    # cost of IW-K
python -m benchmarks.measure curve --runs=RUN,RUN,... --epochs=3280 --out=results/curve.json    # what longer would give
python -m benchmarks.measure modes --data_dir=DIR --out=results/modes.json    # the same update in every mode and mesh
python -m benchmarks.measure aot --data_dir=DIR --out=results/aot.json    # training steps compiled for pods
"""

import argparse
import json
import os
import re
import resource
import shlex
import subprocess
import sys
import tempfile
import time


def clone(args):
    """Seconds and test accuracy of README's first command in a fresh clone in an empty folder."""
    from vae_jax.tools import results

    top = subprocess.run(["git", "rev-parse", "--show-toplevel"], capture_output=True, text=True, check=True).stdout
    with tempfile.TemporaryDirectory() as folder:
        env = {k: v for k, v in os.environ.items() if not k.startswith(("VAE_JAX", "XLA_", "JAX_"))}
        env["VAE_JAX_CACHE"] = os.path.join(folder, "cache")  # nothing compiled before
        began = time.perf_counter()
        subprocess.run(["git", "clone", "-q", top.strip(), "vae_jax"], cwd=folder, check=True)
        subprocess.run(["make", "train"], cwd=os.path.join(folder, "vae_jax"), env=env, check=True)
        seconds = time.perf_counter() - began
        with open(os.path.join(folder, "vae_jax", "runs", "digits", "metrics.json")) as f:
            metrics = json.load(f)
    return "configs/digits.py", {
        "clone_to_report": results.figure(seconds, "s"),
        "accuracy": results.figure(metrics["accuracy"], "", n=metrics["n"]),
    }


def step(args):
    """The largest relative difference of a loss trace on eight devices, and what the step asks of the host."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
    import jax
    import numpy as np

    from tests import test_errors, test_step
    from vae_jax.tools import results

    steps = 100
    (one, _), (eight, _) = (test_step.trace(test_step.small(), jax.devices()[:n], steps) for n in (1, 8))
    compilations, transfers = test_step.asked_of_the_host()
    return "digits, joint, MLP, batch 32", {
        "trace_difference": results.figure(float(np.max(np.abs(one - eight) / np.abs(one))), "relative", n=steps),
        "recompilations": results.figure(compilations, "after the first step", n=5),
        "host_transfers": results.figure(transfers, "inside a step", n=5),
        "bad_inputs": results.figure(len(test_errors.FLAGS), "one clear line each"),
    }


def replicas(args):
    """Seconds of five seeds trained as one program, and one after the other: compilation, steps, checkpoints."""
    import jax
    import numpy as np

    from configs import digits
    from vae_jax import config as config_lib
    from vae_jax.tools import results
    from vae_jax.train import loop

    def c(**fields):
        c = digits.get_config()
        c.steps, c.steps_per_call, c.eval.every, c.log_every, c.unroll = 2000, 50, 1000, 500, False
        for field, value in fields.items():
            c[field] = value
        return c

    def elbo(folder):
        """The last validation's."""
        with open(f"{folder}/metrics.jsonl") as f:
            return [row["elbo"] for row in map(json.loads, f) if row["split"] == "validation"][-1]

    seconds, apart = {"together": [], "one_by_one": []}, []
    together = c()
    config_lib.replicate(together, "seed", range(5))
    for _ in range(3):
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            loop.train(together, f"{folder}/together")
            seconds["together"].append(time.perf_counter() - began)
            began = time.perf_counter()
            for seed in range(5):
                loop.train(c(seed=seed), f"{folder}/{seed}")
            seconds["one_by_one"].append(time.perf_counter() - began)
            apart += [abs(elbo(f"{folder}/together/replica_{r}") - elbo(f"{folder}/{r}")) for r in range(5)]
        jax.clear_caches()
    ratios = [a / b for a, b in zip(seconds["one_by_one"], seconds["together"], strict=True)]
    figures = {
        name: results.figure(float(np.median(all_)), "s", sd=float(np.std(all_, ddof=1)), n=len(all_))
        for name, all_ in seconds.items()
    }
    figures["one_by_one_over_together"] = results.figure(
        float(np.median(ratios)), "", sd=float(np.std(ratios, ddof=1)), n=len(ratios)
    )
    figures["elbo_apart"] = results.figure(max(apart), "nats / image, at most, after 2,000 steps", n=5)
    return "configs/digits.py, 50 steps a call, seeds 0-4", figures


def sigma(args):
    """Two Gaussian decoders on one data set: bits per dimension, sharpness of samples, and a picture of both.

    A density of 256 grey levels has no bits per dimension, so both decoders are read as what they can code
    with: a Gaussian of one σ integrated over each level's bin, σ being the root mean square error on the
    validation set, or 1 where the run's own likelihood fixes it. The figure is -(log p(x|z) - KL) of one draw.
    Sharpness is the variance of an image's Laplacian, over that of the test images.
    """
    import jax
    import numpy as np
    from scipy import special

    from vae_jax import config as config_lib
    from vae_jax import distributions as densities
    from vae_jax.evaluate import quality as quality_lib
    from vae_jax.tools import results
    from vae_jax.train import run as workdir
    from vae_jax.train import step as step_lib

    figures, rows, configs = {}, [], {}
    for name, folder in (("optimal", args.workdir), ("unit", args.twin)):
        s, state, _ = workdir.restore(folder, data_dir=args.data_dir)
        params, model, n = step_lib.averaged(state), s.model, min(args.images, len(s.dataset.test.image))
        configs[name] = config_lib.to_json(s.c)

        @jax.jit
        def one(image, key, model=model, params=params):
            x = image.astype(np.float32) / 255
            d = model.draw(params, x, jax.random.split(key, len(x)))
            return x, model.decode(params, d.z), d.kl.sum(-1)

        key = step_lib.stream(0, "sigma")
        x, mean, _ = one(s.dataset.validation.image, key)
        scale = 1.0 if name == "unit" else float(np.sqrt(np.mean((x - mean) ** 2)))
        x, mean, kl = (np.asarray(a, np.float64) for a in one(s.dataset.test.image[:n], key))
        edges = [
            np.where(x == end, side * np.inf, (x + side * 0.5 / 255 - mean) / scale) for end, side in ((0, -1), (1, 1))
        ]
        swap = edges[0] > 0  # the tail that is small is the one to subtract in
        low, high = np.where(swap, -edges[1], edges[0]), np.where(swap, -edges[0], edges[1])
        high = special.log_ndtr(high)
        log_p = high + np.log1p(-np.exp(special.log_ndtr(low) - high))
        bits = densities.bits_per_dim(kl - log_p.sum((1, 2, 3)), s.dataset.shape)
        figures[f"{name}_bits_per_dim"] = results.figure(bits.mean(), "bits / dim", n=n)
        figures[f"{name}_kl"] = results.figure(kl.mean(), "nats / image", n=n)
        figures[f"{name}_sigma"] = results.figure(scale, "of the grey scale")
        z = model.prior(params).sample(jax.random.split(jax.random.fold_in(key, 1), 1000))
        samples = np.clip(np.asarray(model.decode(params, z)), 0, 1)
        relative = quality_lib.sharpness(samples) / quality_lib.sharpness(x[:1000])
        figures[f"{name}_sharpness"] = results.figure(relative, "of the test images'", n=1000)
        rows += [(f"samples, {name} variance", samples[:16]), (f"reconstructions, {name} variance", mean[:16])]
    strips(args.out, [*rows, ("test images", x[:16])])
    return configs, figures


def strips(out, rows):
    """The picture beside a file of results: labelled rows of grey images in [0, 1]."""
    import numpy as np
    from PIL import Image, ImageDraw

    size, left = 56, 190
    page = Image.new("L", (left + 16 * size, len(rows) * (size + 6)), 255)
    for i, (label, images) in enumerate(rows):
        ImageDraw.Draw(page).text((4, i * (size + 6) + size // 2 - 6), label, fill=0)
        for j, image in enumerate(images):
            tile = Image.fromarray((np.clip(image[..., 0], 0, 1) * 255).astype(np.uint8)).resize((size, size))
            page.paste(tile, (left + j * size, i * (size + 6)))
    page.save(os.path.splitext(out)[0] + ".png", optimize=True)


def quality(args):
    """Figures of the images of some runs, in the features of another run (``vae_jax.evaluate.quality``), each under the
    name of its run's folder, and a picture of all."""
    from vae_jax import config as config_lib
    from vae_jax.evaluate import quality as quality_lib
    from vae_jax.tools import results

    units = dict.fromkeys(("sharpness_samples", "sharpness_reconstructions"), "of the test images'") | {"psnr": "dB"}
    configs, figures, rows = {}, {}, []
    for folder in args.runs.split(","):
        name = os.path.basename(folder.rstrip("/"))
        if name in configs:
            raise SystemExit(f"runs={args.runs}: {name} is there twice; want folders of different names")
        c, found, images = quality_lib.measure(folder, args.features, args.images, data_dir=args.data_dir)
        configs[name], n = config_lib.to_json(c), found.pop("n")
        figures |= {f"{name}_{k}": results.figure(v, units.get(k, ""), n=n) for k, v in found.items()}
        rows += [(f"{kind}, {name}", images[kind][:16]) for kind in ("samples", "reconstructions")]
    strips(args.out, [*rows, ("test images", images["test"][:16])])
    return configs, figures


def gradients(args):
    """The probe of gradient estimators on a run's checkpoint: its table as figures, its picture beside them."""
    import shutil

    from vae_jax.evaluate import gradients as probe
    from vae_jax.tools import results

    probe.run(["gradients", f"--workdir={args.workdir}", f"--data_dir={args.data_dir}", "--samples=1,5,50"])
    shutil.copy(os.path.join(args.workdir, "gradients.png"), os.path.splitext(args.out)[0] + ".png")
    with open(os.path.join(args.workdir, "gradients.json")) as f:
        rows = json.load(f)
    figures = {
        f"{row['estimator']}_{row['samples']}_{side}_{what}": results.figure(row[side][what], "", n=row["repeats"])
        for row in rows
        for side in ("inference", "generative")
        for what in ("variance", "snr")
    }
    with open(os.path.join(args.workdir, "config.json")) as f:
        return json.load(f), figures


def iw(args):
    """Seconds and peak memory of the test set's IW-K, and the peak at K / 10.

    The share of the peak counts the decoder alone: K passes an image, of the FLOPs that XLA counts, against
    the best float32 matrix product.
    """
    import concurrent.futures
    import multiprocessing

    from benchmarks import machine
    from vae_jax.tools import results

    # A process for each K: the peak of one that did both would never fall.
    fresh = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, fresh, max_tasks_per_child=1) as processes:
        calls = [processes.submit(bound, args, k) for k in (max(1, args.k // 10), args.k)]
        tenth, whole = (call.result() for call in calls)
    n, draws, peak = whole["n"], whole["n"] * args.k / whole["seconds"], machine.measured()["float32"]
    return whole["config"], {
        "seconds": results.figure(whole["seconds"], "s", n=n),
        "k": results.figure(args.k, "samples / image"),
        "draws_per_s": results.figure(draws, "images x samples / s"),
        "iw_nats": results.figure(whole["mean"], "nats / image", sd=whole["sd"], n=n),
        "peak_memory": results.figure(whole["mib"], "MiB"),
        "peak_memory_at_a_tenth_of_k": results.figure(tenth["mib"], "MiB"),
        "matmul_peak": results.figure(peak / 1e9, "GFLOP / s / device"),
        "share_of_peak": results.figure(draws * whole["flops"] / peak / whole["devices"], ""),
    }


AOT = ("configs/*.py@v5e:16x16", "configs/imagenet64.py@v5p:8x8x8", "configs/imagenet64.py@v6e:16x16")
WEAK = ("v5p:2x2x2", "v5p:4x4x4", "v5p:8x8x8")  # 8, 64 and 512 chips


def curve(args):
    """IW-K of the same config trained for several lengths, and its extrapolation: IW-K = a − b epochs^(−p), least
    squares. The longest run is also foretold from the others: how far that is off is what the fit is worth."""
    import numpy as np
    from scipy import optimize

    from vae_jax.report import pictures as draw
    from vae_jax.tools import results

    def fit(points):
        x, y = np.array(points).T
        law = lambda e, a, b, p: a - b * e**-p  # noqa: E731
        found, _ = optimize.curve_fit(law, x, y, (y.max() + 1, 10.0, 0.5), bounds=([-200, 0, 0.05], [0, 1e3, 2]))
        return lambda e: law(np.asarray(e, float), *found)

    figures, points = {}, []
    for workdir in args.runs.split(","):
        args.workdir = workdir
        row = bound(args, args.k)
        c = row["config"]
        epochs = c["steps"] * c["batch"] / row["train"]
        points.append((epochs, row["mean"]))
        name = f"epochs_{epochs:.0f}"
        figures[name] = results.figure(row["mean"], "nats / image", n=row["n"], sd=row["sd"])
        print(f"{name}: IW-{args.k} {row['mean']:.3f}", flush=True)
    points.sort()
    if len(points) > 3:
        figures["foretold"] = results.figure(fit(points[:-1])(points[-1][0]), "nats / image", n=len(points) - 1)
    at = fit(points)
    figures["extrapolated"] = results.figure(at(args.epochs), "nats / image", n=len(points))
    figures["extrapolated_epochs"] = results.figure(args.epochs, "")

    page = draw.new_figure(6, 3)
    ax = page.subplots()
    draw.style_axes(ax, draw.LIGHT)
    x = np.geomspace(points[0][0], args.epochs)
    ax.plot(x, at(x), color=draw.LIGHT["validation"], linewidth=1.2, label="a − b epochs⁻ᵖ")
    ax.plot(*zip(*points, strict=True), "o", color=draw.LIGHT["train"], markersize=5, label=f"IW-{args.k}, test")
    ax.set_xscale("log")
    ax.set_xlabel("epochs", fontsize=8.5, color=draw.LIGHT["muted"])
    ax.set_ylabel("nats / image", fontsize=8.5, color=draw.LIGHT["muted"])
    ax.legend(frameon=False, fontsize=8, labelcolor=draw.LIGHT["muted"])
    with open(os.path.splitext(args.out)[0] + ".png", "wb") as f:
        f.write(draw.figure_png(page))
    return c, figures


def begun(path):
    """The figures of a measurement that was stopped, or none; it goes on with the others."""
    if not os.path.exists(path):
        return {}
    with open(path) as f:
        return json.load(f)["figures"]


def aot(args):
    """Training steps compiled for pods, data parallel and with parameters split over 8 (fsdp), and weak scaling.

    What does not fit a batch size to so many devices gets the next one that does. Weak scaling is configs/mnist.py with
    16 images a device: what grows with the pod. Needs libtpu (requirements-tpu-aot.txt).
    """
    import pathlib

    from benchmarks import target
    from vae_jax import config as config_lib
    from vae_jax.tools import results

    out, figures = pathlib.Path(args.out), begun(args.out)

    def one(name, path, where, each=None, **mesh):
        if f"{name}_fits" in figures:
            return
        c = config_lib.load(path)
        c.data.dir, c.mesh.fsdp = args.data_dir, mesh.get("fsdp", 1)
        devices = len(target.devices(where)[0])
        c.batch = devices * (each or max(1, -(-c.batch // devices)))
        c.data.labelled_batch = devices * -(-c.data.labelled_batch // devices)
        row = target.measure(c, where)
        print(target.words(name, row), flush=True)
        moved = sum(each["bytes"] for each in row["collectives"].values()) / 1e6
        figures.update(target.figures(name, row))
        figures[f"{name}_collectives"] = results.figure(moved, "MB / step")
        record(args, None, figures)  # what is compiled is not lost

    for cell in args.only.split(",") if args.only else [*AOT, "weak"]:
        if cell == "weak":
            names = [f"weak_{len(target.devices(where)[0])}" for where in WEAK]
            for name, where in zip(names, WEAK, strict=True):
                one(name, "configs/mnist.py", where, each=16)
            for key in ("flops", "collectives"):
                values = [figures[f"{name}_{key}"]["value"] for name in names]
                figures[f"weak_{key}_spread"] = results.figure(max(values) / min(values) - 1, "relative", n=len(values))
            rows = {int(n[5:]): [figures[f"{n}_{key}"]["value"] for key in ("flops", "wire")] for n in names}
            _weak_picture(rows, out.with_name("weak_scaling.png"))
            continue
        pattern, _, where = cell.partition("@")
        for path in (p for p in sorted(pathlib.Path().glob(pattern)) if "def get_config" in p.read_text()):
            for kind, fsdp in (("dp", 1), ("fsdp", 8)):
                one(f"{path.stem}_{where.replace(':', '_')}_{kind}", str(path), where, fsdp=fsdp)
    return None, figures


def _weak_picture(rows, path):
    """What a chip computes and sends in a step, against the number of chips."""
    from vae_jax.report import pictures as draw

    page, axes = draw.panels(2, 4, 2.6, top=0.35)
    chips = list(rows)
    names = "GFLOP / chip / step", "MB sent / chip / step"
    for ax, name, values in zip(axes, names, zip(*rows.values(), strict=True), strict=True):
        draw.style_axes(ax, draw.LIGHT)
        ax.plot(chips, values, "o-", color=draw.LIGHT["train"], markersize=5, linewidth=1.2)
        ax.set_xscale("log", base=2)
        ax.set_xticks(chips, [str(n) for n in chips])
        ax.set_ylim(0, 1.25 * max(values))
        ax.set_title(name, fontsize=9, color=draw.LIGHT["ink"], loc="left")
        ax.set_xlabel("chips, v5p", fontsize=8.5, color=draw.LIGHT["muted"])
    with open(path, "wb") as f:
        f.write(draw.figure_png(page))


def modes(args):
    """50 steps of the joint objective, M2 and IWAE in every mode of tests/test_sharding.py: loss traces apart from
    those of jit on one device, and the first update; on MNIST with --data_dir, else on digits. IWAE twice: on grey
    levels, and as published, on pixels of 0 and 1."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import jax

    jax.config.update("jax_num_cpu_devices", 8)
    import numpy as np

    from tests import test_sharding
    from vae_jax.tools import results

    real = {"data__name": "mnist", "data__dir": args.data_dir} if args.data_dir else {}
    binary = {"data__binarize": "dynamic", "likelihood__name": "bernoulli"}
    figures = begun(args.out)

    def trace(c, devices):
        state, run = test_sharding.built(c, devices)
        losses = []
        for _ in range(args.steps):
            state, values = run.run(state, run.source, run.key)
            losses.append(float(np.asarray(values)[0, run.names.index("loss")]))
        return np.array(losses)

    for name in ("joint", "m2", "iwae", "iwae_binary"):
        kind, given = ("iwae", real | binary) if name == "iwae_binary" else (name, real)
        make = lambda kind=kind, given=given, **fields: test_sharding.objective(kind, **given, **fields)  # noqa: E731
        one = None
        for mode, (fields, devices) in test_sharding.MODES.items():
            key = f"{name}_{re.sub(r'[^a-z0-9]+', '_', mode)}"
            if f"{key}_update" in figures or (name == "joint" and "samples" in mode):
                continue
            want, update = one = one or (trace(make(), 1), test_sharding.update(make(), 1))
            gap = np.max(np.abs(trace(make(**fields), devices) - want) / np.abs(want))
            figures[f"{key}_trace"] = results.figure(gap, "relative, at most", n=args.steps)
            figures[f"{key}_update"] = results.figure(test_sharding.apart(make(**fields), update, devices), "relative")
            print(f"{key}: trace {gap:.1e}, update {figures[f'{key}_update']['value']:.1e}", flush=True)
            record(args, None, figures)  # what is measured is not lost
            jax.clear_caches()
    for largest, suffix in (("largest_", ""), ("iwae_binary_largest_", "iwae_binary")):
        for what in ("trace", "update"):
            cells = [f["value"] for key, f in figures.items() if key.startswith(suffix) and key.endswith(f"_{what}")]
            figures[f"{largest}{what}_difference"] = results.figure(max(cells), "relative", n=len(cells))
    return f"{'mnist' if real else 'digits'}; tests/test_sharding.py", figures


def bound(args, k):
    """IW-K of the first test images by evaluation's own code on a run's checkpoint, compilation included."""
    import jax
    import jax.numpy as jnp

    from vae_jax import config as config_lib
    from vae_jax.data import Split
    from vae_jax.evaluate import likelihood
    from vae_jax.train import run as workdir
    from vae_jax.train import step as step_lib

    s, state, _ = workdir.restore(args.workdir, data_dir=args.data_dir)
    params, key = step_lib.averaged(state), step_lib.stream(s.c.seed, "test")
    split = Split(s.dataset.test.image[: args.images], None)
    began = time.perf_counter()
    iw_N = likelihood.log_likelihood(s.c, s.model, params, split, s.dataset.levels, s.mesh, key, k=k)["iw"]
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**10 if sys.platform == "linux" else 2**20)
    one = jax.jit(s.model.decode).lower(params, jnp.zeros((1, s.model.latent))).cost_analysis()
    return {
        "config": config_lib.to_json(s.c),
        "n": len(iw_N),
        "train": len(s.dataset.train.image),
        "mean": iw_N.mean(),
        "sd": iw_N.std(ddof=1),
        "seconds": seconds,
        "mib": peak,
        "flops": one["flops"],
        "devices": s.mesh.size,
    }


def record(args, config, figures):
    from vae_jax.tools import results

    command = shlex.join(["python", "-m", "benchmarks.measure", *sys.argv[1:]])
    results.write(args.out, command=command, config=config, seed=0, seconds=time.time() - args.began, figures=figures)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "what",
        choices=("clone", "step", "replicas", "sigma", "quality", "gradients", "iw", "curve", "aot", "modes"),
    )
    parser.add_argument("--out", required=True)
    parser.add_argument("--workdir", help="sigma, gradients, iw: a finished run with a decoder")
    parser.add_argument("--features", help="quality: a finished run that learnt labels")
    parser.add_argument("--twin", help="sigma: the run with the other variance")
    parser.add_argument("--runs", help="curve: finished runs of one config in several lengths; quality: any runs")
    parser.add_argument("--epochs", type=float, help="curve: the length to extrapolate to")
    parser.add_argument("--k", type=int, default=5000, help="iw, curve: samples of an image")
    parser.add_argument("--images", type=int, default=10_000, help="iw, sigma, quality: test images, from the first")
    parser.add_argument("--only", default="", help="aot: some of its cells, such as configs/mnist.py@v5e:16x16,weak")
    parser.add_argument("--steps", type=int, default=50, help="modes: of a loss trace")
    parser.add_argument(
        "--data_dir", default="", help="sigma, gradients, iw, curve, aot: where the data is, if it moved"
    )
    args = parser.parse_args()
    args.began = time.time()
    config, figures = {
        "clone": clone,
        "step": step,
        "replicas": replicas,
        "sigma": sigma,
        "quality": quality,
        "gradients": gradients,
        "iw": iw,
        "curve": curve,
        "aot": aot,
        "modes": modes,
    }[args.what](args)
    record(args, config, figures)


if __name__ == "__main__":
    sys.exit(main())
