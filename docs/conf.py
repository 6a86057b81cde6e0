"""The documentation's site: `make docs` builds it into build/docs, with warnings as errors."""

from __future__ import annotations

import inspect
import re
from typing import Any

import birnn_cuda

project = "birnn_cuda"
version = release = birnn_cuda.__version__
copyright = "the authors of birnn_cuda, BSD-3-Clause"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
suppress_warnings = ["myst.xref_missing"]  # README.md, included, links to files of the repository
copybutton_exclude = ".linenos, .gp, .go"

html_theme = "furo"
html_title = f"birnn_cuda {release}"
html_static_path = ["static"]
html_css_files = ["birnn_cuda.css"]
html_show_sphinx = False

autodoc_typehints = "none"  # the docstrings give shapes and dtypes, which types do not
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
# Several attributes on one line, as with arguments.
napoleon_custom_sections = [("Attributes", "params_style")]
napoleon_use_rtype = False


def _signature(docstring: str, name: str) -> tuple[str, str]:
    """The arguments at the head of a docstring like that of RNN, over lines, and the rest."""
    match = re.match(rf"{name}(\([^)]*\))\n", docstring)
    return (re.sub(r"\s+", " ", match[1]), docstring[match.end() :]) if match else ("", docstring)


def _take_signature(
    app: Any, what: str, name: str, obj: Any, options: Any, signature: Any, returns: Any
) -> tuple[str, None] | None:
    found, _ = _signature(inspect.getdoc(obj) or "", name.rpartition(".")[2])
    return (found, None) if found else None


def _drop_signature(
    app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    _, rest = _signature("\n".join(lines), name.rpartition(".")[2])
    lines[:] = rest.splitlines()


def setup(app: Any) -> None:
    app.connect("autodoc-process-signature", _take_signature)
    # Before napoleon, which reads what is left.
    app.connect("autodoc-process-docstring", _drop_signature, priority=100)
