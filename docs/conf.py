"""The site: pages in Markdown, the guide as a notebook, the reference from docstrings.

`scripts/site.sh` builds it. Nothing is fetched, neither for the build nor by a page.
"""

import inspect
import subprocess
import sys
from pathlib import Path

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.domains.python import PyXRefRole
from sphinx.environment import BuildEnvironment
from sphinx.errors import ExtensionError
from sphinx.util.docstrings import prepare_docstring
from sphinx.util.typing import ExtensionMetadata
from sphinx.writers.html5 import HTML5Translator

import splitattn
from splitattn.cli import VERBS

GENERATED = Path(__file__).with_name("generated")

project = "splitattn"
author = "the splitattn contributors"
version = release = splitattn.__version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "myst_nb", "sphinx_copybutton"]
exclude_patterns = [GENERATED.name]

html_theme = "furo"
html_title = f"splitattn {release}"
smartquotes_action = "qe"  # no dashes: options begin with two hyphens
html_math_renderer = "mathml"
html_static_path = ["site.css", "split-attention-narrow.svg"]
html_css_files = ["site.css"]
html_show_copyright = False
html_show_sphinx = False
html_copy_source = False
pygments_style = "a11y-high-contrast-light"
pygments_dark_style = "github-dark"

# Single backticks are code in the docstrings, and a link where there is something to link to.
default_role = "code-or-link"
# Every reference in so many words must lead somewhere; types in signatures may be other projects'.
nitpicky = True
nitpick_ignore_regex = [
    ("py:class", r"(?!splitattn\b).*"),
    # In signatures alone, of what the reference documents.
    ("py:class", r"splitattn\..*\.(?:Augmentation|Batch|Answer|Report|Stage|Transform|Reduced)"),
    ("py:class", r"splitattn\.dense\.exportable\.(?:Parity|Trained)"),  # type variables
    ("py:class", r"splitattn\..*\.Fused(?:Backbone|ResNeSt)"),
]
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
python_maximum_signature_line_length = 80
# Of a dataclass, what each field is stands in one list, as it is written.
napoleon_custom_sections = [("Attributes", "params_style"), ("Environment", "params_style")]
napoleon_use_rtype = False

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

# The guide is run once, here; an error in it is an error of the build.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 1200  # seconds for a cell, on a machine that does much else
nb_merge_streams = True
nb_code_prompt_show = "Show the code"
nb_code_prompt_hide = "Hide the code"
nb_render_markdown_format = "myst"  # which knows tables

copybutton_exclude = ".linenos, .gp, .go"


class CodeOrLink(PyXRefRole):
    """The role of Python's objects, but what it shows is what was written."""

    def process_link(
        self,
        env: BuildEnvironment,
        refnode: nodes.Element,
        has_explicit_title: bool,
        title: str,
        target: str,
    ) -> tuple[str, str]:
        refnode["refdomain"], refnode["reftype"] = "py", "obj"
        refnode["or_code"] = True
        _, target = super().process_link(env, refnode, has_explicit_title, title, target)
        return title, target


def may_be_code(_: Sphinx, _domain: object, node: nodes.Element) -> bool | None:
    """Take what a single backtick wrote without a warning, where there is nothing to link to."""
    return True if node.get("or_code") else None


def visit_math(translator: HTML5Translator, node: nodes.Element) -> None:
    """TeX to MathML, which browsers show by themselves."""
    translator.body.append(tex2mathml(node.astext()))
    raise nodes.SkipNode


def visit_math_block(translator: HTML5Translator, node: nodes.Element) -> None:
    """The same for equations on lines of their own."""
    translator.body.append(
        f'<div class="equation">{tex2mathml(node.astext(), as_block=True)}</div>'
    )
    raise nodes.SkipNode


def generate(_: Sphinx) -> None:
    """Write the pages that the code knows best."""
    GENERATED.mkdir(exist_ok=True)
    # Typer documents an `app`, and would take any function of `splitattn.cli` for one.
    commands = GENERATED / "commands.py"
    commands.write_text("from splitattn.cli import create_app\n\napp = create_app()\n", "utf-8")
    command = [sys.executable, "-m", "typer", str(commands), "utils", "docs"]
    done = subprocess.run(
        [*command, "--name", "splitattn"], capture_output=True, text=True, check=True
    )
    if missing := [verb for verb in VERBS if f"\n## `splitattn {verb}`" not in done.stdout]:
        raise ExtensionError(f"typer must document every verb, got nothing of {missing}")
    # Below the page's own title, and without the list of verbs, which cuts their first lines short.
    introduction, *verbs = done.stdout.partition("\n")[2].split("\n## ")
    introduction = introduction.partition("**Commands**")[0]
    (GENERATED / "cli.md").write_text("\n## ".join([introduction, *verbs]), encoding="utf-8")
    contributing = (GENERATED.parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    contributing = contributing.replace("](docs/", "](").replace(
        "](CHANGELOG.md)", "](changelog.md)"
    )
    (GENERATED / "contributing.md").write_text(contributing, encoding="utf-8")


def keep_properties(
    _: Sphinx, what: str, _name: str, documented: object, _options: object, lines: list[str]
) -> None:
    """Napoleon takes what comes before a colon in a property's docstring for its type."""
    if what == "property":
        lines[:] = prepare_docstring(inspect.getdoc(documented) or "")


def setup(app: Sphinx) -> ExtensionMetadata:
    """What Sphinx calls to learn of all this."""
    app.add_role("code-or-link", CodeOrLink())
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math_block, None))
    app.connect("builder-inited", generate)
    app.connect("warn-missing-reference", may_be_code)
    app.connect("autodoc-process-docstring", keep_properties, priority=600)  # after Napoleon
    return {"parallel_read_safe": True, "parallel_write_safe": True}
