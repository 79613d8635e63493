# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The documentation's site can be built, and what the guides and playbooks say of the collection is so."""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
import textwrap
import urllib.parse
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
RST = ROOT / "docs" / "docsite" / "rst"
GUIDES = sorted(RST.glob("*.rst"))
PLAYBOOKS = sorted((ROOT / "playbooks").glob("*.yml"))
COLLECTION = "imageferry.glance."


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the site, which is built without a warning."""
    folder = tmp_path_factory.mktemp("docs")
    collection = Path(os.environ["ANSIBLE_COLLECTIONS_PATH"]) / "ansible_collections" / "imageferry" / "glance"
    run = subprocess.run(
        ["docs/build", sys.prefix, folder],
        cwd=collection,
        env={**os.environ, "PWD": str(collection)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "", ""), run.stderr
    return folder / "html"


class Page(HTMLParser):
    """What a page links to, and the places in it that can be linked to."""

    def __init__(self, path):
        super().__init__()
        self.targets, self.anchors = set(), set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name in ("href", "src"):
                self.targets.add(value)
            elif name in ("id", "name"):
                self.anchors.add(value)


def test_no_link_within_the_site_is_dead(site):
    pages = {path.resolve(): Page(path) for path in site.rglob("*.html")}
    dead = []
    for path, page in pages.items():
        for target in page.targets:
            link = urllib.parse.urlsplit(target)
            if link.scheme or link.netloc:
                continue
            file = (path.parent / urllib.parse.unquote(link.path)).resolve() if link.path else path
            anchor = urllib.parse.unquote(link.fragment)
            if not file.is_file() or (anchor and file in pages and anchor not in pages[file].anchors):
                dead.append(f"{path.name}: {target}")
    assert len(pages) > 10 and not dead


def test_all_that_there_is_has_a_page_or_is_written_about(site):
    written = "".join(path.read_text(encoding="utf-8") for path in [*GUIDES, ROOT / "README.md"])
    modules = [path.stem for path in (ROOT / "plugins" / "modules").glob("*.py")]
    roles = [path.name for path in (ROOT / "roles").iterdir()]
    assert modules and roles and PLAYBOOKS
    assert not [name for name in modules if not (site / f"{name}_module.html").is_file()]
    assert not [name for name in roles if not (site / f"{name}_role.html").is_file()]
    assert not [path.stem for path in PLAYBOOKS if not re.search(rf"{re.escape(COLLECTION + path.stem)}\b", written)]


def test_each_guide_is_in_the_list_and_in_the_readme():
    sections = yaml.safe_load((RST.parent / "extra-docs.yml").read_text(encoding="utf-8"))["sections"]
    assert sorted(name for section in sections for name in section["toctree"]) == [path.stem for path in GUIDES]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert not [path.name for path in GUIDES if f"]({path.relative_to(ROOT)})" not in readme]


@functools.cache
def documented(kind):
    """What ansible-doc knows of the collection's modules or roles, by their full names."""
    options = ["--type", kind, "--json"]
    ansible_doc = Path(sys.prefix) / "bin" / "ansible-doc"

    def ask(*more):
        run = subprocess.run([ansible_doc, *options, *more], capture_output=True, text=True, check=True)
        return json.loads(run.stdout)

    return ask(*ask("--list", COLLECTION.rstrip(".")))


def yaml_blocks(page):
    """The code blocks of a guide that are YAML."""
    lines = page.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines):
        if re.match(r"\.\. code-block:: yaml", line):
            block = []
            for following in lines[number + 1 :]:
                if following and not following.startswith(" "):
                    break
                block.append(following)
            yield textwrap.dedent("\n".join(block))


def unknown_names(node):
    """The modules, roles, options and variables in plays and tasks that the collection does not have."""
    if isinstance(node, list):
        for item in node:
            yield from unknown_names(item)
    if not isinstance(node, dict):
        return
    for key, value in node.items():
        if key.startswith(COLLECTION):
            module = documented("module").get(key)
            known = module["doc"]["options"] if module else {}
            yield from [key] if module is None else _unknown_options(key, value, known)
        elif key == "role" and value.startswith(COLLECTION):
            role = documented("role").get(value)
            known = role["entry_points"]["main"]["options"] if role else {}
            yield from [value] if role is None else _unknown_options(value, node.get("vars", {}), known)
        else:
            yield from unknown_names(value)


def _unknown_options(where, given, known):
    for name, value in given.items():
        aliases = [alias for option in known.values() for alias in option.get("aliases", [])]
        if name not in known and name not in aliases:
            yield f"{where}: {name}"
            continue
        option = known.get(name, {})
        choices = option.get("choices")
        if choices and isinstance(value, str) and "{{" not in value and value not in map(str, choices):
            yield f"{where}: {name}: {value}"
        for inner in value if isinstance(value, list) else [value]:
            if option.get("suboptions") and isinstance(inner, dict):
                yield from _unknown_options(f"{where}: {name}", inner, option["suboptions"])


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.stem)
def test_the_yaml_of_a_guide_is_what_the_collection_understands(page):
    blocks = list(yaml_blocks(page))
    assert blocks
    assert list(unknown_names([yaml.safe_load(block) for block in blocks])) == []


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.stem)
def test_the_errors_and_playbooks_of_a_guide_are_there(page):
    text = page.read_text(encoding="utf-8")
    codes = re.findall(r"^``(\w+)``", (RST / "errors.rst").read_text(encoding="utf-8"), re.MULTILINE)
    what_goes_wrong = text.partition("\nWhat goes wrong\n")[2]
    named = [code for line in re.findall(r"^``\w+``.*", what_goes_wrong, re.MULTILINE)
             for code in re.findall(r"``(\w+)``", line.partition(":")[0])]  # fmt: skip
    assert not set(named) - set(codes)
    for playbook, arguments in re.findall(r"ansible-playbook imageferry\.glance\.(\w+)(.*)", text):
        source = (ROOT / "playbooks" / f"{playbook}.yml").read_text(encoding="utf-8")
        for variable in re.findall(r"-e '?(\w+)=", arguments):
            assert variable in header_variables(source), f"{playbook} has no {variable}"


def header_variables(source):
    """The variables that a header explains: `# name  ...`, `# name, name`, and `#   or name and name`."""
    found = set()
    for line in source.splitlines():
        explained = re.match(r"# ((?:\w+, )*\w+)(?:  +\S|$)", line)
        found.update(explained[1].split(", ") if explained else [])
        found.update(re.findall(r"\b(?:or|and) (\w+)", line) if re.match(r"# {6,}or ", line) else [])
    return found


@pytest.mark.parametrize("playbook", PLAYBOOKS, ids=lambda path: path.stem)
def test_the_header_of_a_playbook_explains_its_variables_and_no_others(playbook):
    source = playbook.read_text(encoding="utf-8")
    body = "\n".join(line for line in source.splitlines() if not line.startswith("#"))
    optional = set(re.findall(r"(?<![\w.])([a-z]\w*) \| default\(", body)) - set(re.findall(r"register: (\w+)", body))
    explained = header_variables(source)
    assert optional and not optional - explained
    assert not [name for name in explained if not re.search(rf"\b{name}\b", body)]
