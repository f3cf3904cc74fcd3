"""Text files: found out how they are written, and turned once into a typed engine's Parquet."""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crmlab.tables import DataError

if TYPE_CHECKING:
    import ibis.expr.types as ir

    from crmlab.settings import TableSettings

BLOCK = 16 << 20  # bytes read at once; a longer line cannot be read


@dataclass(frozen=True)
class TextFile:
    """A text file that was read: its cells as text in Parquet, and how it was written.

    `bad_lines` are those with another number of cells than the header, which no table can hold.
    """

    parquet: Path
    encoding: str
    separator: str = ""
    bad_lines: list[str] = field(default_factory=list)


def read_csv(path: Path, setting: TableSettings, scratch: Path) -> TextFile:
    """Read a CSV file once, and land its cells as text in the Parquet file `scratch`.

    What `setting` does not say is found out: the separator from the first lines, the encoding from
    the bytes. A line with another number of cells than the header is kept apart.

    Raises
    ------
    DataError for an empty or binary file, one cut short, a quote that is never closed, and a text
    that no encoding known here fits
    """
    import pyarrow as pa

    start = _first_bytes(path)
    encodings = [setting.encoding] if setting.encoding else _likely_encodings(start)
    for encoding in encodings:
        header, lines, separator = _header(path, start, encoding, setting.separator)
        bad: list[str] = []
        try:
            last = _land(path, scratch, encoding, separator, header, lines, bad)
        except pa.ArrowInvalid as error:
            if "UTF8" in str(error) and encoding == "utf-8" and not setting.encoding:
                encodings.append(_guessed_encoding(path))
                continue
            raise _cannot_read(path, error, setting) from error
        except (OSError, EOFError, UnicodeError, LookupError) as error:
            raise _cannot_read(path, error, setting) from error
        if any("\n" in (cell or "") for cell in last) and _quotes(path, encoding) % 2:
            raise DataError(
                f"{path} has a quotation mark that is never closed: its last cell goes over "
                f"{max(cell.count(chr(10)) for cell in last if cell) + 1} lines. Find the line "
                f"that begins with {_shortened(next(iter(filter(None, last)), ''))!r} and mend it."
            )
        return TextFile(scratch, encoding, separator, bad)
    raise AssertionError("every list of encodings ends in a return or an error")


def read_geojson(path: Path, scratch: Path) -> TextFile:
    """Land the properties of a GeoJSON file's features, and their geometry, as text in Parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        features = json.loads(path.read_text(encoding="utf-8-sig"))["features"]
        rows = [
            {name: _as_text(value) for name, value in (one["properties"] or {}).items()}
            | {"geometry": json.dumps(one["geometry"])}
            for one in features
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} is no GeoJSON with features, each with properties and a geometry: {error!r}."
        ) from error
    names = list(dict.fromkeys(itertools.chain.from_iterable(rows))) or ["geometry"]
    columns = {name: pa.array([row.get(name) for row in rows], pa.string()) for name in names}
    pq.write_table(pa.table(columns), scratch)
    return TextFile(scratch, "utf-8")


def _as_text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value)


def _first_bytes(path: Path) -> bytes:
    import pyarrow as pa

    try:
        with pa.input_stream(str(path)) as stream:
            start: bytes = stream.read(1 << 20)
    except OSError as error:
        raise _cannot_read(path, error, None) from error
    if not start.strip(b"\r\n\t \xef\xbb\xbf"):
        raise DataError(f"{path} is an empty file.")
    if start.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0", b"PAR1", b"%PDF")):
        kind = {b"PA": "Parquet; end its name in .parquet", b"%P": "PDF"}.get(start[:2], "Excel")
        raise DataError(f"{path} is no text but {kind}. Save the table as CSV or Parquet.")
    return start


def _likely_encodings(start: bytes) -> list[str]:
    return ["utf-16"] if start.startswith((b"\xff\xfe", b"\xfe\xff")) else ["utf-8"]


def _guessed_encoding(path: Path) -> str:
    """Tell Cyrillic from Western: letters beyond ASCII come in whole words, or here and there."""
    import pyarrow as pa

    alone, together = 0, 0
    with pa.input_stream(str(path)) as stream:
        while alone + together < 10_000 and (block := stream.read(BLOCK)):
            runs = [len(run) for run in re.findall(rb"[\x80-\xff]+", block)]
            alone += runs.count(1)
            together += sum(runs) - runs.count(1)
    return "cp1251" if together > alone else "cp1252"


def _header(path: Path, start: bytes, encoding: str, separator: str) -> tuple[list[str], int, str]:
    """Return the names in the first line, how many lines they take, and the separator."""
    try:
        text = start.decode("utf-8-sig" if encoding == "utf-8" else encoding, errors="replace")
    except LookupError:
        raise DataError(
            f"{path}: there is no encoding '{encoding}'; try utf-8, latin-1 or cp1251."
        ) from None
    separator = separator or max(";\t,|", key=lambda mark: _fit(text, mark))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    try:
        names = [" ".join(name.split()) for name in next(reader)]
    except (csv.Error, StopIteration) as error:
        raise DataError(f"{path}: its first line cannot be read as names: {error}.") from error
    unique: list[str] = []
    for number, name in enumerate(names, start=1):
        name = name or f"column {number}"
        while name.lower() in {other.lower() for other in unique}:
            name += f" ({number})"
        unique.append(name)
    return unique, reader.line_num, separator


def _fit(text: str, separator: str) -> tuple[float, int]:
    """Say how well a separator divides the first lines into as many cells as the first."""
    lines = io.StringIO("".join(text.splitlines(keepends=True)[:50]), newline="")
    try:
        widths = [len(row) for row in csv.reader(lines, delimiter=separator) if row]
    except csv.Error:
        return 0.0, 0
    alike = sum(width == widths[0] for width in widths) / len(widths) if widths else 0.0
    return (alike > 0.5) * (widths[0] > 1) * 1.0 if widths else 0.0, widths[0] if widths else 0


def _land(
    path: Path,
    scratch: Path,
    encoding: str,
    separator: str,
    header: Sequence[str],
    lines: int,
    bad: list[str],
) -> Sequence[str | None]:
    """Stream the file into Parquet; return the last row's cells."""
    import pyarrow as pa
    import pyarrow.csv as pc
    import pyarrow.parquet as pq

    def keep_apart(row: Any) -> str:
        bad.append(row.text)
        return "skip"

    reader = pc.open_csv(
        str(path),
        read_options=pc.ReadOptions(
            block_size=BLOCK, column_names=header, skip_rows=lines, encoding=encoding
        ),
        parse_options=pc.ParseOptions(
            delimiter=separator, newlines_in_values=True, invalid_row_handler=keep_apart
        ),
        convert_options=pc.ConvertOptions(column_types=dict.fromkeys(header, pa.string())),
    )
    last: Sequence[str | None] = []
    with pq.ParquetWriter(scratch, reader.schema) as writer:
        for batch in reader:
            writer.write_batch(batch)
            if batch.num_rows:
                last = [column[-1].as_py() for column in batch.columns]
    return last


def _quotes(path: Path, encoding: str) -> int:
    import pyarrow as pa

    with pa.input_stream(str(path)) as stream:
        return sum(block.count(b'"') for block in iter(lambda: stream.read(BLOCK), b""))


def _cannot_read(path: Path, error: Exception, setting: TableSettings | None) -> DataError:
    said = str(error).splitlines()[0] if str(error) else type(error).__name__
    advice = "Is the file complete?"
    if "straddl" in said:
        advice = "A line is longer than 16 MB, or a quotation mark is never closed."
    elif "UTF8" in said or isinstance(error, UnicodeError):
        used = setting.encoding if setting else ""
        advice = f"It is not {used or 'utf-8'}; say encoding = ... for this table in shop.toml."
    return DataError(f"{path} cannot be read: {said} {advice}")


def _shortened(text: str) -> str:
    return text if len(text) <= 40 else text[:40] + " ..."


DAY_OR_MONTH_FIRST = re.compile(
    r"\d{1,2}([./-])\d{1,2}\1\d{4}(?: \d{1,2}:\d{2}(:\d{2})?( ?[AaPp][Mm])?)?"
)


def guess_dates(rows: ir.Table, columns: Iterable[str]) -> str:
    """Return the date_format of text columns whose dates are not ISO; empty where none is sure.

    What tells 3 April from 4 March is a value above 12, anywhere in the columns.
    """
    forms, firsts, seconds = [], 0, 0
    for name in columns:
        text = rows.select(text=rows[name].strip().nullif(""))
        one = text.filter(text.text.re_search(r"^\d{1,2}([./-])\d{1,2}[./-]\d{4}"))
        parts = [one.text.re_extract(r"^(\d{1,2})[./-](\d{1,2})", n).cast("int64") for n in (1, 2)]
        [seen] = (
            one.aggregate(n=one.count(), first=parts[0].max(), second=parts[1].max())
            .mutate(in_all=text.text.count().as_scalar())
            .to_pyarrow()
            .to_pylist()
        )
        some = one.limit(200).to_pyarrow()["text"].to_pylist()
        matches = [match for match in map(DAY_OR_MONTH_FIRST.fullmatch, some) if match]
        if not matches or seen["n"] * 2 <= seen["in_all"]:
            continue
        longest = max(matches, key=lambda match: len(match[0]))
        clock = "" if ":" not in longest[0] else " %H:%M" + (":%S" if longest[2] else "")
        if longest[3]:
            clock = clock.replace("%H", "%I") + longest[3].replace(longest[3].strip(), "%p")
        forms.append((longest[1], clock))
        firsts, seconds = max(firsts, seen["first"]), max(seconds, seen["second"])
    if not forms or (firsts > 12) == (seconds > 12):
        return ""
    mark, clock = max(forms, key=lambda form: len(form[1]))
    order = ("%d", "%m") if firsts > 12 else ("%m", "%d")
    return mark.join([*order, "%Y"]) + clock


def guess_decimal(rows: ir.Table, columns: Iterable[str]) -> str:
    """Return a comma where the text columns' numbers have a decimal comma, else a point."""
    import ibis

    comma, point = (
        r"(^[^,]*\.[0-9]{3},|^[^,.]*,([0-9]{1,2}|[0-9]{4,})$)",
        r"\.([0-9]{1,2}|[0-9]{4,})$",
    )
    flags = [
        (rows[name].strip().re_search(comma), rows[name].strip().re_search(point))
        for name in columns
        if rows[name].type().is_string()
    ]
    if not flags:
        return "."
    counts = rows.aggregate(
        comma=ibis.or_(*(flag[0] for flag in flags)).sum(),
        point=ibis.or_(*(flag[1] for flag in flags)).sum(),
    )
    [seen] = counts.to_pyarrow().to_pylist()
    return "," if (seen["comma"] or 0) > (seen["point"] or 0) else "."
