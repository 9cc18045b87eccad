"""``igniterd show``: what the running daemon sees, predicts and last decided."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

CHANGED_SHOWN_S = 3600.0


def register(app: typer.Typer) -> None:
    """Add the verb to ``app``."""
    from igniterd.cli.run import CONFIG

    @app.command()
    def show(
        config: Path = CONFIG,
        admin: str = typer.Option("", help="Admin address host:port; from the configuration unless given."),
        form: str = typer.Option("table", "--format", help="table or json."),
    ) -> None:
        """Print what the running daemon sees, predicts and last decided."""
        import json

        from igniterd.cli.common import cannot, configured
        from igniterd.cli.wording import one_of

        one_of("--format", form, "table", "json")
        address = admin or configured(config).metrics.listen
        with cannot():
            state = fetched(f"http://{address}/state")
        if form == "json":
            print(json.dumps(state, indent=2))
        else:
            _print(state)


def fetched(url: str) -> dict[str, Any]:
    """The state a running daemon gives at ``url``. Raises :class:`Unreachable` when none does."""
    import json
    import urllib.error
    import urllib.request

    from igniterd.errors import Unreachable

    try:
        with urllib.request.urlopen(url, timeout=3.0) as answer:  # noqa: S310 - the admin address, http only
            state: dict[str, Any] = json.load(answer)
    except (urllib.error.URLError, TimeoutError, OSError, ValueError) as error:
        raise Unreachable(f"no running daemon answers at {url}: {error}") from error
    if not state:
        raise Unreachable(f"the daemon at {url} has not finished its first tick")
    return state


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _allocation(applied: dict[str, Any] | None) -> str:
    if applied is None:
        return "-"
    share = "whole" if applied["share"] is None else f"{applied['share']:.1%}"
    delay = f", {applied['max_queue_delay_us'] / 1000:g} ms" if applied["max_queue_delay_us"] else ""
    return f"{share}, batch {applied['max_batch_size']}{delay}"


def _bias(model: dict[str, Any]) -> str:
    """Measured over predicted service time, with two standard errors."""
    learnt = model["learnt"]
    return "-" if learnt is None else f"{model['bias']:.2f} ± {2 * learnt['sd']:.0%}"


def _learnt(model: dict[str, Any], now_s: float) -> Iterator[str]:
    """What else has been learnt of a model, in sentences."""
    from igniterd.model.livecurve import where

    live, changed = model.get("live"), model.get("changed")
    if live is not None:
        yield f"service times learnt from its traffic {where(live['share'])}: {live['said']}"
    if changed is not None and now_s - changed["time_s"] < CHANGED_SHOWN_S:
        yield f"[yellow]changed[/] {now_s - changed['time_s']:.0f} s ago: {changed['why']}"


def _print(state: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    decision = state["decision"]
    console = Console(soft_wrap=True)
    console.print(f"[bold]{state['host']}[/] ({state['cluster']}), mode {state['mode']}, tick {state['tick']}")
    console.print(f"[bold]{decision['outcome']}[/]: {decision['why']}", highlight=False)
    table = Table("model", "rate/s", "busy", "applied", "P99 measured", "P99 predicted", "SLO", "bias", box=None)
    for model in state["models"]:
        if not model["seen"]:
            table.add_row(model["name"], "not seen", *[""] * 6)
            continue
        table.add_row(
            model["name"] + ("" if model.get("feasible", True) else " [red](let go)[/]"),
            f"{model['rate_per_s']:.1f}",
            f"{model['busy']:.0%}",
            _allocation(model["applied"]),
            _ms(model["measured"]["p99"]),
            _ms(model["predicted"]["p99"]),
            f"{model['slo_p99_ms']:g}",
            _bias(model),
        )
    console.print(table)
    for model in state["models"]:
        for sentence in _learnt(model, state["time_s"]):
            console.print(f"{model['name']}: {sentence}", highlight=False)
    for board in state["boards"]:
        power = "-" if board["power_w"] is None else f"{board['power_w']:.0f} W"
        clock = "-" if board["sm_clock_mhz"] is None else f"{board['sm_clock_mhz']:.0f} MHz"
        console.print(f"GPU {board['index']} {board['name']}: {power}, {clock}", highlight=False)
    for gap in state["gaps"]:
        console.print(f"[yellow]no answer from {gap['source']}[/]: {gap['reason']}", highlight=False)
    for move in state["last_moves"][-5:]:
        console.print(f"{'moved' if move['ok'] else 'refused'} {move['model']}: {move['why']} {move['error']}", highlight=False)
