"""The words: every table's name, columns, types and rules, and the errors that users read."""

from __future__ import annotations

import datetime as dt
import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import ibis.expr.types as ir


class DataError(Exception):
    """The data breaks the contract; the message says what is wrong, what was found, what to do."""


class UsageError(Exception):
    """What was asked for does not exist: a shop, a report, a parameter, a setting."""


Kind = Literal["string", "timestamp", "decimal(18, 4)", "float64"]
Severity = Literal["set aside", "kept"]


@dataclass(frozen=True)
class Column:
    """One column of the contract.

    `required` columns must exist in the source; of these, only a `nullable` one may be empty.
    """

    name: str
    kind: Kind
    meaning: str
    required: bool = False
    nullable: bool = False


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
    """One table of the contract: its columns, and its rules in the order in which they judge."""

    name: str
    meaning: str
    columns: tuple[Column, ...]
    rules: tuple[Rule, ...] = ()

    def column(self, name: str) -> Column:
        """Return the column of that name."""
        return next(column for column in self.columns if column.name == name)


def given(column: str) -> str:
    """Name the column that holds what the source gave, before it was read as its type."""
    return f"{column} as given"


def required_rules(columns: Iterable[Column]) -> tuple[Rule, ...]:
    """Return the rules that every table has for its required values: present and readable."""
    rules: list[Rule] = []
    for column in columns:
        if column.required:
            rules += [] if column.nullable else [_missing(column.name)]
            rules.append(_unreadable(column.name))
    return tuple(rules)


def _missing(name: str) -> Rule:
    return Rule(f"{name} missing", "set aside", name, lambda rows: rows[given(name)].isnull())


def _unreadable(name: str, severity: Severity = "set aside") -> Rule:
    return Rule(
        f"{name} unreadable",
        severity,
        name,
        lambda rows: rows[name].isnull() & rows[given(name)].notnull(),
    )


def optional_rules(columns: Iterable[Column]) -> tuple[Rule, ...]:
    """Return the rules for optional values: one that cannot be read is unknown, its row stays."""
    return tuple(
        _unreadable(column.name, "kept")
        for column in columns
        if not column.required and column.kind != "string"
    )


ANONYMOUS = Rule(
    "customer_id missing (anonymous sale, in no customer's figures)",
    "kept",
    "customer_id",
    lambda rows: rows.customer_id.isnull(),
)
NO_GOODS = "no goods by the shop's policy (in no customer's figures)"
# Counted over whole lines, not row by row: `sources` has its own query for it.
DUPLICATE_LINES = "line equal to an earlier one in every column"

_TRANSACTION_COLUMNS = (
    Column("customer_id", "string", "who bought; empty = an anonymous sale", True, nullable=True),
    Column("purchased_at", "timestamp", "when, in the shop's wall clock", True),
    Column("amount", "decimal(18, 4)", "shop currency; negative = a return", True),
    Column("transaction_id", "string", "the receipt that the line belongs to"),
    Column("product_id", "string", "what was bought"),
    Column("store_id", "string", "where it was bought"),
    Column("quantity", "float64", "pieces, or the product's own unit"),
    Column("channel", "string", "how it was bought, such as shop or web"),
    Column("discount", "decimal(18, 4)", "shop currency taken off, already left out of amount"),
    Column("cost", "decimal(18, 4)", "shop currency that the goods cost"),
)

TRANSACTIONS = Table(
    "transactions",
    "one line of a receipt",
    _TRANSACTION_COLUMNS,
    (
        *required_rules(_TRANSACTION_COLUMNS),
        ANONYMOUS,
        *optional_rules(_TRANSACTION_COLUMNS),
    ),
)

CONTRACT: dict[str, Table] = {table.name: table for table in (TRANSACTIONS,)}


def dictionary() -> str:
    """Return the table dictionary as Markdown: what data/README.md holds."""
    parts = []
    for table in CONTRACT.values():
        parts.append(f"## {table.name}\n\nOne row is {table.meaning}.\n")
        parts.append("| column | type | | meaning |\n|---|---|---|---|")
        parts += [
            f"| `{c.name}` | {c.kind} | {'required' if c.required else ''} | {c.meaning} |"
            for c in table.columns
        ]
        parts.append("\n| rule | what happens to the row |\n|---|---|")
        parts += [f"| {rule.name} | {rule.severity} |" for rule in table.rules]
        parts.append(
            f"| {DUPLICATE_LINES} | kept, or set aside where the shop's policy says so |\n"
        )
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
        f"Rename yours in shop.toml under [tables.{table.name}]: "
        + f'columns = {{ {missing[0].name} = "your_column" }}.',
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
    if isinstance(value, dt.datetime):
        return value.date()
    if isinstance(value, dt.date):
        return value
    try:
        return dt.date.fromisoformat(value)
    except (TypeError, ValueError):
        raise UsageError(f"{name} is {value!r}; it must be a date such as 1998-06-30.") from None


ISO_DAY = r"^[0-9]{4}[-/][0-9]{1,2}[-/][0-9]{1,2}"
ISO_TIME = r"[T ][0-9]{1,2}:[0-9]{2}(:[0-9]{2}([.][0-9]+)?)?"


@dataclass(frozen=True)
class Reading:
    """How a source's own types become the contract's: `[tables.<name>]` and `[policy]`."""

    table: str
    source: str
    origin: str
    is_database: bool
    timezone: str
    naive_timestamps: str = "shop"
    decimal: str = "."
    date_format: str = ""


def blank_to_null(value: ir.Value) -> ir.Value:
    """Return text without blanks around it, and null for nothing but blanks.

    The trim also keeps DuckDB 2.0 from pushing a `try_cast` of plain CSV text down into its CSV
    reader, where it becomes a strict cast that fails on the first text it cannot read.
    """
    return value.strip().nullif("") if value.type().is_string() else value


def typed(value: ir.Value, column: Column, reading: Reading) -> ir.Value:
    """Return a source's column as the contract's type; what cannot be read becomes null.

    Raises `DataError` where the type itself cannot be it, and for text in a database: a database
    is not parsed, its owner makes a view.
    """
    found = value.type()
    value = blank_to_null(value)
    is_text = found.is_string()
    if is_text and column.kind != "string" and reading.is_database:
        raise _wrong_type(found, column, reading)
    if column.kind == "string":
        if not found.is_floating():
            return value.cast("string")
        # Ids that passed through a float column, 1001.0, are whole numbers again.
        whole = (value % 1 == 0) & (value.abs() < 2.0**53)
        return whole.ifelse(value, None).cast("int64").cast("string")
    if column.kind == "timestamp":
        return _timestamp(value, column, reading)
    if not (is_text or found.is_numeric()):
        raise _wrong_type(found, column, reading)
    if is_text:
        value = _plain_number(value, reading.decimal)
    if is_text or found.is_floating():
        number = value.try_cast("float64") if is_text else value
        value = (~(number.isnan() | number.isinf())).ifelse(value, None)
    return value.try_cast(column.kind)


def _plain_number(value: ir.Value, decimal: str) -> ir.Value:
    """Take the thousands separators out of a number; what breaks their pattern is left unreadable.

    With a decimal comma 1.250 is one thousand and more, and 12.50 is no number: reading either as
    it stands would be wrong by the factor of a thousand or a hundred.
    """
    import ibis

    thousands = "." if decimal == "," else ","
    point, comma = (f"[{mark}]" for mark in (decimal, thousands))
    grouped = value.re_search(rf"^[+-]?[0-9]{{1,3}}({comma}[0-9]{{3}})+({point}[0-9]*)?$")
    plain = grouped.ifelse(value.replace(thousands, ""), value)
    if decimal == ".":
        return plain
    broken = value.contains(thousands) & ~grouped
    return broken.ifelse(ibis.null("string"), plain.replace(decimal, "."))


def _timestamp(value: ir.Value, column: Column, reading: Reading) -> ir.Value:
    import ibis
    from ibis.expr import datatypes

    moment = datatypes.Timestamp("UTC")
    timezone = _engine_function("timezone", (datatypes.string, moment))
    try_strptime = _engine_function("try_strptime", (datatypes.string, datatypes.string))
    found = value.type()
    if found.is_timestamp() and found.timezone:
        return timezone(reading.timezone, value)
    if found.is_string():
        if "%z" in reading.date_format.lower():
            return timezone(reading.timezone, try_strptime(value, reading.date_format).cast(moment))
        if reading.date_format:
            wall = try_strptime(value, reading.date_format).cast("timestamp")
            return wall if "%H" not in reading.date_format else _to_shop(wall, reading, timezone)
        # Nothing but ISO is guessed: 01/02/2024 and 10:00 PM need a date_format.
        clock = value.re_search(ISO_DAY + ISO_TIME + "$")
        zoned = value.re_search(ISO_DAY + ISO_TIME + r" ?(Z|[+-][0-9]{2}(:?[0-9]{2})?)$")
        dated = value.re_search(ISO_DAY + "$")
        # "inf" and the like are times to DuckDB and PostgreSQL, but to no calendar.
        read = ibis.cases(
            (dated, value.try_cast("timestamp")),
            (clock, _to_shop(value.try_cast("timestamp"), reading, timezone)),
            (zoned, timezone(reading.timezone, value.try_cast(moment))),
            else_=ibis.null("timestamp"),
        )
    elif found.is_date():
        read = value.cast("timestamp")
    elif found.is_timestamp():
        read = _to_shop(value.cast("timestamp"), reading, timezone)
    else:
        raise _wrong_type(found, column, reading)
    days = [ibis.timestamp(first_or_last) for first_or_last in ("0001-01-02", "9999-12-30")]
    return read.between(*days).ifelse(read, None)


def _to_shop(wall: ir.Value, reading: Reading, timezone: Callable[..., ir.Value]) -> ir.Value:
    """Return a time without a zone as the shop's wall clock, by the shop's policy."""
    from ibis.expr import datatypes

    if reading.naive_timestamps == "UTC":
        return timezone(reading.timezone, wall.cast(datatypes.Timestamp("UTC")))
    return wall


def _engine_function(name: str, takes: tuple[object, object]) -> Callable[..., ir.Value]:
    """Return the engine's own function of two arguments that gives a timestamp."""
    import ibis
    from ibis.expr import datatypes

    def function(first: Any, second: Any) -> Any:
        """Run in the engine."""

    wrapped: Callable[..., ir.Value] = ibis.udf.scalar.builtin(
        function, name=name, signature=(takes, datatypes.timestamp)
    )
    return wrapped


def _wrong_type(found: object, column: Column, reading: Reading) -> DataError:
    message = (
        f"Table '{reading.table}' ({reading.source}): column '{column.name}' holds {found}, "
        f"crmlab needs {column.kind} ({column.meaning})."
    )
    if reading.is_database:
        message += (
            " A database is not parsed; make a view and name it in shop.toml: CREATE VIEW "
            f"{reading.table}_for_crmlab AS SELECT * REPLACE (CAST({column.name} AS "
            f"{column.kind}) AS {column.name}) FROM {reading.origin};"
        )
    else:
        message += f" Name the right column under [tables.{reading.table}] columns in shop.toml."
    return DataError(message)


def date_hint(example: str, *, used: str) -> str:
    """Say which `date_format` a date that could not be read seems to ask for.

    >>> date_hint("31.12.2023 14:05", used="")
    'Say how dates look, such as date_format = "%d.%m.%Y %H:%M"'
    """
    if used:
        return f'The date_format = "{used}" does not fit it'
    found = re.match(
        r"(\d{1,4})([./ -]?)\d{1,2}\2\d{2,4}(?:([ T])\d{1,2}:\d{2}(:\d{2})?)?", example
    )
    if not found:
        return 'Say how dates look, such as date_format = "%d/%m/%Y"'
    year_first, mark, gap, seconds = len(found[1]) == 4, found[2], found[3], found[4]
    form = mark.join(["%Y", "%m", "%d"] if year_first else ["%d", "%m", "%Y"])
    form += f"{gap}%H:%M" if gap else ""
    return f'Say how dates look, such as date_format = "{form}{":%S" if seconds else ""}"'
