"""Whom a list of rules chooses, as one ibis expression, and how many are left after each."""

from __future__ import annotations

import datetime as dt
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from html import escape
from operator import and_
from typing import TYPE_CHECKING, Any

from crmlab import results, tables
from crmlab.conditions import Bought, Rule, Value, kind, read
from crmlab.customers import STAGES
from crmlab.results import few

if TYPE_CHECKING:
    import ibis.expr.types as ir
    import pandas as pd

__all__ = ["Bought", "Funnel", "Rule", "funnel", "matches", "read"]

NEVER_BOUGHT = "never bought"
SEASONS = {"winter": (12, 1, 2), "spring": (3, 4, 5), "summer": (6, 7, 8), "autumn": (9, 10, 11)}
# Words that a column may hold, though today nobody may be there.
POSSIBLE = {"stage": (*STAGES, NEVER_BOUGHT), "season": tuple(SEASONS)}
# Whose values name somebody: no error shows them.
PRIVATE = ("customer_id", "household_id")
MOST_SHOWN = 10

Given = Sequence[Rule | Mapping[str, Any]]


def matches(table: ir.Table, rules: Given) -> ir.BooleanValue:
    """Tell which rows fulfil all rules; use it as `table.filter(rules.matches(table, given))`.

    Parameters
    ----------
    table : ibis table, one row per customer, such as `audiences.audience` gives it
    rules : as `read` takes or gives them; none of them is fulfilled by everybody

    Returns
    -------
    ibis boolean, true or false and never null: what is not known (null, or not a number) fulfils
    no rule but `known = false`; not even `is_not`, as nothing is known of it.

    Raises
    ------
    UsageError as `read` does; DataError if the table lacks a column, if the column is of another
    kind than what is asked of it, or if a text that is asked for, or excluded, is none that the
    column has: misspelt, it would choose nobody or exclude nobody
    """
    import ibis

    conditions = _conditions(table, read(rules))
    return reduce(and_, conditions) if conditions else ibis.literal(True)


@dataclass(frozen=True, eq=False)
class Funnel:
    """How many customers are left after each rule.

    `steps` has one row per rule, in their order: rule, in words; passed_alone, customers who
    fulfil it; left, who fulfil it and all before it; dropped, who fulfil all before it but not it.
    `customers` is how many there are before the first. `to_frame` is exact, and private; what is
    shown as HTML or in words tells of no fewer than `k` customers.
    """

    steps: pd.DataFrame
    customers: int
    numbers: results.Numbers
    k: int

    def to_frame(self) -> pd.DataFrame:
        """Return one row per rule, with exact counts."""
        return self.steps

    @property
    def left(self) -> int:
        """How many customers fulfil all rules."""
        return int(self.steps["left"].iloc[-1]) if len(self.steps) else self.customers

    @property
    def shown(self) -> pd.DataFrame:
        """The steps as a page may show them: a figure that would tell of too few is missing.

        That is also one from which few could be told by taking another from it. A drop is counted
        from the last number left that is shown.
        """
        shown, before = self.steps.astype(dict.fromkeys(COUNTS, "float64")), self.customers
        for place, row in enumerate(self.steps.itertuples()):
            dropped, others = before - row.left, self.customers - row.passed_alone
            apart = (row.passed_alone - row.left, others - dropped)
            if any(few(n, self.k) for n in (row.passed_alone, others, *apart)):
                shown.loc[place, "passed_alone"] = float("nan")
            hidden = few(row.left, self.k) or few(dropped, self.k)
            shown.loc[place, ["left", "dropped"]] = float("nan") if hidden else (row.left, dropped)
            before = before if hidden else row.left
        return shown

    @property
    def verdict(self) -> str:
        """How many are left, and which rule takes most away."""
        n = self.numbers
        if few(self.customers, self.k):
            return f"There are fewer than {self.k} customers: too few to tell of."
        told, all_ = self.shown, n.number(self.customers)
        if few(self.left, self.k):
            return f"Of {all_} customers fewer than {self.k} fulfil all rules. {_WIDER}"
        if not self.left:
            text = f"Of {all_} customers nobody fulfils all rules. {_WIDER}"
        elif len(told) and told["left"].isna().iloc[-1]:
            last = told["left"].dropna()
            near = n.number(last.iloc[-1]) if len(last) else all_
            text = f"Of {all_} customers {near} are left, or fewer than {self.k} below that."
        else:
            share = n.percent(self.left / self.customers if self.customers else 0.0)
            text = f"Of {all_} customers {n.number(self.left)} ({share}) are left."
        most = told["dropped"].max() if len(told) else 0
        if most > 0:
            rule = told.loc[told["dropped"].idxmax(), "rule"]
            text += f" Most fall away at “{rule}”: {n.number(most)}."
        return text

    def _repr_html_(self) -> str:
        text = f"<p>{escape(self.verdict)}</p>"
        if self.steps.empty or few(self.customers, self.k):
            return text
        return text + results.html_table(
            self.shown,
            title=f"Who is left after each rule, of {self.numbers.number(self.customers)} customers"
            f" (a dash hides what would tell of fewer than {self.k})",
            formats=dict.fromkeys(COUNTS, self.numbers.number),
            headings={"passed_alone": "fulfil it", "left": "left", "dropped": "fall away"},
        )


COUNTS = ("passed_alone", "left", "dropped")
_WIDER = "Widen a rule, or leave one out."


def funnel(
    table: ir.Table, rules: Given, *, numbers: results.Numbers | None = None, k: int = 10
) -> Funnel:
    """Count who is left after each rule, in one query.

    Parameters
    ----------
    table, rules : as `matches` takes them
    k : int, the fewest customers a figure on a page may stand for

    Raises
    ------
    UsageError, DataError as `matches` does
    """
    import pandas as pd

    tables.check_range("k", k, 1, 1e9)
    asked, numbers = read(rules), numbers or results.Numbers()
    conditions = _conditions(table, asked)
    counts: dict[str, Any] = {"customers": table.count()}
    for place, (alone, all_) in enumerate(
        zip(conditions, itertools.accumulate(conditions, and_), strict=True)
    ):
        counts |= {f"alone_{place}": table.count(where=alone)}
        counts |= {f"left_{place}": table.count(where=all_)}
    [found] = table.aggregate(**counts).to_pyarrow().to_pylist()
    rows, before = [], found["customers"]
    for place, rule in enumerate(asked):
        left = found[f"left_{place}"]
        rows.append((rule.words(numbers), found[f"alone_{place}"], left, before - left))
        before = left
    steps = pd.DataFrame(rows, columns=["rule", *COUNTS])
    return Funnel(steps.astype(dict.fromkeys(COUNTS, int)), found["customers"], numbers, k)


def _conditions(table: ir.Table, rules: Sequence[Rule]) -> list[ir.BooleanValue]:
    """Return one condition per rule, after a look at the table's columns and values."""
    for rule in rules:
        _check_column(table, rule)
    rules = [_as_dates(table, rule) for rule in rules]
    _check_words(table, rules)
    return [_holds(table, rule).fill_null(False) for rule in rules]


def _holds(table: ir.Table, rule: Rule) -> ir.BooleanValue:
    """Return the rule as an expression; every value in it is a literal."""
    import ibis

    column = table[rule.column_name]
    if column.type().is_decimal():
        column = column.cast("float64")
    elif column.type().is_floating():
        # What is not a number is greater than any, by the rules of the engines.
        column = column.isnan().ifelse(ibis.null(column.type()), column)
    if rule.known is not None:
        return column.notnull() if rule.known else column.isnull()
    if rule.one_of:
        return column.isin([ibis.literal(value) for value in rule.one_of])
    if rule.none_of:
        return column.notin([ibis.literal(value) for value in rule.none_of])
    ends = [] if rule.low is None else [column >= ibis.literal(rule.low)]
    ends += [] if rule.high is None else [column <= ibis.literal(rule.high)]
    return reduce(and_, ends)


def _check_column(table: ir.Table, rule: Rule) -> None:
    """Raise `DataError` for a column that the table lacks, or that cannot be asked this."""
    if rule.column_name not in table.columns:
        if rule.bought is not None:
            raise tables.DataError(
                f"{rule} is about receipts, and the table was not made for it: give the same rules "
                "to audiences.audience."
            )
        has = [name for name in table.columns if not name.startswith("bought_")]
        raise tables.DataError(
            f"{rule}: there is no column {rule.column!r}."
            + tables.did_you_mean(rule.column, has)
            + f" There are {', '.join(has)}."
        )
    if rule.known is not None:
        return
    found = _kind_of(table, rule.column_name)
    for asked in (*rule.one_of, *rule.none_of, rule.low, rule.high):
        # A date may be given as text, and then must be one.
        if asked is None or kind(asked) == found:
            continue
        if found == "a date" and _is_date(asked):
            continue
        raise tables.DataError(
            f"{rule} asks {_asked(asked)} of {rule.column}, where each customer has {found}."
        )
    if found == "a text" and (rule.low is not None or rule.high is not None):
        raise tables.DataError(f"{rule} asks from and to of {rule.column}, a text: use is.")


def _asked(value: Value) -> str:
    return f"{kind(value)} ({value!r})" if isinstance(value, str) else f"{kind(value)} ({value})"


def _kind_of(table: ir.Table, name: str) -> str:
    """Say of which kind a column is, in the words of `conditions.kind`."""
    found = table[name].type()
    if found.is_boolean():
        return "yes or no"
    if found.is_numeric():
        return "a number"
    if found.is_date():
        return "a date"
    return "a text" if found.is_string() else f"a {found}"


def _is_date(value: Value) -> bool:
    try:
        return isinstance(value, str) and bool(dt.date.fromisoformat(value))
    except ValueError:
        return False


def _as_dates(table: ir.Table, rule: Rule) -> Rule:
    """Turn what is asked of a date, and given as text, into dates."""
    if not table[rule.column_name].type().is_date():
        return rule
    turned = [
        tuple(tables.day(value) if isinstance(value, str) else value for value in values)
        for values in (rule.one_of, rule.none_of)
    ]
    return replace(rule, one_of=turned[0], none_of=turned[1])


def _check_words(table: ir.Table, rules: Sequence[Rule]) -> None:
    """Raise `DataError` for a text that its column does not have; one query for all columns."""
    import ibis

    asked: dict[str, dict[str, Rule]] = {}
    for rule in rules:
        for value in (*rule.one_of, *rule.none_of):
            if isinstance(value, str) and value not in POSSIBLE.get(rule.column, ()):
                asked.setdefault(rule.column, {}).setdefault(value, rule)
    if not asked:
        return
    parts = [
        table.filter(table[name].isin(list(values)))
        .select(name=ibis.literal(name), value=table[name])
        .distinct()
        for name, values in asked.items()
    ]
    found = (ibis.union(*parts) if len(parts) > 1 else parts[0]).to_pyarrow().to_pylist()
    there = {(row["name"], row["value"]) for row in found}
    for name, values in asked.items():
        for value, rule in values.items():
            if (name, value) not in there:
                known = dict.fromkeys([*POSSIBLE.get(name, ()), *frequent(table, name)])
                raise unknown_value(rule, name, value, list(known))


def frequent(table: ir.Table, name: str, *, most: int = 10_000) -> list[str]:
    """Return the texts of a column, the most frequent first."""
    import ibis

    rows = table.filter(table[name].notnull())
    counted = rows.group_by(value=rows[name]).aggregate(rows=rows.count())
    ordered = counted.order_by(ibis.desc("rows"), "value").limit(most)
    return [str(value) for value in ordered.to_pyarrow()["value"].to_pylist()]


def unknown_value(rule: Rule, name: str, value: str, known: Sequence[str]) -> tables.DataError:
    """Return the error of a text that nobody has, with some of those that there are."""
    text = f"{rule}: there is no {name} {value!r}."
    if name in PRIVATE:
        return tables.DataError(text)
    if not known:
        return tables.DataError(f"{text} No {name} is known at all.")
    text += tables.did_you_mean(value, known) + f" There are {', '.join(known[:MOST_SHOWN])}"
    more = len(known) - MOST_SHOWN
    return tables.DataError(f"{text} and {more:,} others." if more > 0 else f"{text}.")
