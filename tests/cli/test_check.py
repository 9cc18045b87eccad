"""``igniterd check`` and what is refused before anything runs: each mistake has its own
sentence."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from igniterd.cli.app import app
from igniterd.cli.check_host import boards, copies
from igniterd.cli.check_triton import of_triton
from igniterd.clients.triton.client import TritonClient
from igniterd.clients.triton.info import Control, ServerInfo
from igniterd.clients.triton.version import named, too_old
from igniterd.config import parse_config
from igniterd.errors import NotNow, Refused
from igniterd.estimate import ModelState
from igniterd.estimators.live_curve import LiveCurve, update_curve
from igniterd.perf import builtin_profile
from igniterd.profiled import Predictors
from igniterd.records import Allocation, BoardReading, ModelReading
from igniterd.state.checkpoint import Checkpoint

runner = CliRunner()


def write(folder: Path, models: str, more: str = "") -> list[str]:
    builtin_profile("v100").save(folder / "v100.json")
    path = folder / "igniterd.toml"
    path.write_text(
        f'[state]\ndirectory = "{folder}/state"\n[gpu]\nsource = "none"\n{more}\n{models}'
    )
    return ["check", "--config", str(path)]


ALEXNET = '[[model]]\nname = "alexnet"\nslo_p99_ms = 15\nprofile = "v100.json"\n'


def test_a_good_configuration(tmp_path: Path) -> None:
    result = runner.invoke(
        app, write(tmp_path, ALEXNET + '[[model]]\nname = "bert"\nslo_p99_ms = 50\n')
    )
    assert result.exit_code == 0, result.output
    assert "profile of alexnet" in result.output
    assert "profile of bert: none: its traffic is watched" in result.output


@pytest.mark.parametrize(
    ("models", "said"),
    [
        (
            '[[model]]\nname = "bert"\nslo_p99_ms = 50\nprofile = "v100.json"\n',
            "profiles alexnet, resnet50, vgg19, ssd, not bert",
        ),
        (
            '[[model]]\nname = "vgg19"\nslo_p99_ms = 1\nprofile = "v100.json"\n',
            "slo_p99_ms = 1, but one request alone takes",
        ),
        ('[[model]]\nname = "vgg19"\nslo_p99_ms = 50\nprofile = "none.json"\n', "none.json"),
        (
            '[[model]]\nname = "vgg19"\nslo_p99_ms = 0\n',
            "model[0].slo_p99_ms: Input should be greater than 0 (found 0)",
        ),
    ],
)
def test_mistakes_are_named(tmp_path: Path, models: str, said: str) -> None:
    result = runner.invoke(app, write(tmp_path, models))
    assert result.exit_code == 1
    assert said in result.output.replace("\n", "")


def test_profiles_may_be_of_several_kinds_of_boards(tmp_path: Path) -> None:
    profile = builtin_profile("v100")
    other = profile.model_copy(
        update={"board": profile.board.model_copy(update={"name": "NVIDIA H100"})}
    )
    other.save(tmp_path / "h100.json")
    models = ALEXNET + '[[model]]\nname = "resnet50"\nslo_p99_ms = 50\nprofile = "h100.json"\n'
    result = runner.invoke(app, write(tmp_path, models))
    assert result.exit_code == 0
    assert "h100.json (resnet50)" in result.output


def test_live_names_what_does_not_answer(tmp_path: Path) -> None:
    more = '[[triton]]\nurl = "127.0.0.1:9"\n[mps]\ncontrol = "no-such-control"\n'
    result = runner.invoke(app, [*write(tmp_path, ALEXNET, more), "--live"])
    assert result.exit_code == 1
    assert "bad  Triton main" in result.output
    assert "MPS control" in result.output
    assert "ok  Triton main GPUs: no GPU of this host is read" in result.output


def test_wrong_usage_is_two(tmp_path: Path) -> None:
    assert runner.invoke(app, [*write(tmp_path, ALEXNET), "--format", "xml"]).exit_code == 2
    assert (
        runner.invoke(
            app, ["run", "--config", str(tmp_path / "igniterd.toml"), "--mode", "dance"]
        ).exit_code
        == 2
    )


def test_show_without_a_daemon_says_so(tmp_path: Path) -> None:
    result = runner.invoke(app, ["show", "--admin", "127.0.0.1:9"])
    assert result.exit_code == 1
    assert "no running daemon answers at http://127.0.0.1:9/state" in result.output


def test_what_traffic_has_taught_is_told_of_a_model_without_a_profile(tmp_path: Path) -> None:
    curve = update_curve(
        LiveCurve(), 5.0, {1: 100, 2: 50}, {1: 10.0, 2: 15.0}, share=None, instances=1
    )
    told = write(tmp_path, '[[model]]\nname = "bert"\nslo_p99_ms = 50\n')
    assert "Nothing is learnt of its service times yet" in runner.invoke(app, told).output.replace(
        "\n", " "
    )
    Checkpoint(tmp_path / "state" / "learnt.json", {"bert": ""}).close(
        {"bert": ModelState(curve=curve, copy=("1", "python"))}, 5.0, time.time()
    )
    output = runner.invoke(app, told).output.replace("\n", " ")
    assert "Its traffic tells its service times as it runs now: batches 1 to 2 within 4 %" in output
    assert "A profile adds other shares, larger batches and the effect of neighbours" in output


def test_what_is_logged_meanwhile_is_not_in_the_findings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # as on a machine that has compiled nothing yet
    monkeypatch.setattr("igniterd.predictors.SLOW_COMPILE_S", -1.0)
    result = runner.invoke(app, [*write(tmp_path, ALEXNET), "--format", "json"])
    assert "compiled the model's kernels" in result.stderr
    assert {finding["level"] for finding in json.loads(result.stdout)} == {"ok"}


def test_models_that_do_not_fit_beside_themselves_are_named() -> None:
    board = BoardReading(
        0, "GPU-1", "V100", memory_used_bytes=2**34 - 2**30, memory_total_bytes=2**34
    )
    names = ("large", "small", "unknown", "ensemble")
    readings = {
        name: ModelReading(name, "1", "main", True, "python", Allocation(None, 8), gpus=("GPU-1",))
        for name in names
    }
    readings["ensemble"] = replace(readings["ensemble"], left_alone="an ensemble")
    known = Predictors(
        dict.fromkeys(names, "alexnet"),
        copy_bytes={"large": 2**31, "small": 2**29, "ensemble": 2**40},
    )
    said = {finding.what: finding.said for finding in copies(readings, [board], known)}
    assert said.keys() == {"model large", "GPU memory"}
    assert (
        said["model large"]
        == "it cannot be changed: a second copy takes 2048 MiB while it is reloaded, and GPU-1 "
        "has 1024 MiB free"
    )
    assert said["GPU memory"].startswith(
        "unknown: whether there is room for a second copy while one is reloaded is not known"
    )


def test_a_file_that_the_broker_needs_and_is_not_there_is_found(tmp_path: Path) -> None:
    result = runner.invoke(
        app, write(tmp_path, ALEXNET, '[mqtt]\nurl = "mqtts://broker"\nca_file = "none.pem"\n')
    )
    assert result.exit_code == 1
    assert "bad  MQTT: TLS for the MQTT broker" in result.output
    assert "none.pem" in result.output
    result = runner.invoke(app, write(tmp_path, ALEXNET, '[mqtt]\nurl = "mqtt://broker"\n'))
    assert result.exit_code == 0
    assert "ok  MQTT: hints go to mqtt://broker" in result.output


class _Old(TritonClient):
    """A server of another age, with one model that nobody can load again."""

    def __init__(self, version: str) -> None:
        super().__init__("main", "127.0.0.1:1")
        self._version = version

    async def server(self) -> ServerInfo:
        return ServerInfo(
            True, True, self._version, (), Control.EXPLICIT, too_old=too_old(self._version)
        )

    async def config(self, model: str) -> dict[str, Any]:
        raise Refused(f"{model}: no")

    async def read_models(self, names: Iterable[str]) -> dict[str, ModelReading | NotNow]:
        no = "it is in no model repository"
        return {
            n: ModelReading(
                n,
                "1",
                "main",
                True,
                "python",
                Allocation(None, 8),
                share_fixed=no,
                batching_fixed=no,
            )
            for n in names
        }


@pytest.mark.parametrize(
    ("version", "level"), [("2.40.0", "bad"), ("2.41.0", "ok"), ("of our own", "ok")]
)
async def test_live_says_the_version_and_whether_it_is_steered(version: str, level: str) -> None:
    settings = parse_config(f'[loop]\nmode = "act"\n{ALEXNET}', source="test")
    found = [
        (f.level, f.said)
        async for f in of_triton(_Old(version), settings, {})
        if f.what == "Triton main"
    ]
    assert found[0] == ("ok", f"version {named(version)} at 127.0.0.1:1, ready")
    assert ("bad", too_old(version)) in found or level == "ok"
    assert len(found) == (2 if level == "bad" else 1)


async def test_live_says_once_why_a_model_cannot_be_loaded_again() -> None:
    settings = parse_config(ALEXNET, source="test")
    warned = [f.said async for f in of_triton(_Old("2.51.0"), settings, {}) if f.level == "warn"]
    assert warned == ["it is left as it is: it is in no model repository"]


EXPOSED = (
    '[[triton]]\nurl = "127.0.0.1:1"\nmetrics_url = "http://me:s3cret@192.0.2.7:8002/metrics"\n'
    'header = { key = "k3y" }\n[loop]\nmode = "observe"\n[metrics]\nlisten = "127.0.0.1:0"\n'
)


def test_secrets_that_others_can_read_are_said_without_them(tmp_path: Path) -> None:
    command = write(tmp_path, ALEXNET, EXPOSED)
    Path(command[-1]).chmod(0o644)
    for live in ([], ["--live"]):
        output = runner.invoke(app, [*command, *live]).output
        assert "what metrics_url sends to 192.0.2.7 has a secret in it" in output
        assert "can be read by every user: chmod o-r it" in output
        assert "s3cret" not in output and "k3y" not in output


def test_the_daemon_says_each_once_at_its_start(tmp_path: Path) -> None:
    path = Path(write(tmp_path, ALEXNET, EXPOSED)[-1])
    path.chmod(0o600)
    command = [sys.executable, "-m", "igniterd", "run", "--config", str(path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as daemon:
        assert daemon.stderr is not None
        deadline = threading.Timer(60.0, daemon.kill)
        deadline.start()
        log = []
        for line in daemon.stderr:
            log.append(line)
            if '"decision"' in line:
                daemon.terminate()
        assert daemon.wait(30) == 0
        deadline.cancel()
    assert sum("a secret can be read by others" in line for line in log) == 1
    assert not any(secret in line for line in log for secret in ("s3cret", "k3y"))


async def test_a_board_in_trouble_is_a_warning_with_what_mends_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fault = "GPU 1 (GPU-b): it has fallen off the bus: reset it or restart the host"

    class Nvml:
        async def read(self) -> tuple[BoardReading, ...]:
            return BoardReading(0, "GPU-a", "V100"), BoardReading(1, "GPU-b", "V100", fault=fault)

        async def close(self) -> None: ...

    monkeypatch.setattr("igniterd.setup.nvml_client", lambda _: Nvml())
    settings = parse_config('[state]\ndirectory = "/tmp"\n' + ALEXNET, source="test")
    found = [(f.level, f.said) async for f in boards(settings, [])]
    assert found == [("ok", "V100, GPU-a"), ("warn", fault)]
