"""Hours or days of shifting traffic and random faults on the simulated host, in virtual time: what
must never be, and what it cost.

    python bench/soak.py [--hours 6] [--seeds 1 2 3]

See tests/soak.py for the world and for what is checked; exit status 1 when a promise was broken. An
hour takes about ten seconds.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from pathlib import Path

import looptime
import structlog

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.soak import Seen, Soak


async def lived(folder: Path, seed: int, hours: float) -> Seen:
    return await Soak(folder, seed).run(hours * 3600)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hours", type=float, default=6.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    asked = parser.parse_args()
    # faults are what it is made of
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    broken = 0
    print(
        f"{'seed':>5} {'hours':>6} {'faults':>7} {'reloads/h':>10} {'in calm/h':>10} "
        f"{'judged':>7} {'late':>5} {'broken':>7}"
    )
    for seed in asked.seeds:
        loop = looptime.new_event_loop()
        with tempfile.TemporaryDirectory() as folder:
            seen = loop.run_until_complete(lived(Path(folder), seed, asked.hours))
        loop.close()
        calm = seen.calm_reloads / max(seen.calm_s / 3600, 1e-9)
        happened = sum(n for what, n in seen.faults.items() if not what.startswith("shift"))
        print(
            f"{seed:>5} {seen.hours:>6.1f} {happened:>7} {seen.reloads / seen.hours:>10.1f} "
            f"{calm:>10.1f} {seen.judged:>7} "
            f"{len(seen.late):>5} {len(seen.broken):>7}",
            flush=True,
        )
        for said in (*seen.broken, *seen.late):
            print(f"      {said}")
        broken += len(seen.broken)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
