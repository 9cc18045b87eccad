"""The command line: what is wrong is said before anything is touched; a profile is shown and
drawn."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer import BadParameter
from typer.testing import CliRunner

from igniterd.cli.app import app
from igniterd.cli.profile_access import Access, host_of, mps_warning
from igniterd.cli.profile_run import report_left_behind
from igniterd.cli.profile_show import residuals
from igniterd.lab.programs.process import free_ports
from igniterd.perf.profile import CoRun, CoTenant, builtin_profile
from igniterd.perf.surface_model import SurfaceModel
from igniterd.profiler.partial import Partial, Settings
from igniterd.state.lock import HostLock
from igniterd.state.released import given_back


def run(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["profile", *arguments])
    return done.exit_code, done.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "name models to profile"),
        (("m", "--show", "x.json"), "name models to profile"),
        (("m", "m"), "a model is named twice"),
        (("m", "--gpu", "cuda"), "should be nvml, none or"),
        (("m", "--shape", "X"), "should be INPUT=d1,d2"),
        (("m", "--shape", "X=3,0"), "should be INPUT=d1,d2"),
        (("m", "--points", "2"), "--points"),
        (("m", "--triton", "gpu-a"), "should be host:port"),
        (("m", "--header", "s3cret"), "--header"),
        (("m", "--header", "a b=s3cret"), "letters, digits and"),
        (("m", "--state", "/tmp/a folder"), "only letters, digits and"),
    ],
)
def test_wrong_usage(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    code, text = run(*arguments, "-o", str(tmp_path / "p.json"))
    assert code == 2
    assert said in text.replace("│", "").replace("\n", " ")
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    code, text = run(
        "m",
        "-o",
        str(tmp_path / "profiles" / "p.json"),
        "--triton",
        f"127.0.0.1:{port}",
        "--gpu",
        "none",
    )
    assert code == 1
    assert str(port) in text
    # a folder that is not there yet is no reason to fail after minutes
    assert (tmp_path / "profiles").is_dir()
    (tmp_path / "file").touch()
    code, text = run(
        "m",
        "-o",
        str(tmp_path / "file" / "p.json"),
        "--triton",
        f"127.0.0.1:{port}",
        "--gpu",
        "none",
    )
    assert code == 1
    assert "File exists" in text or "Not a directory" in text


def test_a_daemon_that_acts_on_the_server_is_not_disturbed(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    file = tmp_path / "igniterd.toml"
    file.write_text(
        f'[state]\ndirectory = "{tmp_path}/state"\n[[triton]]\nurl = "localhost:{port}"\n[gpu]\n'
        'source = "none"\n'
        '[[model]]\nname = "m"\nslo_p99_ms = 5\n[[model]]\nname = "n"\nslo_p99_ms = 5\n'
    )
    (tmp_path / "state").mkdir()
    words = ("m", "-o", str(tmp_path / "p.json"), "--config", str(file))
    daemon = HostLock(tmp_path / "state", [f"127.0.0.1:{port}"])
    daemon.take()
    try:
        code, text = run(*words)
        assert code == 1
        assert "igniterd release m --config FILE" in text
        for other in (
            run(*words, "--beside"),
            (given_back(tmp_path / "state", ["m"]), run(*words))[1],
        ):
            assert other[0] == 1
            assert "--beside" not in other[1]
            assert f"at localhost:{port}" in other[1]  # it got as far as Triton, which is not there
        code, text = run("n", *words)
        assert "--beside" in text
    finally:
        daemon.release()
    code, text = run("n", *words)
    assert "--beside" not in text


def test_nobody_is_told_to_put_back_what_was_not_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "p.json.partial"
    partial = Partial(
        settings=Settings(models=["m"], triton="127.0.0.1:1", shares=tmp_path / "shares"),
        originals={"m": {"name": "m"}},
    )
    report_left_behind(path)
    assert capsys.readouterr().err == ""
    partial.write(path)
    report_left_behind(path)
    assert f"m not as it was found: igniterd profile --restore {path}" in capsys.readouterr().err


def test_a_server_that_was_left_changed_is_not_profiled_anew(tmp_path: Path) -> None:
    settings = Settings(models=["m"], triton="127.0.0.1:1", shares=tmp_path / "shares")
    Partial(settings=settings, originals={"m": {"name": "m"}}).write(tmp_path / "p.json.partial")
    code, text = run("m", "-o", str(tmp_path / "p.json"))
    assert code == 1
    assert "--resume or --restore" in text


TWO = """
[[triton]]
name = "a"
url = "a:8001"
header = { key = "s3cret" }
ca_file = "ca.pem"
[[triton]]
name = "b"
url = "b:8001"
[mps]
enabled = false
[gpu]
source = "none"
[[model]]
name = "m"
triton = "a"
slo_p99_ms = 10
"""


def access(**given: object) -> Access:
    return Access(
        **(
            {"triton": None, "config": None, "ca_file": None, "cert_file": None, "key_file": None}
            | given
        )
    )  # type: ignore[arg-type]


def test_the_configuration_says_how_triton_is_reached(tmp_path: Path) -> None:
    path = tmp_path / "igniterd.toml"
    path.write_text(TWO)
    for wanted in ("a", "a:8001"):
        settings = Settings(
            models=["m"], shares=tmp_path, **access(triton=wanted, config=path).settings()
        )
        assert (settings.triton, settings.server) == ("a:8001", "a")
        assert "s3cret" not in settings.model_dump_json()
    for wanted, said in ((None, "name one of a, b"), ("c", "which has a, b")):
        with pytest.raises(BadParameter, match=said):
            access(triton=wanted, config=path).settings()
    assert host_of(path) == {
        "gpu": "none",
        "shares": Path("/var/lib/igniterd/shares"),
        "mps": False,
    }


def test_one_servers_headers_are_not_sent_to_another(tmp_path: Path) -> None:
    path = tmp_path / "igniterd.toml"
    path.write_text(TWO)
    settings = Settings(models=["m"], shares=tmp_path, **access(triton="a", config=path).settings())
    assert access(triton="a:8001").over(settings).config == path
    moved = access(triton="elsewhere:8001").over(settings)
    assert (moved.triton, moved.config) == ("elsewhere:8001", None)


def test_half_a_certificate_is_refused(tmp_path: Path) -> None:
    code, text = run(
        "m", "-o", str(tmp_path / "p.json"), "--cert-file", str(tmp_path / "c.pem"), "--gpu", "none"
    )
    assert code == 1
    assert "--ca-file, --cert-file and --key-file" in text


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("default", "said"), [("100.0", ""), ("50.0", "above 50%"), ("", "may have no effect")]
)
async def test_shares_without_effect_are_said(tmp_path: Path, default: str, said: str) -> None:
    control = tmp_path / "control"
    control.write_text(f"#!/bin/sh\nread _; read _; [ -n '{default}' ] && echo {default}\n")
    control.chmod(0o755)
    path = tmp_path / "igniterd.toml"
    path.write_text(f'[mps]\ncontrol = "{control}"\n[[model]]\nname = "m"\nslo_p99_ms = 10\n')
    settings = Settings(models=["m"], shares=tmp_path, **access(config=path).settings())
    found = await mps_warning(settings)
    assert (said in found) if said else found == ""
    assert await mps_warning(settings.model_copy(update={"gpu": "none"})) == ""


def test_nothing_to_restore(tmp_path: Path) -> None:
    Partial(
        settings=Settings(models=["m"], triton="127.0.0.1:1", shares=tmp_path / "shares")
    ).write(tmp_path / "p.partial")
    code, text = run("--restore", str(tmp_path / "p.partial"))
    assert (code, "nothing to put back" in text) == (0, True)
    code, text = run("--restore", str(tmp_path / "none"))
    assert (code, "cannot be read" in text) == (1, True)
    (tmp_path / "other").write_text("{}")
    code, text = run("--resume", str(tmp_path / "other"))
    assert (code, "igniterd-profile-partial" in text) == (1, True)


def test_a_profile_is_shown_and_drawn(tmp_path: Path) -> None:
    builtin_profile("v100").save(tmp_path / "v100.json")
    code, text = run("--show", str(tmp_path / "v100.json"), "--plot", str(tmp_path / "v100.png"))
    assert code == 0
    assert "80 SMs, shares in steps of 2.5 %" in text
    assert "resnet50: 11 points alone" in text
    assert f"{len(builtin_profile('v100').co_runs)} co-runs" in text
    assert (tmp_path / "v100.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "v100.png").stat().st_size > 50_000


def test_who_had_no_share_in_a_co_run_is_shown_as_uncapped(tmp_path: Path) -> None:
    whole = builtin_profile("v100")
    one, other = whole.co_runs[0].tenants
    kept = {"model": one.model, "batch": one.batch, "latency_ms": one.latency_ms * 2}
    tenants = (CoTenant.model_validate(kept), other)
    whole.model_copy(update={"co_runs": (CoRun(tenants=tenants),)}).save(tmp_path / "p.json")
    code, text = run("--show", str(tmp_path / "p.json"))
    rows = [line.split() for line in text.splitlines()]
    assert code == 0
    beside = [other.model, f"b{other.batch}", f"{other.share:.3g}"]
    assert [one.model, str(one.batch), "uncapped", *beside] in [row[:6] for row in rows]
    assert [one.model, f"b{one.batch}", "uncapped"] in [row[3:6] for row in rows]


def test_residuals_are_of_the_fit_and_of_the_fit_without_the_point() -> None:
    profile = builtin_profile("v100")
    found = residuals(profile, SurfaceModel(profile), "resnet50")
    assert len(found) == 11
    assert all(abs(r.fitted_error) < 0.05 for r in found)
    foretold = [abs(r.foretold_error) for r in found if r.foretold_error is not None]
    assert len(foretold) == 11
    assert sum(foretold) > sum(abs(r.fitted_error) for r in found)
