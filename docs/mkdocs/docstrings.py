"""The docstrings' few marks of reStructuredText as Markdown, which the API reference is made of."""

import re
import textwrap
from typing import Any

import griffe
from latex2mathml.converter import convert

_FORMULA = re.compile(r"^( *)\.\. math::(.*\n(?:\1 +.*\n?|\n(?=\1 ))*)", re.MULTILINE)
_LITERAL = re.compile(r"^( *)::\n\n((?:\1    .*\n?|\n)+)", re.MULTILINE)
_CODE_EXAMPLE = re.compile(r"^( *)Example:\n(?= *::)", re.MULTILINE)


class Docstrings(griffe.Extension):
    """Rewrites every docstring before it is parsed, and shows the base's signature where a class hands all on to it."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value)

    def on_class_members(self, *, cls: griffe.Class, **kwargs: Any) -> None:
        init = cls.members.get("__init__")
        if isinstance(init, griffe.Function):
            kinds = {parameter.kind for parameter in init.parameters if parameter.name != "self"}
            if kinds == {griffe.ParameterKind.var_positional, griffe.ParameterKind.var_keyword}:
                cls.del_member("__init__")


def markdown(text: str) -> str:
    """Roles as links, formulas as MathML, literal blocks as code, grid tables as tables."""
    text = re.sub(r":(?:class|func|meth|mod):`~([\w.]*?)(\w+)`", r"[`\2`][\1\2]", text)
    text = re.sub(r":(?:class|func|meth|mod):`([\w.]+)`", r"[`\1`][\1]", text)
    text = re.sub(r":math:`([^`]+)`", lambda match: convert(match[1]), text)
    text = _FORMULA.sub(
        lambda match: f"{match[1]}<div>{convert(' '.join(match[2].split()), display='block')}</div>\n", text
    )
    # A section of griffe's takes the name in the plural and may hold text and code.
    text = _CODE_EXAMPLE.sub(r"\1Examples:\n", text).replace("Example:\n", "Examples:\n")
    text = _LITERAL.sub(_code, text)
    text = re.sub(r"^ *\+-[-+]+\+\n", "", text, flags=re.MULTILINE)
    return re.sub(r"\+=[=+]+\+", lambda match: re.sub(r"=+", "---", match[0]).replace("+", "|"), text)


def _code(match: re.Match[str]) -> str:
    code = f"```python\n{textwrap.dedent(match[2]).strip()}\n```"
    return textwrap.indent(code, match[1]) + "\n\n"
