"""YAML 1.2 core schema, read with every mark kept.

PyYAML speaks YAML 1.1, where `on`, `off` and `no` are booleans, `1:30` is ninety and `2024-01-01` a date.
Here only what the core schema of YAML 1.2.2 (chapter 10.3) resolves is resolved, and of its spellings of
booleans only `true` and `false`. Merge keys (`<<`) are kept from 1.1, since everybody writes them.
Duplicate keys are errors.  A file may neither nest nor expand beyond fixed limits, so that no input can
exhaust stack or memory.

Sources: YAML 1.2.2, 10.3 "Core Schema"; yaml.org/type/merge.html.
"""

from __future__ import annotations

import re
import sys
from typing import Any, Final, NamedTuple

import yaml

from topologies.diagnose import Diagnostic, TopologyError, at, describe, quoting, show
from topologies.marks import Entry, Location, Mark, Node, Scalar

MAX_BYTES: Final = 1 << 20
MAX_DEPTH: Final = 50
MAX_NODES: Final = 50_000
_MAX_NUMBER: Final = 40  # characters of a number

_TAG: Final = "tag:yaml.org,2002:"
_MERGE: Final = _TAG + "merge"


class Resolution(NamedTuple):
    """A plain scalar of this shape has this tag."""

    tag: str
    shape: str


# The first row that fits decides; what fits none is text.
CORE_SCHEMA: Final = (
    Resolution("null", r"null|Null|NULL|~|"),
    Resolution("bool", r"true|false"),
    Resolution("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+"),
    Resolution(
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
    ),
    Resolution("merge", r"<<"),
)


class Translation(NamedTuple):
    """What PyYAML says, what we say instead, and how to mend it."""

    problem: str
    message: str
    hint: str


# Reported where PyYAML noticed it.
NOTICED: Final = (
    Translation("found character '\\t'", "a tab cannot stand here", "indent and separate with spaces"),
    Translation("found character '%'", "a value cannot start with %", "write it in quotes"),
    Translation("found character '@'", "a value cannot start with @", "write it in quotes"),
    Translation("found character '`'", "a value cannot start with `", "write it in quotes"),
    Translation(
        "mapping values are not allowed",
        "a second ': ' in one value",
        "check the indentation, or write a value that contains ': ' in quotes",
    ),
    Translation("sequence entries are not allowed", "a list cannot start here", "start it on a new line"),
    Translation("expected <block end>", "this does not line up with what is above", "check the indentation"),
    Translation("but found '<stream end>'", "the file ends too early", "close all brackets"),
    Translation("found another document", "a second document starts here", "one topology is one document"),
    Translation("expected '<document start>'", "this belongs to nothing above it", "check the indentation"),
    Translation("expected alphabetic or numeric", "a name must follow here", "write the value in quotes"),
    Translation("found unknown escape", "no such escape", "write \\\\ for a backslash, or single quotes"),
    Translation("found undefined alias", "this alias has no anchor above it", "write text in quotes"),
    Translation("found incompatible YAML", "only YAML 1.x can be read", "leave the %YAML line away"),
)
# Reported where the construct begins that turned out to be wrong later.
OPENED: Final = (
    Translation("could not find expected ':'", "a key without ':' after it", "write KEY: VALUE"),
    Translation("found unexpected end of stream", "the text in quotes is not closed", "close the quotes"),
    Translation("expected ',' or '}'", "'{' without '}'", "close it, or put a comma between entries"),
    Translation("expected ',' or ']'", "'[' without ']'", "close it, or put a comma between items"),
)


class Yaml12Loader(yaml.SafeLoader):
    """A SafeLoader for the core schema of YAML 1.2.  `get_single_data` gives a tree of marked nodes."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 - PyYAML's own way to configure a class

    def __init__(self, text: str, file: str) -> None:
        self.file = file
        self.errors: list[Diagnostic] = []
        self._depth = 0
        self._nodes = 0
        self._sizes: dict[str, int] = {}  # nodes below each anchor, aliases expanded
        self._open: set[str] = set()  # anchors whose node is not complete yet
        super().__init__(text)

    def get_single_data(self) -> Node | None:
        """The document as a tree, None where the file holds none.  Raises TopologyError."""
        document = self.get_single_node()
        tree = None if document is None else self._convert(document, ())
        if self.errors:
            raise TopologyError(self.errors)
        return tree

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """The composer's step, counted: aliases count as what they stand for."""
        event = self.peek_event()  # type: ignore[no-untyped-call]
        place = self._mark(event.start_mark)
        anchor = event.anchor
        if isinstance(event, yaml.AliasEvent):
            if anchor in self._open:
                raise TopologyError([at(place, (), f"*{anchor} stands inside &{anchor}, which it repeats")])
            self._count(self._sizes.get(anchor, 1), place)
            return super().compose_node(parent, index)
        if isinstance(event, yaml.ScalarEvent) and event.tag == "!":
            event.implicit = (False, True)  # in 1.2 this tag makes text; PyYAML takes it for none
        before = self._nodes
        self._count(1, place)
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise TopologyError([at(place, (), f"nested more than {MAX_DEPTH} levels deep")])
        if anchor is not None:
            self._open.add(anchor)
        node = super().compose_node(parent, index)
        if anchor is not None:
            self._open.discard(anchor)
            self._sizes[anchor] = self._nodes - before
        self._depth -= 1
        return node

    def _count(self, nodes: int, place: Mark) -> None:
        self._nodes += nodes
        if self._nodes > MAX_NODES:
            hint = "aliases count as often as they are used"
            raise TopologyError([at(place, (), f"more than {MAX_NODES} values in one file", hint=hint)])

    def _mark(self, mark: Any) -> Mark:
        return Mark(self.file, mark.line + 1, mark.column + 1)

    def _error(self, mark: Mark, location: Location, message: str, hint: str = "") -> None:
        self.errors.append(at(mark, location, message, hint=hint))

    def _convert(self, node: yaml.Node, location: Location) -> Node:
        mark = self._mark(node.start_mark)
        if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            return Node(self._entries(node, location), mark)
        if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            return Node(tuple(self._convert(item, (*location, index)) for index, item in enumerate(node.value)), mark)
        if isinstance(node, yaml.ScalarNode):
            return Node(self._scalar(node, mark, location), mark)
        self._error(mark, location, f"the tag {_tag(node.tag)} has no meaning here", "leave it away")
        return Node(None, mark)

    def _entries(self, node: yaml.MappingNode, location: Location) -> dict[str, Entry]:
        own: dict[str, Entry] = {}
        merged: dict[str, Entry] = {}
        seen: dict[str, Mark] = {}
        for key_node, value_node in node.value:
            mark = self._mark(key_node.start_mark)
            merge = key_node.tag == _MERGE
            key = "<<" if merge else self._key(key_node, mark, location)
            if key is None:
                continue
            if key in seen:
                first = seen[key]
                self._error(mark, (*location, key), f"duplicate key, first at {first.line}:{first.column}")
                continue
            seen[key] = mark
            if merge:
                merged = self._merged(value_node, location)
            else:
                own[key] = Entry(mark, self._convert(value_node, (*location, key)))
        # What a map says itself goes before what it merges in; the merged keys keep their places in front.
        return {**merged, **own}

    def _key(self, node: yaml.Node, mark: Mark, location: Location) -> str | None:
        if not isinstance(node, yaml.ScalarNode):
            self._error(mark, location, "a key must be text, not a list or a map", "write KEY: VALUE")
            return None
        errors = len(self.errors)
        key = self._scalar(node, mark, location)
        if isinstance(key, str):
            return key
        if len(self.errors) == errors:
            self._error(mark, location, f"a key must be text, not {describe(key)}", quoting(key))
        return None

    def _merged(self, node: yaml.Node, location: Location) -> dict[str, Entry]:
        sources = node.value if isinstance(node, yaml.SequenceNode) else [node]
        merged: dict[str, Entry] = {}
        for source in sources:
            if isinstance(source, yaml.MappingNode) and source.tag == _TAG + "map":
                for key, entry in self._entries(source, location).items():
                    merged.setdefault(key, entry)
            else:
                mark = self._mark(source.start_mark)
                self._error(mark, location, "<< merges a map or a list of maps only", "write <<: *ANCHOR")
        return merged

    def _scalar(self, node: yaml.ScalarNode, mark: Mark, location: Location) -> Scalar:
        tag, text = node.tag, node.value
        if tag in (_TAG + "str", _MERGE):
            if any("\ud800" <= letter <= "\udfff" for letter in text):
                self._error(mark, location, f"{show(text)} holds half a character", "write \\U and eight digits")
            return str(text)
        for row in CORE_SCHEMA:
            if tag == _TAG + row.tag:
                if not re.fullmatch(row.shape, text):
                    self._error(mark, location, f"{show(text)} does not fit its tag {_tag(tag)}", "leave the tag away")
                    return None
                if len(text) > _MAX_NUMBER:
                    self._error(mark, location, f"{show(text)} has too many digits", 'write text in quotes: "..."')
                    return None
                return _value(row.tag, text)
        self._error(mark, location, f"the tag {_tag(tag)} has no meaning here", "leave it away")
        return None


for _row in CORE_SCHEMA:
    Yaml12Loader.add_implicit_resolver(_TAG + _row.tag, re.compile(f"(?:{_row.shape})\\Z"), None)


class Yaml12Dumper(yaml.SafeDumper):
    """Writes what Yaml12Loader reads back as the same values: text that would resolve to something else is
    quoted.
    """

    yaml_implicit_resolvers = Yaml12Loader.yaml_implicit_resolvers

    def ignore_aliases(self, data: Any) -> bool:
        """Write every value out: a reader should not have to follow aliases."""
        del data
        return True


def dump(data: Any) -> str:
    """YAML 1.2 text of plain data (dicts, lists, scalars), keys in their order."""
    text: str = yaml.dump(data, Dumper=Yaml12Dumper, sort_keys=False, allow_unicode=True, width=110)
    return text


def load_text(text: str, file: str) -> Node | None:
    """The one document in `text` as a tree, None where there is none.  Raises TopologyError naming `file`."""
    try:
        loader = Yaml12Loader(text, file)
    except yaml.reader.ReaderError as error:
        raise TopologyError([_unprintable(text, file, error)]) from None
    try:
        return loader.get_single_data()
    except yaml.MarkedYAMLError as error:
        raise TopologyError([_translate(file, error)]) from None
    except (ValueError, OverflowError):
        # Only \U escapes beyond Unicode get here: the scanner hands their number to chr().
        place = Mark(file, loader.line + 1, loader.column + 1)
        raise TopologyError([at(place, (), "this escape is no Unicode character")]) from None
    finally:
        loader.dispose()


def load_file(path: str) -> Node | None:
    """`load_text` of the file at `path`; `-` is standard input.  Raises TopologyError."""
    return load_text(read(path), shown_name(path))


def shown_name(path: str) -> str:
    """How diagnostics name the file at `path`."""
    return "<stdin>" if path == "-" else path


def read(path: str) -> str:
    """The text of a file.  Raises TopologyError for whatever keeps it from being read as UTF-8 text."""
    file = shown_name(path)
    try:
        if path == "-":
            data = sys.stdin.buffer.read(MAX_BYTES + 1)
        else:
            with open(path, "rb") as stream:
                data = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise _file_error(file, "no such file") from None
    except IsADirectoryError:
        raise _file_error(file, "is a directory", "name the topology file in it") from None
    except PermissionError:
        raise _file_error(file, "permission denied") from None
    except OSError as error:
        raise _file_error(file, (error.strerror or "cannot be read").lower()) from None
    except ValueError:
        raise _file_error(repr(file), "no file can have this name") from None
    if len(data) > MAX_BYTES:
        raise _file_error(file, f"larger than {MAX_BYTES // 1024} KiB, which no topology is")
    if data.startswith((b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")):
        raise _file_error(file, "this is UTF-16 or UTF-32 text", "save it as UTF-8")
    if b"\x00" in data:
        raise _file_error(file, "this is a binary file, not YAML")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        before = data[data.rfind(b"\n", 0, error.start) + 1 : error.start]
        column = len(before.decode("utf-8", "replace")) + 1
        message = f"byte 0x{data[error.start]:02x} is not UTF-8"
        raise TopologyError([at(Mark(file, line, column), (), message, hint="save the file as UTF-8")]) from None


def _file_error(file: str, message: str, hint: str = "") -> TopologyError:
    return TopologyError([at(Mark(file, 0, 0), (), message, hint=hint)])


def _translate(file: str, error: yaml.MarkedYAMLError) -> Diagnostic:
    problem = error.problem or error.context or "this is no YAML"
    mark = error.problem_mark or error.context_mark
    place = Mark(file, 0, 0) if mark is None else Mark(file, mark.line + 1, mark.column + 1)
    for row in NOTICED:
        if row.problem in problem:
            return at(place, (), row.message, hint=row.hint)
    for row in OPENED:
        if row.problem in problem and error.context_mark is not None:
            place = Mark(file, error.context_mark.line + 1, error.context_mark.column + 1)
            return at(place, (), row.message, hint=row.hint)
    return at(place, (), problem if len(problem) <= 100 else problem[:97] + "...")


def _unprintable(text: str, file: str, error: yaml.reader.ReaderError) -> Diagnostic:
    start = text.rfind("\n", 0, error.position) + 1
    place = Mark(file, text.count("\n", 0, error.position) + 1, error.position - start + 1)
    code = error.character if isinstance(error.character, int) else ord(error.character)
    return at(place, (), f"the character U+{code:04X} cannot stand in YAML", hint="write it as an escape in quotes")


def _tag(tag: str) -> str:
    short = "!!" + tag.removeprefix(_TAG) if tag.startswith(_TAG) else tag
    return short if len(short) <= 40 else short[:37] + "..."


def _value(tag: str, text: str) -> Scalar:
    if tag == "bool":
        return text == "true"
    if tag == "int":
        base = {"0o": 8, "0x": 16}.get(text[:2], 10)
        return int(text[2:], base) if base != 10 else int(text)
    if tag == "float":
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return None
