"""Adds pages that are not in docs/ to the site: those of the root, the examples, and the tables of options."""

import dataclasses
import inspect
import json
import posixpath
import re
from pathlib import Path
from typing import Any

from st_simcse.losses import OPTIONS
from st_simcse.losses.options import option_name
from st_simcse.losses.wrappers import WRAPPERS

ROOT = Path(__file__).parents[2]
# The site's pages for files outside docs/.
PAGES = {
    "README.md": "index.md",
    "README.zh.md": "zh/index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}
PICTURES = ["benchmarks/growth.png"]
# The tables of options follow this line of docs/options.md.
EXAMPLES = """# Examples

This page shows a notebook and the scripts of the folder `examples`, which you can run as they are. Each takes one task
from the data to the result. For explanations, read [get started](get_started.md) and the pages on training."""
OPTIONS_FOLLOW = "<!-- python docs/mkdocs/hooks.py writes what follows -->\n"
GOES_WITH = ("UnsupSimCSELoss", "SupSimCSELoss", "mini_batch_size", *WRAPPERS)


def on_files(files: Any, config: Any) -> Any:
    from mkdocs.structure.files import File

    for path, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / path).read_text(encoding="utf-8")))
    for path in PICTURES:
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    files.append(File.generated(config, "examples.md", content=examples()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    here = page.file.src_uri
    source = {site: path for path, site in PAGES.items()}.get(here, f"docs/{here}")
    if OPTIONS_FOLLOW in markdown:  # here their names are links to the reference
        markdown = f"{markdown.partition(OPTIONS_FOLLOW)[0]}{options_tables()}"
    markdown = re.sub(r"^\$\$(.+)\$\$$", _formula, markdown, flags=re.MULTILINE)
    return re.sub(
        r"(!?\[[^\]]*\])\(([^)#\s]+)((?:#[^)\s]*)?)\)",
        lambda link: _link(link, posixpath.dirname(source), here, config.repo_url),
        markdown,
    )


def on_post_page(output: str, page: Any, config: Any) -> str:
    """Marks Chinese pages as Chinese, so that browsers choose the right glyphs and screen readers the right voice."""
    is_chinese = page.file.src_uri.startswith("zh/")
    return output.replace('<html lang="en"', '<html lang="zh-Hans"', 1) if is_chinese else output


def _formula(formula: re.Match[str]) -> str:
    from latex2mathml.converter import convert

    return f"<div>{convert(formula[1], display='block')}</div>"


def _link(link: re.Match[str], source: str, here: str, repository: str | None) -> str:
    """Returns a link between files as one between pages, or to the file's address if it is no page."""
    text, target, anchor = link.groups()
    path = posixpath.normpath(posixpath.join(source, target))
    if re.match(r"\w+:", target) or not (ROOT / path).exists():
        return link[0]
    if path.startswith("examples/"):
        page, anchor = "examples.md", f"#{posixpath.basename(path).replace('.', '')}"
    else:
        page = PAGES.get(path) or (path if path in PICTURES else path.removeprefix("docs/"))
    if page != path or path in PICTURES:
        return f"{text}({posixpath.relpath(page, posixpath.dirname(here) or '.')}{anchor})"
    return f"{text}({repository.rstrip('/')}/blob/main/{path}{anchor})" if repository else text[1:-1]


def examples() -> str:
    """Returns a page with the scripts of examples/ and the notebook's cells."""
    parts = [EXAMPLES]
    for path in sorted((ROOT / "examples").glob("*.ipynb")):
        parts.append(f"## {path.name}")
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            text = "".join(cell["source"])
            is_code = cell["cell_type"] == "code"
            parts.append(f"```python\n{text}\n```" if is_code else re.sub("^#", "###", text, flags=re.MULTILINE))
    for path in sorted((ROOT / "examples").glob("*.py")):
        parts.append(f"## {path.name}\n\n```python\n{path.read_text(encoding='utf-8').strip()}\n```")
    return "\n\n".join(parts)


def options_tables() -> str:
    """Returns two tables: the options with their flags, and which losses and settings they can be combined with."""
    rows = [("option", "effect", "flags"), ("---",) * 3]
    goes_with = [("option", *(f"`{name}`" for name in GOES_WITH)), ("---",) * (1 + len(GOES_WITH))]
    for option in OPTIONS:
        name = f"[`{option.__name__}`][st_simcse.{option.__name__}]"
        what = "<br>".join(filter(None, (_summary(option), _paper(getattr(option, "citation", "")))))
        rows.append((name, what, _flags(option)))
        incompatible = getattr(option, "incompatible", ())
        goes_with.append((name, *("refused" if other in incompatible else "yes" for other in GOES_WITH)))
    return "\n\n".join("\n".join(f"| {' | '.join(row)} |" for row in table) for table in (rows, goes_with))


def with_options(page: str) -> str:
    """Returns the text of docs/options.md with up-to-date tables, for readers of the file itself."""
    tables = re.sub(r"\[(`\w+`)\]\[[\w.]+\]", r"\1", options_tables())
    return f"{page.partition(OPTIONS_FOLLOW)[0]}{OPTIONS_FOLLOW}\n{tables}\n"


def _flags(option: Any) -> str:
    name, flags = option_name(option), []
    for number, one in enumerate(dataclasses.fields(option)):
        flag = f"`--{name}`" if number == 0 else f"`--{name}_{one.name}`"
        default = "" if one.default is dataclasses.MISSING else f" Default: `{one.default}`."
        flags.append(f"{flag}: {one.metadata['help'].rstrip('.')}.{default}")
    return "<br>".join(flags) or f"`--{name}`"


def _summary(option: Any) -> str:
    return " ".join((inspect.getdoc(option) or "").partition("\n\n")[0].split())


def _paper(citation: str) -> str:
    """Returns title and year of a BibTeX entry."""
    fields = {name: re.search(rf"{name} = \{{(.+?)\}},\n", citation, re.DOTALL) for name in ("title", "year", "eprint")}
    found = {
        name: " ".join(match[1].replace("{", "").replace("}", "").split()) for name, match in fields.items() if match
    }
    if not found:
        return ""
    title = f"*{found['title']}*, {found['year']}"
    return f"[{title}](https://arxiv.org/abs/{found['eprint']})" if "eprint" in found else title


if __name__ == "__main__":
    path = ROOT / "docs/options.md"
    path.write_text(with_options(path.read_text(encoding="utf-8")), encoding="utf-8")
