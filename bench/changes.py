"""What changes leave behind, and whether any request fails: a hundred changes of one model on a
real Triton under open-loop load.

    python bench/changes.py [--changes 100] [--launcher 24.10 25.08]

Shares and batches change in turn; every tenth change is one that Triton refuses. Counted before and
after: processes of the model, zombies, threads and files of tritonserver, /dev/shm, Triton's own
temporary folders, and everything in igniterd's folder of shares.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from igniterd.act import act
from igniterd.clients.processes import ProcessTable
from igniterd.clients.triton.apply import Applier
from igniterd.clients.triton.client import TritonClient
from igniterd.decisions import DecisionKind, Plan, Step, StepKind
from igniterd.evidence import stubs_of
from igniterd.lab.host import EmulatedModel, HostSpec, TritonHost, triton_host
from igniterd.lab.load.load import LoadSpec, Phase, RequestLog
from igniterd.lab.programs.process import running
from igniterd.records import Allocation, ModelReading

MODEL = "resnet50"
RATE_PER_S = 40.0
SHARES = (0.3, 0.5, 0.7)
TOO_LARGE = 64  # a batch that the model refuses to be loaded with


@dataclass(frozen=True)
class Left:
    """What can be left behind."""

    stubs: int
    zombies: int
    threads: int
    files: int
    shared_memory: int
    triton_folders: int
    share_files: int
    odd_share_files: int


def left(host: TritonHost, shares: Path) -> Left:
    server = Path(f"/proc/{host.pid}")
    states = [
        p.read_text().rpartition(")")[2].split()
        for p in Path("/proc").glob("[0-9]*/stat")
        if p.exists()
    ]
    ours = [path for path in shares.rglob("*") if not path.is_dir()]
    return Left(
        stubs=len([s for s in ProcessTable().scan() if s.server_pid == host.pid]),
        zombies=sum(1 for s in states if s[0] == "Z" and s[1] == str(host.pid)),
        threads=len(list((server / "task").iterdir())),
        files=len(list((server / "fd").iterdir())),
        shared_memory=len(list(Path("/dev/shm").iterdir())),  # noqa: S108
        triton_folders=len(list(Path(tempfile.gettempdir()).glob("folder??????"))),
        share_files=len(ours),
        odd_share_files=sum(
            1 for path in ours if path.name.startswith((".", "tmp")) or path.suffix == ".part"
        ),
    )


def target(number: int, present: Allocation) -> Allocation:
    if number % 10 == 9:
        return Allocation(present.share, TOO_LARGE)
    return Allocation(SHARES[number % len(SHARES)], 4 + number % 4)


async def change(client: TritonClient, shares: Path, wanted: Allocation) -> tuple[bool, str]:
    reading = (await client.read_models([MODEL]))[MODEL]
    assert isinstance(reading, ModelReading), reading
    step = Step(MODEL, StepKind.GROW, reading.allocation, wanted)
    plan = Plan(0.0, DecisionKind.MOVE, "", steps=(step,))
    table = ProcessTable()
    done = (await act(plan, Applier(client, shares, processes=table))).actuations[0]
    if not done.ok:
        return False, done.error
    now = (await client.read_models([MODEL]))[MODEL]
    assert isinstance(now, ModelReading), now
    newest = stubs_of(now, await table.read(), None)[0]
    if newest.share is None or abs(newest.share - (wanted.share or 0)) > 1e-4:
        return False, f"the process has {newest.share}, asked was {wanted.share}"
    return True, ""


async def measure(launcher: str, changes: int) -> None:
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        shares = folder / "shares"
        spec = HostSpec(
            (EmulatedModel(MODEL, max_batch_size=8),), slow_factor=2.0, launcher=launcher
        )  # type: ignore[arg-type]
        async with triton_host(spec, folder / "triton") as host:
            client = TritonClient(
                "main", host.url, host.metrics_url, timeout_s=5.0, shares_dir=str(shares)
            )
            for share in SHARES:  # every folder of a share is there, and the server is warm
                await change(client, shares, Allocation(share, 8))
            before = left(host, shares)
            (folder / "load.json").write_text(
                LoadSpec(host.url, (Phase("steady", 3600.0, {MODEL: RATE_PER_S}),)).to_json()
            )
            command = [
                sys.executable,
                "-m",
                "igniterd.lab.load.generator",
                str(folder / "load.json"),
                "-o",
                str(folder / "log.csv"),
            ]
            made_ok, refused, wrong = 0, 0, list[str]()
            async with running("loadgen", command, log=folder / "load.log", env=dict(os.environ)):
                present = Allocation(SHARES[-1], 8)
                for number in range(changes):
                    wanted = target(number, present)
                    ok, why = await change(client, shares, wanted)
                    made_ok, refused = made_ok + ok, refused + (not ok)
                    if ok == (wanted.max_batch_size == TOO_LARGE):
                        wrong.append(f"{wanted}: {why}")
                    present = wanted if ok else present
            await client.close()
            log = RequestLog.read(folder / "log.csv")
            show(launcher, before, left(host, shares), {"made": made_ok, "refused": refused})
            print(
                f"  requests sent {len(log)}, failed {int((~log.ok).sum())}; longest answer "
                f"{log.latency_ms.max():.0f} ms"
            )
            print(f"  changes that came out otherwise than they should: {len(wrong)} {wrong[:3]}")


def show(launcher: str, before: Left, after: Left, counts: Mapping[str, int]) -> None:
    print(
        f"launcher {launcher}: {counts['made']} changes made and proven, {counts['refused']} "
        "refused"
    )
    for name in Left.__dataclass_fields__:
        print(f"  {name:<18} {getattr(before, name):>6} -> {getattr(after, name)}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--changes", type=int, default=100)
    parser.add_argument("--launcher", nargs="+", default=["24.10", "25.08"])
    args = parser.parse_args()
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        "tritonserver 2.51"
    )
    for launcher in args.launcher:
        asyncio.run(measure(launcher, args.changes))


if __name__ == "__main__":
    main()
