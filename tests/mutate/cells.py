"""The cells of a table, read from its literal in the source, and one mutant for each.

A table is a module-level assignment, an enum class, or "*" for all upper-case assignments of a module.  Its
cells are the leaves of the literal: constants, names, enum members, empty sequences; keys of a dict as well
as values; the arguments of row types, those left to their defaults included, but not the row types
themselves.  What cannot be read as cells (a comprehension, an f-string, a lambda) is reported as opaque.

A cell's column is its place in a row.  A mutant is
    a number        plus one; a computed one less one
    a string        another of its column where values recur there, else with an "x" at its end; in a format
                    of the struct module the "x" comes first: a byte of padding, which moves every field
    a truth value   the other one
    a name          another of its column, else another member of its enum, else its value plus one, else None
    None            another value of its column, else 0
    *name           for a name that stands for a tuple: each element in turn
    ()              another sequence of its column, else one that holds None
"""

from __future__ import annotations

import ast
import copy
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

_CONSTANT_NAME = re.compile(r"_?[A-Z][A-Z0-9_]*")
_STRUCT_FORMAT = re.compile(r"[<>=!@]([0-9]*[a-zA-Z?])+")


@dataclass(frozen=True, slots=True)
class Cell:
    """One leaf of a table and the mutant made from it.

    `path` is the cell as one would write it (`ROWS[3].errno`), `column` the same without the indexes of rows;
    `index` counts the leaves of the table in source order, which is how the import hook finds the node again.
    """

    path: str
    column: str
    line: int
    index: int
    old: str
    new: str


@dataclass(slots=True)
class _Leaf:
    """A leaf before its column is known: the node to be replaced and the value that stands there."""

    path: str
    column: str
    node: ast.expr
    value: ast.expr
    wrap: Callable[[ast.expr], ast.expr]


@dataclass(slots=True)
class Table:
    """The leaves of one table, the sequences in it by column, and the source of what is neither."""

    leaves: list[_Leaf] = field(default_factory=list)
    sequences: dict[str, list[ast.expr]] = field(default_factory=dict)
    opaque: list[str] = field(default_factory=list)


class TableError(Exception):
    """A table that is not there or holds no cell."""


class Sources:
    """Modules under a root directory, read as syntax trees; nothing is imported."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._trees: dict[str, ast.Module | None] = {}

    def path(self, module: str) -> Path:
        """The file of `module`, a dotted name; for a package its __init__.py."""
        base = self.root.joinpath(*module.split("."))
        return base / "__init__.py" if base.is_dir() else base.with_suffix(".py")

    def tree(self, module: str) -> ast.Module | None:
        """The module's syntax tree, or None when it does not lie under the root."""
        if module not in self._trees:
            path = self.path(module)
            self._trees[module] = ast.parse(path.read_text()) if path.is_file() else None
        return self._trees[module]

    def resolve(self, module: str, name: str, depth: int = 4) -> ast.stmt | None:
        """The statement that defines `name` as seen in `module`, through `from m import name`."""
        tree = self.tree(module)
        if tree is None or depth == 0:
            return None
        for statement in tree.body:
            if isinstance(statement, ast.ClassDef) and statement.name == name:
                return statement
            if name in _assigned(statement):
                return statement
            if isinstance(statement, ast.ImportFrom) and statement.module:
                for alias in statement.names:
                    if (alias.asname or alias.name) == name:
                        return self.resolve(statement.module, alias.name, depth - 1)
        return None

    def fields(self, module: str, function: ast.expr) -> dict[str, ast.expr | None]:
        """The fields of a row type (NamedTuple, dataclass) called in `module`, with their defaults."""
        definition = self.resolve(module, function.id) if isinstance(function, ast.Name) else None
        if not isinstance(definition, ast.ClassDef):
            return {}
        return {
            statement.target.id: statement.value
            for statement in definition.body
            if isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and "ClassVar" not in ast.unparse(statement.annotation)
        }

    def members(self, module: str, name: str) -> list[str]:
        """The members of the enum `name` as seen in `module`."""
        definition = self.resolve(module, name)
        if not isinstance(definition, ast.ClassDef):
            return []
        return [target for statement in definition.body for target in _assigned(statement)]

    def elements(self, module: str, name: str) -> list[ast.expr]:
        """The elements of the tuple or list that `name` stands for in `module`; else none."""
        value = getattr(self.resolve(module, name), "value", None)
        return list(value.elts) if isinstance(value, ast.Tuple | ast.List) else []


def _assigned(statement: ast.stmt) -> list[str]:
    """The names that a statement gives a value to."""
    if isinstance(statement, ast.Assign):
        return [target.id for target in statement.targets if isinstance(target, ast.Name)]
    if isinstance(statement, ast.AnnAssign) and statement.value and isinstance(statement.target, ast.Name):
        return [statement.target.id]
    return []


def _roots(tree: ast.Module, attribute: str) -> Iterator[tuple[str, ast.expr]]:
    """The literals that make up a table, each with its name."""
    for statement in tree.body:
        if isinstance(statement, ast.ClassDef) and statement.name == attribute:
            for inner in statement.body:
                for name in _assigned(inner):
                    yield f"{attribute}.{name}", inner.value  # type: ignore[attr-defined]
        for name in _assigned(statement):
            if name == attribute or (attribute == "*" and _CONSTANT_NAME.fullmatch(name)):
                yield name, statement.value  # type: ignore[attr-defined]


class _Reader:
    """Walks one literal."""

    def __init__(self, sources: Sources, module: str) -> None:
        self.sources = sources
        self.module = module
        self.table = Table()

    def leaf(self, path: str, column: str, node: ast.expr) -> None:
        self.table.leaves.append(_Leaf(path, column, node, node, lambda new: new))

    def walk(self, node: ast.expr, path: str, column: str) -> None:
        match node:
            case ast.Constant(value=constant) if constant is not ...:
                self.leaf(path, column, node)
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant()) | ast.Name() | ast.Attribute():
                self.leaf(path, column, node)
            case ast.UnaryOp(operand=operand):
                self.walk(operand, path, column)
            case ast.BinOp(left=left, right=right):
                self.walk(left, f"{path}<", column)
                self.walk(right, f"{path}>", column)
            case ast.Tuple() | ast.List() | ast.Set():
                self.sequence(node, path, column)
            case ast.Dict(keys=keys, values=values):
                for key, value in zip(keys, values, strict=True):
                    if key is None:
                        self.opaque(path, value)
                        continue
                    self.walk(key, f"{path}{{{ast.unparse(key)}}}", f"{column}{{key}}")
                    self.walk(value, f"{path}[{ast.unparse(key)}]", f"{column}[*]")
            case ast.Call():
                self.call(node, path, column)
            case _:
                self.opaque(path, node)

    def sequence(self, node: ast.Tuple | ast.List | ast.Set, path: str, column: str) -> None:
        elements = node.elts
        if not elements:
            self.leaf(path, column, node)
            return
        self.table.sequences.setdefault(column, []).append(node)
        # Elements of one shape are rows of one column; elements of several shapes are the columns of a row.
        alike = len({_shape(element) for element in elements}) == 1
        for number, element in enumerate(elements):
            here = f"{column}[*]" if alike else f"{column}[{number}]"
            if isinstance(element, ast.Starred):
                self.starred(element, [f"{path}[{number}]"], [here])
            else:
                self.walk(element, f"{path}[{number}]", here)

    def call(self, node: ast.Call, path: str, column: str) -> None:
        defaults = self.sources.fields(self.module, node.func)
        fields = list(defaults)
        if not fields and len(node.args) == 1 and not node.keywords:
            if not isinstance(node.args[0], ast.Starred):  # frozenset({...}), Struct("<I"): seen through
                self.walk(node.args[0], path, column)
            else:
                self.opaque(path, node)
            return
        position = 0
        for argument in node.args:
            if isinstance(argument, ast.Starred):
                position += self.starred(
                    argument,
                    [f"{path}.{name}" for name in fields[position:]],
                    [f"{column}.{name}" for name in fields[position:]],
                )
                continue
            name = fields[position] if position < len(fields) else str(position)
            self.walk(argument, f"{path}.{name}", f"{column}.{name}")
            position += 1
        for keyword in node.keywords:
            if keyword.arg is None:
                self.opaque(path, keyword.value)
            else:
                self.walk(keyword.value, f"{path}.{keyword.arg}", f"{column}.{keyword.arg}")
        given = {*fields[:position], *(keyword.arg for keyword in node.keywords)}
        for name, default in defaults.items():
            if name not in given and default is not None:
                self.default(node, name, default, f"{path}.{name}", f"{column}.{name}")

    def default(self, node: ast.Call, name: str, default: ast.expr, path: str, column: str) -> None:
        """A cell for an argument left to its default, if that is a plain value known in this module."""
        names = {inner.id for inner in ast.walk(default) if isinstance(inner, ast.Name)}
        plain = isinstance(default, ast.Constant | ast.Attribute | ast.Name)
        empty = isinstance(default, ast.Tuple) and not default.elts
        if not plain and not empty:
            return
        if any(self.sources.resolve(self.module, known) is None for known in names):
            return

        def wrap(new: ast.expr) -> ast.expr:
            return ast.Call(node.func, node.args, [*node.keywords, ast.keyword(name, new)])

        # A copy: the default is one node of the row type, but a cell of its own in each row.
        self.table.leaves.append(_Leaf(path, column, node, copy.deepcopy(default), wrap))

    def starred(self, node: ast.Starred, paths: list[str], columns: list[str]) -> int:
        """Cells for each element of a name that stands for a tuple; how many it has."""
        name = node.value.id if isinstance(node.value, ast.Name) else ""
        elements = self.sources.elements(self.module, name) if name else []
        if not elements:
            self.opaque(paths[0] if paths else name, node)
        for number, element in enumerate(elements):
            path = paths[number] if number < len(paths) else f"{paths[0]}[{number}]"
            column = columns[number] if number < len(columns) else columns[0]

            def wrap(new: ast.expr, number: int = number) -> ast.expr:
                changed = [copy.deepcopy(old) for old in elements]
                changed[number] = new
                return ast.Starred(ast.Tuple(changed, ast.Load()), ast.Load())

            self.table.leaves.append(_Leaf(path, column, node, element, wrap))
        return len(elements)

    def opaque(self, path: str, node: ast.AST) -> None:
        self.table.opaque.append(f"{path}: {ast.unparse(node)}")


def _shape(element: ast.expr) -> type[ast.expr]:
    return ast.Name if isinstance(element, ast.Attribute) else type(element)


def _read(sources: Sources, module: str, attribute: str, tree: ast.Module) -> Table:
    reader = _Reader(sources, module)
    for name, value in _roots(tree, attribute):
        reader.walk(value, name, name.partition(".")[0])
    return reader.table


def _other(leaf: _Leaf, column: list[ast.expr]) -> ast.expr | None:
    """The next value of the column that differs from the leaf's and may stand in its place."""
    own = ast.unparse(leaf.value)
    start = next(at for at, value in enumerate(column) if value is leaf.value)
    for value in column[start + 1 :] + column[:start]:
        if ast.unparse(value) != own and not (isinstance(value, ast.Constant) and value.value is None):
            return value
    return None


def _mutant(leaf: _Leaf, column: list[ast.expr], table: Table, sources: Sources, module: str) -> ast.expr:
    value = leaf.value
    if isinstance(value, ast.Tuple | ast.List):  # an empty one
        others = table.sequences.get(leaf.column)
        return others[0] if others else type(value)([ast.Constant(None)], ast.Load())
    if isinstance(value, ast.Name | ast.Attribute):
        return _other_name(leaf, column, sources, module)
    if not isinstance(value, ast.Constant):  # computed, as the largest of 64 bits: more may be no other limit
        return ast.BinOp(value, ast.Sub(), ast.Constant(1))
    constant = value.value
    if constant is None:
        return _other(leaf, column) or ast.Constant(0)
    if isinstance(constant, bool):
        return ast.Constant(not constant)
    if isinstance(constant, int | float | complex):
        return ast.Constant(constant + 1)
    if isinstance(constant, str) and _STRUCT_FORMAT.fullmatch(constant):
        return ast.Constant(f"{constant[0]}x{constant[1:]}")
    if isinstance(constant, str):
        texts = [other for other in column if isinstance(getattr(other, "value", None), str)]
        recurs = len({ast.unparse(other) for other in texts}) < len(texts)
        return (recurs and _other(leaf, texts)) or ast.Constant(constant + "x")
    assert isinstance(constant, bytes)
    return ast.Constant(constant + b"x")


def _other_name(leaf: _Leaf, column: list[ast.expr], sources: Sources, module: str) -> ast.expr:
    value = leaf.value
    named: list[ast.expr] = [other for other in column if isinstance(other, ast.Name | ast.Attribute)]
    if isinstance(value, ast.Attribute) and isinstance(value.value, ast.Name):
        # The same enum first: a member of another one may be no more than a type error.
        same = [other for other in named if ast.unparse(getattr(other, "value", other)) == value.value.id]
        if (other := _other(leaf, same)) is not None:
            return other
        members = sources.members(module, value.value.id)
        if value.attr in members and len(members) > 1:
            following = members[(members.index(value.attr) + 1) % len(members)]
            return ast.Attribute(value.value, following, ast.Load())
    if (other := _other(leaf, named)) is not None:
        return other
    definition = sources.resolve(module, value.id) if isinstance(value, ast.Name) else None
    match getattr(getattr(definition, "value", None), "value", None):
        case int():
            return ast.BinOp(value, ast.Add(), ast.Constant(1))
        case str():
            return ast.BinOp(value, ast.Add(), ast.Constant("x"))
    return ast.Constant(None)


@dataclass(slots=True)
class Mutants:
    """A table's cells, the replacement for each (by index), and what is opaque in it."""

    cells: list[Cell]
    replacements: list[ast.expr]
    opaque: list[str]


def mutants(sources: Sources, module: str, attribute: str) -> Mutants:
    """One mutant for each cell of a table.  Raises TableError when there is none."""
    tree = sources.tree(module)
    if tree is None:
        raise TableError(f"{module}: no such module")
    table = _read(sources, module, attribute, tree)
    if not table.leaves:
        raise TableError(f"{module}.{attribute}: no such table, or one without a cell")
    columns: dict[str, list[ast.expr]] = {}
    for leaf in table.leaves:
        columns.setdefault(leaf.column, []).append(leaf.value)
    cells, replacements = [], []
    for index, leaf in enumerate(table.leaves):
        new = _mutant(leaf, columns[leaf.column], table, sources, module)
        cells.append(Cell(leaf.path, leaf.column, leaf.node.lineno, index, ast.unparse(leaf.value), ast.unparse(new)))
        replacements.append(leaf.wrap(new))
    return Mutants(cells, replacements, table.opaque)


def _replaced(node: ast.AST, old: ast.expr, new: ast.expr) -> ast.AST:
    """`node` with `new` in the place of `old`: what encloses it is copied, all else shared."""
    if node is old:
        new = copy.deepcopy(new)
        for inner in ast.walk(new):
            ast.copy_location(inner, old)
        return new
    for name, value in ast.iter_fields(node):
        held: list[object] = value if isinstance(value, list) else [value]
        for at, child in enumerate(held):
            if not isinstance(child, ast.AST):
                continue
            changed = _replaced(child, old, new)
            if changed is not child:
                whole = copy.copy(node)
                setattr(whole, name, [*held[:at], changed, *held[at + 1 :]] if isinstance(value, list) else changed)
                return whole
    return node


@lru_cache(maxsize=1)  # of the table under mutation: read once, before the first child is forked
def _places(root: Path, module: str, attribute: str) -> tuple[ast.Module, list[ast.expr], list[ast.expr]]:
    """A module's tree, the node of each of the table's leaves, and what stands in its place in a mutant."""
    sources = Sources(root)
    tree = sources.tree(module)
    if tree is None:
        raise TableError(f"{module}: no such module")
    leaves = _read(sources, module, attribute, tree).leaves
    return tree, [leaf.node for leaf in leaves], mutants(sources, module, attribute).replacements


def mutated_tree(root: Path, module: str, attribute: str, index: int | None) -> ast.Module:
    """The syntax tree of `module` with leaf `index` of the table replaced; None changes nothing."""
    tree, nodes, replacements = _places(root, module, attribute)
    if index is None:
        return tree
    changed = _replaced(tree, nodes[index], replacements[index])
    assert isinstance(changed, ast.Module)
    return changed
