"""Inputs whose ids are odd or missing, and JSON lines, with what is right (`inputs`)."""

import itertools
import json
from collections.abc import Iterator, Sequence

import polars as pl

from scall_jax.streams import MISSING
from tests.faults.cases import BASE, EIGHT, Case, Row, text_of, written

ROLES = ("user", "item", "timestamp")


def _three(users: Sequence[object], found: Sequence[object] | None = None) -> tuple[list[Row], list[Row]]:
    """Rows with some users as they are written, and as they should be read."""
    times = [1000 * (BASE + k) for k in range(len(users))]
    rows = [(u, f"i{k}", t) for k, (u, t) in enumerate(zip(users, times, strict=True))]
    read = [(u, f"i{k}", t) for k, (u, t) in enumerate(zip(found or users, times, strict=True))]
    return rows, read


IDS = {
    "whole numbers": (["1034", "77"], [1034, 77]),
    "whole numbers with a point": (["1034", "1034.0", "77"], [1034, 1034, 77]),
    "all with a point": (["1034.0", "77.00"], [1034, 77]),
    "leading zeros": (["007", "7"], None),
    "plus signs": (["+5", "5"], None),
    "negative": (["-3", "3"], [-3, 3]),
    "20 digits": (["12345678901234567890", "12345678901234567891"], [12345678901234567890, 12345678901234567891]),
    "25 digits": (["1234567890123456789012345", "1234567890123456789012346"], None),
    "the largest of 64 bits": (["9223372036854775807", "9223372036854775808"], [2**63 - 1, 2**63]),
    "fractions": (["1.5", "2.5"], None),
    "hexadecimal": (["0x1f", "0x20"], None),
    "exponents": (["1e5", "2e5"], None),
    "spaces around": ([" u1", "u1 ", "u1"], ["u1", "u1", "u1"]),
    "spaces around numbers": ([" 7", "7"], [7, 7]),
    "spaces inside": (["u 1", "u  1"], None),
    "capitals": (["Ann", "ann"], None),
    "composed and decomposed": (["é", "é"], None),
    "other scripts": (["用户", "пользователь", "مستخدم"], None),
    "emoji": (["🍵", "🍵🏽"], None),
    "long": (["x" * 10_000, "x" * 10_001], None),
    "UUIDs": (["123e4567-e89b-12d3-a456-426614174000", "123e4567-e89b-12d3-a456-426614174001"], None),
    "words like numbers": (["inf", "Infinity", "1"], None),
    "booleans": (["True", "False", "true"], None),
    "backslashes": ([r"a\nb", r"a\\b"], None),
    "apostrophes": (["o'hara", "o’hara"], None),
    "a hash": (["#1", "# comment"], None),
    "control characters": (["a\x01b", "a\x02b"], None),
    "line separators": (["a\u2028b", "a\x85b"], None),
    "zero width": (["a\u200bb", "ab"], None),
}


def ids() -> Iterator[Case]:
    """Ids of many kinds, in separated text and in JSON lines."""
    for name, (users, found) in IDS.items():
        rows, read = _three(users, found)
        for sign, separator in (("comma", ","), ("tab", "\t"), ("colons", "::")):
            yield Case(f"ids, {name}, {sign}", written("x.txt", text_of(rows, separator=separator)), read)
        lines = [json.dumps({"user": u, "item": i, "timestamp": t // 1000}) + "\n" for u, i, t in rows]
        yield Case(f"ids, {name}, JSON", written("x.jsonl", "".join(lines)), read)
    rows, read = _three(["1034", "1034.0", "ann"])
    yield Case("ids, text and a number twice", written("x.csv", text_of(rows)), read, "are two ids")
    for separator, name in (("::", "colons"), (",", "comma"), (";", "semicolon")):
        rows, read = _three(["a\tb", "a b", "ab"])
        yield Case(f"ids, tab inside, {name}", written("x.dat", text_of(rows, separator=separator)), read)
    for role, form in itertools.product(range(3), ("csv", "jsonl")):
        values = ["u", "i", str(BASE)]
        values[role] = f"a{chr(0)}b"
        if form == "csv":
            text = text_of() + ",".join(values) + "\n"
            yield Case(f"NUL in the {ROLES[role]}, csv", written("x.csv", text), None, "row 10: a NUL byte")
        else:
            text = json.dumps(dict(zip(ROLES, values, strict=True))) + "\n"
            words = f"row 1, column '{ROLES[role]}'"
            yield Case(f"NUL in the {ROLES[role]}, JSON", written("x.jsonl", text), None, words)


def missing() -> Iterator[Case]:
    """Values that stand for none: refused by their row, or left out by request and counted."""
    for role, token in itertools.product(ROLES, ("", " ", *MISSING)):
        row = {"user": "u", "item": "i", "timestamp": str(BASE + 9)} | {role: token}
        text = text_of() + ",".join(row.values()) + "\n"
        words = f"row 10, column '{role}': .* is missing"
        yield Case(f"no {role}: {token!r}", written("x.csv", text), None, words)
        words = rf"left out of 9 .*no {role} in 1 \(first: row 10"
        yield Case(f"no {role}: {token!r}, skipped", written("x.csv", text), EIGHT, words, {"skip_incomplete": True})
    for role in ROLES:
        row = {"user": "u", "item": "i", "timestamp": BASE}
        for name, line in (("null", row | {role: None}), ("absent", {k: v for k, v in row.items() if k != role})):
            text = json.dumps(row) + "\n" + json.dumps(line) + "\n"
            words = f"row 2, column '{role}'"
            yield Case(f"no {role}: {name} in JSON", written("x.jsonl", text), None, words)

        def write(folder, role=role):
            frame = pl.DataFrame({"user": ["u", "v"], "item": ["i", "j"], "timestamp": [BASE, BASE + 1]})
            frame = frame.with_columns(pl.when(pl.col("item") == "i").then(pl.col(role)).alias(role))
            frame.write_parquet(folder / "x.parquet")
            return folder / "x.parquet"

        yield Case(f"no {role}: null in Parquet", write, None, f"row 2, column '{role}'")
    given = {"missing": ("?",), "skip_incomplete": True}
    text = text_of() + f"?,i,{BASE}\n"
    yield Case("a given text for missing", written("x.csv", text), EIGHT, "no user in 1", given)
    yield Case(
        "NA as an id",
        written("x.csv", f"user,item,timestamp\nNA,i,{BASE}\n"),
        [("NA", "i", 1000 * BASE)],
        "",
        {"missing": ()},
    )
    everything = f"user,item,timestamp\nNA,i,{BASE}\n"
    yield Case("nothing left", written("x.csv", everything), None, "no row is complete", {"skip_incomplete": True})


GOOD = json.dumps({"user": "u", "item": "i", "timestamp": BASE}) + "\n"
ROW = ("u", "i", 1000 * BASE)


def json_lines() -> Iterator[Case]:
    """JSON lines: nested values, odd numbers, torn lines, and what is none."""
    values = {"list": "[5, 7]", "empty list": "[]", "object": '{"a": 1}', "empty object": "{}"}
    for role, (name, value) in itertools.product(ROLES, values.items()):
        bad = {"user": '"u"', "item": '"i"', "timestamp": str(BASE)} | {role: value}
        line = "{" + ", ".join(f'"{key}": {text}' for key, text in bad.items()) + "}\n"
        for where, text in (("first", line + GOOD), ("last", GOOD * 3 + line)):
            words = f"row {1 if where == 'first' else 4}, column '{role}'"
            yield Case(f"JSON {name} as {role}, {where}", written("x.jsonl", text), None, words)
    extras = {
        "nested elsewhere": '"x": {"a": [1, {"b": 2}]}',
        "a long list elsewhere": '"x": [' + ", ".join(["1"] * 1000) + "]",
        "a name twice elsewhere": '"x": 1, "x": 2',
        "an empty name": '"": 1',
        "another type each time": '"x": null',
        "escapes elsewhere": r'"x": "\u00e9\ud83c\udf75\n\t\"\\"',
        "a number elsewhere": '"x": -1.5E+300',
    }
    for name, extra in extras.items():
        line = GOOD.rstrip("}\n") + ", " + extra + "}\n"
        yield Case(f"JSON, {name}", written("x.jsonl", GOOD + line), [ROW, ROW])
    for name, text, words in (
        ("an array", "[" + GOOD.strip() + "]", "a JSON array"),
        ("an array over lines", "[\n" + GOOD + "]\n", "a JSON array"),
        ("printed over lines", json.dumps(json.loads(GOOD), indent=1), "row 1: not a JSON object"),
        ("NaN as user", GOOD.replace('"u"', "NaN"), "NaN is no JSON"),
        ("Infinity as time", GOOD.replace(str(BASE), "Infinity"), "Infinity is no JSON"),
        ("a torn line", GOOD + GOOD[:20], "row 2"),
        ("a torn line in the middle", GOOD + GOOD[:20] + "\n" + GOOD, "row 2"),
        ("a number on a line", GOOD + "5\n", "row 2"),
        ("text on a line", GOOD + '"x"\n', "row 2"),
        ("null on a line", GOOD + "null\n", "row 2"),
        ("two objects on a line", GOOD.strip() + GOOD, "row 1"),
        ("a comma behind", GOOD.strip() + ",\n" + GOOD, "row 1"),
        ("single quotes", GOOD.replace('"', "'"), "row 1"),
        ("a bare word", GOOD.replace('"u"', "u"), "row 1"),
        ("nested too deeply", GOOD + GOOD.replace('"i"', "[" * 10**5 + "]" * 10**5), "row 2"),
        ("no time", '{"user": "u", "item": "i"}\n', "no column for the timestamp"),
        ("a text as time", GOOD.replace(str(BASE), '"soon"'), "row 1, column 'timestamp'"),
        ("a boolean as time", GOOD.replace(str(BASE), "true"), "row 1, column 'timestamp'"),
        ("half a surrogate", GOOD.replace('"u"', r'"\ud83c"'), "row 1"),
        ("bytes that are no UTF-8", GOOD + GOOD.replace("u", "\udcff"), "row 2"),
    ):
        yield Case(f"JSON, {name}", written("x.jsonl", text.encode(errors="surrogateescape")), None, words)
    for name, text, rows in (
        ("blank lines", "\n" + GOOD + "\n\n" + GOOD + "\n", [ROW, ROW]),
        ("Windows lines", (GOOD * 2).replace("\n", "\r\n"), [ROW, ROW]),
        ("no last line end", GOOD + GOOD.strip(), [ROW, ROW]),
        ("a mark in front", "\ufeff" + GOOD, [ROW]),
        ("spaces in front", "  " + GOOD, [ROW]),
        ("a number as user", GOOD.replace('"u"', "5"), [(5, *ROW[1:])]),
        ("a large number as user", GOOD.replace('"u"', "12345678901234567890"), [(12345678901234567890, *ROW[1:])]),
        ("a boolean as user", GOOD.replace('"u"', "true"), [("true", *ROW[1:])]),
        ("escapes in the user", GOOD.replace('"u"', r'"\u00e9"'), [("é", *ROW[1:])]),
        ("a list as text", GOOD.replace('"u"', '"[5]"'), [("[5]", *ROW[1:])]),
        ("a time with an exponent", GOOD.replace(str(BASE), "1.6e9"), [ROW]),
        ("a time as text", GOOD.replace(str(BASE), f'"{BASE}"'), [ROW]),
        ("many names", GOOD.rstrip("}\n") + "".join(f', "x{k}": {k}' for k in range(500)) + "}\n", [ROW]),
    ):
        yield Case(f"JSON, {name}", written("x.jsonl", text), rows)
    numbers, read = [12345678901234567, 12345678901234568], [12345678901234567, 12345678901234568]
    text = "".join(json.dumps({"user": n, "item": "i0", "timestamp": BASE}) + "\n" for n in numbers)
    yield Case("JSON, numbers beyond floats", written("x.jsonl", text), [(n, "i0", 1000 * BASE) for n in read])
