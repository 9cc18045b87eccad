import asyncio

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from igniterd.clients.triton.metrics import MetricsPage, MetricsParser
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
"""  # noqa: E501


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
    assert MetricsParser().parse(b"# HELP nv_gpu_utilization y\nnv_gpu_utilization 1\n") == {}


def test_the_gpus_of_the_page_are_those_of_their_own_lines() -> None:
    parser = MetricsParser()

    def labels(page: bytes) -> tuple[str, ...]:
        parser.parse(page)
        return parser.gpu_labels

    page = (
        b"# HELP nv_gpu_utilization GPU utilization rate [0.0 - 1.0)\n"
        b"# TYPE nv_gpu_utilization gauge\n"
        b'nv_gpu_utilization{gpu_uuid="GPU-b"} 0\n'
        b'nv_gpu_utilization{gpu_uuid="GPU-a"} 0\n'
        b'nv_inference_count{gpu_uuid="GPU-c",model="m",version="1"} 3\n'
        b'nv_gpu_power_limit{gpu_uuid="GPU-a"} 250\n'
        b'nv_gpu_power_limit{gpu_uuid="GPU-b"} 250\n'
    )
    assert labels(page) == ("GPU-b", "GPU-a")
    assert labels(PAGE) == ()


HEAD = b"# HELP nv_inference_pending_request_count x\n"


def pending(value: bytes, model: bytes = b"m") -> bytes:
    return (
        b'nv_inference_pending_request_count{model="' + model + b'",version="1"} ' + value + b"\n"
    )


@pytest.mark.parametrize(
    "value",
    [b"+Inf", b"-Inf", b"NaN", b"-5", b"1e400", b"1e300", b"2.5", b"many", b"", b"0x10", b"\xff"],
)
def test_a_value_that_is_no_count_is_missing_for_its_own_model_only(value: bytes) -> None:
    found = MetricsParser().parse(HEAD + pending(value) + pending(b"7", b"other"))
    assert found["other", "1"].pending == 7
    assert ("m", "1") not in found or found["m", "1"].pending is None


def test_half_a_sum_is_none() -> None:
    for lines in ((b"3", b"NaN"), (b"NaN", b"3")):
        text = b"".join(
            b'nv_inference_pending_request_count{gpu_uuid="%d",model="m",version="1"} %s\n'
            % (gpu, value)
            for gpu, value in enumerate(lines)
        )
        assert MetricsParser().parse(text)["m", "1"].pending is None


@pytest.mark.parametrize(
    "line", [pending(b"3 1700000000000"), pending(b"3").replace(b"\n", b"\r\n"), pending(b"3e0")]
)
def test_a_time_stamp_behind_a_value_is_no_value(line: bytes) -> None:
    assert MetricsParser().parse(HEAD + line)["m", "1"].pending == 3


@pytest.mark.parametrize("value", [b"+Inf", b"-1", b"NaN", b"1e300"])
def test_a_latency_that_is_none_is_missing(value: bytes) -> None:
    found = MetricsParser().parse(PAGE.replace(b"9431.5", value))
    assert found["m", "1"].quantiles_s == {0.5: 0.005012}


@pytest.mark.parametrize("name", [b"median", b"nan", b"99", b"-1"])
def test_a_quantile_that_is_none_is_passed_over(name: bytes) -> None:
    found = MetricsParser().parse(PAGE.replace(b'"0.5"', b'"' + name + b'"'))
    assert found["m", "1"].quantiles_s == {0.99: 0.0094315}


def test_a_family_may_be_anywhere_and_in_parts() -> None:
    page = pending(b"1") + b'nv_other{model="m"} 9\n# words\n' + pending(b"2", b"n").rstrip()
    assert {key: of.pending for key, of in MetricsParser().parse(page).items()} == {
        ("m", "1"): 1,
        ("n", "1"): 2,
    }


def test_requests_refused_at_the_door_are_counted_where_reasons_are_given() -> None:
    reasons = b"""
nv_inference_request_failure{model="m",reason="REJECTED",version="1"} 12
nv_inference_request_failure{model="m",reason="BACKEND",version="1"} 5
nv_inference_request_failure{model="old",version="1"} 3
"""
    found = MetricsParser().parse(PAGE + reasons)
    assert found["m", "1"].rejected == 12
    assert found["quiet", "1"].rejected is None
    assert ("old", "1") not in found


def test_what_the_page_lacks_for_a_p99_is_said() -> None:
    parser = MetricsParser()
    parser.parse(PAGE)
    assert parser.note == ""
    parser.parse(PAGE.replace(b'"0.99"', b'"0.9"'))
    assert "no 0.99 in the tritonserver's --metrics-config summary_quantiles" in parser.note
    parser.parse(HEAD + pending(b"3"))
    assert "summary_latencies=true" in parser.note


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
    "page",
    [
        b"",
        b"<html>not here</html>",
        b"# HELP x y\nx 1\n",
        b'\nnv_inference_pending_request_count{model="m",version="1"} 1 2x',
        b"\nnv_inference_pending_request_count{\xff} 1",
    ],
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
            await asyncio.Event().wait()
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


def ended(line: str, count: object = 0) -> bytes:
    family, _, labels = line.partition(" ")
    return f"nv_inference_request_{family}{{{labels}}} {count}\n".encode()


def test_what_all_copies_answered_is_read_of_the_models_asked_for() -> None:
    page = pending(b"1") + pending(b"2", b"n")
    page += ended('success model="m",version="1"', 7) + ended('success model="n",version="1"', 5)
    page += ended('success model="m",version="2"', 9)
    for reason, count in (("OTHER", 0), ("CANCELED", 3), ("REJECTED", 4)):
        page += ended(f'failure model="m",reason="{reason}",version="2"', count)
    found = MetricsParser().parse(page, ["m"])
    assert {key: of.answered for key, of in found.items()} == {
        ("m", "1"): 7,
        ("m", "2"): 16,
        ("n", "1"): None,
    }


@pytest.mark.parametrize("value", ["x", "", "NaN", "-1", "1.5"])
def test_a_count_of_answers_that_is_none_costs_that_model_that_value(value: str) -> None:
    page = pending(b"1") + pending(b"2", b"n")
    page += ended('success model="m",version="1"', value) + ended(
        'success model="n",version="1"', 5
    )
    page += ended('failure model="m",version="1"', 3) + ended('failure model="n",version="1"', 1)
    found = MetricsParser().parse(page, ["m", "n"])
    assert (found["m", "1"].answered, found["n", "1"].answered) == (None, 6)
    assert (found["m", "1"].pending, found["n", "1"].pending) == (1, 2)


def test_a_model_is_told_by_its_own_label() -> None:
    page = ended('success _model="m",model="n",version="1"', 5)
    page += ended(r'success model="a \"b\" \\c",version="1"', 6)
    found = MetricsParser().parse(page, ["m", 'a "b" \\c'])
    assert {key: of.answered for key, of in found.items()} == {('a "b" \\c', "1"): 6}
