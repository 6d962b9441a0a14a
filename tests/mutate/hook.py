"""Imports one module with one cell of its table changed.  The change lives in memory: no file is written."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType

from tests.mutate.cells import mutated_tree


class MutantLoader(SourceFileLoader):
    """Loads the mutated source; neither reads nor writes cached bytecode."""

    def __init__(self, finder: MutantFinder, fullname: str, path: str) -> None:
        super().__init__(fullname, path)
        self.finder = finder

    def get_code(self, fullname: str) -> CodeType:
        finder = self.finder
        finder.loaded = True
        tree = mutated_tree(finder.root, finder.module, finder.attribute, finder.index)
        return compile(tree, self.path, "exec", dont_inherit=True)


class MutantFinder(MetaPathFinder):
    """Finds one module, for `MutantLoader`; `loaded` tells whether anybody asked for it."""

    def __init__(self, root: Path, module: str, attribute: str, index: int | None) -> None:
        self.root = root
        self.module = module
        self.attribute = attribute
        self.index = index
        self.loaded = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.module:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.origin is not None:
            spec.loader = MutantLoader(self, fullname, spec.origin)
        return spec


def install(root: Path, module: str, attribute: str, index: int | None) -> MutantFinder:
    """From now on `module` is imported as a mutant.  Raises RuntimeError if it has been imported already."""
    if module in sys.modules:
        raise RuntimeError(f"{module} is imported already: its mutant would not be seen")
    finder = MutantFinder(root, module, attribute, index)
    sys.meta_path.insert(0, finder)
    return finder
