"""Hooks of mkdocs (mkdocs.yml): what the site has beside docs/, and links that hold on the site as in the repository.

README.md is the home page; the other documents of the repository's top, a page for each command out of its own help
and files that a document links to are added. Documents are written for the repository: a link names a file of it.
"""

import html
import posixpath
import re
from pathlib import Path

import mermaidx
import typer
import ziamath
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from typer.cli import get_docs_for_click

from realad_verl.cli import COMMANDS, app

ziamath.config.svg2 = False  # paths alone: glyphs by id would be shared by all formulas of a page
ROOT = Path(__file__).resolve().parents[1]
TOP = {"index.md": "README.md"} | {path.name: path.name for path in ROOT.glob("*.md") if path.name != "README.md"}
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)\s#]+)")
MATH = re.compile(r'(?<=class="arithmatex">)\\([(\[])(.*?)\\[)\]](?=</(?:span|div)>)', re.S)
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)


def command_page(name: str) -> str:
    """The help of one command and its subcommands, as Markdown."""
    group = typer.main.get_command(app)
    command = group.commands[name]  # type: ignore[attr-defined]
    context = typer.Context(command, info_name=f"realad {name}", obj={})
    return get_docs_for_click(obj=command, ctx=context, name=name, call_prefix="realad").strip() + "\n"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fills `Commands` of the navigation."""
    pages = [{f"realad {name}": f"commands/{name}.md"} for name in COMMANDS]
    config.nav = [entry | {"Commands": pages} if "Commands" in entry else entry for entry in config.nav or []]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages and files that do not lie in docs/."""
    for site, source in TOP.items():
        files.append(File.generated(config, site, content=(ROOT / source).read_text()))
    for name in COMMANDS:
        files.append(File.generated(config, f"commands/{name}.md", content=command_page(name)))
    for page in list(files.documentation_pages()):
        for target in LINK.findall(page.content_string):
            path = repository_path(page.src_uri, target)
            site = site_path(path)
            if path != page.src_uri and files.get_file_from_path(site) is None and (ROOT / path).is_file():
                files.append(File.generated(config, site, content=(ROOT / path).read_bytes()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links from the repository's to the site's, Mermaid to SVG, Python that must compile."""
    uri = page.file.src_uri

    def link(match: re.Match[str]) -> str:
        return posixpath.relpath(site_path(repository_path(uri, match[1])), posixpath.dirname(uri) or ".")

    def fence(match: re.Match[str]) -> str:
        if match[1] == "python":
            try:
                compile(match[2], uri, "exec")
            except SyntaxError as error:
                raise PluginError(f"{uri}: a Python block does not compile: {error}") from error
        return f"<figure>{mermaidx.render(match[2]).svg()}</figure>" if match[1] == "mermaid" else match[0]

    return FENCE.sub(fence, LINK.sub(link, markdown))


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """LaTeX to SVG."""
    return MATH.sub(lambda match: formula(html.unescape(match[2]), match[1] == "("), content)


def formula(latex: str, inline: bool) -> str:
    """A formula as SVG in the size and colour of the text around it."""
    size = 16.0  # of ziamath's pixels, one em
    drawn = ziamath.Latex(latex, size=size, color="currentColor", inline=inline)
    lengths = {name: float(drawn.svgxml().attrib[name]) for name in ("width", "height")}
    lengths["vertical-align"] = drawn.getyofst()
    style = ";".join(f"{name}:{length / size:.3f}em" for name, length in lengths.items())
    attributes = f'role="img" aria-label="{html.escape(latex)}" style="{style}"'
    return drawn.svg().replace("<svg ", f"<svg {attributes} ", 1)


def repository_path(uri: str, target: str) -> str:
    """The file of the repository, from its top, that a link of a page names."""
    folder = "" if uri in TOP else posixpath.join("docs", posixpath.dirname(uri))
    return posixpath.normpath(posixpath.join(folder, target))


def site_path(path: str) -> str:
    """Where a file of the repository lies on the site."""
    return "index.md" if path == "README.md" else path.removeprefix("docs/")
