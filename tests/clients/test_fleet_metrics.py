"""The page of metrics of ``igniterd fleet``."""

from __future__ import annotations

from igniterd.clients.fleet_metrics import ClusterReading, FleetMetrics


def page(*clusters: ClusterReading) -> list[str]:
    return FleetMetrics(lambda: clusters).render()[0].decode().splitlines()


def test_a_cluster_that_is_spoken_for() -> None:
    lines = page(
        ClusterReading(
            "lab",
            hosts={"used": 3, "left_out": 1, "offline": 2},
            messages={("state", "taken"): 7, ("state", "malformed"): 2},
            plans={"made": 4},
            durations={0.1: 3, 1.0: 1},
            buckets=(0.1, 1.0),
            duration_s=0.75,
            moves=2,
            feasible=False,
            unsolved=1,
            speaks=True,
            term=5,
            connected=True,
            published={"rebalance": 6},
            refused={"rebalance": 1},
        )
    )
    for line in (
        'igniterd_fleet_hosts{cluster="lab",state="left_out"} 1.0',
        'igniterd_fleet_hosts{cluster="lab",state="offline"} 2.0',
        'igniterd_fleet_messages_total{cluster="lab",kind="state",outcome="malformed"} 2.0',
        'igniterd_fleet_plan_duration_seconds_bucket{cluster="lab",le="0.1"} 3.0',
        'igniterd_fleet_plan_duration_seconds_bucket{cluster="lab",le="+Inf"} 4.0',
        'igniterd_fleet_plan_duration_seconds_sum{cluster="lab"} 0.75',
        'igniterd_fleet_feasible{cluster="lab"} 0.0',
        'igniterd_fleet_speaker_term{cluster="lab"} 5.0',
        'igniterd_fleet_published_total{cluster="lab",kind="rebalance",outcome="refused"} 1.0',
    ):
        assert line in lines


def test_who_does_not_speak_says_nothing_of_moves() -> None:
    lines = page(ClusterReading("lab"))
    assert 'igniterd_fleet_speaker{cluster="lab"} 0.0' in lines
    of_moves = ("igniterd_fleet_moves{", "igniterd_fleet_feasible{")
    assert not [line for line in lines if line.startswith(of_moves)]
