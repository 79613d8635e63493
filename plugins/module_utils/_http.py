# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a module is to talk to a server, as its options say, and what of these nobody may see."""

from __future__ import annotations

import os
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.imageferry.glance.plugins.module_utils._errors import InvalidOption
from ansible_collections.imageferry.glance.plugins.module_utils._sizes import parse_rate
from ansible_collections.imageferry.glance.plugins.module_utils._transfer.exchange import (
    HttpOptions,
    TokenSupply,
    public_url,
)

_SHORTEST_SECRET = 8


def hide_headers(module: AnsibleModule) -> dict[str, str]:
    """Takes the secret headers out of the module's parameters.

    Ansible masks every value of a C(no_log) dict wherever it occurs in a return: a header C(Accept: e) would mask each
    letter e. So short values are only taken out of the parameters, and no longer looked for elsewhere.
    """
    headers = {str(name): str(value) for name, value in (module.params["headers"] or {}).items()}
    module.params["headers"] = dict.fromkeys(headers, "VALUE_SPECIFIED_IN_NO_LOG_PARAMETER") or None
    module.no_log_values = {value for value in module.no_log_values if len(str(value)) >= _SHORTEST_SECRET}
    return headers


class Addresses(t.NamedTuple):
    """The options C(url) and C(checksum) as they were given."""

    url: str
    checksum: str | None


def hide_addresses(module: AnsibleModule) -> Addresses:
    """Takes what may be secret in the addresses out of the module's parameters, which Ansible shows."""
    given = Addresses(module.params["url"], module.params["checksum"])
    module.params["url"] = public_url(given.url)
    algorithm, _separator, rest = (given.checksum or "").partition(":")
    if "://" in rest:
        module.params["checksum"] = f"{algorithm}:{public_url(rest)}"
    return given


def http_options(module: AnsibleModule, tokens: TokenSupply | None) -> HttpOptions:
    """How the module is to talk to a server.

    :param tokens: where a new token comes from.
    :raises InvalidOption: a file that is named cannot be read, or an option is not what it has to be.
    """
    params = module.params
    if params["timeout"] < 1:
        raise InvalidOption(f"'timeout: {params['timeout']}' is less than a second.", "Allow more.")
    return HttpOptions(
        token=params["_token"],
        tokens=tokens,
        verify=_certificates(module),
        client_cert=_client_certificate(module),
        timeout=params["timeout"],
        retries=params["retries"],
        rate_limit=parse_rate(params["rate_limit"], "rate_limit"),
    )


def _certificates(module: AnsibleModule) -> bool | str:
    """How to check the server's certificate: a cloud's CA certificates come as text, as their file is elsewhere."""
    if module.params["validate_certs"] is False:
        return False
    return _private_file(module, "_ca_data") or _file_on_host(module, "ca_cert") or True


def _client_certificate(module: AnsibleModule) -> str | tuple[str, str] | None:
    """The files of the client certificate and its key, or of both."""
    cert = _private_file(module, "_client_cert") or _file_on_host(module, "client_cert")
    key = _private_file(module, "_client_key") or _file_on_host(module, "client_key")
    return (cert, key) if cert and key else cert


def _private_file(module: AnsibleModule, option: str) -> str | None:
    """The text of an option in a file that only this user can read, gone with the module."""
    if not module.params[option]:
        return None
    path = os.path.join(module.tmpdir, f"{option}.pem")
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
        file.write(module.params[option])
    return path


def _file_on_host(module: AnsibleModule, option: str) -> str | None:
    path: str | None = module.params[option]
    if path is not None and not os.access(path, os.R_OK):
        raise InvalidOption(f"'{option}: {path}' cannot be read on this host.")
    return path
