"""A rebalance for people: moves, what each does to latencies, steps, and what is left."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

_MOST_ROWS = 60
_UUID = 12  # letters of a GPU's UUID that are shown


def rebalance_tables(
    document: Mapping[str, Any], troubles: Mapping[str, str] | None = None
) -> list[Table | Text]:
    """A ``Rebalance`` document as rich renderables."""
    parts: list[Table | Text] = [Text(_summary(document)), Text(document["why"])]
    if document["moves"]:
        parts += [Text(), _moves(document), Text(), _fares(document)]
    if document["steps"]:
        parts += [
            Text("\nSteps, in this order; stopping after any of them is safe"),
            _steps(document),
        ]
    parts += _named("Unsolved", document, "unsolved", lambda e: f"{e['host']}: {e['model']}")
    parts += _named("Left out", document, "left_out", lambda e: str(e["host"]))
    odd = sorted((troubles or {}).items())
    if odd:
        parts += [Text("\nOdd"), *(Text(f"  {who}: {why}") for who, why in odd[:_MOST_ROWS])]
        parts += _more(len(odd) - _MOST_ROWS)
    return parts


def _summary(document: Mapping[str, Any]) -> str:
    hosts = document["hosts"]
    moves, more = len(document["moves"]), document.get("more_moves", 0)
    holds = "every SLO holds" if document["feasible"] else "not every SLO holds"
    counted = f"{moves} move{'' if moves == 1 else 's'}" if moves else "no moves"
    freed = len(document.get("freed", ()))
    after = f"after {'it' if moves == 1 else 'them'} {holds}" if moves else holds
    return (
        f"cluster {document['cluster']}: {hosts['used']} of {hosts['known']} hosts planned with, "
        f"{hosts['troubled']} in trouble; {counted}, {after}"
        + (f"; {freed} GPUs freed" if freed else "")
        + (f"; {more} more moves did not fit in the message" if more else "")
    )


def _moves(document: Mapping[str, Any]) -> Table:
    table = _table(
        ("move", "model", "from", "to", "share", "batch", "replicas", "rate/s", "frees"),
        right=(0, 4, 5, 6, 7, 8),
    )
    moves = document["moves"]
    for move in moves[:_MOST_ROWS]:
        part = "" if move["kind"] == "move" else f", {_percent(move.get('weight', 1.0))} of traffic"
        table.add_row(
            str(move["number"]),
            _name(move) + part,
            _place(move["from"]),
            _place(move["to"]),
            _percent(move.get("share")),
            str(move["max_batch_size"]),
            str(move["replicas"]),
            f"{move['rate_per_s']:.5g}",
            "the GPU" if move["frees"].get("gpu") else _percent(move["frees"]["share"]),
        )
        table.add_row("", Text(move["why"], style="dim"))
    if len(moves) > _MOST_ROWS:
        table.add_row("", f"… and {len(moves) - _MOST_ROWS} more (--format json has them all)")
    return table


def _name(move: Mapping[str, Any]) -> str:
    served = move["served_as"]
    return str(move["model"]) if served == move["model"] else f"{move['model']} ({served})"


def _fares(document: Mapping[str, Any]) -> Table:
    """Predicted P99 of everybody concerned."""
    table = _table(("move", "where", "model", "P99 before", "after", "SLO ms"), right=(0, 3, 4, 5))
    for move in document["moves"][:_MOST_ROWS]:
        sides = (("at_source", move["from"]["host"]), ("at_target", move["to"]["host"]))
        for side, host in sides:
            for fare in move[side]:
                slo_ms = fare["slo_p99_ms"]
                table.add_row(
                    str(move["number"]),
                    host,
                    fare["model"],
                    _p99(fare.get("before_p99_ms"), slo_ms),
                    _p99(fare.get("after_p99_ms"), slo_ms),
                    f"{slo_ms:g}",
                )
    return table


def _steps(document: Mapping[str, Any]) -> Table:
    table = _table(("step", "move", "do", "model", "at", "allocation"), right=(0, 1))
    for step in document["steps"][:_MOST_ROWS]:
        table.add_row(
            str(step["number"]),
            str(step["move"]),
            step["action"],
            step["model"],
            _place(step),
            _allocation(step),
        )
    if (more := len(document["steps"]) - _MOST_ROWS) > 0:
        table.add_row("", "", f"… and {more} more")
    return table


def _allocation(step: Mapping[str, Any]) -> str:
    to, before = step.get("allocation"), step.get("before")
    if not to:
        return ""
    new = f"{_percent(to.get('share'))}, batch {to.get('max_batch_size', 1)}"
    old = f"{_percent(before.get('share'))} → " if before else ""
    return old + new


def _named(heading: str, document: Mapping[str, Any], key: str, name: Any) -> Iterator[Text]:
    entries = document.get(key, ())
    if entries:
        yield Text(f"\n{heading}")
        yield from (Text(f"  {name(e)}: {e['reason']}") for e in entries[:_MOST_ROWS])
    yield from _more(len(entries[_MOST_ROWS:]) + document.get(f"more_{key}", 0))


def _more(count: int) -> list[Text]:
    return [Text(f"  … and {count} more")] if count > 0 else []


def _table(columns: tuple[str, ...], right: tuple[int, ...]) -> Table:
    table = Table(*columns, box=None, pad_edge=False)
    for column in right:
        table.columns[column].justify = "right"
    return table


def _place(place: Mapping[str, Any]) -> str:
    triton = place.get("triton", "main")
    server = "" if triton == "main" else f"/{triton}"
    return f"{place['host']}{server} {short_gpu(place['gpu_uuid'])}"


def short_gpu(uuid: str) -> str:
    """The beginning of a GPU's UUID, which tells it from others."""
    return uuid if len(uuid) <= _UUID + 1 else uuid[:_UUID] + "…"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f} %"


def _p99(value: float | None, slo_ms: float) -> Text:
    if value is None:
        return Text("–")
    return Text(f"{value:.2f}", style="" if value <= slo_ms else "bold red")
