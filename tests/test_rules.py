import datetime as dt
import math
import tomllib

import ibis
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crmlab import rules
from crmlab.results import Numbers
from crmlab.tables import DataError, UsageError

# Five visible rows; e is somebody of whom nothing is known, and no figure is a number.
ROWS = {
    "customer_id": ["a", "b", "c", "d", "e"],
    "sex": ["m", "f", "m", "m", None],
    "stage": ["lost", "declining", "new", "mature", None],
    "city": ["Wien", "O'Hara; drop table x", "Wien", "Köln", None],
    "age": pa.array([30, 40, 41, 29, None], pa.int64()),
    "distance_km": pa.array([10.0, 10.000001, 0.1, math.nan, None], pa.float64()),
    "spend": pa.array([None if n is None else n for n in (1, 2, 3, 4, None)], pa.decimal128(18, 4)),
    "birth_date": pa.array(
        [dt.date(1990, 1, 1), dt.date(1980, 2, 29), dt.date(1979, 1, 1), None, None], pa.date32()
    ),
    "own_rhythm": [True, False, None, True, None],
}


@pytest.fixture(scope="module")
def table():
    connection = ibis.duckdb.connect()
    return connection.create_table("five", pa.table(ROWS))


def chosen(table, *asked):
    rows = table.filter(rules.matches(table, list(asked)))
    return "".join(sorted(rows.to_pyarrow()["customer_id"].to_pylist()))


@pytest.mark.parametrize(
    ("rule", "who"),
    [
        ({"column": "stage", "is": ["declining", "lost"]}, "ab"),
        ({"column": "sex", "is": "m"}, "acd"),
        ({"column": "sex", "is_not": "m"}, "b"),  # of e it is not known
        ({"column": "city", "is_not": ["Wien", "Köln"]}, "b"),
        ({"column": "city", "is": "O'Hara; drop table x"}, "b"),
        ({"column": "age", "from": 30, "to": 40}, "ab"),
        ({"column": "age", "from": 30.5}, "bc"),
        ({"column": "age", "to": 29}, "d"),
        ({"column": "age", "is": [29, 41]}, "cd"),
        ({"column": "distance_km", "to": 10}, "ac"),
        ({"column": "distance_km", "from": 0}, "abc"),  # what is not a number is above nothing
        ({"column": "distance_km", "known": True}, "abc"),
        ({"column": "distance_km", "known": False}, "de"),
        ({"column": "distance_km", "is_not": 0.1}, "ab"),
        ({"column": "spend", "from": 2, "to": 3}, "bc"),
        ({"column": "birth_date", "known": True}, "abc"),
        ({"column": "birth_date", "known": False}, "de"),
        ({"column": "birth_date", "from": dt.date(1980, 2, 29)}, "ab"),
        ({"column": "birth_date", "from": "1979-01-01", "to": "1980-02-29"}, "bc"),
        ({"column": "birth_date", "is": "1990-01-01"}, "a"),
        ({"column": "birth_date", "is_not": [dt.date(1990, 1, 1)]}, "bc"),
        ({"column": "own_rhythm", "is": True}, "ad"),
        ({"column": "own_rhythm", "is": False}, "b"),
        ({"column": "own_rhythm", "is_not": True}, "b"),
        ({"column": "stage", "is": "reactivated"}, ""),  # a stage, though nobody is in it today
    ],
)
def test_a_rule_chooses_whom_it_names(table, rule, who):
    assert chosen(table, rule) == who


def test_all_rules_must_hold_and_no_rule_holds_for_everybody(table):
    assert chosen(table, {"column": "sex", "is": "m"}, {"column": "age", "from": 30}) == "ac"
    assert chosen(table) == "abcde"


def test_matches_is_true_or_false_and_never_null(table):
    asked = [{"column": "age", "is_not": 30}, {"column": "own_rhythm", "is": False}]
    found = table.select(held=rules.matches(table, asked)).to_pyarrow()["held"].to_pylist()
    assert found == [False, True, False, False, False]


TOML = """
[[rules]]
column = "stage"
is = ["declining", "lost"]
[[rules]]
column = "birth_date"
from = 1980-02-29
[[rules]]
column = "purchases"
brand = "X"
months = [12, 11]
days = 183
name = "Christmas"
"""


def test_rules_are_the_same_in_toml_and_python():
    python = [
        {"column": "stage", "is": ["declining", "lost"]},
        {"column": "birth_date", "from": "1980-02-29"},
        {"column": "purchases", "brand": ["X"], "months": [11, 12], "days": 183, "from": 1,
         "name": "Christmas"},
    ]  # fmt: skip
    read = rules.read(tomllib.loads(TOML)["rules"])
    assert read == rules.read(python)
    assert rules.read(read) == read


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ({"column": "age", "from": 30, "to": 40}, "age 30 to 40"),
        ({"column": "spend_year", "from": 1234.5}, "spend year at least 1,234.5"),
        ({"column": "distance_km", "to": 10}, "distance km up to 10"),
        ({"column": "joined_on", "from": dt.date(2024, 2, 29)}, "joined on from Feb 29, 2024 on"),
        ({"column": "joined_on", "to": "2024-02-29"}, "joined on until Feb 29, 2024"),
        ({"column": "birth_date", "known": True}, "birth date known"),
        ({"column": "birth_date", "known": False}, "birth date not known"),
        ({"column": "own_rhythm", "is": True}, "own rhythm"),
        ({"column": "own_rhythm", "is": False}, "own rhythm no"),
        ({"column": "city", "is": list("abcdefg")}, "city a, b, c, d, e or 2 others"),
        ({"column": "stage", "is_not": ["new", "lost"]}, "stage not new or lost"),
        ({"column": "purchases", "brand": "X", "days": 183},
         "bought brand X in the last 183 days"),
        ({"column": "spend", "store_id": ["S1", "S2"]}, "bought store S1 or S2"),
        ({"column": "spend", "category": "tea", "channel": "web", "from": 10, "to": 20},
         "spend on category tea and channel web: 10 to 20"),
        ({"column": "purchases", "brand": "X", "to": 0}, "purchases of brand X: up to 0"),
        ({"column": "days_since", "product_id": "p", "from": 30},
         "days since product p: at least 30"),
        ({"column": "purchases", "months": [12, 11], "from": 2},
         "purchases in November or December: at least 2"),
        ({"column": "purchases", "days": 7}, "bought in the last 7 days"),
        ({"column": "age", "to": 40, "name": "the young"}, "the young"),
    ],
)  # fmt: skip
def test_a_rule_says_in_words_what_it_asks(rule, words):
    assert rules.read([rule])[0].words() == words


def test_numbers_in_words_are_written_as_the_shop_writes_them():
    [rule] = rules.read([{"column": "spend_year", "from": 1234.5}])
    assert rule.words(Numbers("de_DE", "EUR")) == "spend year at least 1.234,5"


def test_a_measure_is_named_after_what_is_measured_not_after_its_place():
    x, at_least, y, days = rules.read(
        [
            {"column": "spend", "brand": "X", "to": 9},
            {"column": "spend", "brand": "X", "from": 5},
            {"column": "spend", "brand": "Y", "from": 5},
            {"column": "spend", "brand": "X", "days": 5, "from": 5},
        ]
    )
    assert x.column_name == at_least.column_name
    assert len({one.column_name for one in (x, y, days)}) == 3
    assert all(one.column_name.isidentifier() for one in (x, y, days))


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("age", r"Rule 1 \(age\): it is a text; it must be a table such as"),
        ({"is": "m"}, r"Rule 1 \(is = 'm'\): it has no column"),
        ({"column": 5, "is": "m"}, "column is a number; it must be a text"),
        ({"column": " ", "is": "m"}, "column must be a text of 1 to 200 letters"),
        ({"column": "age", "form": 30}, "there is no 'form'; possible are column, .*'from'"),
        ({"column": "age"}, "it asks nothing; give one of is, is_not, known, or from and to"),
        ({"column": "age", "is": 3, "from": 2}, "it asks is and from and to at once"),
        ({"column": "age", "is": 3, "is_not": 2}, "it asks is and is_not at once"),
        ({"column": "age", "from": 40, "to": 30}, "from 40 lies above to 30; nobody could pass"),
        ({"column": "age", "from": "30"}, "from is the text '30'; it must be a number, or a date"),
        ({"column": "age", "from": True}, "from is yes or no; it must be a number or a date"),
        ({"column": "age", "from": math.nan}, "from is nan; it must be a number between"),
        ({"column": "age", "to": math.inf}, "to is inf; it must be a number between"),
        ({"column": "age", "is": 10**30}, "must be a number between"),
        ({"column": "age", "from": [30]}, "from is a list; it must be a number or a date"),
        ({"column": "d", "from": 1, "to": "2024-01-01"}, "must be two numbers or two dates"),
        ({"column": "d", "from": dt.datetime(2024, 1, 1)}, "from is a datetime"),
        ({"column": "d", "is": dt.datetime(2024, 1, 1)}, "is is a datetime; .* without a time"),
        ({"column": "d", "known": "yes"}, "known is a text; it is true or false"),
        ({"column": "sex", "is": []}, "is is an empty list"),
        ({"column": "sex", "is": ["m", 1]}, "is mixes a text and a number"),
        ({"column": "sex", "is": [True, 1]}, "is mixes yes or no and a number"),
        ({"column": "sex", "is": [["m"]]}, "is is a list; it must be a text, a number"),
        ({"column": "sex", "is": "x" * 201}, "text of 1 to 200 letters"),
        ({"column": "sex", "is": "a\0b"}, "without control marks"),
        ({"column": "sex", "is": ["x"] * 1001}, "is has 1001 values; 1000 is the most"),
        ({"column": "sex", "is": None}, "is is a NoneType"),
        ({"column": "sex", "is": "m", "name": 3}, "name is a number; it must be a text"),
        ({"column": "stage", "brand": "X"}, "brand belongs to a rule on purchases, spend or days"),
        ({"column": "spend", "brand": "X", "is": 3}, "takes from and to, not is"),
        ({"column": "spend", "brand": 7}, "brand is a number; it must be a text"),
        ({"column": "spend", "brand": []}, "brand is an empty list"),
        ({"column": "spend", "brand": "X", "from": "2024-01-01"}, "must be numbers, not a date"),
        ({"column": "spend", "months": [13]}, "months must be whole numbers from 1 to 12"),
        ({"column": "spend", "months": []}, "months must be whole numbers from 1 to 12"),
        ({"column": "spend", "months": ["May"]}, "months must be whole numbers from 1 to 12"),
        ({"column": "spend", "days": 0}, "days must be a whole number from 1"),
        ({"column": "spend", "days": 1.5}, "days must be a whole number from 1"),
        ({"column": "spend", "days": True}, "days must be a whole number from 1"),
    ],
)
def test_a_rule_that_cannot_be_read_is_named_with_what_is_possible(rule, said):
    with pytest.raises(UsageError, match=said):
        rules.read([rule])


def test_the_list_itself_must_be_a_list_of_at_most_fifty():
    one = {"column": "age", "from": 3}
    assert len(rules.read([one] * 50)) == 50
    with pytest.raises(UsageError, match="There are 51 rules; 50 is the most"):
        rules.read([one] * 51)
    for wrong in (one, "age", 3, None):
        with pytest.raises(UsageError, match="must be a list of tables"):
            rules.read(wrong)
    with pytest.raises(UsageError, match="Rule 2"):
        rules.read([one, {"column": "age"}])


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ({"column": "aeg", "from": 3},
         r"^Rule 1 \(aeg at least 3\): there is no column 'aeg'. Did you mean 'age'\? There "),
        ({"column": "stage", "is": ["lost", "declning"]},
         "there is no stage 'declning'. Did you mean 'declining'"),
        ({"column": "city", "is_not": "Vienna"},
         "there is no city 'Vienna'. Did .* There are Wien, Köln, O'Hara; drop table x.$"),
        ({"column": "city", "is": "x' or 1=1 --"}, "there is no city \"x' or 1=1 --\""),
        ({"column": "customer_id", "is": "q"}, "there is no customer_id 'q'.$"),
        ({"column": "city", "is": 3}, r"asks a number \(3\) of city, where each customer has a t"),
        ({"column": "city", "from": 3}, r"asks a number \(3\) of city"),
        ({"column": "city", "from": "2024-01-01"}, r"asks a date \(2024-01-01\) of city"),
        ({"column": "age", "is": "young"}, r"asks a text \('young'\) of age, where .* a number"),
        ({"column": "age", "from": "2024-01-01"}, r"asks a date \(2024-01-01\) of age"),
        ({"column": "age", "is": True}, r"asks yes or no \(True\) of age"),
        ({"column": "own_rhythm", "is": 1}, r"asks a number \(1\) of own_rhythm"),
        ({"column": "birth_date", "is": "May"}, r"asks a text \('May'\) of birth_date"),
        ({"column": "birth_date", "from": 1990}, r"asks a number \(1990\) of birth_date"),
        ({"column": "birth_date", "is": 19900101}, r"asks a number \(19900101\) of birth_date"),
        ({"column": "spend", "brand": "X"}, "is about receipts, and the table was not made for it"),
    ],
)  # fmt: skip
def test_what_the_table_cannot_answer_is_an_error_that_names_what_there_is(table, rule, said):
    for ask in (rules.matches, rules.funnel):
        with pytest.raises(DataError, match=said):
            ask(table, [rule])


def test_an_error_names_ten_values_and_counts_the_others():
    table = ibis.memtable({"city": [f"city {n:02}" for n in range(14)] + ["city 13"]})
    with pytest.raises(DataError, match="There are city 13, city 00, .*, city 08 and 4 others"):
        rules.matches(table, [{"column": "city", "is": "Rome"}])
    nothing = ibis.memtable({"city": ["x"]}).filter(ibis.literal(False))
    with pytest.raises(DataError, match="No city is known at all"):
        rules.matches(nothing, [{"column": "city", "is": "Rome"}])


def test_a_funnel_counts_each_rule_alone_and_after_those_before(table):
    asked = [
        {"column": "sex", "is": "m"},
        {"column": "age", "from": 30, "to": 40},
        {"column": "own_rhythm", "is": True, "name": "has a rhythm"},
    ]
    funnel = rules.funnel(table, asked)
    assert funnel.to_frame().to_dict("list") == {
        "rule": ["sex m", "age 30 to 40", "has a rhythm"],
        "passed_alone": [3, 2, 2],
        "left": [3, 1, 1],
        "dropped": [2, 2, 0],
    }
    assert (funnel.left, funnel.customers) == (1, 5)
    assert rules.funnel(table, []).left == 5


def test_a_funnel_asks_once_for_the_words_and_once_for_the_counts(table, monkeypatch):
    backend, asked = type(table.get_backend()), []
    run = backend.to_pyarrow
    monkeypatch.setattr(
        backend, "to_pyarrow", lambda *args, **more: asked.append(1) or run(*args, **more)
    )
    words = [{"column": name, "is_not": value} for name, value in (("sex", "f"), ("city", "Wien"))]
    rules.funnel(table, [*words, {"column": "age", "from": 3}])
    assert len(asked) == 2
    rules.funnel(table, [{"column": "age", "from": 3}, {"column": "spend", "to": 3}])
    assert len(asked) == 3


def people(*parts):
    """A table of numbers: so many customers with each."""
    return ibis.memtable({"n": [value for value, many in parts for _ in range(many)]})


def test_a_page_never_tells_of_fewer_than_k(table):
    few = rules.funnel(table, [{"column": "sex", "is": "m"}])
    assert few.verdict == "There are fewer than 10 customers: too few to tell of."
    assert "table" not in few._repr_html_()
    crowd = people((1, 50), (2, 4), (3, 30), (4, 16))
    funnel = rules.funnel(crowd, [{"column": "n", "from": 1}, {"column": "n", "is_not": 2},
                                  {"column": "n", "to": 3}])  # fmt: skip
    assert funnel.to_frame()["left"].tolist() == [100, 96, 80]
    shown = funnel.shown
    assert shown["left"].tolist()[::2] == [100, 80]
    assert math.isnan(shown["left"][1])
    assert math.isnan(shown["passed_alone"][1])
    assert shown["dropped"].tolist()[::2] == [0, 20]  # the 4 are part of the 20
    assert "96" not in funnel._repr_html_()
    assert funnel.verdict.startswith("Of 100 customers 80 (80.0%) are left. Most fall away at “n u")
    near = rules.funnel(crowd, [{"column": "n", "is_not": 2}])
    assert near.verdict.startswith("Of 100 customers 100 are left, or fewer than 10 below that.")
    least = rules.funnel(crowd, [{"column": "n", "is": 2}])
    assert least.verdict == (
        "Of 100 customers fewer than 10 fulfil all rules. Widen a rule, or leave one out."
    )
    none = rules.funnel(crowd, [{"column": "n", "from": 9}])
    assert none.verdict.startswith("Of 100 customers nobody fulfils all rules.")
    assert rules.funnel(crowd, [{"column": "n", "is": 2}], k=4).verdict.startswith(
        "Of 100 customers 4 (4.0%) are left."
    )
    with pytest.raises(UsageError, match="k is 0"):
        rules.funnel(crowd, [], k=0)


def test_a_name_is_escaped_on_the_page():
    funnel = rules.funnel(people((1, 50)), [{"column": "n", "from": 1, "name": "<script>"}])
    assert "<script>" not in funnel._repr_html_()
    assert "&lt;script&gt;" in funnel._repr_html_()


SIZES = st.lists(st.integers(0, 25), min_size=4, max_size=4)


@given(sizes=SIZES, cuts=st.lists(st.integers(0, 3), min_size=1, max_size=4))
@settings(max_examples=200, deadline=None)
def test_no_two_numbers_shown_lie_apart_by_few(sizes, cuts):
    # Counts as `funnel` makes them; cut n takes away the part n.
    total, gone, rows = sum(sizes), set(), []
    for cut in cuts:
        before = total - sum(sizes[n] for n in gone)
        gone.add(cut)
        left = total - sum(sizes[n] for n in gone)
        rows.append((f"not {cut}", total - sizes[cut], left, before - left))
    steps = pd.DataFrame(rows, columns=["rule", "passed_alone", "left", "dropped"])
    shown = rules.Funnel(steps, total, Numbers(), 10).shown
    left = [total, *shown["left"].dropna()]
    assert not any(0 < one - other < 10 for one, other in zip(left, left[1:], strict=False))
    told = pd.concat([shown["left"], shown["passed_alone"], shown["dropped"]]).dropna()
    assert not ((told > 0) & (told < 10)).any()
    alone = shown.dropna()
    assert not alone["passed_alone"].sub(alone["left"]).between(1, 9).any()


PLAIN = {name: pa.table(ROWS)[name].to_pylist() for name in ROWS}
VALUES = {
    "sex": st.sampled_from(["m", "f"]),
    "stage": st.sampled_from(["lost", "declining", "new", "mature", "reactivated"]),
    "age": st.one_of(st.integers(28, 42), st.floats(28, 42)),
    "distance_km": st.sampled_from([0, 0.1, 10, 10.0, 10.000001, 10.1]),
    "spend": st.sampled_from([1, 1.5, 2, 3.0, 4]),
    "birth_date": st.sampled_from([dt.date(1990, 1, 1), dt.date(1980, 2, 29), dt.date(1979, 1, 2)]),
    "own_rhythm": st.booleans(),
}


@st.composite
def any_rule(draw):
    column = draw(st.sampled_from(sorted(VALUES)))
    value, what = VALUES[column], draw(st.sampled_from(["is", "is_not", "known", "between"]))
    if what == "known":
        return {"column": column, "known": draw(st.booleans())}
    if what != "between" or column in ("sex", "stage", "own_rhythm"):
        what = "is" if what == "between" else what
        return {"column": column, what: draw(st.lists(value, min_size=1, max_size=3))}
    low, high = sorted([draw(value), draw(value)])
    ends = {"from": low, "to": high}
    for key in draw(st.sampled_from([(), ("from",), ("to",)])):
        del ends[key]
    return {"column": column, **ends}


def fulfils(rule, row):
    value = row[rule["column"]]
    unknown = value is None or value != value
    if "known" in rule:
        return rule["known"] != unknown
    if unknown:
        return False
    if "is" in rule:
        return value in rule["is"]
    if "is_not" in rule:
        return value not in rule["is_not"]
    return rule.get("from", value) <= value <= rule.get("to", value)


@given(asked=st.lists(any_rule(), max_size=4))
@settings(max_examples=80, deadline=None)
def test_the_compiled_rules_are_what_plain_python_makes_of_them(asked):
    table = ibis.memtable(pa.table(ROWS))
    rows = [dict(zip(PLAIN, values, strict=True)) for values in zip(*PLAIN.values(), strict=True)]
    wanted = [row["customer_id"] for row in rows if all(fulfils(rule, row) for rule in asked)]
    assert chosen(table, *asked) == "".join(wanted)
    found = rules.funnel(table, asked).to_frame()
    for place, step in enumerate(found.itertuples()):
        assert step.passed_alone == sum(fulfils(asked[place], row) for row in rows)
        before = asked[: place + 1]
        assert step.left == sum(all(fulfils(rule, row) for rule in before) for row in rows)
