"""Docstrings as Markdown: doctests become code blocks, lines of `name: what it is` a list, a reST `::` a colon."""

import re
from typing import Any

from griffe import Extension, Object

DOCTEST = re.compile(r"^(>>> .*(?:\n.*\S.*)*)", re.M)
TERM = re.compile(r"(?P<names>\w+(?:, \w+)*): \S")


def as_markdown(docstring: str) -> str:
    """A docstring without the indentation of its source."""
    text = re.sub(r"::$", ":", docstring, flags=re.M)
    text = re.sub(r"(?<=\S)\n(?=(?:Raises|Returns|Yields):$)", "\n\n", text, flags=re.M)  # griffe wants it
    text = DOCTEST.sub(r"```pycon\n\1\n```", text)
    summary, *others = text.split("\n\n")
    return "\n\n".join([summary, *map(_list, others)])


def _list(paragraph: str) -> str:
    """A paragraph of settings, each on a line that may go on indented, as a list; any other as it is."""
    lines = paragraph.split("\n")
    starts = [TERM.match(line) for line in lines]
    goes_on = all(start or line.startswith("    ") for start, line in zip(starts, lines, strict=True))
    if not starts[0] or not goes_on or lines[0].startswith((">>>", "```")):
        return paragraph
    return "\n".join(
        f"- **{start['names']}**{line[start.end('names') :]}" if start else line
        for start, line in zip(starts, lines, strict=True)
    )


class MarkdownDocstrings(Extension):
    """Named by the extension option of mkdocstrings in mkdocs.yml."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)
