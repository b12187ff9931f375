"""Configuration of the documentation site: `make docs` builds it with Sphinx from the Markdown pages of this folder."""

from __future__ import annotations

from fercache import __version__

project = "fercache"
author = "fercache contributors"
version = release = __version__
extensions = ["myst_parser"]
exclude_patterns = ["_build"]

# Anchors like those of GitHub, so that one link works on both.
myst_heading_anchors = 4

html_theme = "alabaster"
html_title = f"fercache {__version__}"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_theme_options = {
    "description": "Facial expressions in videos, from features that a face CNN computes once",
    "page_width": "1200px",
    "sidebar_width": "250px",
    "fixed_sidebar": True,
    "show_powered_by": False,
}
