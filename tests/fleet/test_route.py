"""How a model's traffic is sent elsewhere: by a command, or by the operator."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from igniterd.errors import Refused
from igniterd.fleet.places import Route
from igniterd.fleet.route import RouteAction, Router, Waiting
from tests.fleet.world import World, rebalance

MOVE = rebalance().moves[0]
PLACES = World.made().places()


def router(*command: str, timeout_s: float = 20.0) -> Router:
    route = Route(command=list(command), timeout_s=timeout_s)
    return Router(PLACES.model_copy(update={"route": route}))


def test_the_command_gets_what_its_braces_name_and_no_shell(tmp_path: Path) -> None:

    said = tmp_path / "said"
    code = f"import sys; open({str(said)!r}, 'w').write('|'.join(sys.argv[1:]))"
    words = ["{action}", "{served_as} {weight}", "{from_host}>{to_host}", "{to_url}", "$HOME;*"]
    asyncio.run(router(sys.executable, "-c", code, *words).send(MOVE, "move"))
    assert said.read_text() == "move|m 1|gpu-a>gpu-b|192.0.2.1:8001|$HOME;*"


@pytest.mark.parametrize(
    ("code", "timeout_s", "said"),
    [
        ("print('no such route'); raise SystemExit(3)", 20.0, "status 3: no such route"),
        ("import time; time.sleep(60)", 0.5, "did not end within 0.5 s"),
    ],
)
async def test_a_command_that_fails_is_refused(code: str, timeout_s: float, said: str) -> None:
    with pytest.raises(Refused, match=said):
        await router(sys.executable, "-c", code, timeout_s=timeout_s).send(MOVE, "move")


async def test_a_program_that_is_not_there_is_refused() -> None:
    with pytest.raises(Refused, match="cannot be run"):
        await router("/nowhere/route").send(MOVE, "move")


@pytest.mark.parametrize(
    ("action", "said"),
    [
        ("move", "send all requests for m to gpu-b (192.0.2.1:8001), and none to gpu-a"),
        ("replicate", "send 25% of the requests for m to gpu-b"),
        ("back", "send all requests for m to gpu-a (192.0.2.1:8001) again, and none to gpu-b"),
    ],
)
async def test_without_a_command_the_operator_is_told_what_to_do(
    action: RouteAction, said: str
) -> None:
    move = MOVE.model_copy(update={"weight": 0.25})
    asked = list[str]()

    async def confirm(task: str) -> bool:
        asked.append(task)
        return True

    assert await Router(PLACES, confirm).send(move, action) == "by the operator"
    assert said in asked[0]
    with pytest.raises(Waiting) as waiting:
        await Router(PLACES).send(move, action)
    assert said in str(waiting.value)
