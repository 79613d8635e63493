# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Watching a transfer from the controller: its progress is shown, and its token renewed, while it runs on the host."""

from __future__ import annotations

import secrets
import time
import typing as t

from ansible.errors import AnsibleConnectionFailure
from ansible.utils.display import Display
from ansible_collections.imageferry.glance.plugins.module_utils._errors import FerryError, TransferLost
from ansible_collections.imageferry.glance.plugins.plugin_utils._progress import ProgressLine
from ansible_collections.imageferry.glance.plugins.plugin_utils._token import TokenChain

if t.TYPE_CHECKING:
    from ansible_collections.imageferry.glance.plugins.plugin_utils._action import FerryAction

_LONGEST = 7 * 24 * 3600  # seconds; a transfer ends by itself long before, see ABANDONED_AFTER
_WAITS = ((1.0, 1.0), (10.0, 2.0), (120.0, 5.0))  # until so many seconds have passed, so many between two lines
_LONG_WAIT = 15.0
_SILENCE = 120.0  # seconds that a transfer may take to begin, or its result to appear
RECONNECT = 60.0  # seconds to try to reach a host again, less than ABANDONED_AFTER


def run_watched(
    action: FerryAction,
    module: str,
    arguments: dict[str, t.Any],
    task_vars: dict[str, t.Any],
    tokens: TokenChain | None,
    label: str | None,
) -> dict[str, t.Any]:
    """Runs a module that takes C(_transfer) in the background of the host, and returns its result once it has ended.

    :param tokens: where new tokens come from, None where none is used.
    :param label: what is moved, for the lines of progress; None shows none.
    :raises TransferLost: the host has forgotten the transfer.
    """
    async_dir = action.get_shell_option("async_dir", default="~/.ansible_async")
    folder = f"{async_dir}/imageferry-{secrets.token_hex(8)}"
    started = action.start_in_background(module, {**arguments, "_transfer": folder}, task_vars, _LONGEST)
    if "results_file" not in started:
        return started
    watcher = _Watcher(action, task_vars, {"folder": folder, "results_file": started["results_file"]})
    return watcher.follow(tokens, ProgressLine(f"{task_vars['inventory_hostname']}: {label}") if label else None)


def run_patiently(
    action: FerryAction, module: str, arguments: dict[str, t.Any], task_vars: dict[str, t.Any]
) -> dict[str, t.Any]:
    """A module's result; a host that cannot be reached for a moment is asked again."""
    first_failure = None
    while True:
        try:
            return action.run_module(module, arguments, task_vars)
        except AnsibleConnectionFailure:
            first_failure = first_failure or time.monotonic()
            if time.monotonic() - first_failure > RECONNECT:
                raise
            time.sleep(1)
            action.reconnect()


class _Watcher:
    """Asks the host about one transfer until it has ended."""

    def __init__(self, action: FerryAction, task_vars: dict[str, t.Any], transfer: dict[str, t.Any]) -> None:
        self._action = action
        self._task_vars = task_vars
        self._transfer = transfer
        self._begun = self._heard = time.monotonic()

    def follow(self, tokens: TokenChain | None, line: ProgressLine | None) -> dict[str, t.Any]:
        """The transfer's result."""
        token = None
        while True:
            news = self._ask(token)
            token = None
            if news.get("result") is not None:
                result: dict[str, t.Any] = news["result"]
                return result
            if news.get("failed"):
                return news
            progress = news["progress"]
            if progress is None:
                self._check_silence()
            else:
                self._heard = time.monotonic()
                if line:
                    line.show(progress)
                if progress["wants_token"] and tokens is not None:
                    token = _renew(tokens)

    def _ask(self, token: str | None) -> dict[str, t.Any]:
        """One look at the transfer."""
        arguments = {**self._transfer, "wait": self._wait(), "token": token}
        return run_patiently(self._action, "transfer_info", arguments, self._task_vars)

    def _wait(self) -> float:
        elapsed = time.monotonic() - self._begun
        return next((wait for until, wait in _WAITS if elapsed < until), _LONG_WAIT)

    def _check_silence(self) -> None:
        if time.monotonic() - self._heard > _SILENCE:
            for path in self._transfer.values():
                self._action.remove(path, self._task_vars)
            raise TransferLost("The transfer is no longer running on the host, and has left no result.")


def _renew(tokens: TokenChain) -> str:
    """A new token; an empty one when Keystone refuses, which ends the transfer."""
    try:
        tokens.renew()
        return tokens.current() or ""
    except FerryError as err:
        Display().warning(f"No new token: {err}")
        return ""
