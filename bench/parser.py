"""What reading Triton's metrics page costs: our parser against prometheus_client's alone.

python bench/parser.py

The page is made as Triton 24.10 writes it with summaries on, for 64 models. "busy" pages differ in
every line of every model, "quiet" ones in those of one model in eight; a tick reads one page.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable

from prometheus_client.parser import text_string_to_metric_families

from igniterd.clients.triton.metrics import MetricsParser

MODELS = 64
PAGES = 20
COUNTERS = (
    "nv_inference_request_success",
    "nv_inference_count",
    "nv_inference_exec_count",
    "nv_inference_request_duration_us",
    "nv_inference_queue_duration_us",
    "nv_inference_compute_input_duration_us",
    "nv_inference_compute_infer_duration_us",
    "nv_inference_compute_output_duration_us",
)
REASONS = ("REJECTED", "CANCELED", "BACKEND", "OTHER")
SUMMARIES = (
    "nv_inference_request_summary_us",
    "nv_inference_queue_summary_us",
    "nv_inference_compute_input_summary_us",
    "nv_inference_compute_infer_summary_us",
    "nv_inference_compute_output_summary_us",
)
QUANTILES = ("0.5", "0.9", "0.95", "0.99", "0.999")
WANTED = (
    "nv_inference_pending_request_count{",
    "nv_inference_request_failure{",
    "nv_inference_request_summary_us{",
)


def page(number: int, changing: int, models: int = MODELS) -> bytes:
    """The ``number``-th page of a server of which one model in ``changing`` serves requests."""
    lines: list[str] = []

    def family(name: str, kind: str, rows: Callable[[str, int], list[str]]) -> None:
        lines.extend((f"# HELP {name} Words of Triton about it", f"# TYPE {name} {kind}"))
        for model in range(models):
            counted = 1000 * model + (7 * number if model % changing == 0 else 0)
            lines.extend(rows(f'model="model-{model:02}",version="1"', counted))

    for name in COUNTERS:
        family(name, "counter", lambda of, n, name=name: [f"{name}{{{of}}} {n}"])  # type: ignore[misc]
    family(
        "nv_inference_request_failure",
        "counter",
        lambda of, n: [
            f'nv_inference_request_failure{{{of},reason="{reason}"}} {n // 100}'
            for reason in REASONS
        ],
    )
    family(
        "nv_inference_pending_request_count",
        "gauge",
        lambda of, n: [f"nv_inference_pending_request_count{{{of}}} {n % 9}"],
    )
    for name in SUMMARIES:
        family(
            name,
            "summary",
            lambda of, n, name=name: [  # type: ignore[misc]
                f"{name}_count{{{of}}} {n}",
                f"{name}_sum{{{of}}} {40 * n}",
                *(f'{name}{{{of},quantile="{q}"}} {n + float(q):.3f}' for q in QUANTILES),
            ],
        )
    return ("\n".join(lines) + "\n").encode()


def whole(text: bytes) -> int:
    """prometheus_client on the whole page; returns the samples."""
    return sum(len(f.samples) for f in text_string_to_metric_families(text.decode()))


def cut(text: bytes) -> int:
    """prometheus_client on the lines of the families that are wanted."""
    lines = [line for line in text.decode().splitlines() if line.startswith(WANTED)]
    return sum(len(f.samples) for f in text_string_to_metric_families("\n".join(lines)))


def cpu_ms(read: Callable[[bytes], object], pages: list[bytes]) -> float:
    """CPU time (ms) of one page, the least of three rounds."""
    rounds = []
    for _ in range(3):
        began_s = time.process_time()
        for each in pages:
            read(each)
        rounds.append((time.process_time() - began_s) / len(pages) * 1e3)
    return min(rounds)


def main() -> None:
    print(
        f"machine: {platform.machine()}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}; {MODELS} models, page of {len(page(0, 1)) / 1e3:.0f} kB; "
        "CPU ms a page"
    )
    print(f"{'':<52} {'busy':>7} {'quiet':>7}")
    busy, quiet = ([page(n, changing) for n in range(PAGES)] for changing in (1, 8))
    for name, read in (
        ("prometheus_client, whole page", whole),
        ("prometheus_client, lines of the wanted families", cut),
    ):
        print(f"{name:<52} {cpu_ms(read, busy):>7.2f} {cpu_ms(read, quiet):>7.2f}")
    ours = [cpu_ms(MetricsParser().parse, pages) for pages in (busy, quiet)]
    print(
        f"{'MetricsParser, which remembers lines of the last page':<52} {ours[0]:>7.2f} "
        f"{ours[1]:>7.2f}"
    )


if __name__ == "__main__":
    main()
