import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crmlab import arms

SHARES = (0.1, 0.45, 0.45)


def ids(n, prefix="c"):
    return [f"{prefix}{one:06d}" for one in range(n)]


def test_a_lot_is_blake2b_of_salt_and_id():
    # hashlib.blake2b(b"spring/1\0c000001", digest_size=8).hexdigest()
    assert f"{int(arms.lots(['c000001'], salt='spring/1')[0]):016x}" == "ec00a9eead0075b5"


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.lists(st.integers(1, 300), min_size=1, max_size=8),
    shares=st.lists(st.floats(0.02, 1), min_size=2, max_size=4),
    salt=st.text(max_size=5),
)
def test_every_arm_has_its_share_of_each_stratum_but_for_less_than_one(sizes, shares, salt):
    shares = [one / sum(shares) for one in shares]
    strata = [f"s{n}" for n, size in enumerate(sizes) for _ in range(size)]
    found = arms.drawn(ids(len(strata)), strata, shares=shares, salt=salt, wave="1")
    for stratum, size in zip(np.unique(strata), sizes, strict=True):
        counts = np.bincount(found[np.array(strata) == stratum], minlength=len(shares))
        assert counts.sum() == size
        assert np.abs(counts - size * np.array(shares)).max() < 1 + 1e-9


def test_the_order_of_customers_changes_nothing():
    who, strata = ids(500), ["a", "b"] * 250
    found = dict(zip(who, arms.drawn(who, strata, shares=SHARES, salt="x", wave="1"), strict=True))
    back = arms.drawn(who[::-1], strata[::-1], shares=SHARES, salt="x", wave="1")
    assert dict(zip(who[::-1], back, strict=True)) == found


def test_two_salts_and_the_ids_themselves_are_unrelated():
    who, n = ids(100_000), 100_000
    one, other = (
        arms.drawn(who, ["s"] * n, shares=(0.5, 0.5), salt=salt, wave="1") for salt in ("a", "b")
    )
    assert abs(np.corrcoef(one, other)[0, 1]) < 4 / np.sqrt(n)
    assert abs(np.corrcoef(one, np.arange(n))[0, 1]) < 4 / np.sqrt(n)


def test_in_tiny_waves_everybody_has_the_same_chance():
    # Waves of one customer each: a fixed rounding would hold out nobody, or all.
    held = [
        arms.drawn([who], ["s"], shares=(0.1, 0.9), salt="daily", wave=str(day))[0] == 0
        for day, who in enumerate(ids(4_000))
    ]
    assert 0.1 - 4 * 0.3 / np.sqrt(4_000) < np.mean(held) < 0.1 + 4 * 0.3 / np.sqrt(4_000)


def test_a_threshold_keeps_who_is_below_whoever_else_comes():
    first, more = ids(10_000), ids(10_000, "d")
    alone = arms.below(first, share=0.05, salt="universal/2026-01-01")
    both = arms.below(first + more, share=0.05, salt="universal/2026-01-01")
    assert (both[:10_000] == alone).all()
    assert alone.mean() == pytest.approx(0.05, abs=4 * np.sqrt(0.05 * 0.95 / 10_000))


def test_small_strata_are_drawn_together():
    strata = ["big"] * 40 + ["one"] * 12 + ["two"] * 11 + ["three"] * 25
    found = arms.merged(strata)
    assert dict(zip(*np.unique(found.astype(str), return_counts=True), strict=True)) == {
        "big": 40, "other": 23, "three": 25,
    }  # fmt: skip
    # A single small one has no other to go with but the next smallest.
    found = arms.merged(["big"] * 40 + ["one"] * 3 + ["three"] * 25)
    assert set(found) == {"big", "other"}
    assert set(arms.merged(["a"] * 3)) == {"other"}
