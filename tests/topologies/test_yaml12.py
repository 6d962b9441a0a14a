"""YAML 1.2.2 core schema (chapter 10.3), merge keys, marks, limits; and the dumper that goes with it."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from topologies.diagnose import TopologyError
from topologies.marks import Mark, Node, find, plain
from topologies.yaml12 import MAX_BYTES, MAX_DEPTH, MAX_NODES, Yaml12Loader, dump, load_file, load_text, read


def value(text: str) -> Any:
    """What `text` means, without marks."""
    node = load_text(text, "t.yaml")
    return None if node is None else plain(node)


def errors(text: str) -> list[tuple[int, int, str, str]]:
    """Line, column, path and message of each error in `text`."""
    with pytest.raises(TopologyError) as caught:
        load_text(text, "t.yaml")
    return [(one.line, one.column, one.path, one.message) for one in caught.value.diagnostics]


# Plain scalars and what they are; YAML 1.2.2, 10.3.2 "Tag Resolution", with true and false in lower case
# only.
SCALARS: tuple[tuple[str, Any], ...] = (
    ("null", None),
    ("Null", None),
    ("NULL", None),
    ("~", None),
    ("nULL", "nULL"),
    ("nil", "nil"),
    ("true", True),
    ("false", False),
    ("True", "True"),
    ("FALSE", "FALSE"),
    ("on", "on"),
    ("off", "off"),
    ("On", "On"),
    ("OFF", "OFF"),
    ("yes", "yes"),
    ("no", "no"),
    ("No", "No"),
    ("y", "y"),
    ("n", "n"),
    ("0", 0),
    ("12", 12),
    ("-12", -12),
    ("+12", 12),
    ("010", 10),
    ("0o17", 15),
    ("0o18", "0o18"),
    ("-0o17", "-0o17"),
    ("0x1F", 31),
    ("0xfg", "0xfg"),
    ("0b11", "0b11"),
    ("1_000", "1_000"),
    ("1:30", "1:30"),
    ("190:20:30", "190:20:30"),
    ("190:20:30.15", "190:20:30.15"),
    ("3.14", 3.14),
    ("-.5", -0.5),
    ("5.", 5.0),
    ("1e3", 1000.0),
    ("1E-2", 0.01),
    ("-1.5e+3", -1500.0),
    ("+1.5", 1.5),
    ("1e", "1e"),
    (".", "."),
    (".inf", math.inf),
    (".Inf", math.inf),
    ("+.INF", math.inf),
    ("-.inf", -math.inf),
    (".iNF", ".iNF"),
    ("inf", "inf"),
    ("2024-01-01", "2024-01-01"),
    ("2024-01-01T10:00:00Z", "2024-01-01T10:00:00Z"),
    ("=", "="),
    ("12e03x", "12e03x"),
    ("0.1.2", "0.1.2"),
    ("<", "<"),
)


@pytest.mark.parametrize(("text", "wanted"), SCALARS)
def test_plain_scalars_are_those_of_the_core_schema(text: str, wanted: Any) -> None:
    """YAML 1.2.2, 10.3.2; contracts: no other booleans, no sexagesimals, no dates, octal with 0o only."""
    got = value(f"a: {text}")["a"]
    assert got == wanted
    assert type(got) is type(wanted)
    assert value(f"a: '{text}'") == {"a": text}


def test_not_a_number_is_a_number() -> None:
    """YAML 1.2.2, 10.3.2: .nan in three spellings."""
    for text in (".nan", ".NaN", ".NAN"):
        assert math.isnan(value(f"a: {text}")["a"])
    assert value("a: .nAN") == {"a": ".nAN"}


def test_keys_are_text_where_1_1_sees_booleans() -> None:
    """`on:` is the key of every guest; in YAML 1.1 it is the boolean true."""
    assert value("on: hv0\noff: 1\nno: 2\n1:30: x\n") == {"on": "hv0", "off": 1, "no": 2, "1:30": "x"}


def test_nothing_is_null() -> None:
    """An empty value is null, an empty document none at all."""
    assert value("a:\nb: ''\nc: []\n") == {"a": None, "b": "", "c": []}
    for text in ("", "# only a comment\n", "---\n", "\n\n"):
        assert value(text) is None


def test_explicit_tags_of_the_core_schema_are_obeyed() -> None:
    """YAML 1.2.2, 10.3: !!str and its like; anything else has no meaning."""
    assert value("{a: !!str 5, b: !!int '7', c: !!float 1, d: ! 12, e: !!null ''}") == {
        "a": "5",
        "b": 7,
        "c": 1.0,
        "d": "12",
        "e": None,
    }
    for tag in ("!!python/name:os.system", "!!timestamp", "!!binary", "!!set", "!!omap", "!own"):
        assert [row[3] for row in errors(f"a: {tag} x")] == [f"the tag {tag} has no meaning here"]
    assert "does not fit its tag !!bool" in errors("a: !!bool yes")[0][3]
    assert "has no meaning here" in errors("a: !!map [1]")[0][3]
    assert "has no meaning here" in errors("a: !!seq {b: 1}")[0][3]


def test_every_node_knows_where_it_stands() -> None:
    """contracts 9: file, line and column from 1; of keys as well."""
    root = load_text("name: lab\nguests:\n  app:\n    on:   hv0\n    with: {to: [a, b]}\n", "lab.yaml")
    assert root is not None
    on = find(root, ("guests", "app", "on"))
    assert on is not None
    assert on.mark == Mark("lab.yaml", 4, 11)
    item = find(root, ("guests", "app", "with", "to", 1))
    assert item is not None
    assert item.mark == Mark("lab.yaml", 5, 20)
    app = find(root, ("guests", "app"))
    assert app is not None
    assert app.entries()["on"].key == Mark("lab.yaml", 4, 5)


def test_merge_keys_keep_the_marks_of_what_they_merge() -> None:
    """yaml.org/type/merge: own keys first, then earlier sources before later ones; marks stay where the text
    is.
    """
    root = load_text(
        "a: &a {x: 1, y: 2}\nb: &b {y: 3, z: 4}\nc:\n  <<: [*a, *b]\n  x: 0\nd:\n  q: 9\n  <<: *a\n", "m.yaml"
    )
    assert root is not None
    assert plain(root)["c"] == {"x": 0, "y": 2, "z": 4}
    assert list(plain(root)["c"]) == ["x", "y", "z"]
    assert plain(root)["d"] == {"x": 1, "y": 2, "q": 9}
    merged = find(root, ("c", "z"))
    assert merged is not None
    assert merged.mark == Mark("m.yaml", 2, 17)
    own = find(root, ("c", "x"))
    assert own is not None
    assert own.mark == Mark("m.yaml", 5, 6)


def test_a_merge_key_in_quotes_or_as_a_value_is_text() -> None:
    """Only a plain `<<` in the place of a key merges."""
    assert value("'<<': {a: 1}\nb: <<\n") == {"<<": {"a": 1}, "b": "<<"}


def test_merge_keys_nest() -> None:
    """What is merged in may itself have merged."""
    assert value("a: &a {x: 1}\nb: &b {<<: *a, y: 2}\nc: {<<: *b, z: 3}\n")["c"] == {"x": 1, "y": 2, "z": 3}


def test_duplicate_keys_are_errors_with_both_positions() -> None:
    """contracts 9: duplicate keys are errors with position; all of them, at any depth."""
    assert errors("a: 1\nb: {c: 1, 'c': 2}\na: 2\n") == [
        (2, 11, "b.c", "duplicate key, first at 2:5"),
        (3, 1, "a", "duplicate key, first at 1:1"),
    ]


@pytest.mark.parametrize(
    ("key", "shown"),
    [("1", "1 (an integer)"), ("true", "true (a boolean)"), ("~", "nothing"), ("1.5", "1.5 (a number)")],
)
def test_keys_that_are_no_text_are_errors(key: str, shown: str) -> None:
    """A topology's keys are names; a number must be quoted to be one."""
    assert errors(f"a:\n  {key}: x\n") == [(2, 3, "a", f"a key must be text, not {shown}")]
    assert value(f"'{key}': x") == {key: "x"}


def test_depth_is_limited() -> None:
    """Nesting cannot exhaust the interpreter's stack, whatever the style it is written in."""
    limit = MAX_DEPTH - 1  # the scalar inside is a level too
    assert value("[" * limit + "x" + "]" * limit)
    for text in (
        "[" * 50_000,
        "{a: " * 50_000,
        "- " * 50_000,
        "? " * 50_000,
        "[" * MAX_DEPTH + "x" + "]" * MAX_DEPTH,
    ):
        assert [row[3] for row in errors(text)] == [f"nested more than {MAX_DEPTH} levels deep"]


def test_aliases_cannot_blow_up() -> None:
    """A few lines of aliases can stand for billions of values; they count as what they stand for."""
    bomb = "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True):
        bomb += f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n"
    assert [row[3] for row in errors(bomb)] == [f"more than {MAX_NODES} values in one file"]
    assert [row[3] for row in errors("a: &a {<<: *a}")] == ["*a stands inside &a, which it repeats"]
    assert [row[3] for row in errors("a: &a [*a]")] == ["*a stands inside &a, which it repeats"]
    assert value("a: &a {x: 1}\nb: [*a, *a]\n") == {"a": {"x": 1}, "b": [{"x": 1}, {"x": 1}]}


def test_the_number_of_values_is_limited_exactly() -> None:
    """MAX_NODES values load, one more does not."""
    assert len(value("[" + "x," * (MAX_NODES - 1) + "]")) == MAX_NODES - 1
    assert [row[3] for row in errors("[" + "x," * MAX_NODES + "]")] == [f"more than {MAX_NODES} values in one file"]


def test_numbers_cannot_be_endless() -> None:
    """Python refuses to read integers of more than 4300 digits, with an exception of its own."""
    assert value("1" * 40) == int("1" * 40)
    assert "has too many digits" in errors("1" * 41)[0][3]
    assert "has too many digits" in errors("1" * 5000)[0][3]


def test_half_characters_are_refused() -> None:
    """A lone surrogate cannot be printed or sent, so it does not get in."""
    assert "holds half a character" in errors('a: "\\udc80"')[0][3]
    assert "holds half a character" in errors('"\\ud800": 1')[0][3]
    assert value('a: "\\U0001f600 \\u00e9"') == {"a": "\U0001f600 \u00e9"}


def test_the_loader_is_a_safe_loader() -> None:
    """contracts 9: a SafeLoader subclass, whose tables are its own: PyYAML's stay as they were."""
    assert issubclass(Yaml12Loader, yaml.SafeLoader)
    assert yaml.safe_load("on: 1:30") == {True: 90}


def test_reading_files(tmp_path: Path) -> None:
    """UTF-8 with or without a byte order mark."""
    path = tmp_path / "t.yaml"
    path.write_bytes(b"\xef\xbb\xbfname: caf\xc3\xa9\n")
    node = load_file(str(path))
    assert isinstance(node, Node)
    assert plain(node) == {"name": "caf\u00e9"}
    assert node.mark == Mark(str(path), 1, 1)


def test_files_that_cannot_be_read_are_named_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What keeps a file from being read is said in words, with the position where there is one."""

    def failing(name: str, data: bytes | None = None) -> str:
        path = tmp_path / name
        if data is not None:
            path.write_bytes(data)
        with pytest.raises(TopologyError) as caught:
            read(str(path))
        return str(caught.value).removeprefix(f"{tmp_path}/").partition("\n")[0]

    assert failing("missing.yaml") == "missing.yaml: no such file"
    assert failing("") == f"{tmp_path}: is a directory"
    assert failing("binary.yaml", b"\x7fELF\x00\x01") == "binary.yaml: this is a binary file, not YAML"
    assert failing("latin.yaml", b"name: lab\n# caf\xe9\n") == "latin.yaml:2:6: byte 0xe9 is not UTF-8"
    assert failing("wide.yaml", "name: lab".encode("utf-16")) == "wide.yaml: this is UTF-16 or UTF-32 text"
    assert failing("wider.yaml", "name: lab".encode("utf-32")) == "wider.yaml: this is UTF-16 or UTF-32 text"
    assert failing("huge.yaml", b"#" * (MAX_BYTES + 1)) == "huge.yaml: larger than 1024 KiB, which no topology is"
    assert failing("binary.yaml/x") == "binary.yaml/x: not a directory"
    assert failing("n" * 300) == "n" * 300 + ": file name too long"
    with pytest.raises(TopologyError, match="no file can have this name"):
        read("a\0b")
    (tmp_path / "loop").symlink_to("loop")
    assert failing("loop") == "loop: too many levels of symbolic links"

    def refuse(*_args: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    assert failing("secret.yaml") == "secret.yaml: permission denied"


def test_a_file_of_the_largest_size_is_read(tmp_path: Path) -> None:
    """The limit itself is not beyond the limit."""
    path = tmp_path / "t.yaml"
    path.write_bytes(b"a" * MAX_BYTES)
    assert len(read(str(path))) == MAX_BYTES


def test_control_characters_have_a_position() -> None:
    """YAML 1.2.2, 5.1: C0 controls cannot stand in a file."""
    assert errors("a: 1\nb: x\x07") == [(2, 5, "", "the character U+0007 cannot stand in YAML")]


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**12), 10**12) | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)


@given(values)
def test_what_is_dumped_is_read_back(data: Any) -> None:
    """The dumper quotes what would otherwise be taken for something else: `on` needs nothing, `0o17` needs
    quotes.
    """
    assert value(dump({"data": data})) == {"data": data}


def test_dumped_text_keeps_its_kind() -> None:
    """Text that looks like a value of the core schema stays text; `on` as a key stays readable."""
    data = {
        "on": "hv0",
        "a": "0o17",
        "b": "true",
        "c": "1:30",
        "d": "null",
        "e": "1e3",
        "f": ["on", "~", "<<"],
    }
    text = dump(data)
    assert "on: hv0" in text
    assert value(text) == data


@given(st.text(max_size=200))
def test_no_text_gives_a_traceback(text: str) -> None:
    """Whatever the text, it loads or is refused with a position in it."""
    with contextlib.suppress(TopologyError):
        load_text(text, "t.yaml")


@given(st.text(alphabet="{}[]:,-?&*!|>'\"%@`#~<= \n\tab1.\\xuU$0", max_size=60))
def test_no_punctuation_gives_a_traceback(text: str) -> None:
    """As above, with the characters that mean something to YAML."""
    with contextlib.suppress(TopologyError):
        load_text(text, "t.yaml")
