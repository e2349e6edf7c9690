"""Finds phrases in pages, docstrings and messages that read as translated, and says how to write them.

Run ``python -m tests.prose`` for a line for each phrase; ``make test`` runs it. The rules are in CONTRIBUTING.md.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent

RULES = {
    r"^Of ": "begin with the subject, not with 'Of'",
    r"^What\b.*[^?]$": "name the thing; 'What' opens questions only",
    r"^(Nor|Neither|Hereby|Therein|Thereby) ": "begin with the subject",
    r"\b(is|are|was|be|been) told\b": "say who passes or reads what",
    r"\bcomes? to (its|their|an) ends?\b": "write 'ends'",
    r"\blives? from\b": "write 'needs' or 'depends on'",
    r"\bas ever\b": "write 'as before' or 'as usual'",
    r"\b(of|by|with|from|to|under|on|for|through|behind|after|before) which\b": "make two sentences, or use 'whose'",
    r"\bso many\b": "write 'this many', or name the number",
    r"\b[Ww]here there (is|are) (one|none|some|any)\b": "write 'if there is one', or name the thing",
    r"\bthan there (is|are)\b": "name both numbers",
    r"\b(is|are) of (a|an|the|another|that|this|one|its|no)\b": "write 'has', 'belongs to' or 'comes from'",
    r"\bwhat (it|they|one) (is|are|does|do)\b": "name the thing",
    r"\bmakes? \w+ of it\b": "say what to do",
    r"\bas one (likes|wants|does|can)\b": "write 'as you like', or leave it out",
    r"\bone (does|has|knows|asks|can|wants|would|may)\b": "write 'you', or name who does it",
    r"\bthe more so\b|\ball the same\b|\bas it were\b|\bno more than that\b": "leave it out, or say it plainly",
    r"\bfor want of\b|\bin want of\b|\bof the kind\b|\bthereof\b|\bwhereof\b": "use everyday words",
}
CODE = re.compile(r"``.+?``|`[^`]+`|:\w+:`[^`]+`")


def main() -> int:
    found = sorted(set(found_in(ROOT)))  # the parts of an f-string are strings too
    for line in found:
        print(line)
    return bool(found)


def found_in(root: Path) -> Iterator[str]:
    for path in files(root):
        for line, text in (paragraphs if path.suffix == ".md" else strings)(path.read_text("utf-8")):
            for phrase, remedy in offences(text):
                yield f"{path.relative_to(root)}:{line}: {phrase!r}: {remedy}"


def files(root: Path) -> Iterator[Path]:
    """The English pages and the modules that users read; tests are for contributors, who see this check."""
    pages = [*root.glob("*.md"), *(root / "docs").rglob("*.md")]
    yield from (page for page in pages if "zh" not in page.parts and not page.name.endswith(".zh.md"))
    for folder in ("st_simcse", "examples", "benchmarks"):
        yield from (root / folder).rglob("*.py")


def offences(text: str) -> Iterator[tuple[str, str]]:
    """The phrases of a paragraph that a rule finds, each with the remedy.

    >>> list(offences("Of two texts the longer is kept. It is kept whole."))
    [('Of ', "begin with the subject, not with 'Of'")]
    >>> list(offences("What does it cost? See `what it is`."))
    []
    """
    plain = CODE.sub("X", " ".join(text.split()))
    for sentence in re.split(r"(?<=[.!?:]) +(?=[A-Z(\"'])", plain):
        for rule, remedy in RULES.items():
            if match := re.search(rule, sentence.strip("*-_ ")):
                yield match.group()[:60], remedy


def paragraphs(page: str) -> Iterator[tuple[int, str]]:
    """The paragraphs, list items and table cells of a Markdown page, each with its line; no code, no headings."""
    fenced, start, kept = False, 0, list[str]()
    for number, line in enumerate([*page.splitlines(), ""], 1):
        text = line.strip()
        fence = text.startswith("```")
        if kept and (fence or not text or text.startswith(("#", "|", "- ", "* ")) or re.match(r"\d+\. ", text)):
            yield start, " ".join(kept)
            kept = []
        fenced ^= fence
        if fenced or fence or not text or text.startswith("#"):
            continue
        if text.startswith("|"):
            yield from ((number, cell) for cell in text.strip("|").split("|"))
            continue
        start = start if kept else number
        kept.append(text)


def strings(module: str) -> Iterator[tuple[int, str]]:
    """The docstrings of a module, without their examples, and its other strings of four words and more."""
    tree = ast.parse(module)
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {
        id(node.body[0].value) for node in ast.walk(tree) if isinstance(node, documented) and ast.get_docstring(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            text = "".join(part.value if isinstance(part, ast.Constant) else "X" for part in node.values)
            yield node.lineno, text
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if id(node) in docstrings:
                blocks = re.split(r"\n\s*\n|\n(?=\s*\w+: )", node.value)
                yield from ((node.lineno, block) for block in blocks if not block.lstrip().startswith(">>>"))
            elif node.value.count(" ") >= 3:
                yield node.lineno, node.value


if __name__ == "__main__":
    sys.exit(main())
