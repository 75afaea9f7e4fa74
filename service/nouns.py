"""The commands that look at what is recorded and add to it: reviews, quarantine, emergencies, requests, evidence.

Exit status as in `pipeline`: 0 told or stored, 1 refused, 2 cannot tell.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

from service import telling
from service.client import Client, Reply, model_path
from service.pipeline import GOOD, parser_of, refused, show, with_target, write

_FORMS = ("text", "json")
_Run = Callable[[argparse.Namespace, Client], int]


def add_commands(commands: Any) -> None:
    """Add the commands to the parser's subcommands."""

    def add(name: str, text: str, run: _Run, group: Any = commands) -> argparse.ArgumentParser:
        return parser_of(group, name, text, run, _FORMS)

    with_target(add("review", "show what an approver has to see, with its digest", _review))
    status = add("status", "show what is live in an environment, since when and by whom", _status)
    for name in ("model", "environment"):
        status.add_argument(name)
    quarantine = add("quarantine", "keep a version from becoming live again", _quarantine)
    for name in ("model", "version"):
        quarantine.add_argument(name)
    quarantine.add_argument("--lift", action="store_true", help="let it become live again")
    emergencies = add("emergencies", "list emergencies that nobody has reviewed yet, or review one", _emergencies)
    emergencies.add_argument("--all", action="store_true", help="those that were reviewed, too")
    emergencies.add_argument("--review", metavar="ID", help="review this one; needs --reason")
    with_target(add("request", "ask that somebody promotes a version", _request))
    requests = add("requests", "list open promotion requests", _requests)
    requests.add_argument("--mine", action="store_true", help="only those that wait for me")
    evidence = commands.add_parser("evidence", help="evidence about versions").add_subparsers(required=True)
    post = add("post", "post evidence about a version", _evidence, evidence)
    for name in ("model", "version", "kind"):
        post.add_argument(name)
    post.add_argument("result", choices=("passed", "failed"))
    post.add_argument("--facts", type=_facts, default={}, metavar="JSON", help="an object of what was measured")
    post.add_argument("--source", default="", metavar="URL", help="where it comes from")


def _review(options: argparse.Namespace, client: Client) -> int:
    path = model_path(options.registry, options.model, "versions", options.version)
    reply = client.get(f"{path}/review?environment={quote(options.environment, safe='')}")
    return _tell(options, reply, _packet, digest=str, findings=list, comparison=dict, candidate=dict)


def _packet(packet: Mapping[str, Any]) -> list[str]:
    lines = [f"{packet['model']} version {packet['version']} for {packet['environment']}"]
    for name in ("candidate", "incumbent"):
        facts = packet.get(name) or {}
        lines += [
            f"{name}.{key} = {json.dumps(value)}" for key, value in facts.items() if value not in (None, {}, [], "")
        ]
    lines += [f"compared: {name} {json.dumps(value)}" for name, value in packet["comparison"].items()]
    lines += [f"evidence: {item['kind']} {item['result']} by {item['by']}" for item in packet.get("evidence", [])]
    lines += telling.findings(packet["findings"]).splitlines()
    return [*lines, f"review {packet['digest']}"]


def _status(options: argparse.Namespace, client: Client) -> int:
    reply = client.get(model_path(options.registry, options.model, "environments", options.environment))
    return _tell(options, reply, _live, environment=str, version=str)


def _live(found: Mapping[str, Any]) -> list[str]:
    since = f" since {found['since']} by {found['by']} ({found['kind']})" if found["since"] else ", not by the gateway"
    drifted = ["drifted: the registry's mark was moved beside the gateway"] if found["drifted"] else []
    return [f"{found['environment']}: version {found['version']}{since}", *drifted]


def _quarantine(options: argparse.Namespace, client: Client) -> int:
    path = model_path(options.registry, options.model, "versions", options.version, "quarantine")
    if options.lift:
        reply = client.delete(path)
        if reply.status == 204:
            write(options, "lifted" if options.format == "text" else "{}")
            return GOOD
        return refused(options, reply)
    return _tell(options, client.post(path, {"reason": options.reason}), _kept_away, id=str, live_in=dict)


def _kept_away(found: Mapping[str, Any]) -> list[str]:
    lines = [f"version {found['version']} is in quarantine: {found['reason']}"]
    for name, version in found["live_in"].items():
        lines.append(
            f"it stays live in {name}; roll back to {f'version {version}' if version else 'nothing: retire it'}"
        )
    return lines


def _emergencies(options: argparse.Namespace, client: Client) -> int:
    if options.review:
        path = f"/v1/emergencies/{quote(options.review, safe='')}/reviews"
        return _tell(options, client.post(path, {"reason": options.reason}), lambda it: [_debt(it)], id=str, ticket=str)
    reply = client.get("/v1/emergencies" + ("?closed=true" if options.all else ""))
    return _tell(options, reply, lambda it: [_debt(item) for item in it["emergencies"]] or ["none"], emergencies=list)


def _debt(item: Mapping[str, Any]) -> str:
    state = f"reviewed by {item['closed_by']}: {item['closing_reason']}" if item["closed_by"] else "to be reviewed"
    what = f"{item['model']} version {item['version']} in {item['environment']}"
    return f"{item['id']} {what} by {item['by']}, {item['ticket']}: {item['reason']} ({state})"


def _request(options: argparse.Namespace, client: Client) -> int:
    path = model_path(options.registry, options.model, "environments", options.environment, "promotion-requests")
    body = {"version": options.version, "reason": options.reason}
    return _tell(options, client.post(path, body), lambda it: [_wish(it)], id=str, state=str)


def _requests(options: argparse.Namespace, client: Client) -> int:
    reply = client.get("/v1/promotion-requests" + ("?awaiting=me" if options.mine else ""))
    rows = "promotion_requests"
    return _tell(options, reply, lambda it: [_wish(item) for item in it[rows]] or ["none"], promotion_requests=list)


def _wish(item: Mapping[str, Any]) -> str:
    what = f"{item['model']} version {item['version']} for {item['environment']}"
    return f"{item['id']} {what} by {item['by']}: {item['reason']} ({item['state']} until {item['expires']})"


def _evidence(options: argparse.Namespace, client: Client) -> int:
    path = model_path(options.registry, options.model, "versions", options.version, "evidence")
    body = {"kind": options.kind, "result": options.result, "facts": options.facts, "source": options.source}
    reply = client.post(path, body)
    return _tell(options, reply, lambda it: [f"{it['id']} {it['kind']} {it['result']} by {it['by']}"], id=str, kind=str)


def _facts(text: str) -> dict[str, Any]:
    try:
        facts = json.loads(text)
    except ValueError:
        facts = None
    if not isinstance(facts, dict):
        message = 'a JSON object such as {"tests": 12}'
        raise argparse.ArgumentTypeError(message)
    return facts


def _tell(
    options: argparse.Namespace, reply: Reply, lines: Callable[[Mapping[str, Any]], list[str]], **kinds: type
) -> int:
    """Show an answer that has the fields *kinds*, as text in *lines*; return the exit status it means."""
    if reply.status not in (200, 201):
        return refused(options, reply)
    document = reply.expect(**kinds)
    if options.format == "text":
        write(options, "\n".join(telling.line(line) for line in lines(document)))
    else:
        show(options, reply)
    return GOOD
