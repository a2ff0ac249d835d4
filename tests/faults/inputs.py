"""A corpus of inputs as they are published and as they break, each with what is right.

What is expected is worked out here, from the values that are written, and not by the reader. The files of one family
stand in one function; `corpus` lists all.
"""

import bz2
import gzip
import io
import itertools
import lzma
import os
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from tests.faults import ids_and_json, tables, times
from tests.faults.cases import BASE, EIGHT, Case, text_of, written

SEPARATORS = {"comma": ",", "semicolon": ";", "pipe": "|", "tab": "\t", "colons": "::", "space": " "}
HEADERS = {
    "plain": ("user", "item", "timestamp"),
    "capitals": ("USER_ID", "ITEM_ID", "TIMESTAMP"),
    "camel": ("userId", "movieId", "Time"),
    "typed": ("user_id:token", "item_id:token", "timestamp:float"),
    "amazon": ("reviewerID", "asin", "unixReviewTime"),
    "quoted": ('"user"', '"item"', '"timestamp"'),
}
ENDS = {"unix": "\n", "windows": "\r\n", "mac": "\r"}


def _zipped(data: bytes, *names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names or ("x.csv",):
            archive.writestr(name, data)
    return buffer.getvalue()


PACKED = {"gzip": gzip.compress, "zlib": zlib.compress, "bzip2": bz2.compress, "xz": lzma.compress, "zip": _zipped}
ENDINGS = {"gzip": ".gz", "zlib": ".zlib", "bzip2": ".bz2", "xz": ".xz", "zip": ".zip"}
UNREADABLE = {
    "zstd": b"\x28\xb5\x2f\xfd",
    "lz4": b"\x04\x22\x4d\x18",
    "snappy": b"\xff\x06\x00\x00sNaPpY",
    "compress": b"\x1f\x9d",
    "7-Zip": b"7z\xbc\xaf\x27\x1c",
    "RAR": b"Rar!",
    "Arrow": b"ARROW1",
    "HDF5": b"\x89HDF",
    "SQLite": b"SQLite format 3",
    "Avro": b"Obj\x01",
    "ORC": b"ORC",
}


def layouts() -> Iterator[Case]:
    """Separators, headers and ends of lines, combined."""
    for (sign, separator), (head, header), (ends, end) in itertools.product(
        SEPARATORS.items(), HEADERS.items(), ENDS.items()
    ):
        text = text_of(separator=separator, header=header, end=end)
        yield Case(f"{sign}, {head} header, {ends} lines", written("x.txt", text), EIGHT)
    names = {"user": "column_1", "item": "column_2", "timestamp": "column_3"}
    for sign, separator in SEPARATORS.items():
        bare = text_of(separator=separator, header=None)
        yield Case(f"{sign}, no header", written("x.txt", bare), None, "no header, and no published format")
        yield Case(f"{sign}, no header, named", written("x.txt", bare), EIGHT, "", names)
        text = text_of(separator=separator)
        yield Case(f"{sign}, given", written("x.txt", text), EIGHT, "", {"separator": separator})
        if separator not in (" ", "\t"):
            wide = text_of(separator=separator) + separator.join(["u", "i", "1600000009", "x"]) + "\n"
            yield Case(f"{sign}, a field too many", written("x.txt", wide), None, "row 10")
        short = text_of(separator=separator) + separator.join(["u", "i"]) + "\n"
        yield Case(f"{sign}, a field too few", written("x.txt", short), None, "row 10, column 'timestamp'")
        for blank in ("\n\n", "\r\n"):
            padded = blank + text_of(separator=separator) + blank
            yield Case(f"{sign}, blank lines {blank!r}", written("x.txt", padded), EIGHT)
    for one, other in itertools.permutations(("comma", "semicolon", "pipe"), 2):
        mixed = text_of(separator=SEPARATORS[one]) + SEPARATORS[other].join(["u", "i", "1600000009"]) + "\n"
        yield Case(f"{one}, then {other}", written("x.txt", mixed), None, "row 10")


def quotes() -> Iterator[Case]:
    """Fields in quotes, with what separates fields, quotes and ends of lines in them."""
    for sign, separator in SEPARATORS.items():
        rows = [('a "b" c', "i0", 1000 * BASE), ("plain", "i1", 1000 * (BASE + 1))]
        lines = [("user", "item", "timestamp"), ('"a ""b"" c"', "i0", BASE), ('"plain"', "i1", BASE + 1)]
        text = "".join(separator.join(map(str, line)) + "\n" for line in lines)
        if sign != "space":
            yield Case(f"{sign}, quotes in quotes", written("x.txt", text), rows)
        if len(separator) == 1 and separator != "\t":
            inside = separator.join([f'"a{separator}b"', "i0", str(BASE)]) + "\n"
            text = separator.join(lines[0]) + "\n" + inside
            yield Case(f"{sign}, separator in quotes", written("x.txt", text), [(f"a{separator}b", "i0", 1000 * BASE)])
            broken = separator.join(lines[0]) + "\n" + separator.join(['"a\nb"', "i0", str(BASE)]) + "\n"
            told = "line break"
            yield Case(f"{sign}, line end in quotes", written("x.txt", broken), [("a\nb", "i0", 1000 * BASE)], told)
    for name, line in (("open", '"a,1,3'), ("inside", '5" pipe,1,3'), ("behind", '"b" ,1,3')):
        text = f"user,item,timestamp\n{line}\n6,2,4\n"
        yield Case(f"quote {name}", written("x.csv", text), None, r"x\.csv, row 2")


NAMES = [("José", "thé", 1000 * BASE), ("Zoë", "naïve", 1000 * (BASE + 1))]
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1", "cp1252")


def encodings() -> Iterator[Case]:
    """Encodings, packed and not, declared and not."""
    for encoding, packed in itertools.product(ENCODINGS, ("none", *PACKED)):
        data = text_of(NAMES).encode(encoding)
        data = data if packed == "none" else PACKED[packed](data)
        yield Case(f"{encoding}, {packed}", written("x.csv", data), NAMES, "", {"encoding": encoding})
        if not encoding.startswith("utf-8"):
            yield Case(f"{encoding}, {packed}, not declared", written("x.csv", data), None, "encoding=")
    for wrong in ("klingon", "rot13", "base64"):
        yield Case(f"encoding {wrong}", written("x.csv", text_of()), None, wrong, {"encoding": wrong})
    data = text_of(NAMES).encode()
    yield Case("utf-8, declared ascii", written("x.csv", data), None, "row 2: not ascii", {"encoding": "ascii"})
    half = "user,item,timestamp\nu,é".encode()[:-1]
    yield Case("utf-8, cut in a character", written("x.csv", half), None, "row 2: not UTF-8")


def compressions() -> Iterator[Case]:
    """Compressed files under any name, cut, damaged, one inside the other."""
    plain = text_of().encode()
    for name, pack in PACKED.items():
        packed = pack(plain)
        for ending in (".csv", ".dat", *ENDINGS.values()):
            yield Case(f"{name} named {ending}", written(f"x{ending}", packed), EIGHT)
        for cut in (1, len(packed) // 4, len(packed) // 2, 3 * len(packed) // 4, len(packed) - 9, len(packed) - 1):
            data = packed[:cut]
            yield Case(f"{name}, {cut} bytes of it", written("x.csv", data), None, r"x\.csv")
        flipped = bytearray(packed)
        flipped[len(packed) // 2] ^= 16
        yield Case(f"{name}, a bit flipped", written("x.csv", bytes(flipped)), None, "damaged")
        for other, repack in PACKED.items():
            yield Case(f"{name} inside {other}", written("x.csv", repack(packed)), None, "not read here")
        yield Case(f"{name} of nothing", written("x.csv", pack(b"")), None, "empty")
    for ending in ENDINGS.values():
        yield Case(f"plain text named {ending}", written(f"x{ending}", plain), EIGHT)
    for name, start in UNREADABLE.items():
        yield Case(f"{name}", written("x.csv", start + b"abc" * 50), None, f"content is {name}")
    for count in (0, 2, 3):
        names = [f"{k}.csv" for k in range(count)]
        data = _zipped(plain, *names) if count else b"PK\x03\x04" + bytes(40)
        yield Case(f"zip of {count} files", written("x.zip", data), None, f"{count} files|damaged")
    for name, place, value in (("that is no UTF-8", 46, 0xFF), ("of no length", 28, 0)):
        zipped = bytearray(_zipped(plain))
        start = zipped.rindex(b"PK\x01\x02")
        zipped[start + 9] |= 8  # Now the name is UTF-8.
        zipped[start + place] = value
        yield Case(f"zip with a name {name}", written("x.zip", bytes(zipped)), None, r"x\.zip: truncated, damaged")
    both = gzip.compress(plain[:60]) + gzip.compress(plain[60:])
    yield Case("gzip in two members", written("x.gz", both), EIGHT)
    yield Case("gzip with more behind", written("x.gz", gzip.compress(plain) + b"more"), None, "damaged")


def _fifo(folder: Path) -> Path:
    os.mkfifo(folder / "pipe.csv")
    return folder / "pipe.csv"


def _hanging(folder: Path) -> Path:
    (folder / "hanging.csv").symlink_to(folder / "nothing")
    return folder / "hanging.csv"


def _parts(folder: Path) -> Path:
    written("p/b.csv", text_of(EIGHT[4:]))(folder)
    written("p/_SUCCESS", "")(folder)
    return written("p/a.csv", text_of(EIGHT[:4]))(folder).parent


def places() -> Iterator[Case]:
    """Names with characters of patterns, folders, pipes, and what is not there."""
    for name in (
        "a[1].csv",
        "a*.csv",
        "a?.csv",
        "~a.csv",
        "a b.csv",
        "$HOME.csv",
        "é.csv",
        "-a.csv",
        "a#b.csv",
        "{a}.csv",
    ):

        def write(folder: Path, name: str = name) -> Path:
            for other in ("a1.csv", "ab.csv"):
                written(other, text_of([("other", "i", 1000 * BASE)]))(folder)
            return written(name, text_of())(folder)

        yield Case(f"file {name}", write, EIGHT)
        yield Case(f"no file {name}", lambda folder, name=name: folder / "x" / name, None, "no such file")
    yield Case("a folder", lambda folder: folder, None, "a folder, not a file")
    yield Case("a folder of parts", _parts, EIGHT, "", {"folder": True})
    yield Case("a folder without files", lambda folder: folder, None, "no files in the folder", {"folder": True})
    yield Case("a pipe", _fifo, None, "a named pipe")
    yield Case("a device", lambda folder: Path("/dev/null"), None, "a device or socket")
    yield Case("a link to nothing", _hanging, None, "no such file")
    yield Case("a name with a NUL", lambda folder: "a\0b", None, "null")
    yield Case("a part twice", lambda folder: [written("a.csv", text_of())(folder)] * 2, None, "the same file")
    yield Case("no part", lambda folder: [], None, "no file")


def corpus() -> list[Case]:
    """All cases.

    Raises:
      ValueError: two of them have one name.
    """
    families = (layouts, quotes, encodings, compressions, places, times.numbers, times.dates, times.odd)
    families = (*families, ids_and_json.ids, ids_and_json.missing, ids_and_json.json_lines, tables.shapes)
    families = (*families, tables.parquet, tables.published)
    cases = [case for family in families for case in family()]
    names = [case.name for case in cases]
    if len(set(names)) < len(names):
        raise ValueError(f"two cases have one name: {sorted(x for x in set(names) if names.count(x) > 1)[:5]}")
    return cases
