"""The generated demo shop: a grocer of a fictional city, of whom the whole truth is known.

`city` says in what numbers days, times, money and text are kept while they are made.
"""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace as Box
from typing import TYPE_CHECKING, Any

from crmlab import tables
from crmlab.city import (
    ARMS,
    BOTH,
    CAMPAIGNS,
    CHANNELS,
    CHUNK,
    DAY,
    EFFECTS,
    END,
    GROUPS,
    HOUR,
    KINDS,
    KM,
    KM_EAST,
    LATITUDE,
    LOG,
    LONGITUDE,
    NEVER,
    OCCUPATIONS,
    ONLY_WITH,
    ONLY_WITHOUT,
    ORIGIN,
    OWN,
    PARAMETERS,
    PRODUCT_IDS,
    STORE_IDS,
    TICKS,
    arrow,
    districts,
    draw,
    huff_pull,
    ids,
    places,
    truth,
    written,
)

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    Array = np.ndarray[Any, np.dtype[Any]]
    Columns = dict[str, Any]

__all__ = ["EFFECTS", "write"]


def write(
    folder: Path,
    *,
    customers: int,
    effects: Collection[str] = EFFECTS,
    seed: int,
    progress: Callable[[str], None] | None = None,
) -> None:
    """Write a generated shop as Parquet files, and what really moved its customers.

    Parameters
    ----------
    folder : where the files go, the truth under truth/: customers.parquet, campaign_effects.parquet
        (what each did with the message and would have done without, or the other way round) and
        parameters.json. Files of the same names are replaced, once all is written
    customers : int, how many; each brings about ten lines of a receipt
    effects : which of `EFFECTS` are at work; with none, purchases are exactly BG/NBD (Fader,
        Hardie and Lee 2005) and their sums Gamma-Gamma (Fader and Hardie 2013)
    seed : int; the same one writes the same tables
    progress : is told in a sentence how far the work is

    Raises
    ------
    UsageError if an effect is unknown, or there is no customer
    """
    for unknown in sorted(set(effects) - set(EFFECTS)):
        known = f"the simulation knows {', '.join(EFFECTS)}."
        hint = tables.did_you_mean(unknown, EFFECTS)
        raise tables.UsageError(f"There is no effect {unknown!r}; {known}{hint}")
    if customers < 1 or seed < 0:
        asked = f"{customers} customers with seed {seed}"
        raise tables.UsageError(f"{asked}: needs at least 1 customer, and a seed of 0 or more.")
    world, facts = draw(seed, frozenset(effects)), Counter[Any]()
    with written(folder) as put, ThreadPoolExecutor(1) as pool:
        writing = [pool.submit(put, *table) for table in arrow(places(world))]
        for number, first in enumerate(range(0, customers, CHUNK), start=1):
            made = _chunk(world, number, first, min(CHUNK, customers - first))
            for earlier in writing:
                earlier.result()
            writing = [pool.submit(put, *table) for table in arrow(made.tables)]
            facts.update(made.facts)
            if progress:
                progress(f"Generated {first + made.n:,} of {customers:,} customers.")
        for last in writing:
            last.result()
        put("districts.geojson", districts(world))
        put("truth/parameters.json", truth(world, customers, facts))


def _chunk(world: Box, number: int, first: int, n: int) -> Box:
    """Simulate `n` customers from their own stream of chance; the box has `tables` and `facts`."""
    import numpy as np

    c = Box(**vars(world), number=number, n=n, tables={}, facts=Counter())
    c.rng = np.random.Generator(np.random.SFC64([world.seed, number]))
    c.ids = ids("C", first + 1, n, 8)
    _people(c, ids("H", first + 1, n, 8))
    _purchases(c)
    runs = [_campaign(c, index) for index in range(2)]
    _receipts(c)
    _lines(c)
    _points(c)
    _cases(c)
    for run in runs:
        _outcomes(c, run)
    return c


def _people(c: Box, households: pa.Array) -> None:
    """Draw customers: where they live, how they buy, what they have agreed to."""
    import numpy as np

    law, spend, older = (PARAMETERS[name] for name in ("purchases", "spend", "older"))
    n, rng = c.n, c.rng
    head = np.maximum.accumulate(np.where(rng.random(n) < 0.3, 0, np.arange(n)))
    cell = np.searchsorted(c.cells, rng.random(n))
    x, y = ((part + rng.random(n))[head] / 10 - 6 for part in (cell % 120, cell // 120))
    pull = np.cumsum(huff_pull(x, y, c.stores[:, :OWN]), axis=1)
    c.chance = (pull[:, :-1] / pull[:, -1:]).astype(np.float32)
    c.older = rng.random(n) < older["share_of_customers"] * ("older" in c.effects)
    log, end = c.begins[[LOG, END]]
    begin = np.where(c.older, rng.random(n) * log, log + rng.random(n) * (end - log))
    c.first = c.day_of[(begin * TICKS).astype(np.int32)]
    c.rate, c.p = rng.standard_gamma(law["r"], n) / law["alpha"], rng.beta(law["a"], law["b"], n)
    c.nu = rng.standard_gamma(spend["q"], n) / spend["v"]
    c.born, c.preferred = rng.integers(-29_000, -6_500, n), rng.integers(0, 3, n)
    hidden = c.older & (rng.random(n) >= older["joined_on_known"])
    # Consents: by customer and channel, when given and when left; the log's end is never.
    since = (np.where(c.older, LOG + rng.integers(0, 180, n), c.first) * DAY + DAY // 2)[:, None]
    c.given = np.where(rng.random((n, 3)) < [0.6, 0.45, 0.5], since, END * DAY)
    c.left = c.given + (rng.random((n, 3)) * 10 * (END * DAY - c.given)).astype(int)
    c.tables["customers"] = [{
        "customer_id": (np.arange(n), c.ids), "household_id": (head, households),
        "joined_on": np.where(hidden, NEVER, c.first), "birth_date": c.born,
        "sex": (rng.integers(0, 2, n), ("f", "m")),
        "occupation": (rng.integers(-1, 6, n), OCCUPATIONS),
        "city": ((x // 4 + 1.5).astype(int), ("Lindenau", "Верхній Луг", "新河")),
        "region": ((y >= 0).astype(int), ("Südufer", "Заріччя")), "latitude": LATITUDE + y / KM,
        "longitude": LONGITUDE + x / KM_EAST, "preferred_channel": (c.preferred, CHANNELS),
        "acquired_by": (rng.integers(0, 4, n), ("walk-in", "friend", "poster", "web"))}
    ]  # fmt: skip
    asked = [np.nonzero(at < END * DAY) for at in (c.given, c.left)]
    c.tables["consents"] = [{
        "customer_id": (who, c.ids), "channel": (channel, CHANNELS),
        "status": (np.full(who.size, nth), ("given", "withdrawn")),
        "at": (c.given, c.left)[nth][who, channel], "source": (who % 2, ("till", "web"))}
        for nth, (who, channel) in enumerate(asked)
    ]  # fmt: skip


def _purchases(c: Box) -> None:
    """Let everybody buy, round by round, until they stop or the log ends: BG/NBD."""
    import numpy as np

    law, who, day = PARAMETERS["cases"], np.arange(c.n, dtype=np.int32), c.first
    factor = np.array([*law["odds_factor"].values(), 1.0])
    share = law["share_of_repeat_purchases"] * ("cases" in c.effects)
    edges = share * np.cumsum([*law["shares"].values()])
    c.alive = np.ones(c.n, bool)
    clock, rate, p = c.begins[day + 1], c.rate / 7, c.p
    rounds = [(who, day, np.full(c.n, len(KINDS)))]
    while who.size:
        clock = clock + c.rng.standard_exponential(who.size) / rate
        on = clock < c.begins[END]
        who, day, clock, rate, p = (part[on] for part in (who, day, clock, rate, p))
        day = np.maximum(c.day_of[(clock * TICKS).astype(np.int32)], day + 1)
        kind = np.searchsorted(edges, c.rng.random(who.size), side="right")
        rounds.append((who, day, kind))
        odds = factor[kind] * p
        on = c.rng.random(who.size) * (1 - p + odds) >= odds
        c.alive[who[~on & (day < END)]] = False
        who, day, clock, rate, p = (part[on] for part in (who, day, clock, rate, p))
    who, day, kind = (np.concatenate(parts) for parts in zip(*rounds, strict=True))
    seen = (day >= LOG) & (day < END)
    # One row per purchase: what a campaign changes, and whether the log sees it.
    sales = (who, day, kind, np.full(who.size, BOTH), seen)
    c.sales = np.array([part[seen] for part in sales], np.int32)
    c.tables["truth/customers"] = [{
        "customer_id": (np.arange(c.n), c.ids), "lambda": c.rate, "p": c.p, "nu": c.nu,
        "mean_spend": PARAMETERS["spend"]["p"] / c.nu, "first_purchase": c.first,
        "older": c.older, "alive": c.alive}]  # fmt: skip


def _campaign(c: Box, index: int) -> Box:
    """Choose, randomise and contact an audience; change the sales by what that does to it."""
    import numpy as np

    run, law, n, rng = Box(index=index), PARAMETERS["campaigns"], c.n, c.rng
    vars(run).update({name: both[index] for name, both in CAMPAIGNS.items()})
    run.end, channel = run.starts_on + int(run.outcome_days), CHANNELS.index(run.channel)
    at = run.starts_on * DAY + 6 * HOUR
    who, day, _, _, seen = c.sales
    year = (seen > 0) & (day < run.starts_on) & (day >= run.starts_on - 365)
    run.recent = np.bincount(who[year], minlength=n)
    run.known = (c.first < run.starts_on) & ("campaigns" in c.effects)
    wanted = run.known & (run.recent >= (0 if run.randomised else 3))
    agreed, free = (c.given[:, channel] < at) & (c.left[:, channel] > at), rng.random(n) >= 0.04
    run.who = np.flatnonzero(wanted & agreed & free)
    m = run.who.size
    run.held, run.arrives = rng.random(m) < run.holdout_share, rng.random(m) < 0.97
    run.wave = rng.integers(0, 2, m)
    run.columns = {
        "campaign_id": (np.full(m, index), CAMPAIGNS["campaign_id"]),
        "customer_id": (run.who, c.ids), "arm": (np.where(run.held, 0, index + 1), ARMS),
    }  # fmt: skip
    sent = run.starts_on + 7 * run.wave
    old = c.born[run.who] < (dt.date.fromisoformat(law["born_before"]) - ORIGIN).days
    extra = np.array([*law["extra_purchases"].values()])[c.preferred[run.who]] * ~old
    extra = extra if run.randomised else np.full(m, law["extra_purchases_targeted"])
    skip, held, mail = np.zeros(n), np.zeros(n, bool), np.full(n, END)
    skip[run.who] = law["skip"] * (old & run.arrives & run.randomised)
    held[run.who], mail[run.who] = run.held, sent
    inside = np.flatnonzero((day >= run.starts_on) & (day < run.end))
    lost = (day[inside] > mail[who[inside]]) & (rng.random(inside.size) < skip[who[inside]])
    lost = inside[lost]
    c.sales[3:, lost] = np.full(lost.size, ONLY_WITHOUT), held[who[lost]]
    more = np.repeat(np.arange(m), rng.poisson(extra * run.arrives))
    when = sent[more] + 1 + (rng.random(more.size) * (run.end - 1 - sent[more])).astype(int)
    # Nobody buys twice a day: an added purchase on the day of another one is dropped.
    key, first = np.unique(run.who[more] * 4096 + when, return_index=True)
    first = first[~np.isin(key, who[inside] * np.int64(4096) + day[inside])]
    plain = np.full((2, first.size), [[len(KINDS)], [ONLY_WITH]])
    added = np.array([run.who[more], when, ~run.held[more]], np.int32)[:, first]
    c.sales = np.hstack([c.sales, np.vstack([added[:2], plain, added[2:]])])
    _contacts(c, run, at, np.flatnonzero(wanted & ~(agreed & free)), agreed)
    return run


def _contacts(c: Box, run: Box, at: int, out: Array, agreed: Array) -> None:
    """Add a campaign's contacts, and those `out` of its audience for want of consent or room."""
    import numpy as np

    m, rng, email = run.who.size, c.rng, run.channel == "email"
    sent = at + 2 * HOUR + run.wave * 7 * DAY + rng.integers(0, HOUR, m)
    arrived = sent + (60 if email else 2 * DAY)
    opened, reached = arrived + rng.integers(60, 2 * DAY, m), ~run.held & run.arrives
    opens = reached & (rng.random(m) < 0.35 * email)
    clicks = opens & (rng.random(m) < 0.25)
    c.tables.setdefault("contacts", []).append({
        **run.columns, "stratum": (np.minimum(run.recent[run.who], 1), ("lapsed", "recent")),
        "wave": (run.wave, ("first", "second")), "assigned_at": np.full(m, at),
        "sent_at": np.where(run.held, NEVER, sent),
        "delivered_at": np.where(reached, arrived, NEVER),
        "opened_at": np.where(opens, opened, NEVER),
        "clicked_at": np.where(clicks, opened + 20, NEVER),
        "undelivered_reason": (0 - (run.held | run.arrives), ("address unknown",))})  # fmt: skip
    c.tables.setdefault("suppressed", []).append({
        "campaign_id": (np.full(out.size, run.index), CAMPAIGNS["campaign_id"]),
        "customer_id": (out, c.ids), "at": np.full(out.size, at),
        "reason": (agreed[out].astype(int), ("no consent", "contact cap"))})  # fmt: skip


def _receipts(c: Box) -> None:
    """Give each purchase a time, a sum and a store.

    First come the customers' of the log, by customer and day; then the anonymous, `who` = -1;
    then those that only another arm would have made.
    """
    import numpy as np

    law, rng = PARAMETERS["spend"], c.rng
    who, day, _, _, seen = c.sales
    c.m = int(seen.sum())
    guests = max(1, round(PARAMETERS["anonymous"]["receipts_per_receipt_of_a_customer"] * c.m))
    log, end = c.begins[[LOG, END]]
    their_day = c.day_of[((log + rng.random(guests) * (end - log)) * TICKS).astype(np.int32)]
    their_day[0] = END - 1  # so that even the smallest log goes to its last day
    # A guest lives and spends like some customer.
    plain = np.full((2, guests), [[len(KINDS)], [BOTH]])
    guest = np.array([rng.integers(0, c.n, guests), their_day, *plain], np.int32)
    order = np.argsort((who + (1 - seen) * np.int64(1 << 20)) * 4096 + day)
    sales = np.take(c.sales[:4], order, axis=1)
    home, c.day, c.kind, c.only = np.hstack([sales[:, : c.m], guest, sales[:, c.m :]])
    c.shown, c.who, size = c.m + guests, home.copy(), home.size
    c.who[c.m : c.shown] = -1
    same = c.who[1:] == c.who[:-1]
    c.next = np.append(np.where(same, c.day[1:], END), END)
    c.at = c.day * np.int64(DAY) + 9 * HOUR + rng.integers(0, 11 * HOUR, size, dtype=np.uint16)
    c.cents = np.rint(100 * rng.standard_gamma(law["p"], size) / c.nu[home]).clip(1)
    luck, chance = rng.random(size, np.float32), c.chance[home]
    c.store = sum((luck > chance[:, store]).astype(np.int8) for store in range(OWN - 1))
    c.web = (rng.random(size, np.float32) < 0.15).astype(np.int8)


def _lines(c: Box) -> None:
    """Divide the receipts into lines, and bring some of them back."""
    import numpy as np

    rng, off, law = c.rng, PARAMETERS["discounts"], PARAMETERS["returns"]
    count = c.lines[rng.integers(0, 256, c.who.size, dtype=np.uint8)]
    ends = np.cumsum(count)
    of = np.repeat(np.arange(c.who.size, dtype=np.int32), count)
    place = np.arange(of.size, dtype=np.int32) - (ends - count).astype(np.int32)[of]
    cut = place + (rng.random(of.size, np.float32) - np.float32(0.5)) * (place > 0)
    left = ((c.cents / count).astype(np.float32)[of] * cut).astype(np.int32)
    gross = np.append(left[1:], np.int32(0))
    gross[ends - 1] = c.cents
    gross -= left
    product = c.product[rng.integers(0, 65_536, of.size, dtype=np.uint16)]
    quantity = np.rint(gross * (1000 / c.price)[product]) / 1000
    cost = np.rint(quantity * c.unit_cost[product])
    cheap = rng.random(c.who.size) < off["share_of_receipts"] * ("discounts" in c.effects)
    discount = (gross * np.where(cheap, np.float32(off["depth"]), 0)[of] + 0.5).astype(np.int32)
    net = gross - discount
    c.net = np.add.reduceat(net, ends - count).astype(np.int64)
    share = law["share_of_lines"] * ("returns" in c.effects)
    back = np.flatnonzero((rng.random(of.size, np.float32) < share) & (quantity > 0))
    room = (np.minimum(c.next - c.day - 1, law["days"]) * (c.who >= 0))[of[back]]
    back, room = back[room > 0], room[room > 0]
    b = c.back = Box(of=of[back], cents=net[back].astype(np.int64))
    b.day = c.day[b.of] + 1 + (rng.random(back.size) * room).astype(int)
    b.at = b.day * DAY + 9 * HOUR + rng.integers(0, 11 * HOUR, back.size)
    b.seen = slice(0, int(np.searchsorted(b.of, c.m)))
    b.number = c.shown + np.arange(b.of[b.seen].size)
    c.receipts = ids(f"R{c.number:04}", 0, c.shown + b.number.size, 6)
    sold = slice(0, int(ends[c.shown - 1]))
    c.tables["transactions"] = [{
        "customer_id": (c.who[of[rows]], c.ids), "purchased_at": at, "amount": turn(net[rows]),
        "transaction_id": (receipt, c.receipts), "product_id": (product[rows], PRODUCT_IDS),
        "store_id": (c.store[of[rows]], STORE_IDS), "quantity": turn(quantity[rows]),
        "channel": (c.web[of[rows]], ("shop", "web")), "discount": turn(discount[rows]),
        "cost": turn(cost[rows])}
        for rows, receipt, at, turn in (
            (sold, of[sold], c.at[of[sold]], np.asarray),
            (back[b.seen], b.number, b.at[b.seen], np.negative))
    ]  # fmt: skip
    c.facts.update(lines=int(count[: c.m].sum()), returned_lines=b.number.size)


def _points(c: Box) -> None:
    """Keep the members' ledger.

    A block is redeemed once there are that many points that no return will take back, so that no
    balance is ever negative; what is left expires when a year goes by without a purchase.
    """
    import numpy as np

    law, b = PARAMETERS["points"], c.back
    member, redeems = (c.rng.random(c.n) < law[name] for name in ("members", "redeemers"))
    mine = np.flatnonzero(member[c.who[: c.m]])
    who, day = c.who[mine], c.day[mine]
    earned, taken = c.net[mine] // 100, b.cents[b.seen] // 100
    safe = earned - np.bincount(b.of[b.seen], taken, c.m)[mine].astype(np.int64)
    fresh = np.diff(who, prepend=-1) != 0
    fresh |= np.diff(day, prepend=0) > law["expire_after_days"]
    start = np.flatnonzero(fresh)
    last = np.append(start[1:], who.size)[: start.size] - 1
    kept = np.cumsum(safe)
    kept -= np.repeat((kept - safe)[start], last - start + 1)
    spent = law["block"] * (kept // law["block"] * redeems[who])
    redeemed = np.where(fresh, spent, np.diff(spent, prepend=0))
    over = day[last] + law["expire_after_days"]
    expired = np.where(over < END, (kept - spent)[last], 0)
    returned = np.where(member[c.who[b.of[b.seen]]], taken, 0)
    ledger = (  # who, when, points, receipt
        (who, c.at[mine], earned, mine),
        (who, c.at[mine] + 60, -redeemed, mine),
        (who[last], over * DAY + 3 * HOUR, -expired, np.full(last.size, -1)),
        (c.who[b.of[b.seen]], b.at[b.seen], -returned, b.number),
    )
    c.tables["points"] = []
    for nth, (who, at, points, receipt) in enumerate(ledger):
        row = np.flatnonzero(points)
        c.facts["points_balance"] += int(points.sum())
        c.tables["points"].append({
            "customer_id": (who[row], c.ids), "posted_at": at[row], "points": 100 * points[row],
            "kind": (np.full(row.size, nth), ("earn", "redeem", "expire", "adjust")),
            "transaction_id": (receipt[row], c.receipts)})  # fmt: skip


def _cases(c: Box) -> None:
    """Open the cases after their purchase, within five days and before the next one."""
    import numpy as np

    after = np.flatnonzero(c.kind[: c.m] < len(KINDS))
    n, at = after.size, c.at[after]
    room = np.minimum(c.next[after] * DAY - at, 5 * DAY)
    opened = at + (c.rng.random(n) * room).astype(int)
    closed = opened + 600 + (c.rng.standard_exponential(n) * 3 * DAY).astype(int)
    c.tables["cases"] = [{
        "case_id": (np.arange(n), ids(f"K{c.number:04}", 0, n, 6)),
        "customer_id": (c.who[after], c.ids), "opened_at": opened,
        "closed_at": np.where(closed < END * DAY, closed, NEVER), "kind": (c.kind[after], KINDS),
        "channel": (c.rng.integers(0, 3, n), ("phone", "web", "shop"))}]  # fmt: skip


def _outcomes(c: Box, run: Box) -> None:
    """Add what a campaign's customers buy with it and without, and sum up the groups."""
    import numpy as np

    sale = np.flatnonzero((c.day >= run.starts_on) & (c.day < run.end) & (c.who >= 0))
    late = np.flatnonzero((c.back.day >= run.starts_on) & (c.back.day < run.end))
    of, made = c.back.of[late], [np.ones(c.n)]
    for without in (ONLY_WITHOUT, ONLY_WITH):
        bought, kept = c.only[sale] != without, c.only[of] != without
        spend = np.bincount(c.who[sale], bought * c.net[sale], c.n)
        spend -= np.bincount(c.who[of], kept * c.back.cents[late], c.n)
        made += [np.bincount(c.who[sale], bought, c.n), spend]
    _, with_it, spend_with, without_it, spend_without = (part[run.who] for part in made)
    c.tables.setdefault("truth/campaign_effects", []).append({
        **run.columns, "purchases_with": with_it.astype(int), "spend_with": spend_with,
        "purchases_without": without_it.astype(int), "spend_without": spend_without})  # fmt: skip
    groups = np.zeros((3, c.n))
    groups[2] = run.known
    groups[2, run.who], groups[0, run.who], groups[1, run.who] = 0, ~run.held, run.held
    # Customers; purchases and money with it; both without it.
    sums = groups @ np.transpose(made) / (1, 1, 100, 1, 100)
    for name, group in zip(GROUPS, sums, strict=True):
        c.facts[run.campaign_id, name] += group
