"""What the check of a table found: counts, examples, and whether the table can be used at all."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from crmlab import results, tables
from crmlab.settings import TableSettings
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

    @property
    def rows_set_aside(self) -> int:
        """The number of rows set aside by any rule."""
        return sum(rows for rows, _ in self.set_aside.values())

    def left_out(self) -> pd.DataFrame:
        """Return what was read, used and left out: columns `what`, `rows`, `money`."""
        import pandas as pd

        nan = float("nan")
        lines = [("rows read", self.rows, nan), ("used", self.used, self.used_money)]
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
        lines = []
        for line in self.left_out().itertuples(index=False):
            example = self.examples.get(line.what.removeprefix("set aside: "), "")
            lines.append(
                f"  {line.rows:>12,}  {line.what}{f', such as {example!r}' * bool(example)}"
            )
        return "\n".join([head, *lines])

    def _repr_html_(self) -> str:
        numbers = results.Numbers()
        return results.html_table(
            self.left_out(),
            title=f"{self.table} from {self.source}",
            formats={"rows": numbers.number, "money": lambda money: numbers.number(money, 2)},
        )


def summarise(
    table: tables.Table, source: str, groups: list[dict[str, Any]], equal_lines: int
) -> TableCheck:
    """Add up what the engine counted: one group per rule broken, and per later or not."""
    used = [group for group in groups if group["rule"] is None and not group["later"]]
    later = [group for group in groups if group["rule"] is None and group["later"]]
    bad = sorted((group for group in groups if group["rule"] is not None), key=lambda g: g["rule"])

    def total(some: list[dict[str, Any]], name: str) -> Any:
        return sum((group.get(name) or 0 for group in some), 0)

    kept = {
        rule.name: int(total(used, f"kept {n}"))
        for n, rule in enumerate(table.rules)
        if used and f"kept {n}" in used[0]
    }
    if no_goods := int(total(used, "no goods")):
        kept[tables.NO_GOODS] = no_goods
    return TableCheck(
        table=table.name,
        source=source,
        rows=int(total(groups, "rows")),
        used=int(total(used, "rows")),
        later=int(total(later, "rows")),
        used_money=float(total(used, "money")),
        later_money=float(total(later, "money")),
        # The amount of a row whose amount cannot be read is not zero, it is not known.
        set_aside={
            g["rule"]: (int(g["rows"]), float("nan" if g["money"] is None else g["money"]))
            for g in bad
        },
        examples={
            g["rule"]: str(g[f"given {g['rule'].split(' ')[0]}"])
            for g in bad
            if g["rule"].endswith("unreadable")
        },
        kept={rule: n for rule, n in kept.items() if n}
        | ({tables.DUPLICATE_LINES: equal_lines} if equal_lines else {}),
        first=min((g["first"] for g in used + later if g["first"]), default=None),
        last=max((g["last"] for g in used + later if g["last"]), default=None),
    )


def refuse_unusable(table: tables.Table, check: TableCheck, setting: TableSettings) -> None:
    """Raise `DataError` for an empty table, or one of which most rows cannot be used."""
    if check.rows == 0:
        raise DataError(
            f"Table '{table.name}' ({check.source}) is empty: it has columns but no rows."
        )
    if check.rows_set_aside * 2 <= check.rows:
        return
    rule = max(check.set_aside, key=lambda name: check.set_aside[name][0])
    example = check.examples.get(rule, "")
    advice = {
        "purchased_at unreadable": tables.date_hint(example, used=setting.date_format),
        "amount unreadable": 'If it has a decimal comma, say decimal = ","',
    }.get(rule, "Look at which column it is taken from")
    raise DataError(
        f"Table '{table.name}' ({check.source}): {check.rows_set_aside:,} of {check.rows:,} rows "
        f"cannot be used, most for '{rule}'{f', such as {example!r}' * bool(example)}. {advice} "
        f"under [tables.{table.name}] in shop.toml."
    )
