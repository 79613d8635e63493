# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import importlib.util
from pathlib import Path

from ansible_collections.imageferry.glance.plugins.module_utils._errors import (
    AmbiguousImage,
    FerryError,
    all_errors,
    describe_cause,
)

ROOT = Path(__file__).resolve().parents[2]


def test_each_cause_has_a_code_and_a_way_out_of_its_own():
    codes = [cls.code for cls in all_errors()]
    assert len(codes) == len(set(codes)) > 20
    assert all(cls is FerryError or "remedy" in vars(cls) for cls in all_errors())
    assert all((cls.__doc__ or "").strip().endswith(".") and cls.remedy.endswith(".") for cls in all_errors())


def test_the_list_in_the_documentation_is_the_list():
    spec = importlib.util.spec_from_file_location("list_errors", ROOT / "docs" / "list_errors.py")
    list_errors = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(list_errors)
    assert list_errors.PAGE.read_text() == list_errors.page(), "run: make docs"


def test_an_error_survives_its_way_to_another_process():
    sent = AmbiguousImage("Two are called so.", candidates=[{"id": "1"}])
    received = FerryError.from_dict(sent.to_dict())
    assert isinstance(received, AmbiguousImage) and received.result() == sent.result()
    assert received.result()["candidates"] == [{"id": "1"}] and received.result()["error"] == "image_ambiguous"


def test_a_cause_is_told_in_few_words():
    outer = ValueError("the whole story")
    outer.__cause__ = ConnectionRefusedError(111, "Connection refused")
    assert describe_cause(outer) == "Connection refused"
