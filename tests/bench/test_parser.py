from prometheus_client.parser import text_string_to_metric_families

from bench.parser import MODELS, QUANTILES, cut, page, whole
from igniterd.clients.triton.metrics import MetricsParser


def test_both_parsers_read_the_same_from_the_page_that_is_measured() -> None:
    parser = MetricsParser()
    for number in range(3):
        text = page(number, changing=8)
        found = parser.parse(text)
        assert len(found) == MODELS
        for family in text_string_to_metric_families(text.decode()):
            for sample in family.samples:
                of = found[sample.labels["model"], sample.labels["version"]]
                if sample.name == "nv_inference_pending_request_count":
                    assert of.pending == sample.value
                if sample.name == "nv_inference_request_summary_us" and of.quantiles_s:
                    assert of.quantiles_s[float(sample.labels["quantile"])] == sample.value / 1e6


def test_the_lines_that_are_cut_out_are_a_part_of_the_page() -> None:
    text = page(0, changing=1)
    assert cut(text) == MODELS * (1 + 4 + len(QUANTILES))
    assert cut(text) < whole(text) / 3
