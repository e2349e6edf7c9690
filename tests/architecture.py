"""The house, printed: the folders of st_simcse in their order, and what is against it. ``python -m tests.architecture``

A folder imports the ones before it and itself, also where only types are needed. The modules in no folder come after
all of them but the command line.
"""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "st_simcse"
ORDER = ["objective", "models", "data", "losses", "evaluation", "training", "search", "", "cli"]
LONGEST_FUNCTION, LONGEST_BASE = 60, 200


def modules(package: Path) -> dict[str, Path]:
    """Every module of a package by its dotted name, but for those that only hold or call the public names."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = path
    return {name: path for name, path in found.items() if name not in (package.name, f"{package.name}.__main__")}


def folder_of(module: str) -> str:
    """The folder that a module lies in; empty for the top level."""
    parts = module.split(".")
    return parts[1] if len(parts) > 2 or parts[-1] in ORDER else ""


def imports(module: str, known: dict[str, Path]) -> Iterator[str]:
    """What a module imports of the package, inside functions and for types too."""
    package = module.split(".")[0]
    for node in ast.walk(ast.parse(known[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == package)
        elif isinstance(node, ast.ImportFrom) and (node.level or str(node.module).split(".")[0] == package):
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in known else str(node.module)


def faults(package: Path = PACKAGE) -> list[str]:
    """What is against the order, a line each."""
    known = modules(package)
    graph = {module: set(imports(module, known)) - {module} for module in known}
    found = []
    for module, others in sorted(graph.items()):
        place = ORDER.index(folder_of(module))
        for other in sorted(others):
            if other not in known:
                found.append(f"{module} imports from {other}: import from the module that has the name, in full")
            elif ORDER.index(folder_of(other)) > place:
                found.append(f"{module} imports {other}, which comes after it")
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        found.append(f"a circle of imports: {' -> '.join(error.args[1])}")
    for module, path in known.items():
        found += long_functions(module, path)
    base = package / "losses/base.py"
    if base.exists() and (lines := len(base.read_text(encoding="utf-8").splitlines())) > LONGEST_BASE:
        found.append(f"losses/base.py has {lines} lines, over {LONGEST_BASE}")
    return found


def long_functions(module: str, path: Path) -> Iterator[str]:
    """The functions that have too many lines, their docstrings not counted; and a module without a docstring."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if not ast.get_docstring(tree):
        yield f"{module} has no docstring that says what belongs there"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            documented = ast.get_docstring(node, clean=False) is not None
            begin = node.body[0].end_lineno if documented else node.lineno
            if (lines := (node.end_lineno or 0) - (begin or 0)) > LONGEST_FUNCTION:
                yield f"{module}.{node.name} has {lines} lines, over {LONGEST_FUNCTION}"


def main() -> None:
    known = modules(PACKAGE)
    for folder in ORDER:
        paths = [path for module, path in known.items() if folder_of(module) == folder]
        lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths)
        doc = ast.get_docstring(ast.parse((PACKAGE / folder / "__init__.py").read_text(encoding="utf-8"))) or ""
        print(f"{folder or 'top level':<11}{len(paths):>3} files {lines:>6,} lines  {doc.splitlines()[0]}")
    print("\n".join(faults()) or "Every import follows the order; no circle; base.py and all functions are short.")


if __name__ == "__main__":
    main()
