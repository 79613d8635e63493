# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What every action plugin of this collection does alike."""

from __future__ import annotations

import typing as t

from ansible.plugins.action import ActionBase
from ansible_collections.imageferry.glance.plugins.module_utils._arguments import cloud_spec
from ansible_collections.imageferry.glance.plugins.module_utils._errors import FerryError


class FerryAction(ActionBase):  # type: ignore[misc]
    """Runs L(work) on the controller, and returns an error of this collection as a failed result."""

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        try:
            result.update(self.work(task_vars or {}))
        except FerryError as err:
            result.update(err.result(), failed=True, changed=False)
        return result

    def work(self, task_vars: dict[str, t.Any]) -> dict[str, t.Any]:
        """The plugin's own part; returns the task's result.

        :raises FerryError: it failed.
        """
        raise NotImplementedError

    def question(self, params: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
        """What tells this task's question from others: the same for all hosts that ask the same."""
        return {"task": self._task._uuid, **{name: params[name] for name in sorted(params)}}


def cloud_options(params: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """The options among V(params) that describe the cloud."""
    return {name: params[name] for name in cloud_spec()}
