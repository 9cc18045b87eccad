from __future__ import annotations

from dataclasses import replace

from igniterd.config import parse_config
from igniterd.health import LATELY_TICKS, Health
from tests.clients.ticks import CONFIG, a_tick


def test_a_board_in_trouble_leaves_the_daemon_ready_and_whole() -> None:
    now_s = 0.0
    health = Health(lambda: now_s)
    config = parse_config(CONFIG, source="test")
    health.follow(config)
    for number in range(2 * LATELY_TICKS + 2):
        health.finished(a_tick(number, gaps=("nvml:GPU-b", "mps") if number else ()))
        now_s += config.loop.interval_s
    assert health.ready() == (True, [])
    assert health.whole() == (False, ["mps: silent"]), "what else is silent is told"


def test_a_model_that_its_triton_does_not_serve_is_no_trouble_of_the_host() -> None:
    """It may come to it, or has gone to another one; its state says that it is absent."""
    now_s = 0.0
    health = Health(lambda: now_s)
    config = parse_config(CONFIG, source="test")
    health.follow(config)
    name = config.model[0].tenant
    for number in range(2 * LATELY_TICKS + 2):
        tick = a_tick(number, gaps=(f"model:{name}",))
        seen = replace(tick.observation, absent=frozenset({name}))
        health.finished(replace(tick, observation=seen))
        now_s += config.loop.interval_s
    assert health.whole() == (True, [])
