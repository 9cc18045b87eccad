"""Hosts of four and of eight GPUs under shifting traffic: what moving models between GPUs is worth,
and what deciding for so many costs.

    python bench/hosts.py [--hours 0.4] [--gpus 4 8] [--seeds 1] [--short]

In virtual time, see ``bench/hosts_world.py``. The same traffic is served in four set-ups:

    moves        one Triton over all GPUs, [decide] moves = true
    no moves     the same, moves = false
    apart        one Triton on each GPU: a model stays where it is
    consolidate  as ``moves``, with consolidate = true: the fewest GPUs

For each:

    missed       model-minutes in which more than 1 % of the requests that came in that minute took
                 longer than their SLO or had no answer (clients wait 10 s), and their part of all
    late         part of all requests that did
    reloads/h    loads that igniterd asked for
    moves/h      those of them after which a model is on another GPU
    GPUs         that held at least one model, in the mean
    failed       requests that were refused, or lost in a reload
    over         loads at whose beginning or end the models of a GPU had more between them than
                 before, and than the GPU, with the copy that was being made

Said of the traffic itself: GPU-minutes in which the GPU cannot hold what its models ask for where
they are at first. The first three minutes, in which models are given their first shares, are not
counted. [decide] max_reloads_per_hour is 120 a GPU. Then what a tick and a decision cost with 64
models on 8 GPUs (``bench/hosts_cost.py``). Exit status 1 where a request failed or more was granted
than there is.
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import structlog

sys.path.append(str(Path(__file__).parents[1]))  # at the end: PYTHONPATH may name another revision
from bench.hosts_cost import cost
from bench.hosts_world import Figures, World, too_full, traffic
from bench.moves import virtually

SHORT_S = 240.0


@dataclass(frozen=True, slots=True)
class SetUp:
    """How the GPUs of a host are served; ``rules`` stand under ``[decide]``."""

    rules: str
    apart: bool = False


SET_UPS = {
    "moves": SetUp("moves = true"),
    "no moves": SetUp("moves = false"),
    "apart": SetUp("moves = false", apart=True),
    "consolidate": SetUp("moves = true\nconsolidate = true"),
}


def lived(gpus: int, seed: int, seconds: float, name: str) -> Figures:
    """One set-up under the traffic of ``seed``."""
    _quiet()
    how, asked = SET_UPS[name], traffic(gpus, seed, seconds)
    rules = f"{how.rules}\nmax_reloads_per_hour = {120 * gpus}"

    async def run(folder: Path) -> Figures:
        world = World(folder, asked, gpus, seed=seed, rules=rules, apart=how.apart)
        return await world.run(seconds)

    return virtually(run)


def full(gpus: int, seed: int, seconds: float) -> tuple[int, int]:
    """See :func:`bench.hosts_world.too_full`."""
    return too_full(traffic(gpus, seed, seconds), gpus, seconds)


def told(name: str, found: Figures) -> str:
    """A row of the table."""
    part = 100 * found.missed / max(1, found.minutes)
    return (
        f"{name:<12}{found.missed:>8}{part:>7.2f} %{100 * found.late / found.requests:>8.3f} %"
        f"{found.reloads / found.hours:>11.1f}{found.moves / found.hours:>9.1f}{found.used:>7.2f}"
        f"{found.failed:>8}{len(found.over):>6}"
    )


HEAD = (
    f"{'':<12}{'missed':>8}{'':>9}{'late':>10}{'reloads/h':>11}{'moves/h':>9}{'GPUs':>7}"
    f"{'failed':>8}{'over':>6}"
)


def compared(
    submit: Callable[..., Future[Figures]], gpus: int, seeds: list[int], seconds: float
) -> Iterator[tuple[str, Figures]]:
    """The figures of each set-up, of all seeds together."""
    asked = {name: [submit(lived, gpus, seed, seconds, name) for seed in seeds] for name in SET_UPS}
    for name, runs in asked.items():
        found = Figures()
        for run in runs:
            found.add(run.result())
        yield name, found


def _quiet() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hours", type=float, default=0.4, help="virtual, of each seed: one day")
    parser.add_argument("--gpus", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--short", action="store_true", help="four minutes, one seed, two GPUs")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    asked = parser.parse_args(arguments)
    if asked.short:
        asked.hours, asked.gpus, asked.seeds = SHORT_S / 3600, [2], asked.seeds[:1]
    seconds, bad = 3600 * asked.hours, list[str]()
    with ProcessPoolExecutor(asked.jobs) as pool:
        for gpus in asked.gpus:
            filled = [pool.submit(full, gpus, seed, seconds) for seed in asked.seeds]
            rows = compared(pool.submit, gpus, asked.seeds, seconds)
            print(f"\n{gpus} GPUs, {asked.hours:g} h of each of {len(asked.seeds)} seeds\n{HEAD}")
            for name, found in rows:
                print(told(name, found), flush=True)
                bad += found.over + [f"{found.failed} requests failed"] * (found.failed > 0)
            over, whole = (sum(each) for each in zip(*(f.result() for f in filled), strict=True))
            print(
                f"too much for the GPU where they are at first: {over} of {whole} GPU-minutes",
                flush=True,
            )
    print(f"\nmachine: {platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    _quiet()
    print(virtually(lambda folder: cost(folder, short=asked.short)))
    for said in bad:
        print(said)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
