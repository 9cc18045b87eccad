"""``igniterd profile`` on a Triton that wants certificates on both sides and a header, by
configuration and by options."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from igniterd.clients.environments import ModelConfig
from igniterd.clients.triton.channel import TlsFiles
from igniterd.clients.triton.client import TritonClient
from igniterd.lab.host import TritonHost
from igniterd.lab.programs.process import running
from igniterd.perf.profile import Profile
from igniterd.profiler.partial import Partial
from tests.integration.test_clients_secured import Papers, strict_triton
from tests.waiting import until_ended

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

HEADER, SECRET = "triton-grpc-protocol-admin-key", "s3cret"


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> Papers:
    return Papers(tmp_path_factory.mktemp("papers"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def triton(
    papers: Papers, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[TritonHost]:
    strict = ("--grpc-use-ssl=1", "--grpc-use-ssl-mutual=1", f"--grpc-root-cert={papers.ca}")
    strict += (f"--grpc-server-cert={papers.server_cert}", f"--grpc-server-key={papers.server_key}")
    strict += (f"--grpc-restricted-protocol=model-repository:admin-key={SECRET}",)
    async with strict_triton(tmp_path_factory.mktemp("strict") / "triton", *strict) as host:
        yield host


def url(host: TritonHost) -> str:
    return f"localhost:{host.grpc_port}"


@contextlib.asynccontextmanager
async def connected(host: TritonHost, papers: Papers) -> AsyncIterator[TritonClient]:
    client = TritonClient(
        "main",
        url(host),
        timeout_s=5.0,
        tls=TlsFiles(papers.ca, papers.client_key, papers.client_cert),
    )
    try:
        yield client
    finally:
        await client.close()


async def config(host: TritonHost, papers: Papers) -> ModelConfig:
    async with connected(host, papers) as client:
        return await client.config("alexnet")


def certificates(papers: Papers) -> list[str]:
    return [
        "--ca-file",
        str(papers.ca),
        "--cert-file",
        str(papers.client_cert),
        "--key-file",
        str(papers.client_key),
    ]


def configured(host: TritonHost, papers: Papers, folder: Path) -> Path:
    """The daemon's configuration for this host; its certificates are named relative to its own
    folder."""
    path = papers.ca.parent / "igniterd.toml"
    path.write_text(
        f'[[triton]]\nname = "strict"\nurl = "{url(host)}"\nheader = {{ "{HEADER}" = "{SECRET}" '
        f"}}\n"
        'ca_file = "ca.pem"\ncert_file = "client.pem"\nkey_file = "client.key"\n'
        f'[gpu]\nsource = "emulated:{host.board_path}"\n[state]\ndirectory = "{folder / "state"}"\n'
        '[[model]]\nname = "alexnet"\ntriton = "strict"\nslo_p99_ms = 50.0\n'
    )
    return path


def profile(*more: str) -> list[str]:
    return [sys.executable, "-m", "igniterd", "profile", *more]


async def test_as_the_configuration_says(
    triton: TritonHost, papers: Papers, tmp_path: Path
) -> None:
    before, output = await config(triton, papers), tmp_path / "profile.json"
    asked = profile(
        "alexnet",
        "-o",
        str(output),
        "--config",
        str(configured(triton, papers, tmp_path)),
        "--points",
        "3",
    )
    async with running("profile", asked, log=tmp_path / "log", env=dict(os.environ)) as program:
        said = await until_ended(program, 120.0)
        assert output.exists(), said
    assert len(Profile.load(output).models["alexnet"].solo) == 3
    assert await config(triton, papers) == before


async def test_a_stranger_is_told_what_is_missing(
    triton: TritonHost, papers: Papers, tmp_path: Path
) -> None:
    asked = profile(
        "alexnet", "-o", str(tmp_path / "p.json"), "--triton", url(triton), "--gpu", "none"
    )
    async with running("profile", asked, log=tmp_path / "log", env=dict(os.environ)) as program:
        assert url(triton) in await until_ended(program, 60.0)
    async with running(
        "profile", [*asked, *certificates(papers)], log=tmp_path / "log2", env=dict(os.environ)
    ) as program:
        said = await until_ended(program, 60.0)
    assert "restricted" in said
    assert "--header" in said
    assert not (tmp_path / "p.json").exists()


async def test_by_options_killed_and_put_back_without_the_secret_on_disk(
    triton: TritonHost, papers: Papers, tmp_path: Path
) -> None:
    partial = tmp_path / "p.json.partial"
    asked = profile(
        "alexnet", "-o", str(tmp_path / "p.json"), "--triton", url(triton), *certificates(papers)
    )
    asked += [
        "--header",
        f"{HEADER}={SECRET}",
        "--gpu",
        f"emulated:{triton.board_path}",
        "--state",
        str(tmp_path / "state"),
    ]
    # one connection: a handshake for every look may fail while Triton loads a model
    async with connected(triton, papers) as client:
        before = await client.config("alexnet")

        async def changed() -> bool:
            return await client.config("alexnet") != before

        async with running("profile", asked, log=tmp_path / "log", env=dict(os.environ)) as program:
            await program.until(changed, timeout_s=60.0)
            os.killpg(program.pid, signal.SIGKILL)
            await until_ended(program, 30.0)
    assert SECRET not in partial.read_text()
    assert Partial.read(partial).originals == {"alexnet": before}
    for more, said in (
        ([], "restricted"),
        (["--header", f"{HEADER}={SECRET}"], "alexnet: as it was"),
    ):
        async with running(
            "restore",
            profile("--restore", str(partial), *more),
            log=tmp_path / "r.log",
            env=dict(os.environ),
        ) as program:
            assert said in await until_ended(program, 90.0)
    assert await config(triton, papers) == before
