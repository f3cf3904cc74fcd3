"""What may be asked of a customer: a short list of rules, the same in TOML and in Python."""

from __future__ import annotations

import datetime as dt
import hashlib
import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from crmlab import results, tables

Value = str | float | bool | dt.date

# What may be asked of the receipts, and of which of them.
MEASURES = ("purchases", "spend", "days_since")
TRAITS = ("brand", "category", "subcategory", "product_id", "store_id", "channel")
KEYS = ("column", "is", "is_not", "from", "to", "known", "name")
BOUGHT_KEYS = (*TRAITS, "months", "days")
MOST_RULES, MOST_VALUES, MOST_LETTERS = 50, 1_000, 200
MOST_DAYS = 36_600
# Beyond it not every whole number is a float.
LARGEST = 1e15
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September",
    "October", "November", "December",
)  # fmt: skip


@dataclass(frozen=True)
class Bought:
    """Which lines of receipts a measure is taken of: those that fulfil all that is given.

    `traits` are pairs of a trait of `TRAITS` and the values of which the line must have one;
    `months` 1 to 12, of any year; `days` how far back from the day of the audience.
    """

    traits: tuple[tuple[str, tuple[str, ...]], ...] = ()
    months: tuple[int, ...] = ()
    days: int | None = None


@dataclass(frozen=True)
class Rule:
    """One rule, which asks one thing of a customer: `read` makes it.

    Exactly one of: `one_of` or `none_of`, the values that the column has or has not; `low` and
    `high`, both ends included, of which one may be None; `known`. `bought` is None but for a
    measure of purchases. `number` is its place in the list, from 1.
    """

    number: int
    column: str
    one_of: tuple[Value, ...] = ()
    none_of: tuple[Value, ...] = ()
    low: float | dt.date | None = None
    high: float | dt.date | None = None
    known: bool | None = None
    bought: Bought | None = None
    name: str = ""

    @property
    def column_name(self) -> str:
        """The column of the audience that the rule asks.

        That of a measure is named after what is measured: a table that was made for other rules
        lacks it, and cannot answer a question that it was not asked.
        """
        if self.bought is None:
            return self.column
        what = repr((self.column, self.bought)).encode()
        return f"bought_{hashlib.blake2b(what, digest_size=6).hexdigest()}"

    def words(self, numbers: results.Numbers | None = None) -> str:
        """Say in plain words what the rule asks, or the name that it was given."""
        return self.name or _words(self, numbers or results.Numbers())

    def __str__(self) -> str:
        """Name the rule as an error does."""
        return f"Rule {self.number} ({self.words()})"


def read(given: Sequence[Mapping[str, Any] | Rule]) -> tuple[Rule, ...]:
    """Read a list of rules as TOML's `[[rules]]` or Python gives it; all of them must hold.

    Parameters
    ----------
    given : list of dicts, each with `column`, any `name`, and one of
        `is` or `is_not`, a value or a list of values;
        `from`, `to` or both, numbers or dates, both ends included;
        `known`, true or false.
        The columns purchases (days with one), spend (net, in shop currency) and days_since (the
        last such purchase) become measures of some receipts with any of brand, category,
        subcategory, product_id, store_id, channel (a value or a list), months (1 to 12, of any
        year) and days (how far back); they take `from` and `to`, and mean "bought at all" without.

    Returns
    -------
    tuple of Rule, in the same order; a Rule that is given stays as it is

    Raises
    ------
    UsageError that names the rule, what was found and what is possible

    Examples
    --------
    >>> bought = {"column": "purchases", "brand": "X", "days": 183}
    >>> for rule in read([{"column": "age", "from": 30, "to": 40}, bought]):
    ...     print(rule)
    Rule 1 (age 30 to 40)
    Rule 2 (bought brand X in the last 183 days)
    """
    if isinstance(given, (str, Mapping)) or not isinstance(given, Sequence):
        raise tables.UsageError(
            f"Rules must be a list of tables such as [[rules]] in TOML, not {kind(given)}."
        )
    if len(given) > MOST_RULES:
        raise tables.UsageError(f"There are {len(given)} rules; {MOST_RULES} is the most.")
    return tuple(
        rule if isinstance(rule, Rule) else _Reader(number, rule).rule()
        for number, rule in enumerate(given, start=1)
    )


class _Reader:
    """Reads one rule; every complaint names it."""

    def __init__(self, number: int, given: Any) -> None:
        self.number, self.given = number, given

    def wrong(self, what: str) -> tables.UsageError:
        """Return the error of this rule, which shows what was given."""
        shown = str(self.given)
        if isinstance(self.given, Mapping):
            shown = ", ".join(f"{key} = {value!r}" for key, value in self.given.items())
        shown = shown if len(shown) <= MOST_LETTERS else shown[: MOST_LETTERS - 3] + "..."
        return tables.UsageError(f"Rule {self.number} ({shown}): {what}")

    def rule(self) -> Rule:
        if not isinstance(self.given, Mapping):
            raise self.wrong(
                f"it is {kind(self.given)}; it must be a table such as "
                '{ column = "age", from = 30, to = 40 }.'
            )
        known = (*KEYS, *BOUGHT_KEYS)
        for key in self.given:
            if key not in known:
                close = tables.did_you_mean(str(key), known)
                raise self.wrong(f"there is no {key!r}; possible are {', '.join(known)}.{close}")
        if "column" not in self.given:
            raise self.wrong('it has no column; say which is meant, such as column = "age".')
        rule = Rule(self.number, self.text("column"), bought=self.bought())
        if "name" in self.given:
            rule = replace(rule, name=self.text("name"))
        asked = [key for key in ("is", "is_not", "known") if key in self.given]
        if "from" in self.given or "to" in self.given:
            asked.append("from and to")
        if rule.bought is not None and asked != ["from and to"]:
            if asked:
                raise self.wrong(f"a measure of purchases takes from and to, not {asked[0]}.")
            return replace(rule, column="purchases", low=1)
        if len(asked) != 1:
            found = f"it asks {' and '.join(asked)} at once" if asked else "it asks nothing"
            raise self.wrong(f"{found}; give one of is, is_not, known, or from and to.")
        if asked == ["known"]:
            if not isinstance(self.given["known"], bool):
                raise self.wrong(f"known is {kind(self.given['known'])}; it is true or false.")
            return replace(rule, known=self.given["known"])
        if asked == ["from and to"]:
            return self.between(rule)
        values = self.values(asked[0])
        return replace(rule, one_of=values) if asked == ["is"] else replace(rule, none_of=values)

    def text(self, key: str) -> str:
        value = self.given[key]
        if not isinstance(value, str):
            raise self.wrong(f"{key} is {kind(value)}; it must be a text.")
        self.check_value(key, value)
        return value

    def bought(self) -> Bought | None:
        """Return which receipts are measured, or None where the rule is of no measure."""
        asked = [key for key in BOUGHT_KEYS if key in self.given]
        column = self.given["column"]
        if not asked:
            return None
        if column not in MEASURES:
            raise self.wrong(
                f"{asked[0]} belongs to a rule on {', '.join(MEASURES[:-1])} or {MEASURES[-1]}."
            )
        traits = []
        for key in TRAITS:
            if key in self.given:
                values = self.values(key)
                if not isinstance(values[0], str):
                    raise self.wrong(f"{key} is {kind(values[0])}; it must be a text.")
                traits.append((key, tuple(map(str, values))))
        months: tuple[int, ...] = ()
        if "months" in self.given:
            found = self.given["months"]
            found = found if isinstance(found, list | tuple) else [found]
            if not found or any(type(one) is not int or not 1 <= one <= 12 for one in found):
                raise self.wrong("months must be whole numbers from 1 to 12.")
            months = tuple(sorted(set(found)))
        days = self.given.get("days")
        if "days" in self.given and (type(days) is not int or not 1 <= days <= MOST_DAYS):
            raise self.wrong(f"days must be a whole number from 1 to {MOST_DAYS}.")
        return Bought(tuple(traits), months, days)

    def between(self, rule: Rule) -> Rule:
        low, high = (self.end(key) for key in ("from", "to"))
        kinds = {kind(end) for end in (low, high) if end is not None}
        if len(kinds) > 1:
            raise self.wrong("from and to must be two numbers or two dates.")
        if rule.bought is not None and kinds != {"a number"}:
            raise self.wrong(f"from and to of {rule.column} must be numbers, not {kinds.pop()}.")
        if low is not None and high is not None and low > high:  # type: ignore[operator]
            raise self.wrong(f"from {low} lies above to {high}; nobody could pass.")
        return replace(rule, low=low, high=high)

    def end(self, key: str) -> float | dt.date | None:
        if key not in self.given:
            return None
        value = self.given[key]
        if isinstance(value, str):
            try:
                return dt.date.fromisoformat(value)
            except ValueError:
                raise self.wrong(
                    f"{key} is the text {value[:50]!r}; it must be a number, or a date such as "
                    "1998-06-30."
                ) from None
        if kind(value) not in ("a number", "a date"):
            raise self.wrong(f"{key} is {kind(value)}; it must be a number or a date.")
        self.check_value(key, value)
        return value  # type: ignore[no-any-return]

    def values(self, key: str) -> tuple[Value, ...]:
        """Return the values of a key that takes one or a list of one kind."""
        found = self.given[key]
        found = found if isinstance(found, list | tuple) else [found]
        if not found:
            raise self.wrong(f"{key} is an empty list; give at least one value.")
        if len(found) > MOST_VALUES:
            raise self.wrong(f"{key} has {len(found)} values; {MOST_VALUES} is the most.")
        for value in found:
            self.check_value(key, value)
            if kind(value) != kind(found[0]):
                raise self.wrong(
                    f"{key} mixes {kind(found[0])} and {kind(value)}; give values of one kind."
                )
        return tuple(dict.fromkeys(found))

    def check_value(self, key: str, value: Any) -> None:
        if kind(value) not in ("a text", "a number", "a date", "yes or no"):
            raise self.wrong(
                f"{key} is {kind(value)}; it must be a text, a number, a date without a time, "
                "or true or false."
            )
        if isinstance(value, str):
            # Control marks and halves of a letter, which no engine takes.
            odd = any(unicodedata.category(letter) in ("Cc", "Cs") for letter in value)
            if not value.strip() or len(value) > MOST_LETTERS or odd:
                raise self.wrong(
                    f"{key} must be a text of 1 to {MOST_LETTERS} letters, without control marks."
                )
        elif isinstance(value, (int, float)) and not abs(value) <= LARGEST:
            raise self.wrong(f"{key} is {value}; it must be a number between ±{LARGEST:.0e}.")


def kind(value: Any) -> str:
    """Say in words of what kind a value is."""
    if isinstance(value, bool):
        return "yes or no"
    if isinstance(value, (int, float)):
        return "a number"
    if isinstance(value, dt.date) and not isinstance(value, dt.datetime):
        return "a date"
    return "a text" if isinstance(value, str) else f"a {type(value).__name__}"


def _words(rule: Rule, numbers: results.Numbers) -> str:
    column, said = rule.column.replace("_", " "), _said(rule, numbers)
    if rule.bought is None:
        return f"{column} {said}".strip()
    traits = " and ".join(
        f"{trait.removesuffix('_id')} {_or(values, numbers)}"
        for trait, values in rule.bought.traits
    )
    when = ""
    if rule.bought.months:
        when += f" in {_or([MONTHS[month - 1] for month in rule.bought.months], numbers)}"
    if rule.bought.days is not None:
        when += f" in the last {numbers.number(rule.bought.days)} days"
    if rule.column == "purchases" and (rule.low, rule.high) == (1, None):
        return f"bought {traits}{when}".replace("  ", " ")
    of = {"purchases": "purchases of ", "spend": "spend on ", "days_since": "days since "}
    what = of[rule.column] + traits if traits else column
    return f"{what}{when}: {said}"


def _said(rule: Rule, numbers: results.Numbers) -> str:
    if rule.known is not None:
        return "known" if rule.known else "not known"
    if rule.column in ("customer_id", "household_id"):
        return f"one of {numbers.number(len(rule.one_of or rule.none_of or ()))} that are named"
    if rule.one_of:
        return "" if rule.one_of == (True,) else _or(rule.one_of, numbers)
    if rule.none_of:
        return f"not {_or(rule.none_of, numbers)}"
    low, high = (None if end is None else _value(end, numbers) for end in (rule.low, rule.high))
    dates = isinstance(rule.low if rule.high is None else rule.high, dt.date)
    if high is None:
        return f"from {low} on" if dates else f"at least {low}"
    return f"{low} to {high}" if low is not None else f"until {high}" if dates else f"up to {high}"


def _or(values: Sequence[Value], numbers: results.Numbers) -> str:
    shown = [_value(value, numbers) for value in values[:5]]
    if len(values) > 5:
        shown.append(f"{len(values) - 5} others")
    return " or ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)


def _value(value: Value, numbers: results.Numbers) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    if isinstance(value, dt.date):
        return numbers.day(value)
    if not math.isfinite(value):
        return str(value)
    digits = -int(Decimal(repr(value)).as_tuple().exponent)
    return numbers.number(value, min(6, max(0, digits if value % 1 else 0)))
