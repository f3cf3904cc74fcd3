"""How a source's own types become the contract's, the same on every engine."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from crmlab import files
from crmlab.tables import CONTRACT, NO, YES, Column, DataError

if TYPE_CHECKING:
    import ibis.expr.types as ir

    from crmlab.engines import Source
    from crmlab.settings import TableSettings

ISO_DAY = r"^[0-9]{4}[-/][0-9]{1,2}[-/][0-9]{1,2}"
ISO_TIME = r"[T ][0-9]{1,2}:[0-9]{2}(:[0-9]{2}([.][0-9]+)?)?"


@dataclass(frozen=True)
class Reading:
    """How a table is read: where it lies, on which engine, and what shop.toml says of it.

    Only files are parsed: text in a database that should be a number or a time is an error.
    """

    table: str
    source: str
    origin: str
    engine: str
    is_file: bool
    timezone: str
    naive_timestamps: str = "shop"
    decimal: str = "."
    date_format: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)
    tidy: frozenset[str] = frozenset()  # columns of a file in which the check found nothing to mend


@contextmanager
def told(table: str, source: str) -> Iterator[None]:
    """Say of which table a sentence is, and where its answer belongs."""
    try:
        yield
    except DataError as error:
        message = f"Table '{table}' ({source}): {error}, under [tables.{table}] in shop.toml."
        raise DataError(message) from None


def renamed(source: Source, table: str, setting: TableSettings) -> ir.Table:
    """Rename a source's columns to the contract's; nowhere else are columns renamed.

    `amount = "quantity * price"` is the product of two columns, for logs that hold no amount.
    """
    rows = source.rows
    found, columns = list(rows.columns), {}
    for name, own in setting.columns.items():
        factors = [part.strip() for part in own.split(" * ")]
        if not own:
            continue  # channel = "": not to be used, whatever it holds
        if own in found:
            columns[name] = rows[own]
        elif len(factors) == 2 and set(factors) <= set(found):
            if not source.is_file and any(rows[factor].type().is_string() for factor in factors):
                raise DataError(
                    f"Table '{table}' ({source.label}): {own} multiplies text. A database is not "
                    "parsed: make a view that holds numbers."
                )
            with told(table, source.label):
                decimal = setting.decimal or files.guess_decimal(rows, factors)
                one, other = (as_number(rows[factor], decimal) for factor in factors)
            columns[name] = one * other
        else:
            raise DataError(
                f"shop.toml renames {own!r} of table '{table}', but "
                f"{source.label} has no such column. It has: {', '.join(found)}."
            )
    taken = {name.lower() for name in setting.columns}
    used = {name.lower() for name in setting.columns.values()}
    # What another column takes the name of still tells one line from another.
    keep = {
        f"not used: {name}" if name.lower() in taken else name: rows[name]
        for name in found
        if name.lower() not in used
    }
    return rows.select(**keep, **columns)


def blank_to_null(value: ir.Value) -> ir.Value:
    """Return text without blanks around it, and null where there is nothing.

    Not a number in a column of fractions is how pandas writes nothing. Text is trimmed
    only where it needs to be: trimming every id of a log takes as long as all else in a summary.
    """
    if value.type().is_floating():
        return value.isnan().ifelse(None, value)
    if not value.type().is_string():
        return value
    blanks = "[\\s\u00a0]+"
    trimmed = value.re_replace(f"^{blanks}|{blanks}$", "").nullif("")
    return is_padded(value).ifelse(trimmed, value)


def is_padded(text: ir.Value) -> ir.Value:
    """Tell whether text is empty, or has a blank before or behind it."""
    import ibis

    blanks = (" ", "\t", "\u00a0")
    likes = [text.like(like) for blank in blanks for like in (f"{blank}%", f"%{blank}")]
    return ibis.or_(text == "", *likes)


def typed(value: ir.Value, column: Column, reading: Reading) -> ir.Value:
    """Return a source's column as the contract's type; what cannot be read becomes null.

    Raises `DataError` where the type itself cannot be it, and for text in a database: a database
    is not parsed, its owner makes a view.
    """
    if value.type().is_unknown() or value.type().is_null():
        value = value.cast("string")  # an enumeration, or a column of nothing
    found = value.type()
    value = value if column.name in reading.tidy else blank_to_null(value)
    if found.is_string() and column.kind != "string" and not reading.is_file:
        raise _wrong_type(found, column, reading)
    if column.kind == "string":
        value = as_text(value)
    elif column.kind in ("timestamp", "date"):
        value = _moment(value, column, reading)
        value = value.date() if column.kind == "date" else value
    elif column.kind == "boolean":
        value = _truth(value, column, reading)
    else:
        value = _number(value, column, reading)
    if column.choices:
        value = value.lower().isin(column.choices).ifelse(value.lower(), None)
    if column.within:
        value = value.between(*column.within).ifelse(value, None)
    return value


def as_text(value: ir.Value) -> ir.Value:
    """Return text; ids that passed through a column of fractions, 1001.0, are whole again."""
    found = value.type()
    if not (found.is_floating() or (found.is_decimal() and found.scale != 0)):
        return value.cast("string")
    near = (value.abs() < 2.0**53).ifelse(value, None)
    whole = near.cast("int64")
    return (whole == near).ifelse(whole.cast("string"), None)


def _truth(value: ir.Value, column: Column, reading: Reading) -> ir.Value:
    import ibis

    found = value.type()
    if found.is_boolean():
        return value
    if not (found.is_string() or found.is_integer()):
        raise _wrong_type(found, column, reading)
    word = value.cast("string").lower()
    return ibis.cases((word.isin(YES), True), (word.isin(NO), False), else_=None)


def _number(value: ir.Value, column: Column, reading: Reading) -> ir.Value:
    found = value.type()
    if found.is_string():
        value = _plain_number(value, reading.decimal)
        if column.kind != "float64":
            return value.try_cast(column.kind)
        value = value.try_cast("float64")
    elif not found.is_numeric():
        raise _wrong_type(found, column, reading)
    elif found.is_decimal() and reading.engine != "postgres":
        digits = (found.precision or 38) - (found.scale or 0)
        if column.kind == "float64" or digits <= 14:
            return value.cast(column.kind)
    # Not a number is more than any number on all three engines, so this leaves it out too.
    largest = 1.7e308 if column.kind == "float64" else 1e14
    return (value.abs().cast("float64") < largest).ifelse(value, None).cast(column.kind)


def as_number(value: ir.Value, decimal: str) -> ir.Value:
    """Return a number wide enough to be multiplied, and text as one where it can be read as one.

    Raises `DataError` for what is neither.
    """
    found = value.type()
    if found.is_string():
        return _plain_number(blank_to_null(value), decimal).try_cast("decimal(19, 8)")
    if not found.is_numeric() or found.is_boolean():
        raise DataError(f"Column '{value.get_name()}' holds {found}, which is no number")
    return value.cast("int64").cast("decimal(19, 0)") if found.is_integer() else value


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


def _moment(value: ir.Value, column: Column, reading: Reading) -> ir.Value:
    """Return a time on the shop's wall clock."""
    import ibis

    found = value.type()
    if found.is_string():
        read = _parsed(value, reading)
    elif found.is_date():
        read = value.cast("timestamp")
    elif found.is_timestamp() and found.timezone:
        read = _wall_clock(value, reading)
    elif found.is_timestamp():
        read = _to_shop(value, reading)
    else:
        raise _wrong_type(found, column, reading)
    if column.name in reading.tidy and not found.is_string():
        return read
    # "inf" and the like are times to DuckDB and PostgreSQL, but to no calendar; and a year of two
    # digits, read as one of four, would be the time of the Caesars.
    days = [ibis.timestamp(first_or_last) for first_or_last in ("1800-01-01", "9999-12-30")]
    return read.between(*days).ifelse(read, None)


def _parsed(value: ir.Value, reading: Reading) -> ir.Value:
    """Read text as a time; DuckDB does it, as all text comes from files."""
    import ibis
    from ibis.expr import datatypes

    instant = datatypes.Timestamp("UTC")
    strptime = engine_function("try_strptime", [datatypes.string] * 2, datatypes.timestamp)
    if "%z" in reading.date_format.lower():
        # DuckDB's answer is in UTC where the format names the zone.
        return _wall_clock(strptime(value, reading.date_format).cast(instant), reading)
    if reading.date_format:
        timed = strptime(value, reading.date_format)
        if not re.search(r"%-?[HIMSfgncXp]", reading.date_format):
            return timed
        timed = _to_shop(timed, reading)
        day, *clock = re.split(r"[ T,]*%-?[HI]", reading.date_format, maxsplit=1)
        return timed.coalesce(strptime(value, day)) if day and clock else timed
    # Nothing but ISO is read without a format: 01/02/2024 and 10:00 PM need one.
    timed = value.re_search(ISO_DAY + ISO_TIME + "$")
    zoned = value.re_search(ISO_DAY + ISO_TIME + r" ?(Z|[+-][0-9]{2}(:?[0-9]{2})?)$")
    dated = value.re_search(ISO_DAY + "$")
    # DuckDB 1.4 reads a zone behind seconds only.
    with_seconds = value.re_replace(r"([T ][0-9]{1,2}:[0-9]{2}) ?(Z|[+-])", r"\1:00\2")
    return ibis.cases(
        (dated, value.try_cast("timestamp")),
        (timed, _to_shop(value.try_cast("timestamp"), reading)),
        (zoned, _wall_clock(with_seconds.try_cast(instant), reading)),
        else_=ibis.null("timestamp"),
    )


def _wall_clock(instant: ir.Value, reading: Reading) -> ir.Value:
    """Return the shop's wall clock at an instant: by the engine's function, not ibis' no-op cast.

    The sessions of all engines are in UTC, so on Spark a time that is moved from UTC to the shop's
    zone reads as the wall clock.
    """
    from ibis.expr import datatypes

    text, zoned, naive = datatypes.string, datatypes.Timestamp("UTC"), datatypes.timestamp
    if reading.engine == "pyspark":
        return engine_function("from_utc_timestamp", [zoned, text], naive)(
            instant, reading.timezone
        )
    return engine_function("timezone", [text, zoned], naive)(reading.timezone, instant)


def _to_shop(wall: ir.Value, reading: Reading) -> ir.Value:
    """Return a time without a zone as the shop's wall clock, by the shop's policy."""
    from ibis.expr import datatypes

    text, zoned, naive = datatypes.string, datatypes.Timestamp("UTC"), datatypes.timestamp
    if reading.naive_timestamps != "UTC":
        return wall.cast("timestamp")
    if reading.engine == "pyspark":
        return engine_function("from_utc_timestamp", [naive, text], naive)(wall, reading.timezone)
    return _wall_clock(engine_function("timezone", [text, naive], zoned)("UTC", wall), reading)


def consents_from_flags(rows: ir.Table, flags: Mapping[str, str], reading: Reading) -> ir.Table:
    """Return consents as the yes and no of columns of `customers`, one row per channel.

    Of several rows of a customer the strictest holds. What is neither yes nor no is no status of
    the contract, so the check sets it aside: in doubt there is no consent.
    """
    import ibis

    key = CONTRACT["customers"].column("customer_id")
    parts = []
    for channel, own in flags.items():
        flag = Column(own, "boolean", f"whether {channel} is allowed")
        part = rows.select(
            customer_id=typed(rows.customer_id, key, reading),
            said=typed(rows[own], flag, reading),
            given=blank_to_null(rows[own]),
        )
        part = part.filter(part.given.notnull())
        each = part.group_by("customer_id").aggregate(
            refused=(~part.said).any(),
            odd=part.said.isnull().ifelse(part.given.cast("string"), None).min(),
        )
        parts.append(
            each.select(
                "customer_id",
                channel=ibis.literal(channel),
                status=each.refused.ifelse("withdrawn", each.odd.coalesce(ibis.literal("given"))),
            )
        )
    return ibis.union(*parts) if len(parts) > 1 else parts[0]


def lines(rows: ir.Table, engine: str) -> ir.Table:
    """Return what tells one line from another: all columns that the engine can compare.

    No JSON, no geometry. On DuckDB their 64-bit hash, which takes a fraction of the memory; among
    100 million lines two different ones share a hash with a chance of 1 in 3,700.
    """
    import ibis

    kinds = rows.schema().items()
    names = [name for name, kind in kinds if not (kind.is_json() or kind.is_unknown())]
    if engine != "duckdb":
        return rows.select(names)
    line = ibis.struct({name: rows[name] for name in names})
    return rows.select(line=engine_function("hash", [line.type()], "uint64")(line))


def engine_function(name: str, takes: list[object], gives: object) -> Callable[..., ir.Value]:
    """Return a function that the engine itself has."""
    import ibis

    def one(first: Any) -> Any:
        """Run in the engine."""

    def two(first: Any, second: Any) -> Any:
        """Run in the engine."""

    wrapped: Callable[..., ir.Value] = ibis.udf.scalar.builtin(
        two if len(takes) == 2 else one, name=name, signature=(tuple(takes), gives)
    )
    return wrapped


def _wrong_type(found: object, column: Column, reading: Reading) -> DataError:
    message = (
        f"Table '{reading.table}' ({reading.source}): column '{column.name}' holds {found}, "
        f"crmlab needs {column.kind} ({column.meaning})."
    )
    if reading.is_file:
        return DataError(
            f"{message} Name the right column under [tables.{reading.table}] columns in shop.toml."
        )
    view, own = f"{reading.table}_for_crmlab", reading.columns.get(column.name, column.name)
    return DataError(
        f"{message} A database is not parsed. Make a view: CREATE VIEW {view} AS SELECT *, "
        f"CAST({own} AS {column.kind}) AS {column.name}_for_crmlab FROM {reading.origin}; and say "
        f'under [tables.{reading.table}] in shop.toml: from = "{view}", '
        f'columns = {{ {column.name} = "{column.name}_for_crmlab" }}.'
    )


def date_hint(example: str, *, used: str) -> str:
    """Say which `date_format` a date that could not be read seems to ask for.

    >>> date_hint("31.12.2023 14:05", used="")
    'Say how dates look, such as date_format = "%d.%m.%Y %H:%M"'
    >>> date_hint("12/31/10 8:26", used="")
    'Say how dates look, such as date_format = "%m/%d/%y %H:%M"'
    """
    if used:
        return f'The date_format = "{used}" does not fit it'
    if named := re.match(r"\d{1,2}([ -])[A-Za-z]{3}[ -]\d{4}", example):
        return f'Say how dates look, such as date_format = "%d{named[1]}%b{named[1]}%Y"'
    if re.fullmatch(r"\d{8}", example):
        form = "%Y%m%d" if example[:2] in ("19", "20") else "%d%m%Y"
        return f'Say how dates look, such as date_format = "{form}"'
    found = re.match(
        r"(\d{1,4})([./ -]?)(\d{1,2})\2(\d{4}|\d{2})(?:([ T])\d{1,2}:\d{2}(:\d{2})?)?", example
    )
    if not found:
        return 'Say how dates look, such as date_format = "%d/%m/%Y"'
    first, mark, second, last, gap, seconds = found.groups()
    if len(first) == 4:
        parts = ["%Y", "%m", "%d"]
    else:
        day_first = ["%m", "%d"] if int(second) > 12 else ["%d", "%m"]
        parts = [*day_first, "%Y" if len(last) == 4 else "%y"]
    form = mark.join(parts) + (f"{gap}%H:%M" if gap else "")
    return f'Say how dates look, such as date_format = "{form}{":%S" if seconds else ""}"'
