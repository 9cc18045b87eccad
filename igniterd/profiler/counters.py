"""What NVML says beyond the daemon's readings: bytes over PCIe, and on Hopper and later how busy
DRAM and the SMs were (GPM).

Blocking, like NVML: :class:`Counters` is used from one worker thread. A reading that a board or
driver lacks is ``None``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

MIB = 2**20


@dataclass(frozen=True, slots=True)
class Activity:
    """Means over a span: percent of the peak, and bytes a second from and to the host."""

    dram_pct: float | None = None
    sm_pct: float | None = None
    pcie_bytes_per_s: float | None = None


class Counters:
    """One board. ``library`` is a module or object with pynvml's names."""

    def __init__(self, library: Any, index: int) -> None:
        self._library = library
        self._samples: list[Any] = []
        self._begun = False
        self._device: Any = None
        try:
            library.nvmlInit()
            self._device = library.nvmlDeviceGetHandleByIndex(index)
            if library.nvmlGpmQueryDeviceSupport(self._device).isSupportedDevice:
                self._samples = [library.nvmlGpmSampleAlloc(), library.nvmlGpmSampleAlloc()]
        except (library.NVMLError, AttributeError):
            self._samples = []

    def begin(self) -> None:
        """The span begins now."""
        self._begun = self._sample(0)

    def end(self) -> Activity:
        """What happened since :meth:`begin`."""
        if not (self._begun and self._sample(1)):
            return Activity(pcie_bytes_per_s=self._pcie())
        library = self._library
        wanted = (
            library.NVML_GPM_METRIC_DRAM_BW_UTIL,
            library.NVML_GPM_METRIC_SM_UTIL,
            library.NVML_GPM_METRIC_PCIE_RX_PER_SEC,
            library.NVML_GPM_METRIC_PCIE_TX_PER_SEC,
        )
        asked = library.c_nvmlGpmMetricsGet_t()
        asked.version, asked.numMetrics = library.NVML_GPM_METRICS_GET_VERSION, len(wanted)
        asked.sample1, asked.sample2 = self._samples
        for place, metric in enumerate(wanted):
            asked.metrics[place].metricId = metric
        try:
            library.nvmlGpmMetricsGet(asked)
        except library.NVMLError:
            return Activity(pcie_bytes_per_s=self._pcie())
        dram, sm, received, sent = (
            float(m.value) if m.nvmlReturn == library.NVML_SUCCESS else None
            for m in (asked.metrics[i] for i in range(len(wanted)))
        )
        moved = None if received is None or sent is None else (received + sent) * MIB
        return Activity(_percent(dram), _percent(sm), moved)

    def close(self) -> None:
        """Give back what NVML allocated."""
        for sample in self._samples:
            self._library.nvmlGpmSampleFree(sample)
        self._samples = []

    def _sample(self, place: int) -> bool:
        if not self._samples:
            return False
        try:
            self._library.nvmlGpmSampleGet(self._device, self._samples[place])
        except self._library.NVMLError:
            return False
        return True

    def _pcie(self) -> float | None:
        """Both directions over the last 20 ms, which is what NVML keeps on boards without GPM."""
        library = self._library
        try:
            parts = (library.NVML_PCIE_UTIL_RX_BYTES, library.NVML_PCIE_UTIL_TX_BYTES)
            return 1000.0 * sum(
                int(library.nvmlDeviceGetPcieThroughput(self._device, part)) for part in parts
            )
        except (library.NVMLError, AttributeError):
            return None


def _percent(value: float | None) -> float | None:
    return None if value is None else min(100.0, max(0.0, value))
