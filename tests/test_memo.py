from hypothesis import given
from hypothesis import strategies as st

from igniterd.memo import Memo


@given(size=st.integers(1, 5), asked=st.lists(st.integers(0, 12), max_size=60))
def test_the_last_answers_asked_for_are_remembered_and_not_many_more(
    size: int, asked: list[int]
) -> None:
    memo: Memo[str] = Memo(size)
    latest: list[int] = []
    for key in asked:
        found = memo.get(key)
        assert found in (None, f"answer {key}")
        assert found is not None or key not in latest[-size:]
        if found is None:
            assert memo.keep(key, f"answer {key}") == f"answer {key}"
        latest = [*(k for k in latest if k != key), key]
        assert len(memo) <= 2 * size
