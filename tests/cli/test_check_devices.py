"""What ``igniterd check --live`` says of the GPUs of each Triton."""

import pytest

from igniterd.cli.check_devices import devices
from igniterd.cli.findings import Finding
from igniterd.config import parse_config
from igniterd.devices import ServerFacts
from igniterd.records import BoardReading

BOARDS = tuple(
    BoardReading(i, f"GPU-{i}", name, pci=f"00000000:{i + 1:02X}:00.0")
    for i, name in enumerate(["T4", "H100"])
)
MODEL = '[[model]]\nname = "m"\nslo_p99_ms = 9\ntriton = "main"\n'


def found(
    more: str = "",
    labels: tuple[str, ...] = (),
    facts: ServerFacts | None = None,
    boards: tuple[BoardReading, ...] = BOARDS,
) -> Finding:
    """The finding of one Triton at port 9001, whose configuration has ``more``."""
    text = f'[[triton]]\nname = "main"\nurl = "127.0.0.1:9001"\n{more}\n{MODEL}'
    servers = {} if facts is None else {9001: facts}
    (finding,) = devices(parse_config(text, source="test"), boards, {"main": labels}, servers, {})
    assert finding.what == "Triton main GPUs"
    return finding


def test_each_device_is_named_with_what_that_rests_on() -> None:
    finding = found(facts=ServerFacts("1,0", "PCI_BUS_ID", readable=True))
    assert (finding.level, finding.said) == (
        "ok",
        "device 0 is GPU-1 (H100), device 1 is GPU-0 (T4); from CUDA_VISIBLE_DEVICES of the "
        "server's process (1,0), with CUDA_DEVICE_ORDER=PCI_BUS_ID",
    )


def test_labels_of_the_metrics_page_are_taken() -> None:
    assert found(labels=("GPU-1",)).said == (
        "device 0 is GPU-1 (H100); from the only GPU its metrics page names"
    )


def test_what_is_not_known_is_a_warning_with_the_line_to_put_in() -> None:
    finding = found()
    assert finding.level == "warn"
    assert finding.said.startswith("which is which is not known: the environment of the server")
    assert 'put in: gpus = ["GPU-0", "GPU-1"]  # under [[triton]] name = "main"' in finding.said


@pytest.mark.parametrize(
    ("gpus", "level", "said"),
    [
        (
            '["GPU-1", "GPU-0"]',
            "ok",
            "device 0 is GPU-1 (H100), device 1 is GPU-0 (T4); from gpus ",
        ),
        (
            '["GPU-2"]',
            "bad",
            "[[triton]] main: gpus names GPU-2, and no GPU of this host is called",
        ),
    ],
)
def test_what_is_configured_is_compared(gpus: str, level: str, said: str) -> None:
    finding = found(f"gpus = {gpus}")
    assert finding.level == level
    assert finding.said.startswith(said)


def test_a_host_whose_gpus_are_not_read() -> None:
    assert found(boards=()).said == "no GPU of this host is read"
    assert found('gpus = ["GPU-2"]', boards=()).said == (
        "device 0 is GPU-2; from gpus of [[triton]] main"
    )


def test_every_triton_has_a_line() -> None:
    text = f'[[triton]]\nname = "main"\n[[triton]]\nname = "b"\nurl = "127.0.0.1:9001"\n{MODEL}'
    settings = parse_config(text, source="test")
    assert [f.what for f in devices(settings, BOARDS, {}, {}, {})] == [
        "Triton main GPUs",
        "Triton b GPUs",
    ]
