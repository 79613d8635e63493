# SPDX-License-Identifier: GPL-3.0-or-later
"""As much of AWX's API as awxkit needs to import assets: lists that can be searched, posted to and changed.

It stands in for an AWX, which takes a cluster to run. The fields and the rules of a survey are those of AWX 24.6.
"""

from __future__ import annotations

import http.server
import json
import re
import typing as t
import urllib.parse

from awxkit.api.pages.api import EXPORTABLE_RESOURCES
from faulty_proxy import LocalServer

_COMMON = {"name": "string", "description": "string"}
_ASKS = (
    "credential", "diff_mode", "execution_environment", "forks", "instance_groups", "inventory", "job_slice_count",
    "job_type", "labels", "limit", "scm_branch", "skip_tags", "tags", "timeout", "variables", "verbosity",
)  # fmt: skip
FIELDS: dict[str, dict[str, str]] = {
    "execution_environments": {
        **_COMMON, "organization": "id", "image": "string", "credential": "id", "pull": "choice",
    },
    "credential_types": {**_COMMON, "kind": "choice", "inputs": "json", "injectors": "json"},
    "projects": {
        **_COMMON, "local_path": "choice", "scm_type": "choice", "scm_url": "string", "scm_branch": "string",
        "scm_refspec": "string", "scm_clean": "boolean", "scm_track_submodules": "boolean",
        "scm_delete_on_update": "boolean", "credential": "id", "timeout": "integer", "organization": "id",
        "scm_update_on_launch": "boolean", "scm_update_cache_timeout": "integer", "allow_override": "boolean",
        "default_environment": "id", "signature_validation_credential": "id",
    },
    "job_templates": {
        **_COMMON, "job_type": "choice", "inventory": "id", "project": "id", "playbook": "string",
        "scm_branch": "string", "forks": "integer", "limit": "string", "verbosity": "choice", "extra_vars": "json",
        "job_tags": "string", "force_handlers": "boolean", "skip_tags": "string", "start_at_task": "string",
        "timeout": "integer", "use_fact_cache": "boolean", "execution_environment": "id", "host_config_key": "string",
        "survey_enabled": "boolean", "become_enabled": "boolean", "diff_mode": "boolean",
        "allow_simultaneous": "boolean", "job_slice_count": "integer", "webhook_service": "choice",
        "webhook_credential": "id", "prevent_instance_group_fallback": "boolean",
        **{f"ask_{name}_on_launch": "boolean" for name in _ASKS},
    },
}  # fmt: skip
_TYPES_OF_ANSWERS = {
    "text": str, "textarea": str, "password": str, "multiplechoice": str, "multiselect": str, "integer": int,
    "float": float,
}  # fmt: skip
_PATHS = {resource: resource for resource in (*EXPORTABLE_RESOURCES, "system_job_templates")} | {
    "inventory": "inventories"
}


class StandIn(LocalServer):
    """An AWX that has an organization and nothing else."""

    def __init__(self) -> None:
        self.assets: dict[str, list[dict[str, t.Any]]] = {resource: [] for resource in _PATHS.values()}
        self.assets["organizations"].append({"id": 1, "name": "Default"})
        self.surveys: dict[str, t.Any] = {}
        self.refused: list[str] = []
        super().__init__(_Handler)


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _answer(self) -> None:
        awx: StandIn = self.server.owner  # type: ignore[attr-defined]
        address = urllib.parse.urlsplit(self.path)
        sent = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "{}")
        parts = address.path.strip("/").split("/")[2:]
        if address.path == "/api/":
            self._send({"available_versions": {"v2": "/api/v2/"}, "current_version": "/api/v2/"})
        elif not parts:
            self._send({resource: f"/api/v2/{path}/" for resource, path in _PATHS.items()})
        elif self.command == "OPTIONS":
            fields = {name: {"type": kind} for name, kind in FIELDS.get(parts[0], {}).items()}
            self._send({"actions": {"POST": fields}, "search_fields": ["name"]})
        elif len(parts) == 1 and self.command == "GET":
            wanted = dict(urllib.parse.parse_qsl(address.query))
            found = [one for one in awx.assets[parts[0]] if all(str(one.get(key)) == wanted[key] for key in wanted)]
            self._send({"count": len(found), "next": None, "results": [_shown(parts[0], one) for one in found]})
        elif len(parts) == 1:
            awx.assets[parts[0]].append({"id": len(awx.assets[parts[0]]) + 1, **sent})
            self._send(_shown(parts[0], awx.assets[parts[0]][-1]), 201)
        else:
            asset = awx.assets[parts[0]][int(parts[1]) - 1]
            if parts[2:] == ["survey_spec"]:
                self._take_survey(awx, asset["name"], sent)
                return
            asset.update(sent if self.command == "PUT" else {})
            self._send(_shown(parts[0], asset))

    do_GET = do_POST = do_PUT = do_OPTIONS = _answer  # noqa: N815

    def _take_survey(self, awx: StandIn, template: str, survey: dict[str, t.Any]) -> None:
        wrong = wrong_with(survey)
        awx.refused += [f"{template}: {reason}" for reason in wrong]
        awx.surveys[template] = survey
        self._send({"error": wrong} if wrong else {}, 400 if wrong else 200)

    def _send(self, answer: t.Any, status: int = 200) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Allow", "GET, POST, PUT, OPTIONS")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: t.Any) -> None:
        """Says nothing."""


def _shown(resource: str, asset: dict[str, t.Any]) -> dict[str, t.Any]:
    """The asset as AWX shows it, with the addresses of what belongs to it."""
    url = f"/api/v2/{resource}/{asset['id']}/"
    related = {"organization": "/api/v2/organizations/1/"} if resource in ("projects", "job_templates") else {}
    if resource == "job_templates":
        related["survey_spec"] = f"{url}survey_spec/"
    return {"type": resource[:-1], "url": url, "related": related, "status": "successful", **asset}


def wrong_with(survey: dict[str, t.Any]) -> list[str]:
    """Why AWX would refuse a survey."""
    wrong = [f"{name} is missing" for name in ("name", "description", "spec") if name not in survey]
    variables = [question.get("variable") for question in survey.get("spec", [])]
    wrong += [f"{variable} is asked for twice" for variable in variables if variables.count(variable) > 1]
    for question in survey.get("spec", []):
        missing = {"type", "question_name", "variable", "required"} - set(question)
        if missing or question["type"] not in _TYPES_OF_ANSWERS or not isinstance(question["required"], bool):
            wrong.append(f"not a question: {question}")
            continue
        default, choices = question.get("default", ""), question.get("choices")
        if default != "" and not isinstance(default, _TYPES_OF_ANSWERS[question["type"]]):
            wrong.append(f"{question['variable']} has a default of another type")
        if question["type"] == "multiplechoice" and (not choices or default not in choices):
            wrong.append(f"{question['variable']} has no choice, or one that is none")
        if not re.fullmatch(r"[A-Za-z_]\w*", question["variable"]):
            wrong.append(f"{question['variable']} is not a variable")
    return wrong
