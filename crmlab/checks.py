"""What the check of a table found: counts, examples, and whether the table can be used at all."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from crmlab import reading, results, tables
from crmlab.tables import DataError

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class TableCheck:
    """What the check of one table found; money is the sum of `amount` in shop currency.

    rows = used + set aside + later, and so for money (rows whose amount cannot be read have none).
    """

    table: str
    source: str
    rows: int
    used: int
    later: int
    used_money: float
    later_money: float
    set_aside: dict[str, tuple[int, float]]
    examples: dict[str, str]
    kept: dict[str, int]
    first: dt.date | None
    last: dt.date | None
    read_as: str = ""

    @property
    def rows_set_aside(self) -> int:
        """The number of rows set aside by any rule."""
        return sum(rows for rows, _ in self.set_aside.values())

    @property
    def money(self) -> float:
        """All money that was read: used, later and set aside, as far as it could be read."""
        aside = (money for _, money in self.set_aside.values() if money == money)
        return self.used_money + self.later_money + sum(aside)

    def left_out(self) -> pd.DataFrame:
        """Return what was read, used and left out: columns `what`, `rows`, `money`."""
        import pandas as pd

        nan = float("nan")
        lines = [("rows read", self.rows, self.money), ("used", self.used, self.used_money)]
        lines += [(f"set aside: {rule}", n, money) for rule, (n, money) in self.set_aside.items()]
        lines += [("after the day looked at", self.later, self.later_money)]
        lines += [(f"noted: {rule}", n, nan) for rule, n in self.kept.items()]
        return pd.DataFrame(lines, columns=["what", "rows", "money"])

    def to_frame(self) -> pd.DataFrame:
        """Return the same as `left_out`."""
        return self.left_out()

    def __str__(self) -> str:
        """Print the check as a table for the terminal."""
        head = f"{self.table} from {self.source}"
        if self.first and self.last:
            head += f", {self.first} to {self.last}"
        lines = [head, *([f"  read as {self.read_as}"] if self.read_as else [])]
        frame = self.left_out()
        with_money = bool(frame["money"].fillna(0).any())
        frame = frame[(frame["rows"] > 0) | frame["what"].isin(["rows read", "used"])]
        for line in frame.itertuples(index=False):
            example = self.examples.get(line.what.removeprefix("set aside: "), "")
            money = f"{line.money:,.2f}" if line.money == line.money else ""
            lines.append(
                f"  {line.rows:>12,}{f'{money:>18}' * with_money}  {line.what}"
                f"{f', such as {example!r}' * bool(example)}"
            )
        if with_money:
            lines.insert(
                -len(frame), f"  {'rows':>12}{'money' if self.table != 'points' else 'points':>18}"
            )
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        numbers = results.Numbers()
        return results.html_table(
            self.left_out(),
            title=f"{self.table} from {self.source}",
            formats={"rows": numbers.number, "money": lambda money: numbers.number(money, 2)},
        )


# A line that no table can hold; found when the file is read, so it is no row-wise rule.
BAD_LINE = "line with another number of cells than the header"


def summarise(
    table: tables.Table,
    source: str,
    groups: list[dict[str, Any]],
    *,
    noted: dict[str, int],
    bad_lines: list[str],
) -> TableCheck:
    """Add up what the engine counted: one group per rule broken, and per later or not.

    `noted` has what was counted apart, by the rule's name; `bad_lines` what no row could hold.
    """
    used = [group for group in groups if group["rule"] is None and not group["later"]]
    later = [group for group in groups if group["rule"] is None and group["later"]]
    bad = sorted((group for group in groups if group["rule"] is not None), key=lambda g: g["rule"])
    columns = {rule.name: rule.column for rule in table.rules}

    def total(some: list[dict[str, Any]], name: str) -> Any:
        return sum((group.get(name) or 0 for group in some), 0)

    kept = {
        rule.name: int(total(used, f"kept {n}"))
        for n, rule in enumerate(table.rules)
        if rule.severity == "kept"
    } | {tables.NO_GOODS: int(total(used, "no goods")), **noted}
    # The amount of a row whose amount cannot be read is not zero, it is not known.
    set_aside = {
        g["rule"]: (int(g["rows"]), float("nan" if g["money"] is None else g["money"])) for g in bad
    }
    if bad_lines:
        set_aside[BAD_LINE] = (len(bad_lines), float("nan"))
    return TableCheck(
        table=table.name,
        source=source,
        rows=int(total(groups, "rows")) + len(bad_lines),
        used=int(total(used, "rows")),
        later=int(total(later, "rows")),
        used_money=float(total(used, "money")),
        later_money=float(total(later, "money")),
        set_aside=set_aside,
        examples={
            g["rule"]: str(example)[:80]
            for g in bad
            if (example := g.get(f"given {columns.get(g['rule'], '')}")) is not None
        }
        | ({BAD_LINE: bad_lines[0][:80]} if bad_lines else {}),
        kept={rule: n for rule, n in kept.items() if n},
        first=min((g["first"] for g in used + later if g["first"]), default=None),
        last=max((g["last"] for g in used + later if g["last"]), default=None),
    )


def refuse_unusable(table: tables.Table, check: TableCheck, date_format: str) -> None:
    """Raise `DataError` for an empty table, or one of which most rows cannot be used."""
    if check.rows == 0 and table.name == "transactions":
        raise DataError(
            f"Table '{table.name}' ({check.source}) is empty: it has columns but no rows."
        )
    if check.rows_set_aside * 2 <= check.rows:
        return
    rule = max(check.set_aside, key=lambda name: check.set_aside[name][0])
    example = check.examples.get(rule, "")
    column = next((r.column for r in table.rules if r.name == rule), "")
    advice = "Look at which column it is taken from"
    if rule.endswith("unreadable") and table.column(column).kind in ("timestamp", "date"):
        advice = reading.date_hint(example, used=date_format)
    elif rule.endswith("unreadable") and table.column(column).kind == tables.MONEY:
        advice = 'If it has a decimal comma, say decimal = ","'
    elif rule == BAD_LINE:
        advice = 'Name the mark between the cells, such as separator = ";",'
    raise DataError(
        f"Table '{table.name}' ({check.source}): {check.rows_set_aside:,} of {check.rows:,} rows "
        f"cannot be used, most for '{rule}'{f', such as {example!r}' * bool(example)}. {advice} "
        f"under [tables.{table.name}] in shop.toml."
    )
