"""Changing the server under measurement through the API the daemon uses, and putting it back as it
was.

For a measurement a model gets a share, its largest batch and one instance, and its requests are
executed as they come: with dynamic batching off, a request of batch b is one execution of batch b.
One reload serves every batch at its share.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Protocol

from igniterd.clients.environments import (
    PLAIN,
    ModelConfig,
    Reach,
    percent_name,
    runs_in_stubs,
    share_of,
)
from igniterd.clients.owned import measured_mark, measured_of
from igniterd.clients.shares import prepare_config
from igniterd.clients.triton.config import allocation_of, instance_names_of, own_limit_of
from igniterd.errors import CannotRun, IgniterdError, Refused, Unreachable
from igniterd.evidence import newest_of, of_processes, serving
from igniterd.profiler.board import Probe, await_release, now_s
from igniterd.records import Allocation, Effect, Stub

_MEMORY_POLL_S = 0.02
_RETRY_S = 1.0


class Configurable(Protocol):
    """What is asked of a Triton client."""

    async def config(self, model: str) -> ModelConfig: ...

    async def load(self, model: str, config: ModelConfig, *, exact: bool = False) -> None: ...


class ProcessSource(Protocol):
    """What is asked of the host's process table."""

    async def read(self) -> tuple[Stub, ...]: ...


def profilable(config: ModelConfig) -> str:
    """Why a model of this configuration cannot be profiled, or an empty string."""
    for section, why in (
        ("sequence_batching", "keeps sequences together"),
        ("ensemble_scheduling", "is a pipeline of other models"),
    ):
        if section in config:
            return f"it has {section}: it {why}, so it has no service time of its own by batch size"
    if config.get("model_transaction_policy", {}).get("decoupled"):
        return "it is decoupled: one request may have any number of answers"
    if len(config.get("instance_group", ())) > 1:
        return "it has several instance groups; igniterd steers one"
    return ""


def for_measuring(
    original: ModelConfig,
    share: float | None,
    largest: int,
    shares: Path,
    reach: Reach = PLAIN,
    *,
    run: str = "",
) -> ModelConfig:
    """``original`` with ``share`` (``None``: without one), batches of up to ``largest``, one
    instance, requests executed as they come.

    The folder of the share is made. A parameter says that ``run`` did it and what was there, so
    that it is known whose it is, and can be undone after a profiler that was killed.
    """
    config = copy.deepcopy(original)
    batched = int(config.get("max_batch_size", 0)) > 0
    if batched:
        config.pop("dynamic_batching", None)
        config["max_batch_size"] = 1
    changed = prepare_config(config, Allocation(share, 1, 0, 1), shares, reach)
    if batched:
        # nobody is refused meanwhile
        changed["max_batch_size"] = max(largest, own_limit_of(original))
    mark = measured_mark(original, run, _with(changed, shares))
    changed["parameters"] = changed.get("parameters", {}) | mark
    return changed


def _with(config: ModelConfig, shares: Path) -> str:
    """What a model is measured with, in words that can be compared."""
    share, batching = (
        share_of(config, str(shares)),
        "batched" if "dynamic_batching" in config else "single",
    )
    held = "none" if share is None else percent_name(share)
    here = allocation_of(config, str(shares))
    return (
        f"share {held}, batch {config.get('max_batch_size', 0)}, {batching}, instances "
        f"{here.instances}"
    )


def is_ours(config: ModelConfig, run: str, shares: Path) -> bool:
    """Whether ``config`` is what this ``run`` loaded to measure, and nobody has changed it
    since."""
    told = measured_of(config)
    return bool(told) and told.get("run") == run and told.get("with") == _with(config, shares)


class Server:
    """The models of one Triton while they are profiled. ``originals`` are their configurations
    before the first change."""

    def __init__(
        self,
        client: Configurable,
        originals: Mapping[str, ModelConfig],
        shares: Path,
        probe: Probe | None = None,
        *,
        mps: bool = True,
        processes: ProcessSource | None = None,
        reach: Reach = PLAIN,
        run: str = "",
    ) -> None:
        """``shares`` is the folder of share environments, under the path at which Triton sees it;
        without ``mps`` none has an effect.

        ``reach``: how else shares reach the models. ``run``: by which its own loads are known.
        """
        self._run = run
        self.reload_s = 1.5
        """What a reload takes; a guess until the first one."""
        self.copy_bytes: dict[str, int] = {}
        """Board memory of one copy after it executed its largest batch."""
        self._processes = processes
        self._client, self._shares, self._probe, self._mps = client, shares, probe, mps
        self._reach = reach
        self._originals = dict(originals)
        self._applied: dict[str, tuple[float | None, int]] = {}

    def steerable(self, model: str) -> bool:
        """Whether the model can be given a share: it runs in a process of its own, under MPS."""
        return self._mps and runs_in_stubs(self._originals[model])

    def share(self, model: str) -> float | None:
        """The share applied now for measuring; ``None`` before the first change or without one."""
        return self._applied.get(model, (None, 0))[0]

    async def apply(self, model: str, share: float | None, largest: int) -> None:
        """Give ``model`` this share and largest batch; nothing happens when it has them.

        Raises :class:`Refused` when Triton does not take it, or when somebody else changed the
        model meanwhile.
        """
        if self._applied.get(model) == (share, largest):
            return
        await self._check_ours(model)
        original = self._originals[model]
        spent_s = await self._load_timed(
            model, for_measuring(original, share, largest, self._shares, self._reach, run=self._run)
        )
        self.reload_s = 0.5 * (self.reload_s + spent_s) if self._applied else spent_s
        self._applied[model] = (share, largest)
        found = share_of(await self._client.config(model), str(self._shares))
        if (None if found is None else percent_name(found)) != (
            None if share is None else percent_name(share)
        ):
            raise Refused(
                f"model {model}: Triton serves it with share {found} where {share} was asked"
            )
        if share is not None and self._processes is not None:
            await self._check_effect(model, share)

    async def _check_effect(self, model: str, share: float) -> None:
        """What is measured with a share that no process has would be the whole GPU's."""
        names = instance_names_of(await self._client.config(model))
        stubs = await self._processes.read() if self._processes is not None else ()
        mine = newest_of(names, model, stubs)
        found = of_processes(serving(mine, share, 1), share) if mine else None
        if found is not None and found.effect is Effect.REFUTED:
            raise Refused(f"model {model}: its share {share:.1%} has no effect: {found.said}")

    async def _check_ours(self, model: str) -> None:
        """Before every load: a newer configuration of somebody else's is not overwritten."""
        found = await self._client.config(model)
        if found == self._originals[model] or is_ours(found, self._run, self._shares):
            return
        raise Refused(
            f"model {model}: it is served with {_with(found, self._shares)}, which is neither "
            "what was found nor what igniterd profile "
            "set: somebody else changes it; stop a daemon that acts on this server before profiling"
        )

    async def _load_timed(self, model: str, config: ModelConfig) -> float:
        """Load; returns the seconds it took.

        Once for each model, after it has executed, the board's memory is watched: the old copy
        leaves after the new one has come, and what falls then is what a copy holds.
        """
        if self._probe is None or model not in self._applied or model in self.copy_bytes:
            began_s = now_s()
            await self._client.load(model, config)
            return now_s() - began_s
        most, over = [0], asyncio.Event()

        async def watch() -> None:
            last = False
            while not last:  # one look after the load has returned: both copies are there then
                last = over.is_set()
                most[0] = max(most[0], await self._memory() or 0)
                await asyncio.sleep(_MEMORY_POLL_S)

        watching = asyncio.create_task(watch(), name="memory")
        try:
            began_s = now_s()
            await self._client.load(model, config)
            spent_s = now_s() - began_s
        finally:
            over.set()
            await watching
        # a second or so after the new copy has come
        if gone := await await_release(self._memory, most[0]):
            self.copy_bytes[model] = gone
        return spent_s

    async def _memory(self) -> int | None:
        return None if self._probe is None else await self._probe.memory_used_bytes()


async def originals_of(client: Configurable, models: Iterable[str]) -> dict[str, ModelConfig]:
    """The configurations that serve now. Raises :class:`CannotRun` naming every model that cannot
    be profiled and why."""
    found, problems = {}, []
    for model in models:
        try:
            found[model] = await client.config(model)
        except Refused as error:
            problems.append(f"model {model}: {error}")
            continue
        if why := profilable(found[model]):
            problems.append(f"model {model}: {why}")
    if problems:
        raise CannotRun("; ".join(problems))
    return found


async def restore(
    client: Configurable,
    originals: Mapping[str, ModelConfig],
    *,
    run: str,
    shares: Path,
    patience_s: float,
    say: Callable[[str], None],
) -> dict[str, str]:
    """Put every model back to exactly its configuration in ``originals`` that still is as ``run``
    left it.

    One that has it already is left alone, and so is one that somebody else changed since, which is
    said: theirs is the newer one. A server that does not answer is waited for, ``patience_s`` for
    all models together. Returns why, for each that could not be restored.
    """
    deadline_s, failed = now_s() + patience_s, dict[str, str]()
    for model, config in originals.items():
        while True:
            try:
                now = await client.config(model)
                if now != config and is_ours(now, run, shares):
                    await client.load(model, config, exact=True)
                elif now != config:
                    mend = f"igniterd release {model} gives it back to its owner"
                    say(
                        f"{model}: somebody else changed it meanwhile ({_with(now, shares)}): it "
                        f"is left as it is; {mend}"
                    )
                failed.pop(model, None)
                break
            except Unreachable as error:
                if model not in failed:
                    say(
                        f"restoring {model}: {error}; trying again for "
                        f"{max(0.0, deadline_s - now_s()):.0f} s"
                    )
                failed[model] = str(error)
                if now_s() >= deadline_s:
                    break
                await asyncio.sleep(_RETRY_S)
            except IgniterdError as error:
                failed[model] = str(error)
                break
    return failed
