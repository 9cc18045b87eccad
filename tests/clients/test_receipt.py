import pytest
from hypothesis import given
from hypothesis import strategies as st

from igniterd.clients.environments import percent_name
from igniterd.clients.receipt import LONGEST, receipt_of, share_of_receipt


@given(st.integers(1, 100_000).map(lambda thousandths: thousandths / 100_000))
def test_a_receipt_fits_and_is_read_back(share: float) -> None:
    receipt = receipt_of(share)
    assert len(receipt) <= LONGEST
    read = share_of_receipt(f"{receipt}\n")
    assert read is not None
    assert percent_name(read) == percent_name(share)


def test_the_spelling() -> None:
    assert [receipt_of(share) for share in (0.3, 0.025, 1.0)] == [
        "tritonpy@30%",
        "tritonpy@2.5%",
        "tritonpy@100%",
    ]
    assert receipt_of(0.12125) == "tritonpy@12.125", "no room for the sign"


@pytest.mark.parametrize(
    "comm",
    [
        "",
        "triton_python_b",
        "tritonpy@",
        "tritonpy@0%",
        "tritonpy@101%",
        "tritonpy@030%",
        "tritonpy@30",
        "tritonpy@3x%",
        "x\n",
    ],
)
def test_any_other_name_is_no_receipt(comm: str) -> None:
    assert share_of_receipt(comm) is None
