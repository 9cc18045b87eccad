"""Give a model back to its owner: one reload, after which nothing of igniterd's is on it.

Loads only, no unload: the copy that serves goes on until the owner's is ready, so no request fails.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from igniterd.adopt import read_back
from igniterd.adopt_compare import Adoption, Server
from igniterd.clients.environments import DEFAULT_SHARES, ModelConfig, share_of
from igniterd.clients.owned import as_owned, touched
from igniterd.clients.repository import own_config
from igniterd.engines.hosting import SHADOW, engine_of, hosting_of
from igniterd.errors import IgniterdError, Refused


async def release(
    client: Server, model: str, shares_dir: str = DEFAULT_SHARES, repositories: Sequence[str] = ()
) -> Adoption:
    """Put the owner's model back. Raises :class:`IgniterdError` where Triton does not.

    First Triton is asked for its own file's, which is exact. It takes that for no change where only
    the configuration was another one (24.10): then the owner's is sent, from the file where it can
    be read, else rebuilt from the marks on the model.
    """
    before = await client.config(model)
    hosting = hosting_of(before)
    if not touched(before, shares_dir):
        return Adoption(model, "own already", engine=engine_of(before))
    await client.load(model, None)
    now = await read_back(client, model)
    if touched(now, shares_dir):
        owner = _owners(client, now, shares_dir, repositories)
        await client.load(model, owner, {}, exact=True)
        now = await read_back(client, model)
    if touched(now, shares_dir):
        raise Refused(
            f"{model}: Triton took the load of the owner's configuration and serves igniterd's"
        )
    return Adoption(model, "released", engine=hosting.engine if hosting else engine_of(now))


def _owners(
    client: Server, now: ModelConfig, shares_dir: str, repositories: Sequence[str]
) -> ModelConfig:
    """What its owner wrote. A file with marks of igniterd's in it was copied from a running
    model."""
    filed = own_config(str(now.get("name", "")), client.url, tuple(repositories))
    return as_owned(now if filed is None else filed, shares_dir)


async def touched_models(
    client: Server, shares_dir: str = DEFAULT_SHARES
) -> tuple[list[str], dict[str, str]]:
    """Every model with something of igniterd's on it, in the order to give back; and why others are
    not known.

    A model without a share is uncapped, so the largest share goes first: what is freed is the most.
    """
    ready = sorted({entry.name for entry in await client.index() if entry.state == "READY"})
    copies = {
        e.name for e in (await client.statistics("")).model_stats if e.name.startswith(SHADOW)
    }
    found, unread = dict[str, float](), dict[str, str]()
    for name in ready:
        try:
            config = await client.config(name)
        except IgniterdError as error:
            unread[name] = str(error).removeprefix(f"{name}: ")
            continue
        if touched(config, shares_dir):
            found[name] = share_of(config, shares_dir) or 0.0
    return sorted(found, key=lambda name: -found[name]) + sorted(copies), unread


async def shares_left(client: Server, shares_dir: str, gone: Iterable[str]) -> list[str]:
    """Models that keep a share beside those that are uncapped now."""
    left, _ = await touched_models(client, shares_dir)
    given = set(gone)
    return [
        n
        for n in left
        if n not in given
        and not n.startswith(SHADOW)
        and share_of(await client.config(n), shares_dir) is not None
    ]
