"""``routes/`` of ``igniterd plan --emit``: how a balancer spreads each workload over its hosts.

routes.json   workload -> its replicas: host, model, weight
envoy.json    a static configuration of Envoy
nginx.conf    a configuration of nginx
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from igniterd.files import make_folder, replace_file

HOW = """
routes/ is for balancers of HTTP. A workload's replicas get the parts of its traffic that the plan was made for:

- routes.json has each workload's hosts, its model's name there, and the weight.
- envoy.json is a static configuration: envoy -c envoy.json. It picks a host at random by weight; the plan was made for smoother traffic.
- nginx.conf spreads requests by smooth weighted round robin, which is what `igniterd simulate` replays.

Replace the hosts' names (gpu-000-...) by real ones: nginx does not start with names it cannot resolve.
gRPC carries the model's name in the message, not in the path, so that a balancer cannot route by it: give each workload a port or a
header of its own there.
"""  # noqa: E501
_TOTAL = 1000
_PORT = 8000
_ENVOY = "type.googleapis.com/envoy.extensions"


@dataclass(frozen=True, slots=True)
class Route:
    """A replica as a balancer reaches it. ``host`` and ``model`` have letters, digits and . _ -
    only, so that no configuration has to quote them."""

    host: str
    model: str
    weight: float


def write_routes(routes: Mapping[str, Sequence[Route]], folder: Path) -> None:
    """Write the three files into this folder."""
    make_folder(folder)
    plain = {
        name: [{"host": r.host, "model": r.model, "weight": round(r.weight, 6)} for r in each]
        for name, each in routes.items()
    }
    replace_file(folder / "routes.json", json.dumps(plain, indent=1) + "\n")
    replace_file(folder / "envoy.json", json.dumps(_envoy(routes), indent=1) + "\n")
    replace_file(folder / "nginx.conf", _nginx(routes))


def whole_weights(weights: Sequence[float], total: int = _TOTAL) -> list[int]:
    """Whole numbers that add up to ``total``, none below 1: nginx knows no weight of 0."""
    total = max(total, len(weights))
    exact = [weight / math.fsum(weights) * total for weight in weights]
    whole = [max(1, math.floor(each)) for each in exact]
    while (left := total - sum(whole)) != 0:
        step = 1 if left > 0 else -1
        able = [n for n in range(len(whole)) if step > 0 or whole[n] > 1]
        whole[max(able, key=lambda n: step * (exact[n] - whole[n]))] += step
    return whole


def _by_host(each: Sequence[Route]) -> tuple[str, dict[str, int]]:
    """The model's name, and whole weights by host. What a host has twice gets both parts under the
    first name: a balancer sends one path to a host."""
    weight: dict[str, float] = {}
    for route in each:
        weight[route.host] = weight.get(route.host, 0.0) + route.weight
    return each[0].model, dict(zip(weight, whole_weights(list(weight.values())), strict=True))


def _envoy(routes: Mapping[str, Sequence[Route]]) -> dict[str, object]:
    hosts = sorted({route.host for each in routes.values() for route in each})
    manager = {
        "@type": f"{_ENVOY}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "igniterd",
        "route_config": {
            "name": "workloads",
            "virtual_hosts": [
                {
                    "name": "workloads",
                    "domains": ["*"],
                    "routes": [_envoy_route(each) for each in routes.values()],
                }
            ],
        },
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": f"{_ENVOY}.filters.http.router.v3.Router"},
            }
        ],
    }
    listener = {
        "name": "triton",
        "address": _address("0.0.0.0"),  # noqa: S104 - a balancer listens for everybody
        "filter_chains": [
            {
                "filters": [
                    {
                        "name": "envoy.filters.network.http_connection_manager",
                        "typed_config": manager,
                    }
                ]
            }
        ],
    }
    return {
        "static_resources": {
            "listeners": [listener],
            "clusters": [_envoy_cluster(host) for host in hosts],
        }
    }


def _envoy_route(each: Sequence[Route]) -> dict[str, object]:
    """One route. The weights' total is left out: Envoy takes their sum and calls it deprecated."""
    model, weights = _by_host(each)
    clusters = [{"name": host, "weight": weight} for host, weight in weights.items()]
    return {
        "match": {"prefix": f"/v2/models/{model}/"},
        "route": {"weighted_clusters": {"clusters": clusters}},
    }


def _envoy_cluster(host: str) -> dict[str, object]:
    endpoint = {"endpoint": {"address": _address(host)}}
    return {
        "name": host,
        "type": "STRICT_DNS",
        "connect_timeout": "1s",
        "load_assignment": {"cluster_name": host, "endpoints": [{"lb_endpoints": [endpoint]}]},
    }


def _address(host: str) -> dict[str, object]:
    return {"socket_address": {"address": host, "port_value": _PORT}}


def _nginx(routes: Mapping[str, Sequence[Route]]) -> str:
    lines = ["# Written by `igniterd plan --emit`.", "events {}", "http {"]
    locations = []
    for each in routes.values():
        model, weights = _by_host(each)
        lines.append(f"    upstream igniterd-{model} {{")
        # shared by nginx's workers, so that they take turns together
        lines.append(f"        zone igniterd-{model} 64k;")
        lines += [f"        server {host}:{_PORT} weight={n};" for host, n in weights.items()]
        lines += ["        keepalive 32;", "    }"]
        locations.append(
            f"        location /v2/models/{model}/ {{ proxy_pass http://igniterd-{model}; }}"
        )
    lines += [
        "    server {",
        f"        listen {_PORT};",
        "        client_max_body_size 0;",
        "        proxy_http_version 1.1;",
        '        proxy_set_header Connection "";',
        "        proxy_set_header Host $host;",
        *locations,
        "    }",
        "}",
    ]
    return "\n".join(lines) + "\n"
