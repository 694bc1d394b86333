"""How Sphinx makes pages of README.md and docs/, read where they lie (`make docs`).

Links are those of the files themselves, so they hold on a code host and in the pages alike. What the files do
not say is said here: in which order the pages stand, and what a name in a docstring leads to.
"""

from __future__ import annotations

import importlib
import inspect
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin

from docutils import nodes
from docutils.parsers.rst import directives
from latex2mathml.converter import convert
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.docutils import SphinxDirective
from sphinx.util.nodes import make_refnode
from sphinx.writers.html5 import HTML5Translator

import transom
from transom.settings import Settings

project, author, release = "Transom", "", transom.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc"]

root_doc = "README"
include_patterns = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/**"]
exclude_patterns = [".*", "benchmarks", "build", "dist", "runs", "tests", "transom"]  # not walked

HERE = Path(__file__).parent
COURSE = sorted(path.stem for path in HERE.glob("course/*.ipynb"))
TREES = {
    "README": [
        ("Learn", ["docs/course/README", "docs/lab"]),
        ("Use", ["docs/guide", "docs/fine-tuning", "docs/trust", "docs/performance", "docs/glossary"]),
        ("Python", ["docs/api/README"]),
        ("Change", ["CONTRIBUTING", "docs/map", "docs/changing", "docs/native", "CHANGELOG"]),
    ],
    "docs/course/README": [("", COURSE)],
    "docs/api/README": [("", ["train", "settings", "load", "evaluate", "look"])],
}
"""Below which page which pages stand, in the order of the menu."""

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 6  # a heading is linked to by the name that a code host gives it
nb_execution_mode = "off"  # tests/docs/test_course.py runs the notebooks; their outputs are committed
highlight_language = "none"
suppress_warnings = ["misc.highlighting_failure"]  # an excerpt need not be a whole program

default_role = "py:obj"  # `Name` in a docstring leads to what is called so, or is code
add_module_names = False
python_use_unqualified_type_names = True
maximum_signature_line_length = 80
autodoc_member_order = "bysource"
autodoc_class_signature = "separated"
autodoc_default_options = {"members": True, "undoc-members": True}

html_math_renderer = "mathml"  # which browsers draw by themselves
html_theme = "furo"
html_title = "Transom"
html_static_path = ["pages.css"]
html_css_files = ["pages.css"]
html_show_copyright = html_copy_source = html_show_sourcelink = False
html_show_search_summary = False  # would be fetched, which a browser does not do from disk


def keep_one_signature(app: Sphinx) -> None:
    """Show each function once: not the variants for editors, nor keywords that have a list of their own."""
    for home in transom._HOMES.values():
        analyzer = ModuleAnalyzer.for_module(f"transom.{home}")
        analyzer.analyze()
        analyzer.overloads.clear()
    for method in (transom.Generator.generate, transom.Generator.stream, transom.Generator.chat):
        vars(method).pop("__signature__", None)


def add_tree(app: Sphinx, page: str, source: list[str]) -> None:
    """Put the menu below a page."""
    for caption, pages in TREES.get(page, []):
        options = [":hidden:", *[f":caption: {caption}"] * bool(caption)]
        source[0] += "\n".join(["\n\n```{toctree}", *options, "", *pages, "```\n"])


def write_math(page: HTML5Translator, node: nodes.math | nodes.math_block) -> None:
    """Write a formula as MathML."""
    display: Any = "block" if isinstance(node, nodes.math_block) else "inline"
    page.body.append(convert(node.astext(), display=display))
    raise nodes.SkipNode


class SettingsList(SphinxDirective):
    """`.. settings:: CLASS`: its fields, each with the sentence under it; `:section:` they stand in."""

    required_arguments = 1
    option_spec: ClassVar = {"section": directives.unchanged}

    def run(self) -> list[nodes.Node]:
        module, _, name = self.arguments[0].rpartition(".")
        kind = getattr(importlib.import_module(module), name)
        section = self.options.get("section", "")
        return self.parse_text_to_nodes("\n".join(settings_of(kind, section and f"{section}.")))


def settings_of(kind: type[Settings], before: str) -> Iterator[str]:
    """Describe the fields of a record of settings, but for its sections, in reStructuredText."""
    sections = dict(kind.sections())
    for name, field in kind.model_fields.items():
        if name not in sections:
            yield f".. py:attribute:: {before}{name}"
            yield f"   :module: {kind.__module__}"
            yield f"   :type: {words_of(field.annotation)}"
            yield f"   :value: {field.default!r}"
            yield from ["", *[f"   {line}" for line in (field.description or "").splitlines()], ""]


def words_of(annotation: Any) -> str:
    """Write a type as Python does, without what is only for the checks."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return words_of(inner[0])
    if origin is Literal:
        return " | ".join(map(repr, inner))
    if origin in (Union, UnionType):
        return " | ".join(map(words_of, inner))
    if origin is tuple:
        return f"tuple[{', '.join('...' if one is ... else words_of(one) for one in inner)}]"
    return "None" if annotation is NoneType else getattr(annotation, "__name__", str(annotation))


def find_class(app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.Element) -> Any:
    """Lead a class that is named without its module to the one documented class of that name."""
    name = node.get("reftarget", "")
    if node.get("refdomain") != "py" or not name[:1].isupper():
        return None
    objects = env.domains["py"].data["objects"]
    found = [full for full, one in objects.items() if full.endswith(f".{name}") and not one.aliased]
    if len(found) != 1:
        return None
    place = objects[found[0]]
    return make_refnode(app.builder, node["refdoc"], place.docname, place.node_id, [content], found[0])


def skip_making(app: Sphinx, what: str, name: str, thing: Any, skip: bool, options: Any) -> bool | None:
    """Leave out how an object is made: nobody does so by hand."""
    return True if name in ("__init__", "__new__") else None


LONG = 30
"""Characters of a word of code that fit beside a list's margin on a telephone."""
RAISES = re.compile(r"(?:^|(?<=[.;] ))Raises `?(\w+)`?[ .]?")


def list_parameters(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Give each parameter of a docstring's running text, and what it raises, a line of its own."""
    if what not in ("function", "method"):
        return
    # Where it comes to a parameter, or to several: `beam: how many beginnings are kept. n: ...`.
    one = f"(?:{'|'.join(inspect.signature(thing).parameters) or '(?!)'})"
    names = re.compile(rf"(?:^|(?<=[.;] ))({one}(?:(?:, | and ){one})*): ")
    found: list[str] = []
    for paragraph in "\n".join(lines).split("\n\n"):
        text = " ".join(paragraph.split())
        text, *raised = RAISES.split(text, maxsplit=1)
        said, *pairs = names.split(text)
        found += [said.strip(), ""]
        for listed, words in zip(pairs[::2], pairs[1::2], strict=True):
            found += [f":param {name}: {words.strip()}" for name in re.split(", | and ", listed)]
        found += [f":raises {raised[0]}: {raised[1].strip()}"] if raised else []
        found += [""]
    lines[:] = found


def mark_long_words(app: Sphinx, page: nodes.document) -> None:
    """Mark code with a word that a narrow window has no room for: it may break inside."""
    for code in page.findall(nodes.literal):
        if any(len(word) > LONG for word in code.astext().split()):
            code["classes"].append("long")


def copy_home(app: Sphinx, error: Exception | None) -> None:
    """A folder opens at index.html."""
    if error is None:
        shutil.copy(Path(app.outdir) / "README.html", Path(app.outdir) / "index.html")


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("builder-inited", keep_one_signature)
    app.add_html_math_renderer("mathml", (write_math, None), (write_math, None))
    app.add_directive("settings", SettingsList)
    app.connect("source-read", add_tree)
    app.connect("missing-reference", find_class)
    app.connect("autodoc-skip-member", skip_making)
    app.connect("autodoc-process-docstring", list_parameters)
    app.connect("doctree-read", mark_long_words)
    app.connect("build-finished", copy_home)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
