"""Sphinx's configuration. `make docs` copies docs/ and examples/ to build/docs and builds there; warnings are errors.

The gallery is shown where examples/ exists, and run only where FASTXENT_EXAMPLES is set ("small": seconds each).
"""

import logging
import os
from pathlib import Path

import fastxent

HERE = Path(__file__).resolve().parent
EXAMPLES = HERE.parent / "examples"

project = "fastxent"
author = "The fastxent developers"
copyright = author
version = release = fastxent.__version__
html_title = f"fastxent {release}"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "numpydoc"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
root_doc = "index"
templates_path = ["_templates"]
exclude_patterns = ["_build", "_templates", "README.md"]
default_role = "code"  # `name` in a docstring
toc_object_entries_show_parents = (
    "hide"  # the narrow list of a page's parts has fit(), not LogisticRegression.fit()
)
myst_heading_anchors = 3
myst_enable_extensions = ["deflist"]

autosummary_generate = True
autosummary_imported_members = False
autodoc_typehints = "none"
add_module_names = False
numpydoc_show_class_members = False  # the template of a class lists its own methods
numpydoc_class_members_toctree = False

if EXAMPLES.is_dir():
    extensions.append("sphinx_gallery.gen_gallery")
    sphinx_gallery_conf = {
        "examples_dirs": str(EXAMPLES),
        "gallery_dirs": "auto_examples",
        "filename_pattern": r"/plot_",
        "ignore_pattern": r"(^|/)_[^/]*\.py$",
        "plot_gallery": bool(os.environ.get("FASTXENT_EXAMPLES")),
        "download_all_examples": False,
        "show_memory": False,
        "remove_config_comments": True,
    }


class NotAboutAbsentPages(logging.Filter):
    """The patterns of index.md may match nothing: pages of a part that a checkout lacks. Sphinx gives it no type."""

    def filter(self, record):
        """Whether to show it."""
        return getattr(record, "subtype", None) != "empty_glob"


SMALL_RUN = """
.. note::

   What this page prints and draws comes from the small setting of the tests, a few rows and epochs; the text tells of
   full runs, ``make examples``.

"""


def tell_of_small_runs(app, docname, source):
    """Say on an example's page that its output is that of a small run; before the first title Sphinx allows it."""
    if docname.startswith("auto_examples/plot_"):
        source[0] = SMALL_RUN + source[0]


def setup(app):
    """Let Sphinx's own logger pass over these warnings; tell of small runs."""
    logging.getLogger("sphinx.sphinx.directives.other").addFilter(NotAboutAbsentPages())
    if os.environ.get("FASTXENT_EXAMPLES") == "small":
        app.connect("source-read", tell_of_small_runs)


html_theme = "pydata_sphinx_theme"
html_theme_options = {
    "navbar_align": "left",
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "secondary_sidebar_items": ["page-toc"],
    "show_prev_next": False,
}
# Only the reference and the gallery have pages below their own; elsewhere the column would be empty.
html_sidebars = {name: [] for name in sorted(path.stem for path in HERE.glob("*.md")) if name != "api"}
html_show_sourcelink = False
html_copy_source = False
