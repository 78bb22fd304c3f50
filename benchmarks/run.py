"""Measure, each benchmark in a process of its own, then draw the charts and print the summary.

    python benchmarks/run.py [layers dtypes networks engines ...] [--envs DIR [--peers]] [--threads 1 2]

Without names it runs every benchmark that needs only this package's environment. `engines` needs the folder that
`python benchmarks/engines.py --make-envs DIR` made, and `whole` finds OpenVINO there. `--peers` times the engines in
every dtype.
"""

from __future__ import annotations

import argparse
import pathlib
import subprocess
import sys

import torch

from groupwise.kernels.tables import OTHER_DTYPES

HERE = pathlib.Path(__file__).parent
STEPS = {
    "groups": ["groups.py"],
    "layers": ["layers.py"],
    "held-out": ["layers.py", "--held-out"],
    "dtypes": ["layers.py", "--dtype", *OTHER_DTYPES, "--repeats", "5", "--budget", "0.3"],
    "peak": ["peak.py"],
    "errors": ["errors.py"],
    "networks": ["networks.py"],
    "engines": ["engines.py"],
    "peers": ["engines.py", "--dtype", "float32", *OTHER_DTYPES],
    "whole": ["whole.py"],
    "steps": ["steps.py"],
    "calls": ["call_steps.py"],
}
# These run only if they are named: they need packages of others, or take long.
BY_NAME = ("dtypes", "engines", "peers", "whole", "steps", "calls")
AFTER = (
    ["chart.py"],
    ["whole_chart.py"],
    ["whole_tables.py", "--docs"],
    ["step_tables.py"],
    ["layer_tables.py", "--docs"],
    ["summary.py"],
)


def main() -> None:
    """Runs the benchmarks that were named, and says at the end which failed."""
    parser = argparse.ArgumentParser(description="Run the benchmarks.")
    but = ", ".join(BY_NAME)
    known = f"one of {', '.join(STEPS)}; all except {but} if left out"
    parser.add_argument("names", nargs="*", metavar="NAME", help=known)
    parser.add_argument("--threads", type=int, nargs="+", default=[torch.get_num_threads()])
    parser.add_argument("--envs", help="the folder of the engines' environments")
    parser.add_argument("--peers", action="store_true", help="also the engines, in every dtype that they can compute")
    options = parser.parse_args()
    if options.peers and not options.envs:
        parser.error("--peers needs --envs DIR, which `python benchmarks/engines.py --make-envs DIR` makes")
    if unknown := set(options.names) - set(STEPS):
        parser.error(f"{', '.join(sorted(unknown))} is no benchmark; valid: {', '.join(STEPS)}")
    alone = options.envs and not options.peers
    names = options.names or [name for name in STEPS if name not in BY_NAME or (alone and name == "engines")]
    names += ["peers"] * options.peers
    failed = [name for name in names if run([*STEPS[name], *arguments(name, options)])]
    for words in AFTER:
        run(words)
    if failed:
        raise SystemExit(f"failed, as said above: {', '.join(failed)}")


def arguments(name: str, options: argparse.Namespace) -> list[str]:
    """Returns the arguments of a benchmark's script."""
    if name in ("peak", "errors"):
        return []
    threads = options.threads if name not in ("groups", "steps", "calls") else [max(options.threads)]
    more = ["--threads", *map(str, threads)]
    if name in ("engines", "peers", "whole") and options.envs:
        more += ["--envs", options.envs]
    return more


def run(words: list[str]) -> int:
    """Runs a script of this folder; returns its exit status."""
    return subprocess.run([sys.executable, HERE / words[0], *words[1:]], check=False).returncode


if __name__ == "__main__":
    main()
