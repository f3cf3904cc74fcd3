"""The city of the generated shop: its laws, calendar, homes, stores, products; its tables' types.

Inside, a day is a number counted from `ORIGIN`, a time a number of seconds from there, money whole
cents; a column of text is codes (-1 is null) and words. Purchases happen in operational days: with
seasonality one is short when the shop is busy, without it each is a day of the calendar.
"""

from __future__ import annotations

import datetime as dt
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace as Box
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    Array = np.ndarray[Any, np.dtype[Any]]
    Columns = dict[str, Any]

EFFECTS: tuple[str, ...] = ("seasonality", "campaigns", "cases", "discounts", "returns", "older")
ORIGIN, SINCE_1970 = dt.date(2021, 1, 1), 18_628
LOG, END = 730, 1826  # the log's first day, 2023-01-01, and the day after its last, 2025-12-31
HOUR, DAY, TICKS = 3_600, 86_400, 256  # seconds; the calendar is looked up in 256ths of a day
CHUNK = 50_000  # customers drawn from one stream of chance: changing it changes every shop
NEVER = -(10**9)  # the day or second of what did not happen
BOTH, ONLY_WITH, ONLY_WITHOUT = 0, 1, 2  # in which world, contacted or not, a purchase is made
LATITUDE, LONGITUDE, KM, KM_EAST = 48.62, 23.14, 111.195, 73.51  # the city; km of one degree
# fmt: off
PARAMETERS: dict[str, dict[str, Any]] = {
    "purchases": {"r": 1.2, "alpha": 14.0, "a": 0.8, "b": 3.0, "unit": "weeks", "model":
        "BG/NBD, Fader, Hardie and Lee (2005): after each purchase but the first a customer stops "
        "with chance p ~ Beta(a, b). The clock starts at the end of the first purchase's day; a "
        "purchase due on the day of the one before it is made on the next day"},
    "spend": {"p": 6.0, "q": 4.0, "v": 30.0, "model":
        "Gamma-Gamma, Fader and Hardie (2013), of a receipt before its discount"},
    "anonymous": {"receipts_per_receipt_of_a_customer": 0.08},
    "store_choice": {"area": 1.0, "distance": -2.0, "least_km": 0.2, "model":
        "Huff: P(store) ~ area_m2^area * max(km, least_km)^distance"},
    "points": {"members": 0.6, "redeemers": 0.7, "block": 500, "expire_after_days": 365},
    "seasonality": {
        "month": [0.85, 0.85, 0.95, 1.0, 1.0, 0.95, 0.9, 0.85, 1.0, 1.05, 1.15, 1.5],
        "weekday": [0.9, 0.85, 0.9, 1.0, 1.25, 1.5, 0.6],
        "model": "intensity of a day = month (January first) * weekday (Monday first) * scale"},
    "campaigns": {
        "extra_purchases": {"email": 0.4, "sms": 0.15, "post": 0.05}, "skip": 0.5,
        "extra_purchases_targeted": 0.02, "born_before": "1960-01-01", "model":
        "whom the message reaches makes Poisson(extra_purchases) more purchases, by preferred "
        "channel; those born_before make none and skip each purchase with chance `skip`. The "
        "targeted campaign adds extra_purchases_targeted to all. Outcomes: receipts, and money "
        "less what came back, from starts_on for outcome_days"},
    "cases": {
        "share_of_repeat_purchases": 0.08, "odds_factor": {"complaint": 5, "warranty": 2,
        "question": 1}, "shares": {"complaint": 0.5, "warranty": 0.3, "question": 0.2}, "model":
        "a case multiplies the odds of stopping after the purchase before it; none follows a "
        "first purchase, after which nobody stops"},
    "discounts": {"share_of_receipts": 0.15, "depth": 0.2},
    "returns": {"share_of_lines": 0.04, "days": 30, "model":
        "share of customers' lines; they come back on a day after the purchase and before the "
        "next one, so that no purchase day vanishes, and not at all where there is no such day"},
    "older": {"share_of_customers": 0.25, "joined_on_known": 0.1},
}
MONEY = ("amount", "discount", "cost", "points")  # how the names of columns in cents end
CHANNELS, KINDS = ("email", "sms", "post"), ("complaint", "warranty", "question")
ARMS, GROUPS = ("holdout", "voucher", "sample"), ("contacted", "holdout", "others")
# The first is randomised. The second goes to all who bought three times in the year before it.
CAMPAIGNS = {
    "campaign_id": ("2025-spring", "2025-autumn"), "name": ("Frühlingsgruß", "Осінній лист"),
    "channel": ("email", "post"), "offer": ("5 € voucher", "茶叶"), "starts_on": (1522, 1718),
    "ends_on": (1563, 1759), "contact_cost": (5, 90), "offer_cost": (500, 150),
    "fixed_cost": (60_000, 90_000), "holdout_share": (0.2, 0.0),
    "primary_outcome": ("spend", "purchases"), "outcome_days": (42.0, 42.0),
    "randomised": (True, False)}
ASSORTMENT = {
    "Молочні продукти": ("Сир", "Кефір", "Масло"), "茶叶": ("绿茶", "红茶", "乌龙茶"),
    "Backwaren": ("Brot", "Brötchen", "Kuchen"), "Obst": ("Äpfel", "Birnen", "Beeren"),
    "Крупи": ("Гречка", "Рис", "Пшоно"), "调味品": ("酱油", "米醋", "辣酱"),
    "Kaffee": ("Bohnen", "Gemahlen", "Espresso"), "Напої": ("Соки", "Вода", "Квас"),
    "Fisch": ("Lachs", "Hering", "Forelle"), "М'ясо": ("Курка", "Яловичина", "Ковбаса"),
    "零食": ("饼干", "坚果", "糖果"), "Haushalt": ("Seife", "Kerzen", "Papier")}
BRANDS = ("Lindenhof", "Müller & Söhne", "Casa Verde", "Карпати", "Світанок", "福满园", "金叶")
DISTRICTS = (
    "Altstadt", "Hafen", "Lindenau", "Neustadt", "Mühlberg", "Rosengarten", "Поділ", "Заріччя",
    "Липки", "Вокзальний", "Замкова гора", "Зелений гай", "老城区", "河东", "河西", "新城",
    "茶园", "桥头", "Südpark", "Weinberg", "Fischmarkt", "Seehof", "Ostkreuz", "Bergblick",
    "Сонячний", "Озерний", "Ринок", "Верхній луг", "Стара пошта", "Левада", "花园里", "东湖",
    "南门", "北山", "竹林", "古渡")
STORES = (
    "Lindenmarkt Altstadt", "Lindenmarkt Поділ", "Lindenmarkt 河东", "Lindenmarkt Вокзал",
    "Lindenmarkt 东湖", "Kauf & Gut", "Центральний ринок", "大福超市", "Bauernmarkt",
    "Продукти", "东方市场")
# fmt: on
OWN = 5  # of these stores, the first
STORE_IDS, PRODUCT_IDS = [f"S{n:02}" for n in range(1, 12)], [f"P{n:04}" for n in range(1, 401)]
OCCUPATIONS = ("Angestellte", "вчителька", "学生", "retired", "пенсіонер", "self-employed")


def huff_pull(x: Array, y: Array, stores: Array) -> Array:
    """Return how strongly each store (column) draws people from each place (row), by Huff."""
    law = PARAMETERS["store_choice"]
    km = ((x[:, None] - stores[0]) ** 2 + (y[:, None] - stores[1]) ** 2) ** 0.5
    pull: Array = stores[2] ** law["area"] * km.clip(law["least_km"]) ** law["distance"]
    return pull


def draw(seed: int, effects: frozenset[str]) -> Box:
    """Draw what all customers share: the calendar, the city, the stores, the products."""
    import numpy as np

    w, season = Box(seed=seed, effects=effects), PARAMETERS["seasonality"]
    w.rng = np.random.default_rng([seed, 0])
    month = (np.datetime64(ORIGIN) + np.arange(END)).astype("M8[M]").astype(int) % 12
    weekday = (SINCE_1970 + np.arange(END) + 3) % 7
    busy = np.array(season["month"])[month] * np.array(season["weekday"])[weekday]
    w.scale = 1 / busy[LOG:].mean()
    busy = busy * w.scale if "seasonality" in effects else np.ones(END)
    w.begins = np.concatenate([[0.0], np.cumsum(busy)])  # of each day, in operational days
    ticks = (np.arange(int(w.begins[-1] * TICKS) + 1) + 0.5) / TICKS
    w.day_of = np.searchsorted(w.begins[1:-1], ticks, side="right").astype(np.int32)
    w.stores = np.array([*w.rng.uniform(-5, 5, (2, 11)), w.rng.integers(6, 30, 11) * 50.0])
    w.people, w.power = w.rng.integers(2_000, 15_000, 36), w.rng.integers(14_000, 34_000, 36)
    x, y = np.tile(np.arange(120), 120), np.repeat(np.arange(120), 120)  # cells of 100 m
    pull = huff_pull((x + 0.5) / 10 - 6, (y + 0.5) / 10 - 6, w.stores)
    ours = pull[:, :OWN].sum(axis=1) / pull.sum(axis=1)
    cells = np.cumsum(w.people[x // 20 + 6 * (y // 20)] * ours)
    w.cells = cells / cells[-1]
    w.price = np.rint(100 * w.rng.lognormal(2, 0.7, 400)) + 20
    w.unit_cost = np.rint(w.price * w.rng.uniform(0.55, 0.8, 400))
    popular = np.cumsum(w.rng.permutation(1 / np.arange(20, 420)))
    # What a random number of 16 bits, or of 8, stands for.
    product = np.searchsorted(popular / popular[-1], np.arange(0.5, 65_536) / 65_536)
    w.product, w.lines = product.astype(np.int16), np.repeat(range(1, 6), (70, 71, 55, 38, 22))
    return w


def places(w: Box) -> dict[str, list[Columns]]:
    """Return the tables that belong to no customer."""
    import numpy as np

    x, y, area = w.stores
    stores, products = np.arange(11), np.arange(400)
    subcategories = [word for words in ASSORTMENT.values() for word in words]
    plans = np.arange(2 if "campaigns" in w.effects else 0)
    return {
        "stores": [{
            "store_id": (stores, STORE_IDS), "name": (stores, STORES), "own": stores < OWN,
            "latitude": LATITUDE + y / KM, "longitude": LONGITUDE + x / KM_EAST,
            "area_m2": area, "opened_on": w.rng.integers(-6_000, 0, 11)}],
        "products": [{
            "product_id": (products, PRODUCT_IDS), "category": (products % 12, [*ASSORTMENT]),
            "subcategory": (products % 12 * 3 + w.rng.integers(0, 3, 400), subcategories),
            "brand": (w.rng.integers(0, len(BRANDS), 400), BRANDS), "unit_cost": w.unit_cost}],
        "campaigns": [{
            name: (plans, both) if isinstance(both[0], str) else np.array(both)[plans]
            for name, both in CAMPAIGNS.items()}],
    }  # fmt: skip


def districts(w: Box) -> Columns:
    """Return the districts, squares of 2 km, as GeoJSON."""
    features = []
    for place, name in enumerate(DISTRICTS):
        x, y = place % 6 * 2 - 6, place // 6 * 2 - 6
        corners = ((x, y), (x + 2, y), (x + 2, y + 2), (x, y + 2), (x, y))
        ring = [[LONGITUDE + east / KM_EAST, LATITUDE + north / KM] for east, north in corners]
        about: Columns = {"district_id": f"D{place + 1:02}", "name": name}
        about |= {"population": int(w.people[place]), "purchasing_power": int(w.power[place])}
        shape = {"type": "Polygon", "coordinates": [ring]}
        features.append({"type": "Feature", "properties": about, "geometry": shape})
    return {"type": "FeatureCollection", "features": features}


def arrow(made: dict[str, list[Columns]]) -> Iterator[tuple[str, pa.Table]]:
    """Give each table by its name, its parts one below the other."""
    import pyarrow as pa

    for table, parts in made.items():
        columns = [{name: _column(name, part[name]) for name in part} for part in parts]
        yield table, pa.concat_tables([pa.table(part) for part in columns])


def _column(name: str, values: Any) -> pa.Array:
    """Return a column; its name says whether it is money, times or dates."""
    import numpy as np
    import pyarrow as pa

    def some(null: Array) -> Array | None:
        return null if null.any() else None

    if isinstance(values, tuple):
        codes, words = values
        codes = pa.array(codes.astype(np.int32, copy=False), mask=some(codes < 0))
        words = words if isinstance(words, pa.Array) else pa.array(words, pa.string())
        if name == "transaction_id":  # too many different ones to gain by being coded
            return words.take(codes)
        return pa.DictionaryArray.from_arrays(codes, words, safe=False)
    if name.startswith("spend_") or name.endswith(MONEY):
        wide = np.empty((len(values), 2), np.int64)  # 128 bits, the lower half first
        np.multiply(values, 100, out=wide[:, 0], casting="unsafe")
        wide[:, 1] = wide[:, 0] >> 63
        return pa.Array.from_buffers(pa.decimal128(18, 4), len(values), [None, pa.py_buffer(wide)])
    if name.endswith(("_on", "_date", "_purchase")):
        days = (values + SINCE_1970).astype(np.int32)
        return pa.array(days, mask=some(values == NEVER)).view(pa.date32())
    if name == "at" or name.endswith("_at"):
        since = (values + SINCE_1970 * DAY) * np.int64(1_000_000)
        return pa.array(since, mask=some(values == NEVER)).view(pa.timestamp("us"))
    return pa.array(values)


def ids(prefix: str, first: int, count: int, digits: int) -> pa.Array:
    """Return `count` ids from `first` on, as text of one width."""
    import numpy as np
    import pyarrow as pa

    text = np.empty((count, len(prefix) + digits), np.uint8)
    text[:, : len(prefix)] = list(prefix.encode())
    rest = np.arange(first, first + count, dtype=np.uint32)
    for place in range(1, digits + 1):
        tens = rest // 10
        text[:, -place] = rest - 10 * tens + ord("0")
        rest = tens
    ends = np.arange(count + 1, dtype=np.int32) * text.shape[1]
    return pa.StringArray.from_buffers(count, pa.py_buffer(ends), pa.py_buffer(text))


@contextmanager
def written(folder: Path) -> Iterator[Callable[[str, Any], None]]:
    """Give a function that appends to a table's file; the real names come last, together."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    (folder / "truth").mkdir(parents=True, exist_ok=True)
    scratch: dict[Path, Path] = {}
    writers: dict[str, Any] = {}

    def put(name: str, content: Any) -> None:
        final = folder / (name if "json" in name else f"{name}.parquet")
        path = scratch.setdefault(final, final.with_name(f".{final.name}.{os.getpid()}"))
        if "json" in name:
            path.write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")
            return
        if name not in writers:
            types, is_a = {field.name: field.type for field in content.schema}, pa.types
            # Measured: the fastest that is no larger. Stored, arrow's schema would make readers
            # take ids for dictionaries.
            writers[name] = pq.ParquetWriter(
                path,
                content.schema,
                use_dictionary=[n for n, kind in types.items() if is_a.is_dictionary(kind)],
                column_encoding={
                    n: "DELTA_BINARY_PACKED" for n, kind in types.items() if is_a.is_decimal(kind)
                },
                compression={
                    n: "none" if is_a.is_floating(kind) else "snappy" for n, kind in types.items()
                },
                store_decimal_as_integer=True,
                store_schema=False,
                write_statistics=False,
            )
        writers[name].write_table(content)

    try:
        yield put
        for writer in writers.values():
            writer.close()
        for final, path in scratch.items():
            path.replace(final)
    finally:
        for path in scratch.values():
            path.unlink(missing_ok=True)


def truth(w: Box, customers: int, facts: Any) -> Columns:
    """Return the truth that is no table: the laws at work, and what they did in this shop."""
    truth: Columns = {"seed": w.seed, "customers": customers, "effects": sorted(w.effects)}
    truth["currency"] = "EUR"
    for name, law in PARAMETERS.items():
        truth[name] = {**law} if name in w.effects or name not in EFFECTS else None
    truth["points"]["balance"] = facts["points_balance"]
    if "seasonality" in w.effects:
        truth["seasonality"]["scale"] = w.scale
    if "returns" in w.effects:
        truth["returns"] |= {name: facts[name] for name in ("lines", "returned_lines")}
    for index, run in enumerate(CAMPAIGNS["campaign_id"] if "campaigns" in w.effects else ()):
        other = "holdout" if CAMPAIGNS["randomised"][index] else "others"
        groups = {name: facts[run, name] for name in GROUPS}
        everyone, reached = groups["contacted"] + groups["holdout"], groups["contacted"]
        effect = (everyone[1:3] - everyone[3:]) / max(1, everyone[0])
        naive = reached[1:3] / max(1, reached[0]) - groups[other][3:] / max(1, groups[other][0])
        outcomes = ("purchases", "spend")
        truth["campaigns"][run] = {
            "customers": {name: int(group[0]) for name, group in groups.items()},
            "true_effect": dict(zip(outcomes, effect, strict=True)),
            f"contacted_minus_{other}": dict(zip(outcomes, naive, strict=True)),
        }
    return truth
