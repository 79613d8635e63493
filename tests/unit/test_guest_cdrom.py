# SPDX-License-Identifier: GPL-3.0-or-later
"""How long a disc's token is renewed, where the host's answers are given; test_guests has it with a real guest."""

from __future__ import annotations

import itertools

import pytest
from ansible_collections.imageferry.glance.plugins.action import guest_cdrom

IN, OUT = {"inserted": True}, {"inserted": False}
NO_LIBVIRT = {"failed": True, "error": "missing_dependency", "msg": "libvirt does not answer."}
NO_GUEST = {"failed": True, "error": "guest_not_found"}


class Tokens:
    def current(self):
        return "token"

    def good_for(self):
        return None


@pytest.mark.parametrize(
    ("answers", "told"),
    [
        ([IN], {"inserted": True}),
        ([IN, OUT], {"inserted": False}),
        ([IN, NO_LIBVIRT, NO_LIBVIRT, IN, NO_LIBVIRT, OUT], {"inserted": False}),
        ([IN, NO_GUEST], {"inserted": False}),
        ([IN, NO_LIBVIRT], NO_LIBVIRT),
    ],
)
def test_a_host_that_does_not_answer_for_a_moment_does_not_end_it(monkeypatch, answers, told):
    now = itertools.count(step=5)
    monkeypatch.setattr(guest_cdrom.time, "monotonic", lambda: next(now))
    monkeypatch.setattr(guest_cdrom.time, "sleep", lambda _seconds: None)
    action = object.__new__(guest_cdrom.ActionModule)
    given = itertools.chain(answers, itertools.repeat(answers[-1]))
    action.run_module = lambda *_arguments: next(given)
    assert action._stay({}, {}, Tokens(), 300) == told
