"""The words: every table's name, columns, types and rules, and the errors that users read."""

from __future__ import annotations

import datetime as dt
import difflib
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import ibis.expr.types as ir


class DataError(Exception):
    """The data breaks the contract; the message says what is wrong, what was found, what to do."""


class UsageError(Exception):
    """What was asked for does not exist: a shop, a report, a parameter, a setting."""


# What a text may say for yes and no, in any case.
YES, NO = (
    tuple(words.split())
    for words in (
        "true t yes y 1 on ja j wahr oui vrai sí si s sim verdadero vero tak da да так 是 はい",
        "false f no n 0 off nein falsch non faux não nao falso nie нет ні 否 いいえ",
    )
)

Kind = Literal["string", "timestamp", "date", "decimal(18, 4)", "float64", "boolean"]
Severity = Literal["set aside", "kept"]


@dataclass(frozen=True)
class Column:
    """One column of the contract.

    `required` columns must exist in the source; of these, only a `nullable` one may be empty.
    A value outside `within` (both ends included) or not among `choices` cannot be read. `partner`
    names the table whose row this id should have.
    """

    name: str
    kind: Kind
    meaning: str
    required: bool = False
    nullable: bool = False
    choices: tuple[str, ...] = ()
    within: tuple[float, float] | tuple[dt.date, dt.date] | None = None
    partner: str = ""


@dataclass(frozen=True)
class Rule:
    """A row-wise rule: `broken(rows)` is true where the rule is broken, in the source's engine.

    `rows` has the typed columns under their contract names and what the source held under
    `given(name)`; the rule is asked where the source has its `column`. A row that breaks a
    "set aside" rule is written away and counted; one that breaks a "kept" rule is used and counted.
    """

    name: str
    severity: Severity
    column: str
    broken: Callable[[ir.Table], ir.BooleanValue]


@dataclass(frozen=True)
class Table:
    """One table of the contract.

    `key` is what no two rows share; `dated` the column that says when the row came to be, for
    "later"; `money` the column whose sum must add up too.
    """

    name: str
    meaning: str
    columns: tuple[Column, ...]
    key: tuple[str, ...] = ()
    dated: str = ""
    money: str = ""

    def column(self, name: str) -> Column:
        """Return the column of that name."""
        return next(column for column in self.columns if column.name == name)

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The row-wise rules, in the order in which they judge."""
        required = [column for column in self.columns if column.required]
        rules = []
        for column in required:
            rules += [] if column.nullable else [_missing(column)]
            rules.append(_unreadable(column, "set aside"))
        if self.name == "transactions":
            rules += [ANONYMOUS, RETURNED, WORTHLESS]
        optional = [c for c in self.columns if not c.required and c.kind != "string"]
        return (*rules, *(_unreadable(column, "kept") for column in optional))

    @property
    def partners(self) -> dict[str, str]:
        """The columns that hold another table's key, and that table."""
        return {column.name: column.partner for column in self.columns if column.partner}


def given(column: str) -> str:
    """Name the column that holds what the source gave, before it was read as its type."""
    return f"{column} as given"


def _missing(column: Column) -> Rule:
    name = column.name
    return Rule(f"{name} missing", "set aside", name, lambda rows: rows[given(name)].isnull())


def _unreadable(column: Column, severity: Severity) -> Rule:
    name, what = column.name, "unreadable"
    if column.choices:
        what = f"none of {', '.join(column.choices)}"
    elif column.within:
        what = "unreadable or impossible"
    return Rule(
        f"{name} {what}",
        severity,
        name,
        lambda rows: rows[name].isnull() & rows[given(name)].notnull(),
    )


ANONYMOUS = Rule(
    "customer_id missing (anonymous sale, in no customer's figures)",
    "kept",
    "customer_id",
    lambda rows: rows.customer_id.isnull(),
)
RETURNED = Rule(
    "amount negative (a return, taken off its day)",
    "kept",
    "amount",
    lambda rows: (rows.amount < 0).fill_null(False),
)
WORTHLESS = Rule(
    "amount zero (a day of nothing else is a purchase only if the policy counts it)",
    "kept",
    "amount",
    lambda rows: (rows.amount == 0).fill_null(False),
)
NO_GOODS = "no goods by the shop's policy (in no customer's figures)"
# Counted over several rows, or over two tables: `sources` has its own queries for them.
DUPLICATE_LINES = "line equal to an earlier one in every column"


def second_row(table: Table) -> str:
    """Name the rule against a second row with the same key."""
    return f"second row of the same {' and '.join(table.key)}"


def no_partner(column: str, partner: str) -> str:
    """Name the rule that counts ids which the other table does not have."""
    return f"{column} without a row in {partner}"


MONEY: Kind = "decimal(18, 4)"
BIRTHS = (dt.date(1900, 1, 1), dt.date(2100, 1, 1))


def _id(name: str, meaning: str, partner: str = "", *, required: bool = False) -> Column:
    return Column(name, "string", meaning, required, partner=partner)


def _coordinates() -> tuple[Column, Column]:
    return (
        Column("latitude", "float64", "degrees north; (0, 0) is unknown", within=(-90, 90)),
        Column("longitude", "float64", "degrees east", within=(-180, 180)),
    )


TRANSACTIONS = Table(
    "transactions",
    "one line of a receipt",
    (
        Column(
            "customer_id", "string", "who bought; empty = an anonymous sale", True, True,
            partner="customers",
        ),
        Column("purchased_at", "timestamp", "when, in the shop's wall clock", True),
        Column("amount", MONEY, "shop currency; negative = a return", True),
        _id("transaction_id", "the receipt that the line belongs to"),
        _id("product_id", "what was bought", "products"),
        _id("store_id", "where it was bought", "stores"),
        Column("quantity", "float64", "pieces, or the product's own unit"),
        Column("channel", "string", "how it was bought, such as shop or web"),
        Column("discount", MONEY, "shop currency taken off, already left out of amount"),
        Column("cost", MONEY, "shop currency that the goods cost"),
    ),
    dated="purchased_at",
    money="amount",
)  # fmt: skip

CUSTOMERS = Table(
    "customers",
    "one card holder or member",
    (
        _id("customer_id", "the key of the card holder", required=True),
        _id("household_id", "who lives together shares it"),
        Column("joined_on", "date", "first day as a customer, also before the log begins"),
        Column("birth_date", "date", "from 1900 on", within=BIRTHS),
        Column("sex", "string", "as the shop writes it"),
        Column("occupation", "string", "as the shop writes it"),
        Column("city", "string", "of the home"),
        Column("region", "string", "of the home"),
        *_coordinates(),
        Column("preferred_channel", "string", "how the customer wants to be addressed"),
        Column("acquired_by", "string", "the campaign or channel that brought the customer"),
    ),
    key=("customer_id",),
)

CONSENTS = Table(
    "consents",
    "one answer of a customer about one channel; the latest counts, and no row is no consent",
    (
        _id("customer_id", "who was asked", "customers", required=True),
        Column("channel", "string", "such as email, sms or post", True),
        Column("status", "string", "given or withdrawn", True, choices=("given", "withdrawn")),
        Column("at", "timestamp", "when it was said"),
        Column("source", "string", "where it was said, such as the form's name"),
    ),
    dated="at",
)

PRODUCTS = Table(
    "products",
    "one article",
    (
        _id("product_id", "the key of the article", required=True),
        Column("category", "string", "the wider group"),
        Column("subcategory", "string", "the narrower group"),
        Column("brand", "string", "the maker, or the shop's own brand"),
        Column("unit_cost", MONEY, "shop currency that one piece costs"),
    ),
    key=("product_id",),
)

STORES = Table(
    "stores",
    "one store, our own or a competitor's",
    (
        _id("store_id", "the key of the store", required=True),
        Column("name", "string", "as customers call it"),
        Column("own", "boolean", "false = a competitor's"),
        *_coordinates(),
        Column("area_m2", "float64", "sales area, square metres", within=(0, 1e7)),
        Column("opened_on", "date", "first day of business"),
    ),
    key=("store_id",),
)

CAMPAIGNS = Table(
    "campaigns",
    "one campaign",
    (
        _id("campaign_id", "the key of the campaign", required=True),
        Column("name", "string", "as the marketers call it"),
        Column("channel", "string", "such as email, sms or post"),
        Column("offer", "string", "what was offered"),
        Column("starts_on", "date", "first day"),
        Column("ends_on", "date", "last day"),
        Column("contact_cost", MONEY, "shop currency per contact"),
        Column("offer_cost", MONEY, "shop currency per offer taken up"),
        Column("fixed_cost", MONEY, "shop currency for the whole campaign"),
        Column("holdout_share", "float64", "share of 1 that was held out", within=(0, 1)),
        Column("primary_outcome", "string", "what was to be raised, said before the send"),
        Column("outcome_days", "float64", "days after the send that count", within=(0, 3660)),
        Column("randomised", "boolean", "true = who was held out was drawn by lot"),
    ),
    key=("campaign_id",),
)

CONTACTS = Table(
    "contacts",
    "one customer whom a campaign assigned to an arm",
    (
        _id("campaign_id", "the campaign", "campaigns", required=True),
        _id("customer_id", "the customer", "customers", required=True),
        Column("arm", "string", "holdout, or the name of what was sent", True),
        Column("stratum", "string", "the group within which arms were drawn"),
        Column("wave", "string", "which of the campaign's sends"),
        Column("assigned_at", "timestamp", "when the arm was drawn", True),
        Column("sent_at", "timestamp", "empty = not sent"),
        Column("delivered_at", "timestamp", "empty = not known to have arrived"),
        Column("opened_at", "timestamp", "empty = not known to have been opened"),
        Column("clicked_at", "timestamp", "empty = no click"),
        Column("undelivered_reason", "string", "why it did not arrive"),
    ),
    key=("campaign_id", "customer_id"),
    dated="assigned_at",
)

SUPPRESSED = Table(
    "suppressed",
    "one customer taken out of a campaign before arms were drawn",
    (
        _id("campaign_id", "the campaign", "campaigns", required=True),
        _id("customer_id", "the customer", "customers", required=True),
        Column("reason", "string", "such as no consent", True),
        Column("at", "timestamp", "when"),
    ),
    dated="at",
)

POINTS = Table(
    "points",
    "one posting to a customer's account of points",
    (
        _id("customer_id", "whose account", "customers", required=True),
        Column("posted_at", "timestamp", "when", True),
        Column("points", MONEY, "signed: earned +, redeemed and expired -", True),
        Column(
            "kind", "string", "what kind of posting", True,
            choices=("earn", "redeem", "expire", "adjust"),
        ),
        _id("transaction_id", "the receipt it belongs to"),
    ),
    dated="posted_at",
    money="points",
)  # fmt: skip

CASES = Table(
    "cases",
    "one case of the customer service",
    (
        _id("case_id", "the key of the case", required=True),
        _id("customer_id", "who asked or complained", "customers", required=True),
        Column("opened_at", "timestamp", "when it began", True),
        Column("closed_at", "timestamp", "empty = still open"),
        Column("kind", "string", "complaint, warranty, question, ..."),
        Column("channel", "string", "how the customer came"),
    ),
    key=("case_id",),
    dated="opened_at",
)

DISTRICTS = Table(
    "districts",
    "one part of the city or country",
    (
        _id("district_id", "the key of the district", required=True),
        Column("name", "string", "as people call it"),
        Column("population", "float64", "people who live there", within=(0, 1e10)),
        Column("purchasing_power", "float64", "shop currency per person and year"),
        Column("geometry", "string", "its outline as GeoJSON, in degrees"),
    ),
    key=("district_id",),
)

CONTRACT: dict[str, Table] = {
    table.name: table
    for table in (
        TRANSACTIONS, CUSTOMERS, CONSENTS, PRODUCTS, STORES, CAMPAIGNS, CONTACTS, SUPPRESSED,
        POINTS, CASES, DISTRICTS,
    )
}  # fmt: skip


def dictionary() -> str:
    """Return the table dictionary as Markdown: what data/README.md holds."""
    parts = [
        "In a file a number is digits and one decimal mark, with marks between thousands or",
        f"without, and no currency. A boolean is yes for {', '.join(YES)};",
        f"no for {', '.join(NO)}.\n",
    ]
    for table in CONTRACT.values():
        parts.append(f"## {table.name}\n\nOne row is {table.meaning}.\n")
        parts.append("| column | type | | meaning |\n|---|---|---|---|")
        parts += [
            f"| `{c.name}` | {c.kind} | {'required' if c.required else ''} | {c.meaning} |"
            for c in table.columns
        ]
        parts.append("\n| rule | what happens to the row |\n|---|---|")
        parts += [f"| {rule.name} | {rule.severity} |" for rule in table.rules]
        if table.key:
            parts.append(f"| {second_row(table)} | set aside |")
        parts += [
            f"| {no_partner(column, partner)} | kept |"
            for column, partner in table.partners.items()
        ]
        equal = "kept, or set aside where the shop's policy says so"
        parts.append(f"| {DUPLICATE_LINES} | {equal} |\n" if not table.key else "")
    return "\n".join(parts)


def require_columns(table: Table, found: Sequence[str], *, where: str) -> None:
    """Raise `DataError` when a required column of `table` is not among the columns `found`."""
    missing = [column for column in table.columns if column.required and column.name not in found]
    if not missing:
        return
    lines = [f"Table '{table.name}' ({where}) has no column for:"]
    lines += [f"  {column.name}: {column.meaning}" for column in missing]
    lines += [
        f"It has: {', '.join(found) or 'no columns'}.",
        f"Name yours in shop.toml under [tables.{table.name}.columns]: "
        + f'{missing[0].name} = "your_column".',
    ]
    raise DataError("\n".join(lines))


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ' Did you mean ...?' when a known word is close, else nothing.

    >>> did_you_mean("horizon_day", ["horizon_days", "margin"])
    " Did you mean 'horizon_days'?"
    """
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" Did you mean '{close[0]}'?" if close else ""


def day(value: str | dt.date, *, name: str = "as_of") -> dt.date:
    """Read a date; `name` says in the error which one it is.

    >>> day("1998-06-30")
    datetime.date(1998, 6, 30)
    """
    found: dt.date | None = None
    if isinstance(value, dt.date):
        found = value.date() if isinstance(value, dt.datetime) else value
    else:
        with suppress(TypeError, ValueError):
            found = dt.date.fromisoformat(value)
    if found is None or not 1000 <= found.year <= 9000:
        raise UsageError(f"{name} is {value!r}; it must be a date such as 1998-06-30.")
    return found


def check_seed(seed: int) -> int:
    """Return a seed of chance, or raise `UsageError`."""
    if type(seed) is not int or seed < 0:
        raise UsageError(f"seed is {seed!r}; it must be a whole number of 0 or more.")
    return seed


def check_range(name: str, value: float, low: float, high: float) -> None:
    """Raise `UsageError` for what is no number, or out of range."""
    if value is None or isinstance(value, (str, bool)) or not low <= value <= high:
        raise UsageError(f"{name} is {value!r}; it must lie between {low} and {high}.")
