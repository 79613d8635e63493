# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A cloud as the controller sees it: a session with Keystone, a token, and requests to Glance."""

from __future__ import annotations

import contextlib
import functools
import html
import os
import re
import typing as t

from ansible_collections.imageferry.glance.plugins.module_utils._errors import (
    AccessDenied,
    AuthFailed,
    CloudError,
    CloudNotFound,
    ConnectionRefused,
    ConnectionTimedOut,
    FerryError,
    FormatMismatch,
    ImageConflict,
    ImageNotFound,
    InvalidOption,
    MissingDependency,
    NoImageService,
    QuotaExceeded,
    TlsUntrusted,
    describe_cause,
)

# Ansible's main process loads a task's action plugin before it forks a worker for each host: what is imported here is
# imported once, and not by every worker again, which takes half a second each.
try:
    import openstack
    import openstack.connection
    import openstack.exceptions as sdk
    from keystoneauth1 import exceptions as ksa
except ImportError as import_error:
    _MISSING: ImportError | None = import_error
else:
    _MISSING = None

_API_TIMEOUT = 60
_SYSTEMS_CERTIFICATES = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Alpine, Arch
    "/etc/pki/tls/certs/ca-bundle.crt",  # Fedora, RHEL
    "/etc/ssl/ca-bundle.pem",  # SUSE
)
_LONGEST_REASON = 16 * 1024
_CERTIFICATE = re.compile(r"-----BEGIN [A-Z ]*CERTIFICATE-----[A-Za-z0-9+/=\s]+-----END [A-Z ]*CERTIFICATE-----\n?")
_RETRIES = 4  # after 0.5, 1, 2 and 4 seconds
_MOMENTARY = [500, 502, 503, 504]
_PATCH = "application/openstack-images-v2.1-json-patch"
_REFUSALS: dict[int, type[FerryError]] = {
    401: AccessDenied,
    403: AccessDenied,
    404: ImageNotFound,
    409: ImageConflict,
    410: ImageNotFound,
    413: QuotaExceeded,
    415: FormatMismatch,
}
_OPTIONS = {
    "auth": "auth",
    "auth_type": "auth_type",
    "region_name": "region_name",
    "validate_certs": "verify",
    "ca_cert": "cacert",
    "client_cert": "cert",
    "client_key": "key",
    "api_timeout": "api_timeout",
}


class Cloud:
    """A session with the cloud that a task's options name.

    :param params: the options of L(cloud_spec), as validated.
    :raises MissingDependency: the controller has no openstacksdk.
    :raises CloudNotFound: no such cloud is described.
    """

    def __init__(self, params: t.Mapping[str, t.Any]) -> None:
        with _cloud_errors():
            self._connection = _connect(params)
            # Not connection.image: that hides why a service cannot be found behind one error for all causes.
            self._image = self._connection.config.get_session_client("image", version="2")

    def ca_data(self) -> str | None:
        """The CA certificates that this cloud is trusted by, as text; None for those of the system.

        Those that requests is told of by its environment are meant for hosts too, as AWX hands over certificates so,
        unless they are just the system's, of which hosts have their own.

        :raises TlsUntrusted: they cannot be read.
        """
        verify = self._connection.config.get_requests_verify_args()[0]
        bundle = os.path.realpath(verify if isinstance(verify, str) else os.environ.get("REQUESTS_CA_BUNDLE", ""))
        if not verify or bundle in map(os.path.realpath, _SYSTEMS_CERTIFICATES):
            return None
        return _certificates(bundle) if isinstance(verify, str) or os.path.isfile(bundle) else None

    def client_certificate(self) -> tuple[str | None, str | None]:
        """The client certificate for this cloud and its key, as text; the key is None if one file holds both.

        :raises TlsUntrusted: they cannot be read.
        """
        cert = self._connection.config.get_requests_verify_args()[1]
        cert, key = cert if isinstance(cert, tuple) else (cert, None)
        return cert and _read(cert, "client certificate"), key and _read(key, "client certificate's key")

    def trust(self) -> tuple[bool | str, t.Any]:
        """How requests on the controller check the cloud's certificates, and the client certificate that they show."""
        verify, certificate = self._connection.config.get_requests_verify_args()
        return verify, certificate

    @property
    def verifies(self) -> bool:
        """Whether the cloud's certificates are checked."""
        return bool(self._connection.config.get_requests_verify_args()[0])

    def token(self) -> tuple[str | None, float | None]:
        """A token of this session, and the seconds it lives from its issue; both None without authentication."""
        with _cloud_errors():
            value = self._connection.session.get_token()
            access = self._access()
            lifetime = (access.expires - access.issued).total_seconds() if access and access.issued else None
            return value, lifetime

    def _access(self) -> t.Any:
        """What Keystone said when it issued the token; None for a cloud without Keystone."""
        get_access = getattr(self._connection.session.auth, "get_access", None)
        return get_access(self._connection.session) if get_access else None

    def identity(self) -> dict[str, t.Any]:
        """Who this session is: user, project and roles, as Keystone knows them; empty without authentication."""
        with _cloud_errors():
            access = self._access()
        if access is None:
            return {}
        return {
            "user": {"id": access.user_id, "name": access.username, "domain": access.user_domain_name},
            "project": {"id": access.project_id, "name": access.project_name, "domain": access.project_domain_name},
            "roles": sorted(access.role_names),
        }

    @functools.cached_property
    def endpoint(self) -> dict[str, t.Any]:
        """The image service that the catalogue names: C(url), C(api_version), C(region), C(interface).

        :raises NoImageService: it names none.
        """
        with _cloud_errors():
            data = self._image.get_endpoint_data()
        if data is None or not data.url:
            raise NoImageService("This cloud's catalogue has no image service.")
        version = ".".join(map(str, data.api_version)) if data.api_version else None
        return {"url": data.url, "api_version": version, "region": data.region_name, "interface": data.interface}

    def image_url(self, path: str, interface: str | None = None) -> str:
        """The address of C(path) in Glance, for a client other than this session.

        :param interface: whose endpoint the client uses, None for the one that this session uses.
        :raises NoImageService: the catalogue names none for it.
        """
        base = (self._catalogued(interface) if interface else self.endpoint["url"]).rstrip("/")
        return f"{base if base.endswith('/v2') else base + '/v2'}{path}"

    def _catalogued(self, interface: str) -> str:
        """The endpoint as the catalogue names it: the controller may not be able to reach, and so to ask, this one."""
        with _cloud_errors():
            session, region = self._connection.session, self._image.region_name
            url: str | None = session.get_endpoint(
                service_type="image", interface=interface, region_name=region, skip_discovery=True
            )
        if not url:
            raise NoImageService(f"This cloud's catalogue has no {interface} endpoint of an image service.")
        return url

    def ask(self, method: str, path: str, **options: t.Any) -> t.Any:
        """Glance's answer to a request, whatever its status.

        :raises FerryError: it could not be asked.
        """
        with _cloud_errors():
            return self._image.request(self.image_url(path), method, raise_exc=False, **options)

    def get(self, path: str, **options: t.Any) -> t.Any:
        """Glance's answer to GET C(path), of any status below 400.

        :raises FerryError: it was refused or could not be asked.
        """
        return self._demand("GET", path, **options)

    def post(self, path: str, **options: t.Any) -> t.Any:
        """Glance's answer to POST C(path), as L(get)."""
        return self._demand("POST", path, **options)

    def patch(self, path: str, changes: list[dict[str, t.Any]]) -> t.Any:
        """Glance's answer to a JSON patch of an image (Image API v2, "Update image"), as L(get).

        Sent again where Glance fails for a moment, as when its database is busy: what is changed already stays so.
        """
        again = {"status_code_retries": _RETRIES, "retriable_status_codes": _MOMENTARY}
        return self._demand("PATCH", path, json=changes, headers={"Content-Type": _PATCH}, **again)

    def put(self, path: str, **options: t.Any) -> t.Any:
        """Glance's answer to PUT C(path), as L(get)."""
        return self._demand("PUT", path, **options)

    def delete(self, path: str, **options: t.Any) -> t.Any:
        """Glance's answer to DELETE C(path), as L(get)."""
        return self._demand("DELETE", path, **options)

    def _demand(self, method: str, path: str, **options: t.Any) -> t.Any:
        response = self.ask(method, path, **options)
        if response.status_code >= 400:
            with response:
                raise _refusal(response, method, path)
        return response


def _read(path: str, what: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            return file.read()
    except (OSError, ValueError) as err:
        raise TlsUntrusted(f"The {what} in {path} cannot be read: {err}.") from err


def _certificates(path: str) -> str:
    """The certificates of a bundle without the remarks between them, which may be in any language."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return "".join(_CERTIFICATE.findall(file.read()))
    except OSError as err:
        raise TlsUntrusted(f"The CA certificates in {path} cannot be read: {err}.") from err


def _connect(params: t.Mapping[str, t.Any]) -> t.Any:
    given = {sdk: params[option] for option, sdk in _OPTIONS.items() if params.get(option) is not None}
    if isinstance(params.get("cloud"), dict):
        if params["interface"] != "public":
            given["interface"] = params["interface"]
        if given:
            raise InvalidOption(
                f"'cloud' is a dictionary, and {', '.join(sorted(given))} is given as well.", "Put it into 'cloud'."
            )
        connection = openstack.connect(**params["cloud"])
    else:
        connection = openstack.connect(cloud=params.get("cloud"), interface=params["interface"], **given)
    connection.session.timeout = connection.session.timeout or _API_TIMEOUT
    return connection


@contextlib.contextmanager
def _cloud_errors() -> t.Iterator[None]:
    """Turns what openstacksdk and keystoneauth raise into this collection's errors."""
    if _MISSING is not None:
        raise MissingDependency(
            "openstacksdk is not installed on the controller.",
            "Install it beside ansible-core: pip install openstacksdk.",
        ) from _MISSING
    try:
        yield
    except (sdk.ConfigException, ksa.MissingRequiredOptions, ksa.AuthPluginException) as err:
        raise CloudNotFound(_sentence(err)) from err
    except ksa.Unauthorized as err:
        raise AuthFailed("Keystone refuses these credentials.") from err
    except (ksa.EndpointNotFound, ksa.EmptyCatalog) as err:
        raise NoImageService(_sentence(err)) from err
    except ksa.SSLError as err:
        raise TlsUntrusted(f"The cloud's certificate is not accepted: {describe_cause(err)}.") from err
    except ksa.ConnectTimeout as err:
        raise ConnectionTimedOut(_sentence(err)) from err
    except (ksa.ConnectFailure, ksa.UnknownConnectionError, ksa.DiscoveryFailure) as err:
        tried = str(err).partition(": ")[0]
        raise ConnectionRefused(f"{tried} ({describe_cause(err)}).") from err
    except (sdk.SDKException, ksa.ClientException) as err:
        raise CloudError(_sentence(err)) from err


def _sentence(err: Exception | str) -> str:
    text = " ".join(str(err).split())
    return text if text.endswith(".") else f"{text}."


def _refusal(response: t.Any, method: str, path: str) -> FerryError:
    """The error that an answer of Glance is, with the reason that Glance gives."""
    request = response.headers.get("x-openstack-request-id", "unknown")
    answered = f"Glance answered {response.status_code} {response.reason} to {method} {path} (request {request})"
    reason = _reason(response)
    said = f"{answered}: {reason}" if reason else f"{answered}."
    return _REFUSALS.get(response.status_code, CloudError)(said)


def _reason(response: t.Any) -> str:
    """What an answer says beside its status: Glance writes it below a heading, in HTML."""
    size = response.headers.get("Content-Length", "")
    if not size.isdigit() or int(size) > _LONGEST_REASON:
        return ""
    try:
        text = response.text
    except OSError:  # the connection broke; requests' errors are of this kind
        return ""
    below = re.sub(r".*</h1>|<[^>]*>", " ", text, flags=re.DOTALL)
    words = " ".join(html.unescape(below).split())
    return _sentence(words) if words else ""
