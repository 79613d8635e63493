# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sphinx's settings for the documentation's site, which docs/build makes."""

from __future__ import annotations

import typing as t

from docutils import nodes

if t.TYPE_CHECKING:
    from sphinx.application import Sphinx

_HOME = "https://github.com/imageferry/imageferry.glance"

project = "imageferry.glance"
project_copyright = "ImageFerry contributors"
title = html_title = html_short_title = "imageferry.glance"

extensions = ["sphinx_antsibull_ext"]
default_role = "any"
highlight_language = "YAML+Jinja"
pygments_style = "ansible"

html_theme = "sphinx_ansible_theme"
html_theme_options = {
    "documentation_home_url": _HOME,
    "topbar_links": {"Repository": _HOME, "Issues": f"{_HOME}/issues"},
    "show_rtd_ethical_ads": False,
}
html_copy_source = False
html_show_sphinx = False
html_use_index = False

_ANSIBLE = "https://docs.ansible.com/ansible/latest"
_ANSIBLE_PAGES = {
    "action_plugins": "plugins/action.html",
    "ansible_collections.ansible.builtin.copy_module": "collections/ansible/builtin/copy_module.html",
    "ansible_configuration_settings": "reference_appendices/config.html",
    "common_return_values": "reference_appendices/common_return_values.html",
}


def _ansible_page(_app: Sphinx, _env: object, node: nodes.Element, content: nodes.Node) -> nodes.reference | None:
    """A link to Ansible's own documentation, whose inventory would have to be fetched; None for other labels."""
    page = _ANSIBLE_PAGES.get(node["reftarget"])
    return nodes.reference("", "", content, refuri=f"{_ANSIBLE}/{page}", internal=False) if page else None


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("missing-reference", _ansible_page)
