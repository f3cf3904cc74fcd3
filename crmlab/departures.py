"""Who went and who came back: valuable customers who became lost, and lost ones who returned."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from crmlab import effects, results, tables
from crmlab.stocks import Table

if TYPE_CHECKING:
    import ibis.expr.types as ir
    import pandas as pd

    from crmlab.profiles import Base

NO_CASE = "no case"
# By how many equal parts the active customers are told, most first, as far as each is large enough.
PARTS = {
    5: ("top fifth", "second fifth", "third fifth", "fourth fifth", "last fifth"),
    3: ("top third", "second third", "last third"),
    2: ("upper half", "lower half"),
    1: ("all",),
}


def reactivated(base: Base) -> Table:
    """Tell how many of those lost at `since` came back, and how many of them after a contact.

    Returns
    -------
    Table, one row per group of those lost at the end of `since`: group; customers; came back, how
    many of them are lost no more; share. Contacted is who was sent something since then and not
    only after coming back. They were chosen, so that their share is no effect of the contact; where
    a randomised campaign drew arms from them since then, `verdict` compares these too.

    Raises
    ------
    DataError if those lost, those who came back or those who did not are too few to tell
    """
    import ibis
    import pandas as pd

    k, n, shop = base.k, base.shop.numbers, base.shop
    _refuse_few_moved(base)
    rows = base.rows.filter(base.rows.before == "lost").mutate(back=base.rows.stage != "lost")
    contacts = _contacts(base)
    if contacts is not None:
        sent = contacts.filter(contacts.sent_on.notnull(), contacts.arm != "holdout")
        each = sent.group_by("customer_id").aggregate(sent_on=sent.sent_on.min())
        rows = rows.left_join(each, "customer_id").drop("customer_id_right")
        reached = (rows.sent_on <= rows.returned_on) | rows.returned_on.isnull()
        reached = (rows.sent_on.notnull() & reached).fill_null(False)
        rows = rows.mutate(group=reached.ifelse("contacted before", "not contacted"))
    else:
        rows = rows.mutate(group=ibis.literal("all"))
    counted = rows.group_by("group").aggregate(
        customers=rows.count(), came_back=rows.count(where=rows.back)
    )
    found = counted.to_pandas().sort_values("group").reset_index(drop=True)
    lost, came_back = int(found["customers"].sum()), int(found["came_back"].sum())
    if lost < k or any(results.few(count, k) for count in (came_back, lost - came_back)):
        raise tables.DataError(
            f"Fewer than {k} customers were lost on {base.since}, came back since, or stayed away."
        )
    found = results.merge_small_cells(
        found, label="group", customers="customers", k=k, parts=["came_back"]
    )
    compared = _held_out(base, rows, contacts, lost, came_back)
    told = [arm for _, *arms in compared for arm in arms]
    sides = [(row.customers, row.came_back) for row in found.itertuples()]
    # Beside the arms, counts of the groups would tell of those few who are in one and not in the
    # other; a rate in whole percent does not.
    alike = any(results.few(abs(a - b), k) for side in sides for arm in told
                for a, b in zip(side, arm, strict=True))  # fmt: skip
    said = _after_contact(found, n, contacts is not None, shop.has("contacts"), 0 if alike else 1)
    found = found.iloc[:0] if alike else found
    if len(found) == 1:
        found["group"] = "all"
    else:
        total = pd.DataFrame([{"group": "all", "customers": lost, "came_back": came_back}])
        found = pd.concat([found, total], ignore_index=True)
    found["share"] = found["came_back"] / found["customers"]
    verdict = (
        f"{n.number(came_back)} of {n.number(lost)} customers who were lost on "
        f"{n.day(base.since)} came back since. {said}"
    )
    verdict = " ".join(filter(None, [verdict.strip(), *(sentence for sentence, *_ in compared)]))
    shown = found.rename(columns={"came_back": "came back"})
    return Table("Who came back", shown, verdict, n, (), ("share",))


def _after_contact(
    found: pd.DataFrame, n: results.Numbers, in_period: bool, has: bool, digits: int
) -> str:
    """Say what the return rates of the contacted and the others do and do not tell."""
    shares = found.set_index("group")
    if {"contacted before", "not contacted"} <= set(shares.index):
        rates = shares["came_back"] / shares["customers"]
        return (
            f"{n.percent(rates['contacted before'], digits)} of those contacted came back, and "
            f"{n.percent(rates['not contacted'], digits)} of the others: after the contact, not "
            "because of it, as those contacted were chosen."
        )
    if in_period:
        return "Too few of them were contacted, or left alone, to compare the two."
    return "Nobody was contacted since." if has else "Who was contacted is not known here."


def _contacts(base: Base) -> ir.Table | None:
    """Return who was assigned or sent something since: customer, campaign, arm and the days.

    Where the log of contacts has no day of sending, the day of assignment stands for it. None if
    there was nothing.
    """
    import ibis

    shop = base.shop
    if not shop.has("contacts"):
        return None
    rows = shop.table("contacts")
    sent = rows.sent_at if "sent_at" in rows.columns else rows.assigned_at
    rows = rows.select(
        "customer_id", "campaign_id", "arm",
        assigned_on=rows.assigned_at.date(), sent_on=sent.date(),
    )  # fmt: skip
    since, until = ibis.literal(base.since), ibis.literal(base.as_of)
    rows = rows.filter(
        ((rows.sent_on > since) & (rows.sent_on <= until)).fill_null(False)
        | ((rows.assigned_on > since) & (rows.assigned_on <= until))
    )
    rows = shop.landed(rows, "contacts")
    in_period = (rows.sent_on > since) & (rows.sent_on <= until)
    rows = rows.mutate(sent_on=in_period.ifelse(rows.sent_on, ibis.null("date")))
    return rows if rows.count().to_pyarrow().as_py() else None


def _held_out(
    base: Base, rows: ir.Table, contacts: ir.Table | None, lost: int, back: int
) -> list[tuple[Any, ...]]:
    """Compare the arms of each randomised campaign drawn since: a sentence, and what it counts.

    Among those lost at `since` who had not come back before the arms were drawn, by the arm that
    they were given, sent or not.
    """
    import ibis

    shop, n, k = base.shop, base.shop.numbers, base.k
    if contacts is None or not shop.has("campaigns"):
        return []
    campaigns = shop.table("campaigns")
    if "randomised" not in campaigns.columns:
        return []
    name = campaigns["name"] if "name" in campaigns.columns else campaigns.campaign_id
    drawn = campaigns.filter(campaigns.randomised.fill_null(False))
    drawn = shop.landed(drawn.select(id="campaign_id", name=name), "drawn")
    drawn_on = (contacts.assigned_on > ibis.literal(base.since)) & (
        contacts.assigned_on <= ibis.literal(base.as_of)
    )
    arms = contacts.filter(drawn_on).left_join(drawn, contacts.campaign_id == drawn.id)
    arms = arms.filter(arms["id"].notnull())
    arms = arms.select("customer_id", "id", "name", "arm", "assigned_on")
    rows = rows.select(who="customer_id", back="back", returned_on="returned_on")
    arms = arms.left_join(rows, arms.customer_id == rows.who)
    arms = arms.filter(
        arms.who.notnull(), arms.returned_on.isnull() | (arms.returned_on >= arms.assigned_on)
    )
    counted = arms.group_by("id", "name", held=arms.arm == "holdout").aggregate(
        customers=arms.count(), back=arms.count(where=arms.back)
    )
    said: list[tuple[Any, ...]] = []
    for (_, title), found in (
        counted.order_by("id").to_pandas().groupby(["id", "name"], dropna=False)
    ):
        cells: dict[bool, Any] = {row.held: (int(row.back), int(row.customers))
                                  for row in found.itertuples()}  # fmt: skip
        safe = [
            m >= k and not any(results.few(count, k) for count in (x, m - x, lost - m, back - x))
            for x, m in cells.values()
        ]
        if len(cells) < 2 or not all(safe):
            said.append((f"Too few of them were in “{title}” to compare with its hold-out.",))
            continue
        (x1, n1), (x0, n0) = cells[False], cells[True]
        change, low, high = effects.newcombe(x1, n1, x0, n0)
        points = [n.number(100 * one, 1) for one in (change, low, high)]
        proof = "the contact did that" if low > 0 or high < 0 else "that may be chance"
        sentence = (
            f"In “{title}”, drawn by lot, {n.percent(x1 / n1)} of {n.number(n1)} contacted and "
            f"{n.percent(x0 / n0)} of {n.number(n0)} held out came back: {points[0]} percentage "
            f"points more (95% interval {points[1]} to {points[2]}), and {proof}."
        )
        said.append((sentence, (n1, x1), (n0, x0)))
    return said


def by_value(base: Base) -> tuple[int, pd.DataFrame]:
    """Count those declining and those who became lost in equal groups of the known by value.

    Returns how many groups, the most of `PARTS` in which each count is large enough to be told, or
    nobody; and a row per group: part, 0 for the most valuable; customers, declining, lost;
    at_stake, the value of the declining, and largest, the most valuable one's. Raises `DataError`
    if even all together are too few.
    """
    import ibis

    # Where too few moved, those who became lost are in no sum.
    rows = base.rows.filter(base.rows.stage != "lost" if base.closed else base.rows.known)
    place = ibis.rank().over(order_by=rows.value.desc())
    rows, k = rows.mutate(place=place, of=rows.count().over()), base.k
    slips, gone = rows.stage == "declining", rows.stage == "lost"
    for parts in PARTS:
        counted = rows.group_by(part=parts * rows.place // rows.of).aggregate(
            customers=rows.count(),
            declining=rows.count(where=slips),
            lost=rows.count(where=gone),
            at_stake=rows.value.sum(where=slips).fill_null(0.0),
            largest=rows.value.max(where=slips).fill_null(0.0),
        )
        found = counted.order_by("part").to_pandas()
        found["rest"] = found["customers"] - found["declining"] - found["lost"]
        counts = found[["customers", "declining", "lost", "rest"]].to_numpy()
        # Who spend the same stand together; then the groups are not so large as they are called.
        if parts > 1 and not _even(found["customers"], parts):
            continue
        if len(found) and not ((counts > 0) & (counts < k)).any():
            return parts, found
    raise tables.DataError(
        f"Too few customers of shop '{base.shop.id}' are declining, or became lost since "
        f"{base.since}, to tell of them by value: each group needs {k} or nobody."
    )


def _even(sizes: pd.Series[int], parts: int) -> bool:
    """Whether groups are about as large as their names say."""
    return len(sizes) == parts and bool((sizes - sizes.sum() / parts).abs().max() * parts
                                        <= 0.25 * sizes.sum())  # fmt: skip


def _refuse_few_moved(base: Base) -> None:
    if base.closed:
        raise tables.DataError(
            f"Fewer than {base.k} customers came, came back, stayed away or became lost since "
            f"{base.since}; any figure of them could be found from others."
        )


def lost_valuable(base: Base) -> Table:
    """Tell which of the valuable customers became lost since: by last case, return and store.

    Valuable is the first group of the early warning by value: the top fifth of those who were
    active at either day, or more of them where customers are few.

    Returns
    -------
    Table, one row per value: what; value, small ones together as "other"; valuable, customers;
    became lost, how many of them did; share

    Raises
    ------
    DataError if fewer than `privacy_k` valuable customers became lost, or did not
    """
    import pandas as pd

    k, n = base.k, base.shop.numbers
    _refuse_few_moved(base)
    # The groups of the early warning: other ones, beside it, would tell of those in between.
    number, _ = by_value(base)
    rows, top = _valuable(base, number), PARTS[number][0]
    whats = {"last line": rows.last_was_return.ifelse("a return", "a sale")}
    if base.shop.has("cases"):
        whats = {"last case": rows.last_case.fill_null(NO_CASE), **whats}
    if rows.store.notnull().any().to_pyarrow().as_py():
        whats["last store"] = rows.store.fill_null("unknown")
    parts = []
    for what, value in whats.items():
        counted = rows.group_by(value=value).aggregate(
            valuable=rows.count(), gone=rows.count(where=rows.gone)
        )
        found = counted.to_pandas().sort_values("value").reset_index(drop=True)
        lost, in_all = int(found["gone"].sum()), int(found["valuable"].sum())
        if lost < k or results.few(in_all - lost, k):
            raise tables.DataError(
                f"Fewer than {k} of the {n.number(in_all) if in_all >= k else 'few'} customers who "
                f"spend most ({top}) became lost since {base.since}."
            )
        kept = results.merge_small_cells(
            found, label="value", customers="valuable", k=k, parts=["gone"]
        )
        kept["what"], kept["share"] = what, kept["gone"] / kept["valuable"]
        # One row of all says nothing of what it is divided by.
        parts.append(kept if len(kept) > 1 else kept.iloc[:0])
    everybody = {"what": "all", "value": "", "valuable": in_all, "gone": lost,
                 "share": lost / in_all}  # fmt: skip
    shown = pd.concat([pd.DataFrame([everybody]), *parts], ignore_index=True)
    shown = shown[["what", "value", "valuable", "gone", "share"]]
    verdict = (
        f"{n.number(lost)} of {n.number(in_all)} customers who spent most ({top}) became lost "
        f"since {n.day(base.since)}, {n.percent(lost / in_all)}."
    )
    if not any(map(len, parts)):
        verdict += " Too few to tell by last case, return or store."
    shown = shown.rename(columns={"gone": "became lost"})
    return Table("Valuable customers who became lost", shown, verdict, n, (), ("share",))


def to_ring(base: Base, *, n: int = 50, seed: int = 1) -> ir.Table:
    """Draw valuable customers who became lost, to ring and ask why: for the private folder only.

    Of the top fifth by value of those who were active at either day.

    Parameters
    ----------
    n : how many to draw; all of them if they are fewer
    seed : another one draws others; the order of rows and the engine change nothing

    Returns
    -------
    local ibis table: customer_id; last_purchase; spend, shop currency in the 365 days up to it;
    last_case, its kind; store of the last purchase
    """
    tables.check_range("n", n, 0, 1_000_000)
    rows = _valuable(base)
    gone = rows.filter(rows.gone)

    def lot(one: str) -> bytes:
        return hashlib.blake2b(f"{seed} {one}".encode(), digest_size=16).digest()

    ids = gone.customer_id.to_pyarrow().to_pylist()
    drawn = sorted(ids, key=lot)[:n]
    return gone.filter(gone.customer_id.isin(drawn)).select(
        "customer_id", "last_purchase", spend="value", last_case="last_case", store="store"
    ).order_by("customer_id")  # fmt: skip


def _valuable(base: Base, parts: int = 5) -> ir.Table:
    """Return the top part of the known, whether each is gone, the last case's kind, the store."""
    import ibis

    shop, rows = base.shop, base.rows.filter(base.rows.known)
    rows = rows.filter(parts * rows.place < rows.of).mutate(gone=rows.stage == "lost")
    last_case, store = ibis.null("string"), rows.store_id
    if shop.has("cases"):
        cases = shop.table("cases")
        kind = cases.kind if "kind" in cases.columns else ibis.null("string")
        cases = cases.filter(cases.opened_at.date() <= ibis.literal(base.as_of))
        cases = cases.select("case_id", "opened_at", who="customer_id", last_case=kind)
        later = [cases.opened_at.desc(), cases.case_id]
        number = ibis.row_number().over(group_by="who", order_by=later)
        cases = cases.mutate(number=number)
        cases = cases.filter(cases.number == 0).select("who", "last_case")
        cases = shop.landed(cases, "cases")
        rows = rows.left_join(cases, rows.customer_id == cases.who)
        # A case of no kind is a case all the same.
        kind = rows.who.notnull().ifelse(rows.last_case.fill_null("of no kind"), None)
        rows = rows.select(*base.rows.columns, "gone", last_case=kind)
    else:
        rows = rows.mutate(last_case=last_case)
    if shop.has("stores") and "name" in shop.table("stores").columns:
        stores = shop.table("stores")
        stores = shop.landed(stores.select(at="store_id", store_name="name"), "stores")
        rows = rows.left_join(stores, rows.store_id == stores["at"])
        store = rows.store_name.fill_null(rows.store_id)
    return rows.select("customer_id", "last_purchase", "value", "last_was_return", "gone",
                       "last_case", store=store)  # fmt: skip
