import pytest
from structlog.testing import capture_logs

from igniterd.edgelog import MOST_KEYS, QUIET_S, EdgeLogger, Lately


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_a_failure_is_told_once_and_its_recovery_once() -> None:
    with capture_logs() as logs:
        once = EdgeLogger("nvml")
        once.worked("read")
        for _ in range(3):
            once.failed("read", "no answer in 0.3 s")
        assert once.failing("read")
        once.worked("read")
        once.worked("read")
    assert [(entry["log_level"], entry["event"]) for entry in logs] == [
        ("warning", "failing"),
        ("info", "recovered"),
    ]
    assert (logs[0]["source"], logs[0]["what"], logs[0]["reason"], logs[1]["failures"]) == (
        "nvml",
        "read",
        "no answer in 0.3 s",
        3,
    )


@pytest.mark.parametrize("period_s", [2, 7, 60, 300])
def test_what_comes_and_goes_all_day_is_a_line_each_ten_minutes(period_s: int) -> None:
    clock = Clock()
    with capture_logs() as logs:
        once = EdgeLogger("nvml", clock=clock)
        for second in range(86_400):
            clock.now_s = float(second)
            if second % period_s == 1:
                once.failed("read", "no answer in 0.3 s")
            else:
                once.worked("read")
    assert 2 < len(logs) <= 86_400 / QUIET_S + 2
    told = 1 + sum(entry.get("times", 0) for entry in logs)  # of the first line that is not said
    assert told > 0.9 * 86_400 / period_s - QUIET_S / period_s, "every one is counted"


def test_an_outage_after_a_hiccup_is_told_all_the_same_and_so_is_its_end() -> None:
    clock = Clock()
    with capture_logs() as logs:
        once = EdgeLogger("triton", clock=clock)
        once.failed("read", "a hiccup")
        once.worked("read")
        for second in range(10, 200):
            clock.now_s = float(second)
            once.failed("read", "gone")
        assert [(entry["event"], entry.get("reason")) for entry in logs[2:]] == [
            ("failing", "gone")
        ]
        once.worked("read")
    assert logs[-1]["event"] == "recovered"


def test_what_flapped_and_is_well_again_is_said_to_be() -> None:
    clock = Clock()
    with capture_logs() as logs:
        once = EdgeLogger("nvml", clock=clock)
        for second in range(3000):
            clock.now_s = float(second)
            if second % 2 and second < 700:
                once.failed("read", "no answer")
            else:
                once.worked("read")
        assert logs[-1]["event"] == "recovered"
        assert once.known() == ()


def test_its_memory_is_bounded() -> None:
    once, lately = EdgeLogger("triton"), Lately()
    with capture_logs():
        for number in range(5 * MOST_KEYS):
            once.failed(f"request {number:x}", "no")
            lately.note(f"request {number:x}", float(number))
    assert len(once.known()) == len(lately) == MOST_KEYS


def test_keys_are_apart() -> None:
    with capture_logs() as logs:
        once = EdgeLogger("triton:main")
        once.failed("a", "x")
        once.failed("b", "y")
        once.worked("a")
    assert [entry["what"] for entry in logs] == ["a", "b", "a"]
