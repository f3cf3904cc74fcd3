"""Guesses: which table and columns of the contract a table of an unknown source seems to be."""

from __future__ import annotations

import json
import re
import tomllib
import unicodedata
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from crmlab import files, reading, tables
from crmlab.engines import Source
from crmlab.tables import DataError

if TYPE_CHECKING:
    import ibis.expr.types as ir

Fits: TypeAlias = "dict[tuple[str, str], Fit]"  # by the contract's name and the source's
FITS = 0.9  # the share of its values that a column must read
# How usual a name is: above SURE it is one of the usual names; below, something is guessed.
BARE_ID, SURE, PRODUCT, PART, PRICE, BY_VALUES = 0.76, 0.75, 0.7, 0.6, 0.5, 0.4
GUESSED = {
    PRODUCT: "no column holds amounts, so this is pieces times the price of one",
    PART: "only a part of its name says so",
    PRICE: "right only if this is the price of the whole line, not of one piece",
    BY_VALUES: "its name does not say so, but it holds days",
}
UNIT_PRICE = tables.Column("unit_price", tables.MONEY, "the price of one piece")
DAYS, NUMBERS = ("timestamp", "date"), (tables.MONEY, "float64")
# What stands before or after a usual name where the column is an id, or a day.
ID = re.compile(
    r"^(id|n(o|um(ero)?)?|code?|код|номер)(?=..)|(id|no|nb?r|num(ber|mer|er)?|key|code|ref|编号|号)$"
)
DAY = re.compile(
    r"^(date(de|d)?|дата)(?=..)|(datum|(date)?time|date|timestamp|ts|dt|at|on|日期|时间)$"
)


@dataclass(frozen=True)
class Line:
    """A line of shop.toml; one without a value is still to be written, and `note` says why."""

    key: str
    value: str
    note: str = ""

    def __str__(self) -> str:
        """Print it as TOML; JSON escapes all that TOML escapes, but for one character."""
        value = json.dumps(self.value, ensure_ascii=False).replace("\x7f", "\\u007f")
        note = f"  {comment(self.note)}" if self.note else ""
        return f"{'' if self.value else '# '}{self.key} = {value}{note}"


def comment(text: str) -> str:
    """Return a text as a comment of TOML, on one line."""
    text = text.encode("utf-8", "backslashreplace").decode()
    return "# " + re.sub(r"[\x00-\x1f\x7f]+", " ", text)


@dataclass(frozen=True, eq=False)
class Look:
    """A table of a source under its own name, and its first rows as a local table."""

    origin: str
    source: Source
    sample: ir.Table


@dataclass(frozen=True)
class Guess:
    """What a table of a source seems to be: the lines of shop.toml, and how well it `fits`.

    `missing` are the required columns that were not found, `found` says how many were; `unused` are
    the source's other columns.
    """

    table: str
    origin: str
    options: list[Line]
    columns: list[Line]
    missing: list[str]
    found: int
    unused: list[str]
    fits: float


@dataclass(frozen=True)
class Fit:
    """How usual a column's name is, the share of its values that can be read, and one that cannot.

    `why` says why it will not do; it is empty where it will.
    """

    usual: float
    share: float
    why: str = ""
    unread: str = ""


def guess(look: Look, table: tables.Table) -> Guess:
    """Say how a table of a source would fill a table of the contract."""
    how, fits, doubt = _fits(look, table)
    required = [column.name for column in table.columns if column.required]

    # Required columns choose first, and take the surer kind of name, then the values that fit.
    def order(pair: tuple[str, str]) -> tuple[float, ...]:
        fit = fits[pair]
        kind = (fit.usual > SURE) + (fit.usual > PART)
        return pair[0] not in required, -kind, -round(fit.share, 2), -fit.usual

    chosen: dict[str, str] = {}
    for name, own in sorted(fits, key=order):
        if not fits[name, own].why and name not in chosen and own not in chosen.values():
            chosen[name] = own
    used = {part for own in chosen.values() for part in (own, *own.split(" * "))}
    shown = [column for column in table.columns if column.name in {*required, *chosen}]
    lines = [_line(column, chosen.get(column.name, ""), fits, used) for column in shown]
    if _is_total(look, chosen):
        doubt_of_amount = "unsure: the same on all lines of a receipt: is it the receipt's total?"
        lines = [
            replace(line, note=doubt_of_amount) if line.key == "amount" else line for line in lines
        ]
    missing = [name for name in required if name not in chosen]
    unread = [fits[pair].unread for pair in chosen.items() if fits[pair].share < FITS]
    # A column that is called like it and will not do still tells what table this is.
    lacks = sum(0.75 if any(name == key for name, _ in fits) else 1.5 for key in missing)
    has = sum(fits[pair].usual * (1 if pair[0] in required else 0.6) for pair in chosen.items())
    return Guess(
        table.name,
        look.origin,
        [Line("from", look.origin), *_options(look, how, "".join(unread[:1]), doubt)],
        lines,
        missing,
        len(required) - len(missing),
        [own for own in look.source.rows.columns if own not in used],
        has - lacks + 2 * _named(look.origin, table),
    )


def _is_total(look: Look, chosen: dict[str, str]) -> bool:
    """Tell whether the amount never differs between lines of one receipt, as a total would not."""
    receipt, amount = chosen.get("transaction_id"), chosen.get("amount")
    if not receipt or amount not in look.sample.columns:
        return False
    rows = look.sample.filter(look.sample[receipt].notnull())
    each = rows.group_by(receipt).aggregate(lines=rows.count(), amounts=rows[amount].nunique())
    several = each.filter(each.lines > 1)
    found = several.aggregate(n=several.count(), most=several.amounts.max()).to_pyarrow()
    [seen] = found.to_pylist()
    return bool(seen["n"] and seen["most"] == 1)


def _line(column: tables.Column, own: str, fits: Fits, used: set[str]) -> Line:
    """Return a column's line, with what makes it unsure or why nothing was found for it."""
    rivals = {rival: fit for (name, rival), fit in fits.items() if name == column.name}
    if not own:
        near = [f"{rival!r} will not do: {fit.why}" for rival, fit in rivals.items() if fit.why]
        near.append("No column is called like it: name yours here, or add one to the data.")
        return Line(column.name, "", f"missing: {column.meaning}. {near[0]}")
    fit = rivals.pop(own)
    doubts = [GUESSED[fit.usual]] if fit.usual < SURE else []
    if fit.share < 0.98:
        doubts.append(f"{1 - fit.share:.0%} of the first rows cannot be read so")
    least = SURE if fit.usual > SURE else min(fit.usual, PART)
    good = {rival for rival, one in rivals.items() if not one.why and one.usual >= least} - used
    doubts += [f"it could also be {' or '.join(map(repr, sorted(good)))}"] if good else []
    return Line(column.name, own, f"unsure: {'; '.join(doubts)}" if doubts else "")


def _options(look: Look, how: reading.Reading, unread: str, doubt: str) -> list[Line]:
    """Return how the text of a file is written, as far as it is not written as most are."""
    unsure = f"unsure: {doubt}" if doubt else ""
    lines = [Line("decimal", how.decimal, unsure)] if how.decimal != "." or doubt else []
    if how.date_format or unread:
        hint = "" if how.date_format else f"missing: {reading.date_hint(unread, used='')}"
        lines.append(Line("date_format", how.date_format, hint))
    if text := look.source.text:
        guessed = "unsure: guessed from the bytes; do names read right?"
        lines += [Line("separator", text.separator)] * (text.separator not in ("", ","))
        lines += [Line("encoding", text.encoding, guessed)] * (text.encoding != "utf-8")
    return lines


def _plain(text: str) -> list[str]:
    """Return the words of a name, without accents, case and signs; camelCase is divided.

    >>> _plain("InvoiceDate"), _plain("Stück-Preis")
    (['invoice', 'date'], ['stuck', 'preis'])
    """
    letters = unicodedata.normalize("NFKD", text)
    text = "".join(letter for letter in letters if not unicodedata.combining(letter))
    text = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", text)
    return re.findall(r"[^\W_]+", text.casefold())[:20]


@cache
def _usual(section: str, name: str) -> tuple[list[str], list[str]]:
    """Return the words before and after the bar of an entry of usual_names.toml."""
    text = Path(__file__).with_name("usual_names.toml").read_text(encoding="utf-8")
    halves = tomllib.loads(text)[section].get(name, "").partition("|")
    first, _, second = (["".join(_plain(word)) for word in half.split()] for half in halves)
    return first, second


def _named(origin: str, table: tables.Table) -> bool:
    """Tell whether a file or a table of a database is called as such tables are."""
    usual = [table.name, *_usual("tables", table.name)[0]]
    return any(
        word.startswith(one) or (not one.isascii() and one in word)
        for word in _plain(origin)
        for one in usual
    )


@cache
def how_usual(own: str, column: tables.Column) -> float:
    """Say how usual a name is for a column of the contract: 1 its own, 0 not at all.

    >>> how_usual("CustomerID", tables.TRANSACTIONS.column("customer_id"))
    1.0
    """
    parts, others = _usual("columns", column.name)
    known = ["".join(_plain(column.name)), *parts, *others]
    if column.required and column.kind in DAYS:
        known += _usual("columns", "when")[0]
    affix = ID if column.name.endswith("_id") else DAY if column.kind in DAYS else None
    words = [word for word in _plain(own) if word not in _usual("columns", "noise")[0]]
    whole = "".join(words)
    forms = [whole, affix.sub("", whole, count=1), affix.sub("", whole)] if affix else [whole]
    if found := [form for form in forms if form in known]:
        return 1 - known.index(found[0]) / 200
    # A part is enough only where the rest says that it is an id, or a day, just as the column is.
    ends = {*words[:1], *words[-1:]}
    if any((affix is kind) != any(not kind.sub("", end) for end in ends) for kind in (ID, DAY)):
        return 0
    inner = {"".join(words[i:j]) for i in range(len(words)) for j in range(i, len(words) + 1)}
    return PART if inner & set(parts) else 0


def _fits(look: Look, table: tables.Table) -> tuple[reading.Reading, Fits, str]:
    """Return how the table is read, what might be which column, and a doubt about decimals."""
    owns, named = look.sample.columns, _named(look.origin, table)
    usual = {(c, own): rate for c in table.columns for own in owns if (rate := how_usual(own, c))}
    if named and len(table.key) == 1:
        key = table.column(table.key[0])
        usual |= {(key, own): BARE_ID for own in owns if not ID.sub("", "".join(_plain(own)))}
    sure = {own for (_, own), rate in usual.items() if rate > SURE}
    usual = {pair: rate for pair, rate in usual.items() if rate > SURE or pair[1] not in sure}
    if table.name == "transactions":
        usual |= {(UNIT_PRICE, own): PRICE for own in owns if how_usual(own, UNIT_PRICE)}
        if named and not any(column.kind in DAYS for column, _ in usual):
            day = table.column("purchased_at")
            usual |= {(day, own): BY_VALUES for own in owns if own not in sure}
    text = {o for o in owns if look.source.is_file and look.sample[o].type().is_string()}
    numbers = tuple(own for c, own in usual if own in text and c.kind in NUMBERS)
    days = tuple(own for c, own in usual if own in text and c.kind in DAYS)
    small, doubt = {own for c, own in usual if c.within}, ""
    try:
        decimal = files.guess_decimal(look.sample, numbers, small)
    except DataError as error:
        decimal, doubt = ".", str(error)
    how = reading.Reading(
        table.name, look.source.label, look.origin, "duckdb", look.source.is_file, "UTC",
        decimal=decimal, date_format=_date_format(look, days),
    )  # fmt: skip
    fits = {(c.name, own): _fit(look, own, c, table, how, rate) for (c, own), rate in usual.items()}
    for name, price in [pair for pair in fits if pair[0] == UNIT_PRICE.name]:
        fits["amount", price] = each = fits.pop((name, price))
        for own, fit in [(own, fit) for (n, own), fit in fits.items() if n == "quantity"]:
            share, why = min(fit.share, each.share), fit.why or each.why
            fits["amount", f"{own} * {price}"] = Fit(PRODUCT, share, why)
    return how, fits, doubt


@lru_cache(maxsize=4)  # the tables of the contract ask for much the same
def _date_format(look: Look, columns: tuple[str, ...]) -> str:
    return files.guess_dates(look.source.rows, columns)


def _fit(
    look: Look,
    own: str,
    column: tables.Column,
    table: tables.Table,
    how: reading.Reading,
    usual: float,
) -> Fit:
    """Read the first rows of a column as one of the contract."""
    value = look.sample[own]
    try:
        read = reading.typed(value, column, replace(how, columns={column.name: own}))
    except DataError as error:
        return Fit(usual, 0, str(error))
    given = reading.blank_to_null(value)
    unread = read.isnull().ifelse(given.cast("string"), None).min()
    counts = {"given": given.count(), "read": read.count(), "different": given.nunique()}
    [seen] = look.sample.aggregate(**counts, unread=unread).to_pyarrow().to_pylist()
    share, unread, why = seen["read"] / max(seen["given"], 1), seen["unread"] or "", ""
    # A day that is only written in a way still to be said will do.
    to_say = value.type().is_string() and column.kind in DAYS and usual > SURE
    if not seen["given"]:
        why = "it is empty"
    elif share < FITS and not (to_say and re.match(r"\d", unread)):
        why = f"{1 - share:.0%} of it is no {column.kind}, such as {unread!r}"
    elif column.name.endswith("_id") and seen["given"] > 1 == seen["different"]:
        why = "it is the same in every row"
    elif table.key == (column.name,) and seen["different"] < 0.95 * seen["given"]:
        why = "the same one stands in several rows"
    return Fit(usual, share, why, unread)
