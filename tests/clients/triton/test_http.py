"""The configuration by HTTP, from a server behind a login."""

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from igniterd.clients.triton.http import TritonHttp
from igniterd.errors import NotNow

LOGIN = "Basic bWU6czNjcmV0"


async def asked(path: str, headers: dict[str, str]) -> tuple[object, str]:
    """What a server answers that wants a login, a parameter and a header; what is said of a no."""

    async def config(request: web.Request) -> web.Response:
        sent = request.headers.get("Authorization"), request.query.get("token")
        if sent != (LOGIN, "t0ken") or request.headers.get("key") != "k3y":
            raise web.HTTPUnauthorized
        return web.json_response({"name": "m"})

    application = web.Application()
    application.router.add_get("/triton/v2/models/m/config", config)
    async with TestServer(application) as server:
        url = f"http://me:s3cret@127.0.0.1:{server.port}{path}?token=t0ken"
        client = TritonHttp(url, 5.0, headers, None)
        try:
            return await client.config("m"), ""
        except NotNow as error:
            return None, f"{error} {error!r}"
        finally:
            await client.close()


async def test_a_login_and_a_parameter_are_sent_beside_the_headers() -> None:
    assert await asked("/triton/", {"key": "k3y"}) == ({"name": "m"}, "")


@pytest.mark.parametrize(("path", "status"), [("/triton", "401"), ("/other", "404")])
async def test_they_are_in_no_refusal(path: str, status: str) -> None:
    _, said = await asked(path, {"key": "wr0ng"})
    assert f"{path}/v2/models/m/config?token=…: HTTP status {status}" in said
    assert not any(secret in said for secret in ("s3cret", "t0ken", "wr0ng"))
