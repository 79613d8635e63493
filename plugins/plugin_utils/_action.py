# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What every action plugin of this collection does alike."""

from __future__ import annotations

import contextlib
import typing as t

from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.plugins.action import ActionBase
from ansible_collections.imageferry.glance.plugins.module_utils._arguments import Spec, cloud_spec
from ansible_collections.imageferry.glance.plugins.module_utils._errors import FerryError, InvalidOption
from ansible_collections.imageferry.glance.plugins.plugin_utils._once import Answer, once

_PREFIX = "imageferry.glance."


class FerryAction(ActionBase):  # type: ignore[misc]
    """Runs L(work) on the controller, and returns an error of this collection as a failed result."""

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        try:
            result.update(self.work(task_vars or {}))
        except FerryError as err:
            result.update(err.result(), failed=True, changed=False)
        return result

    @property
    def is_check(self) -> bool:
        """Whether the task only says what it would do."""
        return bool(self._task.check_mode)

    def work(self, task_vars: dict[str, t.Any]) -> dict[str, t.Any]:
        """The plugin's own part; returns the task's result.

        :raises FerryError: it failed.
        """
        raise NotImplementedError

    def options(self, spec: Spec, **rules: t.Any) -> dict[str, t.Any]:
        """The task's options, validated as a module's are.

        :raises InvalidOption: they are not as V(spec) and V(rules) say.
        """
        try:
            _checked, params = self.validate_argument_spec(spec, **rules)
        except AnsibleActionFail as err:
            raise InvalidOption(f"{str(err.message).rstrip('.')}.") from err
        return {name: params[name] for name in spec}

    def ask_once(self, question: dict[str, t.Any], ask: t.Callable[[], Answer]) -> Answer:
        """What V(ask) returns: asked once for all hosts that come to this task with the same V(question).

        A task that tries again asks again, as the answer may have changed.
        """
        if self._task.until or self._task.retries:
            return ask()
        return once({"task": self._task._uuid, **question}, ask)

    def run_module(self, name: str, arguments: dict[str, t.Any], task_vars: dict[str, t.Any]) -> dict[str, t.Any]:
        """Runs one of this collection's modules on the host; in the background if the task says C(async)."""
        result: dict[str, t.Any] = self._execute_module(
            module_name=_PREFIX + name,
            module_args=arguments,
            task_vars=task_vars,
            wrap_async=bool(self._task.async_val),
        )
        return result

    def start_in_background(
        self, name: str, arguments: dict[str, t.Any], task_vars: dict[str, t.Any], limit: int
    ) -> dict[str, t.Any]:
        """Starts one of this collection's modules on the host, where it may run for V(limit) seconds.

        Returns what the start returned: with C(results_file), or why it failed.
        """
        self._task.async_val = limit
        try:
            return self.run_module(name, arguments, task_vars)
        finally:
            self._task.async_val = 0

    def remove(self, path: str, task_vars: dict[str, t.Any]) -> None:
        """Removes a file or folder of this collection's own from the host."""
        arguments = {"path": path, "state": "absent"}
        self._execute_module(module_name="ansible.legacy.file", module_args=arguments, task_vars=task_vars)

    def reconnect(self) -> None:
        """Drops the connection to the host, so that the next module opens another."""
        with contextlib.suppress(AnsibleError, OSError):
            self._connection.reset()


def cloud_options(params: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """The options among V(params) that describe the cloud."""
    return {name: params[name] for name in cloud_spec()}
