"""``igniterd show``: what the running daemon sees, predicts and last decided."""

from __future__ import annotations

from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

CHANGED_SHOWN_S = 3600.0
TIMEOUT_S = 3.0


def register(app: typer.Typer) -> None:
    """Add the verb to ``app``."""
    from igniterd.cli.run import CONFIG

    @app.command(short_help="What the running daemon sees, predicts and last decided.")
    def show(
        config: Path = CONFIG,
        admin: str = typer.Option(
            "", metavar="HOST:PORT", help="Admin address; from the configuration unless given."
        ),
        form: str = typer.Option("table", "--format", metavar="FORMAT", help="table or json."),
    ) -> None:
        """Print what the running daemon sees, predicts and last decided."""
        import json

        from igniterd.cli.common import cannot, configured
        from igniterd.cli.wording import address, one_of

        one_of("--format", form, "table", "json")
        where = address("--admin", admin) if admin else configured(config).metrics.listen
        with cannot():
            state = fetched(f"http://{where}/state")
        if form == "json":
            print(json.dumps(state, indent=2))
        else:
            _print(state)


def fetched(url: str) -> dict[str, Any]:
    """The state a running daemon gives at ``url``. Raises :class:`Unreachable` when none does."""
    import json
    import urllib.error
    import urllib.request
    from http.client import HTTPException

    from igniterd.errors import Unreachable

    # the daemon is on this host, a proxy is not
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=TIMEOUT_S) as answer:
            state = json.load(answer)
    except urllib.error.HTTPError as error:
        if error.code == HTTPStatus.SERVICE_UNAVAILABLE:
            raise Unreachable(f"the daemon at {url} has not finished its first tick") from error
        if error.code == HTTPStatus.MISDIRECTED_REQUEST:
            raise Unreachable(
                f"{url}: {error.read(1000).decode(errors='replace').strip()}"
            ) from error
        raise Unreachable(f"what answers at {url} is no igniterd: {error}") from error
    except (urllib.error.URLError, OSError) as error:
        raise Unreachable(
            f"no running daemon answers at {url}: {getattr(error, 'reason', error)}"
        ) from error
    except (HTTPException, ValueError) as error:
        what = "JSON" if isinstance(error, ValueError) else "HTTP"
        raise Unreachable(
            f"what answers at {url} is no igniterd: its answer is not {what}"
        ) from error
    if not isinstance(state, dict) or not state.keys() >= {"host", "models", "decision"}:
        raise Unreachable(f"what answers at {url} is no igniterd: its answer is no state")
    return state


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _on(model: dict[str, Any], state: dict[str, Any]) -> str:
    """Which of several GPUs it is on, by the numbers of the lines below."""
    numbers = {board["uuid"]: str(n) for n, board in enumerate(state["boards"])}
    gpus = [numbers.get(gpu, gpu) for gpu in model.get("gpus", ())]
    return f" on GPU {', '.join(gpus)}" if gpus and len(state["boards"]) > 1 else ""


def _allocation(applied: dict[str, Any] | None) -> str:
    if applied is None:
        return "-"
    share = "uncapped" if applied["share"] is None else f"{applied['share']:.1%}"
    delay = (
        f", {applied['max_queue_delay_us'] / 1000:g} ms" if applied["max_queue_delay_us"] else ""
    )
    return f"{share}, batch {applied['max_batch_size']}{delay}"


def _bias(model: dict[str, Any]) -> str:
    """Measured over predicted service time, with two standard errors."""
    learnt = model["learnt"]
    return "-" if learnt is None else f"{model['bias']:.2f} ± {2 * learnt['sd']:.0%}"


def _learnt(model: dict[str, Any], now_s: float) -> Iterator[Text]:
    """What is not steered of a model, and what else has been learnt of it, in sentences."""
    from rich.text import Text

    from igniterd.estimators.live_curve import where

    share, known, stuck_s = model.get("share"), model.get("state"), model.get("stuck_s") or 0.0
    if known not in (None, "steered"):
        style = "red" if known == "not_answering" else "yellow"
        yield Text.assemble(
            f"{model['name']}: ", (known.replace("_", " "), style), f": {model['why']}"
        )
    elif stuck_s > 0:
        yield Text.assemble(f"{model['name']}: ", ("not answering", "red"), f" for {stuck_s:.0f} s")
    if share is not None and share["state"] != "proven":
        said = f"{model['name']}: share {share['applied']:.1%} is "
        yield Text.assemble(said, (share["state"], "red"), f": {share['reason']}")
    if model.get("takes"):
        yield Text(f"{model['name']}: not steered, takes {model['takes']:.0%} of its GPU")
    for why in model.get("fixed", ()):
        yield Text(f"{model['name']}: left as it is: {why}")
    live, changed = model.get("live"), model.get("changed")
    if live is not None:
        yield Text(
            f"{model['name']}: service times learnt from its traffic {where(live['share'])}: "
            f"{live['said']}"
        )
    if changed is not None and now_s - changed["time_s"] < CHANGED_SHOWN_S:
        ago = f" {now_s - changed['time_s']:.0f} s ago: {changed['why']}"
        yield Text.assemble(f"{model['name']}: ", ("changed", "yellow"), ago)


def _print(state: dict[str, Any]) -> None:
    from rich.text import Text

    from igniterd.cli.common import shown

    decision = state["decision"]
    shown(
        Text.assemble(
            (state["host"], "bold"),
            f" ({state['cluster']}), mode {state['mode']}, tick {state['tick']}",
        ),
        Text.assemble((decision["outcome"], "bold"), f": {decision['why']}"),
        _models(state),
        *(sentence for model in state["models"] for sentence in _learnt(model, state["time_s"])),
        *_host(state),
    )


def _models(state: dict[str, Any]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(
        "model",
        "rate/s",
        "busy",
        "applied",
        "P99 ms measured",
        "predicted",
        "SLO",
        "bias",
        box=None,
    )
    for model in state["models"]:
        if not model["seen"]:
            table.add_row(model["name"], "not seen", *[""] * 6)
            continue
        name = Text.assemble(
            model["name"], ("" if model.get("feasible", True) else " (let go)", "red")
        )
        if "rate_per_s" not in model:
            table.add_row(
                name,
                "no traffic seen",
                "",
                _allocation(model["applied"]) + _on(model, state),
                "",
                "",
                f"{model['slo_p99_ms']:g}",
                "",
            )
            continue
        table.add_row(
            name,
            f"{model['rate_per_s']:.1f}",
            f"{model['busy']:.0%}",
            _allocation(model["applied"]) + _on(model, state),
            _ms(model["measured"]["p99"]),
            _ms(model["predicted"]["p99"]),
            f"{model['slo_p99_ms']:g}",
            _bias(model),
        )
    return table


def _host(state: dict[str, Any]) -> Iterator[Text]:
    """Boards, what does not answer, the latest moves."""
    from rich.text import Text

    for number, board in enumerate(state["boards"]):
        power = "-" if board["power_w"] is None else f"{board['power_w']:.0f} W"
        clock = "-" if board["sm_clock_mhz"] is None else f"{board['sm_clock_mhz']:.0f} MHz"
        taken = board.get("reserved")
        rest = f", not steered {taken:.0%}" if taken else ""
        uuid = f" {board['uuid']}" if len(state["boards"]) > 1 else ""
        yield Text(f"GPU {number} {board['name']}{uuid}: {power}, {clock}{rest}")
    for gap in state["gaps"]:
        if gap["source"].startswith("share:"):
            continue  # said with its model
        yield Text.assemble((f"no answer from {gap['source']}", "yellow"), f": {gap['reason']}")
    for move in state["last_moves"][-5:]:
        yield Text(
            f"{'moved' if move['ok'] else 'refused'} {move['model']}: {move['why']} "
            f"{move['error']}".rstrip()
        )
