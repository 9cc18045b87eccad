"""Other people's tables are read as profiles and cases, in their units, with what is left out."""

from pathlib import Path

import pytest

from bench import foreign
from bench.foreign_sets import gpulet, kace, muxserve, parvagpu, static_tails
from igniterd.perf.api import UNCAPPED, Tenant

GPULET = """\
table,profile,model,batch,share,neighbour,neighbour_batch,throughput,latency,mem_util,l2_util
inference,1,a,1,20,,,,0.004,,
inference,1,a,2,60,,,,0.004,,
inference,1,a,16,40,,,,0.012,,
inference,0,a,4,40,,,,0.006,,
inference,1,vgg19,1,20,,,,0.005,,
inference,1,vgg19,2,60,,,,0.003,,
inference,1,vgg19,16,40,,,,0.024,,
mem_util,0,BERT,1,20,,,,,10,20
interference,1,a,2,60,vgg19,16,,0.006,,
interference,1,vgg19,16,40,a,2,,0.025,,
interference,1,a,16,40,vgg19,2,,0.014,,
interference,0,a,4,80,vgg19,4,,0.007,,
interference,0,vgg19,4,80,a,4,,0.006,,
"""
KACE_COLUMNS = (
    "table,profile,w1,w2,w3,w4,share1,share2,share3,share4,"
    "items_per_s_1,items_per_s_2,items_per_s_3,items_per_s_4,source\n"
)
KACE = """\
solo,1,bert_batch2-inf,,,,10,,,,20,,,,one
solo,1,bert_batch2-inf,,,,100,,,,100,,,,one
solo,1,bert_batch2-inf,,,,100,,,,80,,,,two
solo,1,bert_batch16-inf,,,,40,,,,50,,,,one
solo,1,whisper_batch2-inf,,,,10,,,,1,,,,one
solo,1,whisper_batch2-inf,,,,100,,,,2,,,,one
solo,1,whisper_batch16-inf,,,,100,,,,9,,,,one
solo,0,bert_batch8-inf,,,,40,,,,40,,,,one
solo,0,whisper_batch8-inf,,,,40,,,,2,,,,one
pairs,1,bert_batch2-inf,bert_batch16-inf,,,60,40,,,50,40,,,one
pairs,0,bert_batch2-inf,bert_batch2-inf,,,60,40,,,50,,,,one
pairs,0,bert_batch2-inf,bert_batch2-inf,,,60,40,,,50,40,,,0624_slicing
triples,0,bert_batch2-inf,bert_batch2-inf,whisper_batch2-inf,,100,100,100,,40,40,1,,one
"""


def folder(tmp_path: Path, table: str) -> Path:
    (tmp_path / "dev.csv").write_text(table)
    return tmp_path


def test_cnns_in_pairs(tmp_path: Path) -> None:
    found = gpulet(folder(tmp_path, GPULET))
    assert found.solo["a"] == {(1, 0.2): 4.0, (2, 0.6): 4.0, (16, 0.4): 12.0}
    groups = {case.group: case for case in found.cases}
    assert groups["pairs"].tenants == (Tenant("a", 4, 0.8), Tenant("vgg19", 4, 0.2))
    assert set(groups) == {"alone", "pairs", "vgg19 to batch 8"}
    whole, half = found.profile().co_runs
    assert [t.latency_ms for t in whole.tenants] == [6.0, 25.0]  # both halves are one co-run
    assert half.tenants[0].latency_ms == 14.0
    assert half.tenants[1].latency_ms == pytest.approx(3.0, rel=0.02)  # not recorded: alone


def test_transformers_capped_and_not(tmp_path: Path) -> None:
    found = kace(folder(tmp_path, KACE_COLUMNS + KACE))
    assert found.solo["bert-inf"][2, 1.0] == pytest.approx((20 + 25) / 2)  # two sources
    (run,) = found.together
    assert run == ((Tenant("bert-inf", 2, 0.6), 40.0), (Tenant("bert-inf", 16, 0.4), 400.0))
    judged = [(case.group, case.tenants[0].model, case.ms) for case in found.cases]
    assert judged == [
        ("alone, inf", "bert-inf", 200.0),
        ("capped pairs, inf", "bert-inf", 40.0),  # the other ended early
        ("uncapped triples, beside whisper, wav2vec", "bert-inf", 50.0),
        ("uncapped triples, beside whisper, wav2vec", "bert-inf", 50.0),
    ]
    assert all(t.share == UNCAPPED for t in found.cases[-1].tenants)


def test_sizes_and_lengths_alone(tmp_path: Path) -> None:
    mig = "table,profile,model,Mig instance,Batch size,Workload Number,Throughput,Latency\n"
    rows = "solo,1,a,7,4,1,400,0\nsolo,0,a,1,4,1,0,0\ncopies,0,a,1,4,2,100,0\nsolo,0,a,1,2,1,50,0\n"
    found = parvagpu(folder(tmp_path, mig + rows))
    assert found.solo == {"a": {(4, 1.0): 10.0}}
    assert [case.tenants for case in found.cases] == [(Tenant("a", 2, 1 / 7),)]
    llama = "table,profile,model,gpus,sm_percent,batch,length,ms\nprefill,1,l,1,30,1,32,9\n"
    found = muxserve(
        folder(tmp_path, llama + "decoding,0,l,1,30,1,32,5\nprefill,0,l,1,40,1,32,8\n")
    )
    assert [case.group for case in found.cases] == ["prefill, 1 GPU"]  # of what has a profile


def test_tails_of_static_batches(tmp_path: Path) -> None:
    table = "section,p99,avg\nOffline: x,2.2,2.0\nOnline: x,9,1\nOffline: x,,1\n"
    assert static_tails(folder(tmp_path, table)) == [pytest.approx(1.1)]


def test_the_report_of_a_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    foreign.report(gpulet(folder(tmp_path, GPULET)))
    printed = capsys.readouterr().out
    assert "2 models, 6 solo points, 2 co-runs in the profile" in printed
    assert "pairs, never co-run" in printed and "time alone" in printed
