"""How an answer prints, what a notebook publishes, and the suppression of small cells."""

from __future__ import annotations

import datetime as dt
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Protocol, SupportsFloat

if TYPE_CHECKING:
    import ibis.expr.types as ir
    import pandas as pd

MIME_TYPE = "application/vnd.crmlab+json"
NOTHING = "–"

KpiKind = Literal["count", "money", "share", "signed_share"]


@dataclass(frozen=True)
class Numbers:
    r"""Prints numbers as the shop's readers write them; what cannot be said prints as a dash.

    >>> Numbers("de_DE", "EUR").money(1234.5)
    '1.234,50\xa0€'
    """

    locale: str = "en_US"
    currency: str = "USD"

    def number(self, value: float, digits: int = 0) -> str:
        """Print a plain number with so many decimals."""
        from babel.numbers import format_decimal

        if not _finite(value):
            return NOTHING
        pattern = "#,##0" + ("." + "0" * digits if digits else "")
        rounded = round(value, digits) + 0.0  # no minus before a zero
        return format_decimal(rounded, format=pattern, locale=self.locale).replace("-", "−")

    def km(self, value: float) -> str:
        """Print a distance without its unit; with a decimal only where it has one."""
        rounded = round(value, 2) if _finite(value) else 0.0
        return self.number(value, 0 if rounded % 1 == 0 else 1 if rounded * 10 % 1 == 0 else 2)

    def money(self, value: float, digits: int | None = None) -> str:
        """Print an amount in shop currency; by default with cents up to ten thousand."""
        from babel.numbers import format_currency, get_currency_precision

        if not _finite(value):
            return NOTHING
        if digits is None:
            digits = get_currency_precision(self.currency) if abs(value) < 10_000 else 0
        # Babel's own pattern knows where the sign goes; only the decimals are ours.
        text = format_currency(
            round(value, digits) + 0.0,
            self.currency,
            locale=self.locale,
            currency_digits=False,
            format=self._money_pattern(digits),
        )
        return text.replace("-", "−")

    def _money_pattern(self, digits: int) -> str:
        from babel import Locale

        pattern = str(Locale.parse(self.locale).currency_formats["standard"].pattern)
        return pattern.replace(".00", "." + "0" * digits if digits else "")

    def short_money(self, value: float) -> str:
        """Print an amount to three digits, such as $1.23M or $238K."""
        from babel.numbers import format_compact_currency

        if not _finite(value):
            return NOTHING
        if abs(value) < 10_000:
            return self.money(value, 0 if abs(value) >= 1_000 else None)
        digits = 2 - math.floor(math.log10(abs(value))) % 3
        rounded = float(f"{value:.3g}")
        text = format_compact_currency(
            rounded, self.currency, locale=self.locale, fraction_digits=digits
        )
        # Some languages have no short word for a thousand; the digits then need their marks.
        return self.money(rounded, 0) if re.search(r"\d{4}", text) else text.replace("-", "−")

    def percent(self, value: float, digits: int = 1, *, signed: bool = False) -> str:
        """Print a share of 1 as percent; `signed` shows the plus too."""
        from babel import Locale
        from babel.numbers import format_percent

        if not _finite(value):
            return NOTHING
        pattern = Locale.parse(self.locale).percent_formats[None].pattern
        decimals = "." + "0" * digits if digits else ""
        text = format_percent(
            abs(value), format=pattern.replace("##0", f"##0{decimals}"), locale=self.locale
        )
        zero = round(abs(value) * 100, digits) == 0
        sign = "" if zero else "−" if value < 0 else "+" if signed else ""
        return sign + text

    def day(self, value: dt.date) -> str:
        """Print a date in words short enough for a table."""
        from babel.dates import format_date

        return format_date(value, format="medium", locale=self.locale)

    def kpi(self, value: float, kind: KpiKind) -> str:
        """Print the figure of a tile."""
        printers: dict[str, Callable[[float], str]] = {
            "count": self.number,
            "money": self.short_money,
            "share": self.percent,
            "signed_share": lambda share: self.percent(share, signed=True),
        }
        return printers[kind](value)


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


class _Says(Protocol):
    @property
    def verdict(self) -> str: ...
    @property
    def rows(self) -> pd.DataFrame: ...


class Answer:
    """What an answer with a verdict and rows does: it says the one and gives the other."""

    def __str__(self: _Says) -> str:
        """Say the verdict."""
        return self.verdict

    def to_frame(self: _Says) -> pd.DataFrame:
        """Return the table."""
        return self.rows.copy()


@dataclass(frozen=True)
class Kpi:
    """One tile: `value` in the unit that `kind` names; `better` says which way is good."""

    label: str
    value: float
    kind: KpiKind
    better: Literal["up", "down", ""] = ""
    note: str = ""


def html_table(
    frame: pd.DataFrame,
    *,
    title: str,
    formats: Mapping[str, Callable[[Any], str]] | None = None,
    headings: Mapping[str, str] | None = None,
) -> str:
    """Return the frame as an HTML table with a caption; every text in it is escaped.

    Parameters
    ----------
    frame : DataFrame, one row per line of the table; the index is not shown
    title : str, the caption
    formats : column -> function that prints one value; these columns are set as numbers
    headings : column -> the words above it, where they differ from its name
    """
    formats, headings = formats or {}, headings or {}
    classes = {name: ' class="num"' if name in formats else "" for name in frame.columns}
    head = "".join(
        f'<th scope="col"{classes[name]}>{escape(headings.get(name, str(name)))}</th>'
        for name in frame.columns
    )
    body = []
    for row in frame.itertuples(index=False, name=None):
        cells = [
            (
                classes[name] + _sorted_by(value, name in formats),
                escape(formats.get(name, _plain)(value)),
            )
            for name, value in zip(frame.columns, row, strict=True)
        ]
        first, *rest = [f"<td{css}>{text}</td>" for css, text in cells]
        first = first.replace("<td", '<th scope="row"', 1).replace("</td>", "</th>")
        body.append(f"<tr>{first}{''.join(rest)}</tr>")
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(title)}"><table>'
        f"<caption>{escape(title)}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _sorted_by(value: Any, is_number: bool) -> str:
    """Return what the page's script sorts a number by: the reader's marks differ by language."""
    if is_number and isinstance(value, SupportsFloat) and math.isfinite(value):
        return f' data-value="{float(value):.6g}"'
    return ""


def _plain(value: Any) -> str:
    return NOTHING if value is None or value != value else str(value)


def merge_small_cells(
    cells: pd.DataFrame,
    *,
    label: str,
    customers: str,
    k: int,
    largest: Mapping[str, str] | None = None,
    parts: Sequence[str] = (),
) -> pd.DataFrame:
    """Merge the cells of fewer than `k` customers, so that the table can go on a manager's page.

    Small cells become one row "other"; as long as that has fewer than `k` customers, the next
    smallest cell joins it. A column of sums is blanked where one customer brings half or more of
    any of them. Fewer than `k` customers in all give an empty table.

    Parameters
    ----------
    cells : DataFrame, one row per cell: `label`, the number of `customers`, and columns that add up
    k : int, the smallest number of customers that may be shown
    largest : sum column -> column with the largest customer's part of it; the latter is not
        returned. Every other column besides `label` must add up over cells.
    parts : columns that count some of a cell's customers, such as those who left; a cell with
        between 1 and `k` - 1 in one of them, or in the rest of one, is small too
    """
    import pandas as pd

    largest = largest or {}
    cells = cells.reset_index(drop=True)
    too_few = (cells[customers] < k) | _any_few(cells, customers, k, parts)
    ordered = cells.assign(large=~too_few).sort_values(["large", customers, label], kind="stable")
    merged = int(too_few.sum())
    grown = ordered[[customers, *parts]].cumsum()
    small = ((grown[customers] < k) | _any_few(grown, customers, k, parts)).to_numpy()
    while 0 < merged < len(cells) and small[merged - 1]:
        merged += 1
    kept = cells.drop(index=ordered.index[:merged])
    if merged and not small[merged - 1]:
        small = cells.loc[ordered.index[:merged]]
        row: dict[str, Any] = {
            name: "other"
            if name == label
            else small[name].abs().max()
            if name in largest.values()
            else small[name].sum()
            for name in cells.columns
        }
        kept = pd.concat([kept.astype({label: object}), pd.DataFrame([row])], ignore_index=True)
    for total, part in largest.items():
        # All or none of a column: one blank could be found again by taking the rest from the sum.
        most = kept[part].abs()
        dominated = bool(((most * 2 >= kept[total].abs()) & (most > 0)).any())
        kept[total] = float("nan") if dominated else kept[total].astype(float)
    return kept.drop(columns=list(largest.values())).reset_index(drop=True)


def hidden(
    cells: pd.DataFrame,
    *,
    counts: Sequence[str],
    k: int,
    largest: Mapping[str, str] | None = None,
    last: str = "",
) -> pd.Series[bool]:
    """Tell which cells may not be told, where each keeps its place instead of joining "other".

    A cell with between 1 and `k` - 1 customers in one of the `counts` is hidden, and so is one of
    which a single customer brings half or more. Empty cells are shown as empty, so that whoever
    takes what is shown from the total knows that each hidden cell holds somebody: the next smallest
    are hidden too until one could hold anything from 1 to more than `k` customers. Where even all
    cells are too few, all that are not empty are hidden, and their total must not be told either.

    Parameters
    ----------
    cells : DataFrame, one row per cell; together they are all customers
    counts : columns that add up, the number of customers first; of a part, its rest belongs here
    largest : sum column -> column with the largest customer's part of it
    last : a column that is true for cells that are hidden for their own sake only
    """
    largest = largest or {}
    few_ones = [(cells[name] > 0) & (cells[name] < k) for name in counts]
    ruled = [
        (cells[of] > 0) & (cells[of] * 2 >= cells[total].abs()) for total, of in largest.items()
    ]
    found: pd.Series[bool] = sum([*few_ones, *ruled], start=cells[counts[0]] < 0) > 0
    others = cells[~found & (cells[counts[0]] > 0)]
    others = others[~others[last].astype(bool)] if last else others
    joining = list(others.sort_values(list(counts), kind="stable").index)
    while found.any() and _can_be_found(cells[found], counts, k, largest):
        if not joining:
            return cells[counts[0]] > 0
        found[joining.pop(0)] = True
    return found


def _can_be_found(
    cells: pd.DataFrame, counts: Sequence[str], k: int, largest: Mapping[str, str]
) -> bool:
    """Tell whether the total of hidden cells says too much of one of them."""
    return (
        cells[counts[0]].sum() - len(cells) < k
        or any(few(cells[name].sum(), k) for name in counts)
        or any(cells[of].max() * 2 >= abs(cells[total].sum()) > 0 for total, of in largest.items())
    )


def few(count: float, k: int) -> bool:
    """Whether so many customers are somebody, but too few to be told of."""
    return 0 < count < k


def _any_few(cells: pd.DataFrame, customers: str, k: int, parts: Sequence[str]) -> pd.Series[bool]:
    """Tell for each cell whether one of its parts, or what is left without it, is too small."""
    found = cells[customers] < 0
    for part in parts:
        for count in (cells[part], cells[customers] - cells[part]):
            found |= (count > 0) & (count < k)
    return found


def publish(
    *,
    summary: str,
    kpis: Sequence[Kpi] = (),
    left_out: pd.DataFrame | None = None,
    tables: Mapping[str, ir.Table] | None = None,
    files: Mapping[str, str] | None = None,
    numbers: Numbers | None = None,
    used: Mapping[str, Any] | None = None,
) -> None:
    """Hand the runner what goes to the manager: the summary, the tiles, what was left out.

    Shows the same as an output of the cell. Tables are written as Parquet to `$CRMLAB_RUN_DIR`,
    the run's private folder; without that variable nothing is written.

    Parameters
    ----------
    summary : str, the answer in plain words
    kpis : the tiles, in order
    left_out : DataFrame, columns `what`, `rows`, `money`: see `sources.TableCheck.left_out`
    tables : name -> table with one row per customer; stays private
    files : name with its ending -> text to write beside them, such as GeoJSON; stays private
    numbers : how figures print; the shop's `numbers`
    used : parameter -> what the notebook took where it was left empty, for the page's end
    """
    from IPython.display import display

    numbers = numbers or Numbers()
    for name, table in (tables or {}).items():
        if folder := os.environ.get("CRMLAB_RUN_DIR"):
            if not name.isidentifier():
                raise ValueError(f"A published table needs a plain name, not {name!r}.")
            table.to_parquet(str(Path(folder, f"{name}.parquet")))
    for name, text in (files or {}).items():
        if folder := os.environ.get("CRMLAB_RUN_DIR"):
            if not re.fullmatch(r"\w+\.\w+", name):
                raise ValueError(f"A published file needs a plain name, not {name!r}.")
            Path(folder, name).write_text(text, encoding="utf-8")
    tiles = [
        {**asdict(kpi), "value": float(kpi.value), "text": numbers.kpi(kpi.value, kpi.kind)}
        for kpi in kpis
    ]
    lines = [] if left_out is None else left_out.astype(object).to_dict("records")
    payload = {
        "summary": summary,
        "kpis": [{**tile, "value": _json_number(tile["value"])} for tile in tiles],
        "left_out": [
            {
                "what": str(line["what"]),
                "rows": int(line["rows"]),
                "money": _json_number(float(line["money"])),
            }
            for line in lines
        ],
        "used": {
            name: value if isinstance(value, bool) else str(value)
            for name, value in (used or {}).items()
        },
    }
    figures = "".join(
        f"<li><strong>{escape(str(t['text']))}</strong> {escape(t['label'])}</li>" for t in tiles
    )
    twin = f"<p>{escape(summary)}</p><ul>{figures}</ul>"
    display({MIME_TYPE: payload, "text/html": twin}, raw=True)


def on_page() -> bool:
    """Whether the notebook runs for a page: then nothing of a single customer may be shown."""
    return "CRMLAB_RUN_DIR" in os.environ


class PageEnds(Exception):  # noqa: N818 it is no error
    """A notebook has said all that its data allow; what follows is left out of the page."""

    def _render_traceback_(self) -> list[str]:
        """Show an analyst one sentence in place of a traceback."""
        return [f"The notebook ends here. {self}"]


def end_page(
    *,
    summary: str,
    kpis: Sequence[Kpi] = (),
    left_out: pd.DataFrame | None = None,
    numbers: Numbers | None = None,
) -> NoReturn:
    """Publish what can still be said, as `publish` does, and end the page where it stands.

    The runner takes the `PageEnds` that this raises for a good page without the rest.
    """
    publish(summary=summary, kpis=kpis, left_out=left_out, numbers=numbers)
    raise PageEnds(summary)


def _json_number(value: float) -> float | None:
    """Round to 12 digits: the last ones of a sum depend on the order in which threads add up."""
    return float(f"{value:.12g}") if math.isfinite(value) else None
