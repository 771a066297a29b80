"""What choosing a logistic probe costs: gapclose's batched solver against a loop over scikit-learn.

28 layers x 4 grouped folds x 5 values of C at 2,000 items and width 3,584, on whatever is there (ten minutes on two CPU cores):
    python benchmarks/probes.py
    python benchmarks/probes.py --classes 2
Against a scikit-learn that is nearly as exact:
    python benchmarks/probes.py --classes 2 --tolerance 1e-7
The same on a GPU (scikit-learn still runs on the CPU, beside it):
    python benchmarks/probes.py --device cuda

Residuals are synthetic but made to resemble real ones: a covariance spectrum that decays like 1 / rank over isotropic noise, unequal
scales, a few outlier dimensions, four questions to a clip that share part of their state, and a class signal that swells towards
three fifths of the depth. They are made outside the timing, one layer at a time.

Both sides get the same float32 residuals and do all that a sweep needs: standardising by each fold's training part, fitting, and
out-of-fold logits. scikit-learn runs in two processes over layers with one thread each, warm-started along C, at its default
tolerance unless told otherwise; the solver runs in ``--processes`` processes (two on a CPU, one elsewhere) at that of gapclose's search, a
tighter one. The sides
take turns, a few layers each, so that other work on the machine meets both; ratios are medians over rounds of the ratio within a round. CPU
time, which waiting for a core does not add to, is given beside it.

After the timing, one fold of the chosen layer is fitted for all C by scikit-learn in float64 at tolerance 1e-8: both sides are held
against that. Peak memory is each process's own resident set, with its libraries and one layer's residuals.

Shapes: N items, D width, S strengths, C classes.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import time
import warnings
from typing import Any

import numpy as np
import sklearn
import torch
from rich.console import Console
from rich.table import Table
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression

from gapclose.probes.cross_validation import fit_temperature, grouped_folds
from gapclose.probes.logistic import held_out
from gapclose.probes.search import TOLERANCE

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
SIDES = ("scikit-learn", "gapclose")
WANTED = {"cpu": 4, "cuda": 100}


def labels(args: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """Classes and clips of the items, (N,) each; the same in every layer."""
    draw = np.random.default_rng(args.seed)
    return draw.permutation(np.arange(args.n) % args.classes), draw.permutation(np.arange(args.n) // 4)


def residuals(layer: int, args: argparse.Namespace) -> np.ndarray:
    """One layer's residuals (N, D) in float32."""
    y, clips = labels(args)
    draw = np.random.default_rng([args.seed, layer])
    rank = min(512, args.width)
    latent = draw.normal(size=(args.n, rank)) + 0.5 * draw.normal(size=(clips.max() + 1, rank))[clips]
    means = draw.normal(size=(args.classes, rank))
    signal = 2.2 * np.exp(-(((layer - 0.6 * args.layers) / (0.25 * args.layers)) ** 2))
    latent += signal * (means / np.linalg.norm(means, axis=1, keepdims=True))[y]
    spectrum = np.arange(1, rank + 1) ** -0.5
    latent *= spectrum / np.linalg.norm(spectrum)
    z = latent.astype(np.float32) @ draw.normal(size=(rank, args.width)).astype(np.float32)
    for row in z:
        row += 0.5 * draw.standard_normal(args.width, dtype=np.float32)
    scale = np.exp(0.5 * draw.normal(size=args.width))
    scale[draw.choice(args.width, min(6, args.width), replace=False)] *= 50
    z *= scale.astype(np.float32)
    z += (scale * draw.normal(size=args.width)).astype(np.float32)
    return z


def sweep_scikit_learn(z: np.ndarray, y: np.ndarray, folds: list, args: argparse.Namespace) -> np.ndarray:
    """Out-of-fold probabilities (S, N, C)."""
    found = np.zeros((len(STRENGTHS), len(y), args.classes))
    for train, test in folds:
        mean, scale = z[train].mean(0), z[train].std(0)
        x, left = (z[train] - mean) / scale, (z[test] - mean) / scale
        model = LogisticRegression(max_iter=20_000, tol=args.tolerance, warm_start=True)
        for s, strength in enumerate(STRENGTHS):
            found[s, test] = model.set_params(C=strength).fit(x, y[train]).predict_proba(left)
    return found


def sweep_gapclose(z: np.ndarray, y: np.ndarray, folds: list, args: argparse.Namespace) -> np.ndarray:
    """Out-of-fold probabilities (S, N, C), with the way to the device and back."""
    moved = torch.from_numpy(z).to(args.device)
    return held_out(moved, torch.from_numpy(y), folds, STRENGTHS, tolerance=args.own_tolerance).softmax(-1).cpu().numpy()


def worker(side: str, threads: int, args: argparse.Namespace, pipe: Any) -> None:
    """Make a layer when told its number, fit when told to, answer with seconds, probabilities and peak memory; stop at None."""
    torch.set_num_threads(threads)
    sweep = {"scikit-learn": sweep_scikit_learn, "gapclose": sweep_gapclose}[side]
    y, clips = labels(args)
    folds = grouped_folds(y, clips, args.folds, args.seed)
    few = np.concatenate([np.flatnonzero(y == c)[:8] for c in range(args.classes)])
    sweep(residuals(0, args)[few], y[few], [(np.arange(len(few)), np.arange(len(few)))], args)  # libraries wake up
    pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    while (layer := pipe.recv()) is not None:
        z = residuals(layer, args)
        pipe.send("ready")
        pipe.recv()
        start, busy = time.perf_counter(), time.process_time()
        found = sweep(z, y, folds, args)
        taken, used = time.perf_counter() - start, time.process_time() - busy
        held = torch.cuda.max_memory_allocated() if side == "gapclose" and args.device.startswith("cuda") else 0
        pipe.send((taken, used, found, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, held))
        del z, found


class Team:
    """The processes of one side."""

    def __init__(self, side: str, size: int, threads: int, args: argparse.Namespace) -> None:
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
            os.environ[name] = str(threads)  # read by the libraries when the process starts
        context = multiprocessing.get_context("spawn")
        pairs = [context.Pipe() for _ in range(size)]
        self.pipes = [here for here, _ in pairs]
        self.members = [context.Process(target=worker, args=(side, threads, args, there)) for _, there in pairs]
        for member in self.members:
            member.start()
        self.idle = max(pipe.recv() for pipe in self.pipes)
        self.peak, self.held, self.used = self.idle, 0, 0.0

    def fit(self, layers: list[int]) -> tuple[float, dict[int, np.ndarray]]:
        """Sweep these layers, split over the processes; seconds until the last is done, and probabilities by layer."""
        shares = [layers[i :: len(self.pipes)] for i in range(len(self.pipes))]
        seconds, found = np.zeros(len(self.pipes)), {}
        for turn in range(max(map(len, shares))):
            busy = [(i, share[turn]) for i, share in enumerate(shares) if turn < len(share)]
            for message in ("make", "fit"):
                for i, layer in busy:
                    self.pipes[i].send(layer if message == "make" else message)
                answers = [self.pipes[i].recv() for i, _ in busy]
            for (i, layer), (taken, used, probabilities, peak, held) in zip(busy, answers, strict=True):
                seconds[i] += taken
                self.used += used
                found[layer] = probabilities
                self.peak, self.held = max(self.peak, peak), max(self.held, held)
        return float(seconds.max()), found

    def stop(self) -> None:
        for pipe, member in zip(self.pipes, self.members, strict=True):
            pipe.send(None)
            member.join()


def choose(found: dict[int, np.ndarray], y: np.ndarray) -> tuple[int, float, float]:
    """Layer, C and out-of-fold log-likelihood of the best setting, after temperature, as gapclose chooses."""
    scores = {}
    for layer, probabilities in found.items():
        for strength, p in zip(STRENGTHS, probabilities, strict=True):
            logits = np.log(np.maximum(p, 1e-300))
            tempered = softmax(logits / fit_temperature(logits, y), axis=1)
            scores[layer, strength] = float(np.log(tempered[np.arange(len(y)), y]).mean())
    best = max(scores, key=lambda key: scores[key])
    return *best, scores[best]


def reference(layer: int, args: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """The first fold's held-out items, and their probabilities (S, N_test, C) from scikit-learn, tight and in float64."""
    y, clips = labels(args)
    train, test = grouped_folds(y, clips, args.folds, args.seed)[0]
    z = residuals(layer, args).astype(np.float64)
    mean, scale = z[train].mean(0), z[train].std(0)
    models = [LogisticRegression(C=c, tol=1e-8, max_iter=50_000).fit((z[train] - mean) / scale, y[train]) for c in STRENGTHS]
    return test, np.stack([m.predict_proba((z[test] - mean) / scale) for m in models])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--n", type=int, default=2000, help="items, four to a clip")
    parser.add_argument("--width", type=int, default=3584)
    parser.add_argument("--classes", type=int, default=3)
    parser.add_argument("--folds", type=int, default=4)
    parser.add_argument(
        "--tolerance", type=float, default=1e-4, help="of scikit-learn; its default is 1e-4, with 1e-7 it is as exact as float32 lets it be"
    )
    parser.add_argument("--own_tolerance", type=float, default=TOLERANCE, help="of the solver; the default is that of gapclose's search")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="of the solver")
    parser.add_argument("--processes", type=int, help="of the solver (2 on a CPU, 1 elsewhere)")
    args = parser.parse_args()
    on_cpu = torch.device(args.device).type == "cpu"
    processes = args.processes or (2 if on_cpu else 1)
    cores = os.cpu_count() or 1
    setting = {
        **vars(args), "processes": processes, "strengths": STRENGTHS, "torch": torch.__version__, "scikit_learn": sklearn.__version__,
        "device": f"{cores} CPU cores" if on_cpu else torch.cuda.get_device_name(), "load_average": round(os.getloadavg()[0], 2),
    }  # fmt: skip
    for name, value in setting.items():
        print(f"{name.replace('_', ' ')}: {value}", flush=True)

    warnings.simplefilter("ignore")
    y, _ = labels(args)
    teams = {"scikit-learn": Team("scikit-learn", 2, 1, args), "gapclose": Team("gapclose", processes, max(1, cores // processes), args)}
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    found: dict[str, dict[int, np.ndarray]] = {side: {} for side in SIDES}
    for first in range(1, args.layers + 1, 2):
        layers = list(range(first, min(first + 2, args.layers + 1)))
        for side in SIDES if first % 4 == 1 else SIDES[::-1]:
            taken, probabilities = teams[side].fit(layers)
            seconds[side].append(taken)
            found[side] |= probabilities
        print(f"layers {layers}: " + ", ".join(f"{side} {seconds[side][-1]:.2f} s" for side in SIDES), flush=True)
    for team in teams.values():
        team.stop()

    choices = {side: choose(found[side], y) for side in SIDES}
    layer = choices["gapclose"][0]
    test, exact = reference(layer, args)
    off = {side: [float(np.abs(p - e).max()) for p, e in zip(found[side][layer][:, test], exact, strict=True)] for side in SIDES}
    ratios = np.array(seconds["scikit-learn"]) / np.array(seconds["gapclose"])
    low, median, high = np.percentile(ratios, [25, 50, 75])
    result: dict[str, Any] = {
        "setting": setting,
        "sides": {
            side: {
                "seconds": round(sum(seconds[side]), 3), "cpu_seconds": round(teams[side].used, 3), "choice": {"layer": choices[side][0], "C": choices[side][1]},
                "log_likelihood": choices[side][2], "largest_error": off[side], "peak_mb": round(teams[side].peak / 1e6, 1),
                "idle_mb": round(teams[side].idle / 1e6, 1), "device_mb": round(teams[side].held / 1e6, 1),
            }
            for side in SIDES
        },
        "ratio": {
            "median": round(float(median), 3), "lower_quartile": round(float(low), 3), "upper_quartile": round(float(high), 3),
            "total": round(sum(seconds["scikit-learn"]) / sum(seconds["gapclose"]), 3), "cpu_time": round(teams["scikit-learn"].used / teams["gapclose"].used, 3), "at_least": WANTED["cpu" if on_cpu else "cuda"],
        },
        "same_choice": choices["scikit-learn"][:2] == choices["gapclose"][:2],
        "within_1e-3": max(off["gapclose"]) <= 1e-3,
        "load_average_after": round(os.getloadavg()[0], 2),
    }  # fmt: skip
    table = Table("side", "processes", "sweep, s", "CPU s", "chosen layer, C", "peak MB a process", "of it before", "largest error by C")
    for side, numbers in result["sides"].items():
        chosen, errors = numbers["choice"], " ".join(f"{e:.0e}" for e in numbers["largest_error"])
        count = str(len(teams[side].members))
        table.add_row(side, count, f"{numbers['seconds']:.1f}", f"{numbers['cpu_seconds']:.1f}", f"{chosen['layer']}, {chosen['C']:g}", f"{numbers['peak_mb']:.0f}",
                      f"{numbers['idle_mb']:.0f}", errors)  # fmt: skip
    console = Console(width=140)
    console.print(table)
    console.print(
        f"scikit-learn / gapclose: {median:.2f} ({low:.2f}-{high:.2f}), wanted at least {result['ratio']['at_least']}; in CPU time {result['ratio']['cpu_time']:.2f}"
    )
    print(json.dumps(result))


if __name__ == "__main__":
    main()
