# SPDX-License-Identifier: GPL-3.0-or-later
"""What is documented of a module that the controller runs is what is checked; ansible-test cannot see its spec."""

from __future__ import annotations

import importlib

import pytest
import yaml
from ansible_collections.imageferry.glance.plugins.module_utils._arguments import cloud_spec, image_module_spec

_KNOWN = ("type", "elements", "choices", "default", "aliases")


def facts(options, inner):
    """What is said of each option, as plain values."""
    return {
        name: {key: option[key] for key in _KNOWN if option.get(key) is not None}
        | ({inner: facts(option[inner], inner)} if option.get(inner) else {})
        for name, option in options.items()
    }


@pytest.mark.parametrize(("module", "spec"), [("glance_image", image_module_spec())])
def test_the_documentation_is_the_spec(module, spec):
    documented = importlib.import_module(f"ansible_collections.imageferry.glance.plugins.modules.{module}")
    own = {name: option for name, option in spec.items() if name not in cloud_spec()}
    said = facts(yaml.safe_load(documented.DOCUMENTATION)["options"], "suboptions")
    meant = facts(own, "options")
    meant["filter"]["suboptions"] = meant["filter"].pop("options")
    assert said == meant
