"""A mosquitto as ``systemd/mosquitto.conf`` and ``systemd/mosquitto.acl`` have it: TLS, passwords,
and each host its own topics. With a line to it that can be cut and made slow."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiomqtt

from igniterd.clients.tls import client_context
from igniterd.lab.programs import programs
from igniterd.lab.programs.process import free_ports, listens, running
from tests.integration.test_clients_secured import Papers, hashed
from tests.waiting import until

ROOT = Path(__file__).parents[2]
_REFUSED = (0x86, 0x87)  # a wrong password, a user who may not
FLEET, OPERATOR = "igniterd-fleet", "operator"


class SecuredBroker:
    """It is started and stopped as often as one likes, on one port; it remembers nothing."""

    def __init__(self, folder: Path, hosts: Iterable[str]) -> None:
        self.folder = folder / "mosquitto"
        (self.folder / "tls").mkdir(parents=True)
        self.papers = Papers(folder)
        (self.port,) = free_ports(1)
        self._stack = AsyncExitStack()
        users = (*hosts, FLEET, OPERATOR)
        for user in users:
            self.password_file(user).write_text(f"secret of {user}\n")
        self._write("igniterd.passwd", "".join(hashed(u, f"secret of {u}") for u in users))
        self._write("igniterd.acl", (ROOT / "systemd" / "mosquitto.acl").read_text())
        for name, paper in (
            ("ca.pem", self.papers.ca),
            ("broker.pem", self.papers.server_cert),
            ("broker.key", self.papers.server_key),
        ):
            self._write(f"tls/{name}", paper.read_text())
        shipped = (ROOT / "systemd" / "mosquitto.conf").read_text()
        config = shipped.replace("/etc/mosquitto", str(self.folder))
        config = config.replace("listener 8883", f"listener {self.port} 127.0.0.1")
        # started by root it would change to a user that this machine may not have
        self._write("mosquitto.conf", config + ("user root\n" if os.geteuid() == 0 else ""))

    @property
    def url(self) -> str:
        return f"mqtts://127.0.0.1:{self.port}"

    def password_file(self, user: str) -> Path:
        return self.folder.parent / f"{user}.password"

    def table(self, user: str, port: int | None = None) -> str:
        """The keys of ``[mqtt]`` and ``[broker]``."""
        return (
            f'url = "mqtts://127.0.0.1:{port or self.port}"\nusername = "{user}"\n'
            f'password_file = "{self.password_file(user)}"\nca_file = "{self.papers.ca}"\n'
        )

    def client(self, user: str, password: str = "") -> aiomqtt.Client:
        """A connection of its own, not opened yet."""
        return aiomqtt.Client(
            "127.0.0.1",
            self.port,
            username=user,
            password=password or f"secret of {user}",
            tls_context=client_context("broker", self.papers.ca, None, None),
            protocol=aiomqtt.ProtocolVersion.V5,
        )

    async def start(self) -> None:
        broker = programs.required(programs.mosquitto(), "mosquitto")
        program = await self._stack.enter_async_context(
            running(
                "mosquitto",
                [str(broker.path), "-c", str(self.folder / "mosquitto.conf")],
                log=self.folder / "mosquitto.log",
                env=os.environ | broker.environment(),
            )
        )
        await program.until(lambda: listens(self.port), timeout_s=20.0)

    async def stop(self) -> None:
        stack, self._stack = self._stack, AsyncExitStack()
        await stack.aclose()

    def _write(self, name: str, text: str) -> None:
        file = self.folder / name
        file.write_text(text)
        file.chmod(0o600)


@asynccontextmanager
async def secured_broker(folder: Path, hosts: Iterable[str]) -> AsyncIterator[SecuredBroker]:
    broker = SecuredBroker(folder, hosts)
    await broker.start()
    try:
        yield broker
    finally:
        await broker.stop()


class Hearing:
    """All that a user hears under ``igniterd/``, since the start: (loop's time, topic, event), or
    None for an event that is none. Once the listener has failed nothing more is heard: who asks
    what was heard is told so, with its error."""

    def __init__(self) -> None:
        self._heard: list[tuple[float, str, dict[str, Any] | None]] = []
        self.failure: BaseException | None = None

    def check(self) -> None:
        """Raises ``AssertionError`` once the listener has failed."""
        if self.failure is not None:
            raise AssertionError(
                f"the listener has failed: {self.failure!r} {self.failure}"
            ) from self.failure

    @property
    def heard(self) -> list[tuple[float, str, dict[str, Any] | None]]:
        self.check()
        return self._heard

    def of(self, topic: str, since: int = 0) -> list[tuple[float, dict[str, Any]]]:
        """When each came, and its data."""
        return [
            (at_s, event["data"])
            for at_s, heard, event in self.heard[since:]
            if heard == topic and event is not None
        ]

    async def listen(self, client: aiomqtt.Client) -> None:
        async with client:
            codes: Any = await client.subscribe("igniterd/#", qos=1)
            assert not any(code.is_failure for code in codes), codes
            async for message in client.messages:
                now_s = asyncio.get_running_loop().time()
                try:
                    event = json.loads(bytes(message.payload))
                except ValueError:
                    event = None
                there = isinstance(event, dict) and isinstance(event.get("data"), dict)
                self._heard.append((now_s, message.topic.value, event if there else None))


@asynccontextmanager
async def hearing(broker: SecuredBroker, user: str = OPERATOR) -> AsyncIterator[Hearing]:
    """Until the end of the context, across restarts of the broker. A listener that failed fails
    the context too, at the latest at its end."""
    found = Hearing()

    async def on_and_on() -> None:
        while True:
            try:
                await found.listen(broker.client(user))
            except aiomqtt.MqttError as error:
                if _is_refusal(error):
                    raise
                await asyncio.sleep(0.1)

    def ended(task: asyncio.Task[None]) -> None:
        found.failure = None if task.cancelled() else task.exception()

    task = asyncio.create_task(on_and_on())
    task.add_done_callback(ended)
    try:
        yield found
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        found.check()


def _is_refusal(error: aiomqtt.MqttError) -> bool:
    """Whether a broker that is there does not let the user in."""
    code = error.rc if isinstance(error, aiomqtt.MqttCodeError) else None
    return getattr(code, "value", code) in _REFUSED


class Line:
    """A way to a port that can be cut (nothing passes, and nobody is told) and made slow."""

    def __init__(self, port: int) -> None:
        (self.port,) = free_ports(1)
        self.delay_s = 0.0
        self.passed = asyncio.Event()
        """Clear: cut."""
        self.passed.set()
        self._there = port
        self._tasks = set[asyncio.Task[None]]()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there = await asyncio.open_connection("127.0.0.1", self._there)
        except OSError:
            writer.close()
            return
        for one in (self._carry(reader, there[1]), self._carry(there[0], writer)):
            task = asyncio.create_task(one)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                await asyncio.sleep(self.delay_s)
                await self.passed.wait()
                writer.write(data)
                await writer.drain()
        except OSError:
            pass  # the other end is gone: this one is closed too
        finally:
            writer.close()

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@asynccontextmanager
async def line_to(port: int) -> AsyncIterator[Line]:
    line = Line(port)
    server = await asyncio.start_server(line.serve, "127.0.0.1", line.port)
    try:
        yield line
    finally:
        server.close()
        await line.close()


async def until_heard(found: Hearing, topic: str, count: int = 1) -> None:
    """Wait until so many messages came on ``topic``."""
    await until(lambda: len(found.of(topic)) >= count)
