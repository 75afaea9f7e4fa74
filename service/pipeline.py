"""The commands that pipelines and people run against a gateway: verdict, promote, approve, rollback, adopt.

Exit status: 0 done or open, 1 refused or closed, 2 cannot tell.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from service import telling
from service.client import DEFAULT_URL, Client, Reply, Unreachable, model_path, token_of
from service.settings import TOKEN, URL

GOOD, REFUSED, CANNOT_TELL = 0, 1, 2
_ACCEPT = {
    "text": "application/json",
    "json": "application/json",
    "junit": "application/xml",
    "markdown": "text/markdown",
}
_ENDED = ("succeeded", "failed")
_REPORTS = ("junit", "markdown")
_PACE_SECONDS = 2.0


def add_commands(commands: Any) -> None:
    """Add the commands to the parser's subcommands."""
    verdict = parser_of(commands, "verdict", "say whether a version could be promoted; change nothing", _verdict)
    with_target(verdict)
    promote = parser_of(commands, "promote", "promote a version", _promote)
    with_target(promote)
    promote.add_argument("--wait", type=float, default=0.0, metavar="SECONDS", help="wait for approvals and windows")
    promote.add_argument("--if-match", type=_etag, metavar="ETAG", help="only if this is what is live")
    promote.add_argument("--emergency", action="store_true", help="pass waivable rules; needs --reason and --ticket")
    promote.add_argument("--ticket", default="", help="the incident an emergency belongs to")
    for command in (verdict, promote):
        command.add_argument("--change-id", help="the change record it belongs to; rules read request.change.id")
    rollback = parser_of(commands, "rollback", "make live again what was live before", _rollback)
    rollback.add_argument("model")
    rollback.add_argument("environment")
    rollback.add_argument("--to", metavar="VERSION", help="this version (default: the last good one)")
    for command in (promote, rollback):
        command.add_argument(
            "--idempotency-key",
            type=_header_key,
            metavar="KEY",
            help="repeat an earlier run safely (default: a new one)",
        )
    approve = parser_of(commands, "approve", "show the review of a version, and approve it", _approve)
    with_target(approve)
    approve.add_argument("--reject", action="store_true", help="reject it instead")
    approve.add_argument("--review", metavar="DIGEST", help="the review that was read before; do not ask")
    approve.add_argument("--yes", action="store_true", help="do not ask, whatever the review says")
    adopt = parser_of(commands, "adopt", "take over what was live before the gateway came", _adopt)
    adopt.add_argument("--models", default="*", help="a name, or a prefix that ends in * (default: all)")
    adopt.add_argument("--environment", help="only this one")
    adopt.add_argument("--owner", metavar="PRINCIPAL", help="whose these models are: user:… or service:…, not yourself")
    adopt.add_argument("--yes", action="store_true", help="adopt; without it only list")


def parser_of(
    commands: Any,
    name: str,
    text: str,
    run: Callable[[argparse.Namespace, Client], int],
    forms: Sequence[str] = tuple(_ACCEPT),
) -> argparse.ArgumentParser:
    """Add the parser of one command, with the options that all of them share; *run* gives the exit status."""
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    parser.add_argument("--url", default=os.environ.get(URL, DEFAULT_URL), help=f"the gateway (default: ${URL})")
    parser.add_argument("--token-file", type=Path, help=f"a file with the key (default: ${TOKEN})")
    parser.add_argument("--ca-file", type=Path, help="trust this CA for https")
    parser.add_argument("--registry", default="main", help="the registry (default: main)")
    needed = name in ("rollback", "adopt", "quarantine", "request")
    parser.add_argument("--reason", default="", required=needed, metavar="TEXT", help="kept in the record")
    parser.add_argument("--format", choices=forms, default="text", help="of the answer (default: text)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the answer there")
    parser.set_defaults(run=lambda options: _run(options, run))
    return parser


def _header_key(key: str) -> str:
    """Take an Idempotency-Key that a header can carry."""
    if not re.fullmatch(r"[!-~]{1,255}", key):
        message = "1 to 255 visible ASCII characters, without spaces"
        raise argparse.ArgumentTypeError(message)
    return key


def _etag(text: str) -> str:
    """Give an ETag its quotes, which shells take off."""
    return text if text == "*" or text.endswith('"') else f'"{text}"'


def with_target(parser: argparse.ArgumentParser) -> None:
    """Add the words that say which version, and for which environment."""
    for name in ("model", "version", "environment"):
        parser.add_argument(name)


def _run(options: argparse.Namespace, run: Callable[[argparse.Namespace, Client], int]) -> int:
    client = Client(options.url, token_of(options.token_file), options.ca_file)
    try:
        return run(options, client)
    except Unreachable as error:
        _say_why(options, str(error))
        return CANNOT_TELL


def _say_why(options: argparse.Namespace, detail: str) -> None:
    """Say on stderr why there is no answer, and in the report that was asked for."""
    _say(telling.line(f"registry-gateway: {detail}"))
    given = (vars(options).get(name) for name in ("model", "version", "environment"))
    report = telling.problem(options.format, " ".join(text for text in given if text), detail)
    if report is not None:
        write(options, report)


def _verdict(options: argparse.Namespace, client: Client) -> int:
    body = {"version": options.version, "dry_run": True, "reason": options.reason, **_change(options)}
    path = model_path(options.registry, options.model, "environments", options.environment, "promotions")
    reply = client.post(path, body)
    if reply.status != 200:
        return refused(options, reply)
    verdict = reply.expect(state=str, verdict=dict)["verdict"]
    show(options, reply, lambda: client.post(path, body, accept=_ACCEPT[options.format]))
    return GOOD if verdict["allowed"] is True else REFUSED


def _promote(options: argparse.Namespace, client: Client) -> int:
    path = model_path(options.registry, options.model, "environments", options.environment, "promotions")
    body: dict[str, Any] = {"version": options.version, "reason": options.reason, **_change(options)}
    if options.emergency:
        body["emergency"] = {"reason": options.reason, "ticket": options.ticket}
    elif options.wait > 0:
        _wait_until_open(client, path, {**body, "dry_run": True}, options.wait)
    headers = {"If-Match": options.if_match} if options.if_match else {}
    return _settled(options, client, client.post(path, body, headers={**headers, **_key(options)}))


def _rollback(options: argparse.Namespace, client: Client) -> int:
    path = model_path(options.registry, options.model, "environments", options.environment, "rollbacks")
    body = {"reason": options.reason, **({"to": options.to} if options.to else {})}
    return _settled(options, client, client.post(path, body, headers=_key(options)))


def _wait_until_open(client: Client, path: str, body: Mapping[str, Any], seconds: float) -> None:
    """Look at the verdict until the gate opens, time is over, or nothing will turn by itself."""
    deadline, said = time.monotonic() + seconds, ""
    while True:
        reply = client.post(path, body)
        if reply.status != 200:
            return
        verdict = reply.expect(state=str, verdict=dict)["verdict"]
        closed = [f for f in verdict["findings"] if not f["passed"] and f["severity"] == "block"]
        waiting = [telling.line(f"{item['rule']}: {item['because']}") for item in closed]
        hopeless = [f for f in closed if f["self_reported"] or f["rule"] in ("ready", "not-quarantined")]
        left = deadline - time.monotonic()
        if not closed or hopeless or left <= 0:
            return
        if waiting and (text := "; ".join(waiting)) != said:
            _say(f"waiting for {text}")
            said = text
        time.sleep(min(_PACE_SECONDS, left))


def _settled(options: argparse.Namespace, client: Client, reply: Reply) -> int:
    """Show what became of a promotion; where nobody knows yet, wait for the gateway to read it back."""
    operation = reply.headers.get("Registry-Gateway-Operation") or ""
    if reply.status == 504 and operation:
        _say(f"the outcome of {operation} is being read back")
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            found = client.get(f"/v1/promotions/{operation}")
            if found.status == 200 and (state := found.expect(state=str, events=list)["state"]) in _ENDED:
                show(options, found)
                return GOOD if state == "succeeded" else REFUSED
            time.sleep(2)
    if reply.status != 200:
        return refused(options, reply, client)
    done = reply.expect(id=str, state=str, verdict=dict)
    if done["state"] not in ("succeeded", "unchanged"):
        message = f"the answer's state is {done['state']!r}: nobody knows whether it was done"
        raise Unreachable(message)
    show(options, reply, lambda: client.get(f"/v1/promotions/{done['id']}", _ACCEPT[options.format]))
    return GOOD


def _approve(options: argparse.Namespace, client: Client) -> int:
    version = ("versions", options.version)
    path = model_path(options.registry, options.model, *version)
    review = client.get(f"{path}/review?environment={quote(options.environment, safe='')}")
    if review.status != 200:
        return refused(options, review)
    packet = review.expect(digest=str, findings=list, comparison=dict)
    _say(telling.findings(packet["findings"]))
    _say(f"compared with what is live: {json.dumps(packet['comparison'])}")
    _say(telling.line(f"review {packet['digest']}"))
    decision = "reject" if options.reject else "approve"
    if not options.yes and options.review is None:
        if not sys.stdin.isatty():
            _say("nothing is stored: without a terminal, name what was read with --review DIGEST, or send --yes")
            return CANNOT_TELL
        _say(telling.line(f"{decision} {options.model} version {options.version} for {options.environment}? [y/N]"))
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            _say("nothing is stored")
            return REFUSED
    body = {
        "environment": options.environment,
        "decision": decision,
        "reason": options.reason,
        "review": options.review or packet["digest"],
    }
    reply = client.post(f"{path}/approvals", body)
    if reply.status != 201:
        return refused(options, reply)
    reply.expect(id=str, decision=str)
    show(options, reply)
    return GOOD


def _adopt(options: argparse.Namespace, client: Client) -> int:
    body: dict[str, Any] = {"models": options.models, "reason": options.reason, "dry_run": not options.yes}
    if options.environment:
        body["environment"] = options.environment
    if options.owner:
        body["owner"] = options.owner
    reply = client.post(f"/v1/registries/{options.registry}/adoptions", body)
    if reply.status != 200:
        return refused(options, reply)
    rows = reply.expect(adopted=list)["adopted"]
    lines = [
        telling.line(f"{r['state']:<9} {r['model']} {r['environment']}: {r['mark']} on version {r['version']}")
        + (f" ({telling.line(r['because'])})" if r["because"] else "")
        for r in rows
    ]
    if options.format == "text":
        write(options, "\n".join([*lines, f"{len(rows)} marks" + ("" if options.yes else "; --yes adopts them")]))
    else:
        show(options, reply)
    return GOOD


def _change(options: argparse.Namespace) -> dict[str, Any]:
    return {"change": {"id": options.change_id}} if options.change_id else {}


def _key(options: argparse.Namespace) -> dict[str, str]:
    return {"Idempotency-Key": options.idempotency_key} if options.idempotency_key else {}


def refused(options: argparse.Namespace, reply: Reply, client: Client | None = None) -> int:
    """Show a problem; return the exit status it means. With *client*, the verdict of a closed gate in its form.

    Raises:
        Unreachable: it is no problem of a gateway's.
    """
    problem = reply.expect(type=str, status=int)
    operation = problem.get("operation")
    if client is not None and operation and "verdict" in problem:
        show(options, reply, lambda: client.get(f"/v1/promotions/{operation}", _ACCEPT[options.format]))
    elif options.format in _REPORTS:
        _say_why(options, str(problem.get("detail", reply.status)))
    else:
        show(options, reply)
    return REFUSED if 400 <= reply.status < 500 and reply.status not in (408, 424, 425, 429) else CANNOT_TELL


def show(options: argparse.Namespace, reply: Reply, again: Callable[[], Reply] | None = None) -> None:
    """Write an answer of JSON in the form asked for; *again* asks for one that the gateway writes itself."""
    if again is not None and options.format in _REPORTS:
        found = again()
        if found.status == 200 and found.headers.get_content_type() == _ACCEPT[options.format]:
            reply = found
    if options.format == "text":
        write(options, telling.text(reply.document()))
    else:
        write(options, reply.body.decode("utf-8", "replace").rstrip("\n"))


def _say(text: str) -> None:
    print(telling.visible(text), file=sys.stderr, flush=True)


def write(options: argparse.Namespace, text: str) -> None:
    """Write an answer to where it was asked for."""
    text = telling.visible(text)
    if options.output is None:
        print(text, flush=True)
    else:
        options.output.write_text(text + "\n", encoding="utf-8")
