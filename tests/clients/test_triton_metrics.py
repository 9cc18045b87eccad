import asyncio

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from igniterd.clients.triton_metrics import MetricsPage, MetricsParser
from igniterd.errors import NotNow, Refused

PAGE = b"""# HELP nv_inference_request_success Number of successful inference requests, all batch sizes
# TYPE nv_inference_request_success counter
nv_inference_request_success{model="m",version="1"} 812
# HELP nv_inference_pending_request_count Instantaneous number of pending requests awaiting execution per-model.
# TYPE nv_inference_pending_request_count gauge
nv_inference_pending_request_count{model="m",version="1"} 3
nv_inference_pending_request_count{model="quiet",version="1"} 0
nv_inference_pending_request_count{model="bare",version="2"} 1
# HELP nv_inference_request_summary_us Summary of inference request duration in microseconds (includes cached requests)
# TYPE nv_inference_request_summary_us summary
nv_inference_request_summary_us_count{model="m",version="1"} 812
nv_inference_request_summary_us_sum{model="m",version="1"} 4060000
nv_inference_request_summary_us{model="m",version="1",quantile="0.5"} 5012
nv_inference_request_summary_us{model="m",version="1",quantile="0.99"} 9431.5
nv_inference_request_summary_us_count{model="quiet",version="1"} 0
nv_inference_request_summary_us_sum{model="quiet",version="1"} 0
nv_inference_request_summary_us{model="quiet",version="1",quantile="0.5"} Nan
nv_inference_request_summary_us{model="quiet",version="1",quantile="0.99"} Nan
# HELP nv_inference_queue_summary_us Summary of inference queuing duration in microseconds (includes cached requests)
# TYPE nv_inference_queue_summary_us summary
nv_inference_queue_summary_us{model="m",version="1",quantile="0.99"} 77
"""


def test_pending_and_quantiles_are_read() -> None:
    found = MetricsParser().parse(PAGE)
    assert found["m", "1"].pending == 3
    assert found["m", "1"].quantiles_s == {0.5: 0.005012, 0.99: 0.0094315}


def test_a_quantile_without_samples_is_missing_and_a_model_without_summaries_has_none() -> None:
    found = MetricsParser().parse(PAGE)
    assert found["quiet", "1"].quantiles_s == {}
    assert found["bare", "2"].quantiles_s is None
    assert found["bare", "2"].pending == 1


def test_a_page_without_the_families_is_empty() -> None:
    assert MetricsParser().parse(b"# HELP x y\nx 1\n") == {}
    assert MetricsParser().parse(b"") == {}


def test_one_line_for_each_gpu_gives_the_slowest_and_the_sum() -> None:
    page = b"""
nv_inference_pending_request_count{gpu_uuid="GPU-a",model="m",version="1"} 3
nv_inference_pending_request_count{gpu_uuid="GPU-b",model="m",version="1"} 4
# TYPE nv_inference_request_summary_us summary
nv_inference_request_summary_us{gpu_uuid="GPU-a",model="m",version="1",quantile="0.99"} 1000
nv_inference_request_summary_us{gpu_uuid="GPU-b",model="m",version="1",quantile="0.99"} 3000"""
    found = MetricsParser().parse(page)
    assert (found["m", "1"].pending, found["m", "1"].quantiles_s) == (7, {0.99: 0.003})


def test_odd_names_are_unescaped() -> None:
    page = b'\nnv_inference_pending_request_count{model="a \\"b\\" {c} \\\\ d",version="1"} 2\n'
    assert MetricsParser().parse(page)['a "b" {c} \\ d', "1"].pending == 2


def test_a_parser_that_saw_a_page_reads_the_next_one_alike() -> None:
    parser = MetricsParser()
    parser.parse(PAGE)
    later = PAGE.replace(b"9431.5", b"12000").replace(b'version="1"} 3', b'version="1"} 30')
    assert parser.parse(later) == MetricsParser().parse(later)


@pytest.mark.parametrize(
    "page", [b'\nnv_inference_pending_request_count{model="m",version="1"} 1 2x', b"\nnv_inference_pending_request_count{\xff} 1"]
)
async def test_a_page_that_is_cut_or_somebody_elses_is_refused(page: bytes) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=page)

    application = web.Application()
    application.router.add_get("/metrics", answer)
    async with TestServer(application) as server:
        metrics = MetricsPage(str(server.make_url("/metrics")), 5.0)
        with pytest.raises(Refused, match="not a metrics page of Triton"):
            await metrics.read()
        await metrics.close()


@pytest.mark.parametrize("path", ["/metrics", "/refused", "/slow", "/cut", "/elsewhere", "/around"])
async def test_a_login_is_sent_and_never_said(path: str) -> None:
    async def page(request: web.Request) -> web.Response:
        if request.headers.get("Authorization") != "Basic bWU6czNjcmV0":
            raise web.HTTPUnauthorized
        if request.query.get("token") != "t0ken":
            raise web.HTTPForbidden
        if path == "/slow":
            await asyncio.sleep(5)
        if path == "/cut" and request.transport is not None:
            request.transport.abort()
        if path == "/elsewhere":
            raise web.HTTPFound("http://me:s3cret@127.0.0.1:1/?token=t0ken")
        if path == "/around":
            raise web.HTTPFound("/around?token=t0ken")
        return web.Response(body=PAGE) if path == "/metrics" else web.Response(status=500)

    application = web.Application()
    application.router.add_get(path, page)
    async with TestServer(application) as server:
        port = server.port
        url = f"http://me:s3cret@127.0.0.1:{port}{path}?token=t0ken"
        metrics = MetricsPage(url, 0.3)
        try:
            if path == "/metrics":
                assert await metrics.read()
                return
            with pytest.raises(NotNow) as caught:
                await metrics.read()
        finally:
            await metrics.close()
    said = f"{caught.value} {caught.value!r}"
    assert f"http://127.0.0.1:{port}{path}?token=…" in said
    assert "s3cret" not in said and "t0ken" not in said
