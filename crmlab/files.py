"""Text files: found out how they are written, and turned once into a typed engine's Parquet."""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import json
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crmlab.tables import DataError

if TYPE_CHECKING:
    import ibis.expr.types as ir

    from crmlab.settings import TableSettings

BLOCK = 16 << 20  # bytes read at once; a longer line cannot be read
OTHERS = {
    b"PK\x03\x04": "Excel or a ZIP archive",
    b"\xd0\xcf\x11\xe0": "Excel",
    b"PAR1": "Parquet; end its name in .parquet",
    b"\x1f\x8b": "compressed; end its name in .gz",
    b"%PDF": "PDF",
}
UTF_8 = rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}"


@dataclass(frozen=True)
class TextFile:
    """How a text file was written, and what of it is not in the Parquet file.

    `bad_lines` are those with another number of cells than the header, which no table can hold;
    all of them are counted, but the text of the first 100,000 only is kept.
    """

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
    start = _first_bytes(path)
    encoding, tail = _encoding(path, start, setting.encoding)
    header, lines, separator = _header(path, start, encoding, setting.separator)
    bad: list[str] = []
    try:
        over_lines = _land(path, scratch, encoding, separator, header, lines, bad)
    except (OSError, EOFError, ValueError) as error:
        raise _cannot_read(path, error) from error
    # A quote that is never closed swallows lines: into one line, or into a cell.
    swallowed = next((line for line in bad if "\n" in line.strip()), "")
    open_at_end = re.search(rf'(^|{re.escape(separator)})"[^"\n]*\s*$', tail)
    if swallowed or over_lines or open_at_end:
        line = _line_of_stray_quote(path, encoding, separator)
        if swallowed or line:
            raise DataError(
                f"{path} has a quotation mark that is never closed, or one within a quoted cell, "
                f"{f'in the record that ends in line {line:,}' if line else _shown(swallowed)!r}: "
                "what follows it was taken for a part of the cell. Mend it there."
            )
    return TextFile(encoding, separator, bad)


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
        names = list(dict.fromkeys(itertools.chain.from_iterable(rows))) or ["geometry"]
        columns = {name: pa.array([row.get(name) for row in rows], pa.string()) for name in names}
        pq.write_table(pa.table(columns), scratch)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{path} is no GeoJSON with features, each with properties and a geometry: "
            f"{_shown(repr(error))}."
        ) from error
    return TextFile("utf-8")


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
        raise _cannot_read(path, error) from error
    if not start.strip(b"\r\n\t \xef\xbb\xbf"):
        raise DataError(f"{path} is an empty file.")
    if other := next((kind for mark, kind in OTHERS.items() if start.startswith(mark)), ""):
        raise DataError(f"{path} is no text but {other}. Save the table as CSV or Parquet.")
    return start


def _encoding(path: Path, start: bytes, said: str) -> tuple[str, str]:
    """Return an encoding that fits the whole file, the one that was said if any, and its end."""
    import pyarrow as pa

    likely = "utf-16" if start.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8"
    try:
        # Of the encodings that Python knows, some are none of text.
        name = codecs.lookup(said or likely).name
        codecs.getincrementaldecoder(name)().decode("a".encode(name), True)
        "a".encode(name).decode(name, errors="replace")
    except (LookupError, ValueError, TypeError):
        raise DataError(
            f"{path}: there is no encoding '{_shown(said)}'; try utf-8, latin-1 or cp1251."
        ) from None
    decoder, tail = codecs.getincrementaldecoder(name)(), ""
    try:
        with pa.input_stream(str(path)) as stream:
            while block := stream.read(BLOCK):
                tail = (tail + decoder.decode(block))[-10_000:]
            decoder.decode(b"", final=True)
    except UnicodeError as error:
        if said or likely == "utf-16":
            raise _cannot_read(path, error, f"It is not {said or likely}; name another") from error
        return _encoding(path, start, _guessed_encoding(path))
    except (OSError, EOFError) as error:
        raise _cannot_read(path, error) from error
    return name, tail.rstrip().rpartition("\n")[2]


def _guessed_encoding(path: Path) -> str:
    """Tell Cyrillic from Western: letters beyond ASCII come in whole words, or here and there.

    Raises `DataError` for a file that is mostly UTF-8: read as another, it would be wrong mostly.
    """
    import pyarrow as pa

    alone, together, utf_8 = 0, 0, 0
    with pa.input_stream(str(path)) as stream:
        while alone + together < 10_000 and (block := stream.read(BLOCK)):
            runs = [len(run) for run in re.findall(rb"[\x80-\xff]+", block)]
            alone += runs.count(1)
            together += sum(runs) - runs.count(1)
            utf_8 += sum(map(len, re.findall(UTF_8, block)))
    if utf_8 * 2 > alone + together:
        raise DataError(
            f"{path} is UTF-8 for the most part, but some of its bytes are not: it was put "
            "together from two encodings, or is damaged. Save it whole in one of them."
        )
    return "cp1251" if together > alone else "cp1252"


def _header(path: Path, start: bytes, encoding: str, separator: str) -> tuple[list[str], int, str]:
    """Return the names in the first line, how many lines they take, and the separator."""
    text = start.decode("utf-8-sig" if encoding == "utf-8" else encoding, errors="replace")
    if "\0" in text.lstrip().partition("\n")[0]:
        raise DataError(
            f"{path} cannot be read as text: its first line holds zeros. If it is in UTF-16, say "
            'encoding = "utf-16-le" or "utf-16-be" for this table in shop.toml.'
        )
    separator = separator or max(";\t,|", key=lambda mark: _fit(text, mark))
    rows = _rows(text, separator)
    names, lines = next((row for row in rows if row[0]), ([], 0))
    names = [" ".join(_shown(name, 200).split()) for name in names]
    # Two names that differ in case only are one name to an engine; the plainer keeps it.
    taken = {name for name in names if name == name.lower()}
    unique: dict[str, str] = {}
    for number, name in enumerate(names, start=1):
        own = name = name or f"column {number}"
        while name.lower() in unique or (name.lower() in taken and name.lower() != own):
            name += f" ({number})"
        unique[name.lower()] = name
    return list(unique.values()), lines, separator


def _rows(text: str, separator: str) -> Iterator[tuple[list[str], int]]:
    """Give the rows of a text and the number of lines up to their end, until one is too long."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    with suppress(csv.Error):
        for row in reader:
            yield row, reader.line_num


def _fit(text: str, separator: str) -> tuple[bool, int]:
    """Say how well a separator divides the first lines into as many cells as the first."""
    widths = [len(row) for row, _ in itertools.islice(_rows(text, separator), 50) if row]
    if not widths:
        return False, 0
    alike = sum(width == widths[0] for width in widths) / len(widths)
    return alike > 0.5 and widths[0] > 1, widths[0]


def _land(
    path: Path,
    scratch: Path,
    encoding: str,
    separator: str,
    header: Sequence[str],
    lines: int,
    bad: list[str],
) -> bool:
    """Stream the file into Parquet; tell whether any cell goes over several lines."""
    import pyarrow as pa
    import pyarrow.csv as pc
    import pyarrow.parquet as pq
    from pyarrow import compute

    def keep_apart(row: Any) -> str:
        bad.append(row.text if len(bad) < 100_000 or "\n" in row.text else "")
        return "skip"

    schema = pa.schema([(name, pa.string()) for name in header])
    columns = [f"c{number}" for number in range(len(header))]
    over_lines = False
    with pq.ParquetWriter(scratch, schema) as writer:
        try:
            reader = pc.open_csv(
                str(path),
                read_options=pc.ReadOptions(
                    block_size=BLOCK, column_names=columns, skip_rows=lines, encoding=encoding
                ),
                parse_options=pc.ParseOptions(
                    delimiter=separator, newlines_in_values=True, invalid_row_handler=keep_apart
                ),
                convert_options=pc.ConvertOptions(
                    column_types=dict.fromkeys(columns, pa.string()), include_columns=columns
                ),
            )
        except pa.ArrowInvalid as error:
            if "skip initial" not in str(error):
                raise
            return False  # a header that no line follows
        for batch in reader:
            writer.write_batch(pa.record_batch(batch.columns, schema=schema))
            over_lines = over_lines or any(
                compute.any(compute.match_substring(column, "\n")).as_py()
                for column in batch.columns
            )
    return over_lines


def _line_of_stray_quote(path: Path, encoding: str, separator: str) -> int:
    """Return the line where a stricter reader stumbles over a quote; 0 where it does not."""
    limit = csv.field_size_limit(1 << 30)
    try:
        with _lines(path, encoding) as lines:
            reader = csv.reader(lines, delimiter=separator, strict=True)
            try:
                deque(reader, maxlen=0)
            except csv.Error:
                return reader.line_num
    finally:
        csv.field_size_limit(limit)
    return 0


@contextmanager
def _lines(path: Path, encoding: str) -> Iterator[io.TextIOWrapper]:
    import pyarrow as pa

    with pa.input_stream(str(path)) as stream:
        yield io.TextIOWrapper(stream, encoding=encoding, newline="")


def _cannot_read(path: Path, error: Exception, advice: str = "Is the file complete") -> DataError:
    said = _shown(str(error).splitlines()[0] if str(error) else type(error).__name__, 300)
    if "straddl" in said:
        advice = "A line is longer than 16 MB, or a quotation mark is never closed"
    elif advice != "Is the file complete":
        advice += ": encoding = ... for this table in shop.toml"
    return DataError(f"{path} cannot be read: {said}. {advice}.")


def _shown(text: str, most: int = 40) -> str:
    """Return the start of a text from data, without what a terminal would take for a command."""
    plain = "".join(letter if letter.isprintable() else " " for letter in text[:most])
    return plain + " ..." * (len(text) > most)


DAY_OR_MONTH_FIRST = re.compile(
    r"\d{1,2}([./-])\d{1,2}\1\d{4}(?: \d{1,2}:\d{2}(:\d{2})?( ?[AaPp][Mm])?)?"
)


def guess_dates(rows: ir.Table, columns: Iterable[str]) -> str:
    """Return the date_format of text columns whose dates are not ISO; empty where none is sure.

    What tells 3 April from 4 March is a value above 12, anywhere in the columns. One in a hundred
    of them may say otherwise: such a date is then unreadable, and counted.
    """
    forms, day_first, month_first = [], 0, 0
    for name in columns:
        text = rows.select(text=rows[name].strip().nullif(""))
        one = text.filter(text.text.re_search(r"^\d{1,2}([./-])\d{1,2}[./-]\d{4}"))
        parts = [one.text.re_extract(r"^(\d{1,2})[./-](\d{1,2})", n).cast("int64") for n in (1, 2)]
        [seen] = (
            one.aggregate(
                n=one.count(),
                day_first=parts[0].between(13, 31).sum(),
                month_first=parts[1].between(13, 31).sum(),
            )
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
        day_first += seen["day_first"]
        month_first += seen["month_first"]
    if not forms or max(day_first, month_first) <= 100 * min(day_first, month_first):
        return ""
    mark, clock = max(forms, key=lambda form: len(form[1]))
    order = ("%d", "%m") if day_first > month_first else ("%m", "%d")
    return mark.join([*order, "%Y"]) + clock


def guess_decimal(rows: ir.Table, columns: Iterable[str], small: Iterable[str] = ()) -> str:
    """Return a comma where the text columns' numbers have a decimal comma, else a point.

    `small` are columns whose numbers are below a thousand, such as coordinates.

    Raises
    ------
    DataError where nothing tells: 1.250 may be one and a quarter, or one thousand and more
    """
    import ibis

    # Three digits behind the only mark may be thousands; behind another, or a zero, they are not.
    tells = {
        mark: rf"^[^{mark}]*[{other}][0-9]{{3}}[{mark}]|^[^.,]*[{mark}]([0-9]{{1,2}}|[0-9]{{4,}})$"
        rf"|^[+-]?0[{mark}]|^[+-]?[0-9]{{1,3}}([{other}][0-9]{{3}}){{2,}}$"
        for mark, other in ((",", "."), (".", ","))
    }
    columns, small = list(columns), set(small)
    found: dict[str, list[ir.Value]] = {",": [], ".": [], "either": []}
    for name in (name for name in columns if rows[name].type().is_string()):
        text = rows[name].strip()
        for mark, pattern in tells.items():
            pattern = rf"[{mark}][0-9]+$" if name in small else pattern
            found[mark].append(text.re_search(pattern).ifelse(text, None))
        if name not in small:
            either = text.re_search(r"^[+-]?[1-9][0-9]{0,2}[.,][0-9]{3}$").ifelse(text, None)
            found["either"].append(either)
    if not found["."]:
        return "."
    examples = {mark: ibis.coalesce(*some) for mark, some in found.items() if some}
    counts = {mark: example.count() for mark, example in examples.items()}
    examples = {f"{mark} example": example.min() for mark, example in examples.items()}
    [seen] = rows.aggregate(**counts, **examples).to_pyarrow().to_pylist()
    if not seen[","] and not seen["."] and seen.get("either"):
        raise DataError(
            f"{', '.join(columns)}: a number such as {_shown(seen['either example'])} may be a "
            "fraction or a thousand and more, and no other number tells which; say decimal"
        )
    return "," if seen[","] > seen["."] else "."
