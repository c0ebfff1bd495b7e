"""A hook of MkDocs: the pages of the API reference, made from the public names, and links to them from every page.

Each module that defines a name of `densecrf_cuda.__all__` gets a page, and so does each public subpackage. What is
public decides what is documented, so a new name needs no edit here. The sources are read, not run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "densecrf_cuda"
NOT_PYTHON = {"cli", "page"}  # programs: command_line.md and page.md are about them


class PlainText(griffe.Extension):
    """Reads docstrings as they are meant, where Markdown or the parser of sections would read them otherwise."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        waiting: list[griffe.Object | griffe.Alias] = [pkg]
        while waiting:
            thing = waiting.pop()
            if not thing.is_alias:
                waiting += thing.members.values()
                if thing.docstring:
                    thing.docstring.value = self.mend(thing.docstring.value)

    @staticmethod
    def mend(text: str) -> str:
        text = re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)  # the section of code has this name alone
        # "greater" that begins a description: no quotation
        return re.sub(r"^( *(?:[\w, ]+: )?)>(?!>>)", r"\1\\>", text, flags=re.MULTILINE)


def load() -> griffe.Module:
    module = griffe.load(PACKAGE, search_paths=[ROOT], allow_inspection=False)
    assert isinstance(module, griffe.Module)
    return module


def first_sentence(docstring: griffe.Docstring | None) -> str:
    return " ".join(docstring.value.split("\n\n")[0].split()) if docstring else ""


def cell(docstring: griffe.Docstring | None) -> str:
    return first_sentence(docstring).replace("|", r"\|")


def directive(path: str, label: str) -> str:
    """Ask for the documentation of an object, under a heading of its own."""
    return f"::: {path}\n    options:\n      heading: {label}\n      toc_label: {label}"


def title(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def exported(module: griffe.Module) -> list[str]:
    """The public names of a module: those of __all__ that its text defines, else all that it defines."""
    own = [name for name, member in module.members.items() if not member.is_alias]
    names = [str(name) for name in module.exports if str(name) in module.members] if module.exports else own
    return sorted((name for name in names if not name.startswith("_")), key=str.lower)


def home(package: griffe.Module, name: str) -> str:
    """The module that defines a name: "crf" for DenseCRF, "" for one that is at home in a private module."""
    member = package[name]
    path = member.target_path if member.is_alias else member.path
    parts = path.split(".")[1:-1]
    return "" if not parts or parts[0].startswith("_") else parts[0]


def objects(package: griffe.Module) -> Iterator[str]:
    """Paths of what a subpackage offers: the names of its __all__, then those of modules that have one of their own."""
    names = exported(package)
    yield from (f"{package.path}.{name}" for name in names if not package[name].is_module)
    taken = {package[name].target_path.rpartition(".")[0] for name in names if package[name].is_alias}
    for name, module in package.members.items():
        if not module.is_alias and module.is_module and not name.startswith("_") and module.path not in taken:
            inner = [key for key in exported(module) if module.exports and not module[key].is_module]
            yield from (f"{module.path}.{key}" for key in inner)


def pages(package: griffe.Module) -> dict[str, str]:
    """Markdown of every page by its path; of api/index.md, which exists, what comes after its text."""
    by_home: dict[str, list[str]] = {}
    for name in exported(package):
        by_home.setdefault(home(package, name), []).append(name)
    result, rows = {}, []
    for module, names in sorted(by_home.items()):
        directives = "\n\n".join(f"::: {PACKAGE}.{name}" for name in names)
        target = f"{module}.md" if module else "index.md"
        if module:
            head = f"# {title(names)}\n\n{first_sentence(package[module].docstring)}"
            result[f"api/{target}"] = f"{head}\n\n{directives}\n"
        rows += [f"| [`{name}`]({target}#{PACKAGE}.{name}) | {cell(package[name].docstring)} |" for name in names]
    for name, member in package.members.items():
        if member.is_alias or not member.is_module or name.startswith("_") or name in NOT_PYTHON or name in by_home:
            continue
        if isinstance(member.filepath, Path) and member.filepath.name == "__init__.py":
            paths = list(objects(member))
            directives = "\n\n".join(directive(path, path.removeprefix(f"{member.path}.")) for path in paths)
            docstring = member.docstring.value if member.docstring else ""
            result[f"api/{name}.md"] = f"# {PACKAGE}.{name}\n\n{docstring}\n\n{directives}\n"
            rows.append(f"| [`{PACKAGE}.{name}`]({name}.md) | {cell(member.docstring)} |")
    table = "\n".join(["| | |", "|---|---|", *sorted(rows, key=str.lower)])
    here = "\n\n".join(f"::: {PACKAGE}.{name}" for name in by_home.get("", []))
    result["api/index.md"] = f"{table}\n\n{here}\n"
    return result


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Append the pages to the navigation."""
    package = load()
    config.extra["public_names"] = exported(package)
    config.extra["api"] = made = pages(package)
    others = sorted(path for path in made if path != "api/index.md")
    assert config.nav is not None
    config.nav.append({"API reference": ["api/index.md", *others]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages to the files."""
    for path, content in config.extra["api"].items():
        if files.get_file_from_path(path) is None:
            files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """List the public names, call pages by their titles, drop links that leave docs/: the site lacks those files."""
    if page.file.src_uri == "api/index.md":
        markdown += "\n" + config.extra["api"]["api/index.md"]

    def name(match: re.Match[str]) -> str:
        file = files.get_file_from_path(match[1])
        return f"[{file.page.title}]({match[1]}{match[2]})" if file and file.page else match[0]

    inside = re.sub(r"(?<!!)\[([^\]]+)\]\(\.\./[^)]*\)", r"\1", markdown)
    return re.sub(r"\[(\w+\.md)\]\(\1([^)]*)\)", name, inside)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Link the names of the API wherever they stand in code type, and set x_n as x with an index n.

    Formulas are plain text in Markdown and docstrings, so that they can be read there too.
    """
    untouched = r"<(?P<tag>a|pre|h[1-6])\b.*?</(?P=tag)>"
    code = rf"<code>(?:(?P<name>{'|'.join(config.extra['public_names'])})|.*?)</code>"
    short = r"(?P<short>[a-zA-Zα-ω]|\d+|(?<=\b[A-Za-z]_)[a-z]{2})(?![A-Za-z0-9_])"
    index = rf"(?<=[^\W_]|\))_(?:\{{(?P<long>[^{{}}]+)\}}|{short})"

    subpackage = str(page.title).startswith(f"{PACKAGE}.")  # which may have names of its own that are the same

    def replace(match: re.Match[str]) -> str:
        if match["name"] and not subpackage:
            return f'<autoref identifier="{PACKAGE}.{match["name"]}" optional>{match[0]}</autoref>'
        subscript: str | None = match["long"] or match["short"]
        return f"<sub>{subscript}</sub>" if subscript else match[0]

    return re.sub(rf"{untouched}|{code}|<[^>]*>|{index}", replace, html, flags=re.DOTALL)
