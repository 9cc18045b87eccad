from __future__ import annotations

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
