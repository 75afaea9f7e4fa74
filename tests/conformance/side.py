"""One side of the comparison: runs every flow against MLFLOW_TRACKING_URI and prints what came back as JSON.

A process of its own, because MLflow's client keeps global state. Every HTTP exchange is recorded beside the
values that the client returns.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import sys
import tempfile
import traceback
import warnings
from urllib.parse import urlsplit

import requests

from tests.conformance.flows import FLOWS

TOKEN = sys.argv[1]
"""Stands in every name this side makes."""
OWNER = os.environ["CONFORMANCE_OWNER"]
"""Who this side's runs and traces belong to: the local account directly, the principal through the gateway."""
USER = "mlflow.user"


RANDOM_NAME = re.compile(r"[a-z]+-[a-z]+-[0-9]+")
"""What the server names a run that has no name."""


class Recorder:
    """Remembers each HTTP exchange of the flow that runs."""

    def __init__(self) -> None:
        self.exchanges: list = []
        self.send = requests.Session.send
        recorder = self

        def send(session, request, **keywords):
            answer = recorder.send(session, request, **keywords)
            kind = answer.headers.get("content-type", "").partition(";")[0]
            path = urlsplit(request.url)
            recorder.exchanges.append(
                [request.method, f"{path.path}?{path.query}", answer.status_code, kind, body_of(answer, kind)]
            )
            return answer

        requests.Session.send = send


def body_of(answer, kind):
    if kind == "application/json" and answer.content:
        return answer.json()
    return "a file"


def plain(value):
    """Give an MLflow entity as plain values."""
    if isinstance(value, str | int | float | bool | None):
        return value
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(item) for item in value]
    for name in ("to_dictionary", "to_dict"):
        if hasattr(value, name):
            return plain(getattr(value, name)())
    if hasattr(value, "__iter__") and not isinstance(value, bytes):
        return plain(dict(value)) if all(isinstance(item, tuple) for item in value) else [plain(i) for i in value]
    return str(value)


def normal(value, key=""):
    """Blot out identifiers, times, the name of this side, and who it is.

    Through the gateway a run always has an owner, also where its client names none: ``unknown`` and no tag.
    """
    if key == "user_id" and value in (OWNER, "unknown", "", None):
        return "<owner>"
    if isinstance(value, dict) and value.get(USER) == OWNER:
        value = {name: inner for name, inner in value.items() if name != USER}
    if isinstance(value, list):
        value = [item for item in value if item != {"key": USER, "value": OWNER}]
    if isinstance(value, dict) and value.get("key") in ("mlflow.runName", "_mlflow_experiment_ids"):
        value = {**value, "value": normal(value["value"], value["key"])}
    if isinstance(value, dict) and value.get("path") == "MLmodel":
        value = {**value, "file_size": "<holds times>"}
    if isinstance(value, dict):
        return {normal(item): normal(inner, item) for item, inner in value.items()}
    if isinstance(value, list):
        return [normal(item, key) for item in value]
    if key in ("mlflow.runName", "run_name") and RANDOM_NAME.fullmatch(str(value)):
        return "<random name>"
    if key in ("span_id", "parent_span_id", "trace_id", "mlflow.spanId") and value:
        return "<id>"
    if key in ("execution_duration", "duration"):
        return "<duration>"
    if isinstance(value, float) and math.isnan(value):
        return "<nan>"
    if key in ("experiment_id", "experiment_ids", "_mlflow_experiment_ids"):
        return "<experiment>"
    if key in ("next_page_token", "page_token", "token"):
        return "<token>" if value else value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return "<time>" if value > 1e11 else "<duration>" if "time" in key and "stamp" not in key else value
    if not isinstance(value, str):
        return value
    text = value.replace(TOKEN, "<side>").replace(os.environ["MLFLOW_TRACKING_URI"], "<uri>")
    for pattern, blot in (
        (r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", "<uuid>"),
        (r"(m|tr|a|s|d)-[0-9a-f]{16,32}", r"\1-<id>"),
        (r"\b[0-9a-f]{32}\b", "<id>"),
        (r"%2F[0-9a-f]{32}", "%2F<id>"),
        (r"[0-9]+%2F(models%2Fm-<id>|<id>)", r"<experiment>%2F\1"),
        (r"\b[0-9]+/(<id>|models)", r"<experiment>/\1"),
        (r"0x[0-9a-f]{16,32}", "<hex>"),
        (r"\b[0-9]{13,19}\b", "<time>"),
        (r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.]+Z?", "<time>"),
        (r"[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9:.]+", "<time>"),
        (r"mlflow-artifacts:/[0-9]+", "mlflow-artifacts:/<experiment>"),
        (r"artifacts/[0-9]+/", "artifacts/<experiment>/"),
        (r"(experiment_ids?=|experiment_id': '|experiments/|ID |id=)[0-9]+", r"\1<experiment>"),
        (r"page_token=[^&]+", "page_token=<token>"),
        (r"/tmp/[\w/.-]+", "<folder>"),
        (r"(operation <uuid>)", "<operation>"),
    ):
        text = re.sub(pattern, blot, text)
    if text[:1] in "{[":
        try:
            parsed = json.loads(text)
            if key == "source" and isinstance(parsed, dict):  # a dataset's: where its code ran, as its client says
                parsed.get("tags", {}).pop(USER, None)
            return normal(parsed, key)
        except ValueError:
            pass
    return text


def main() -> None:
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    recorder = Recorder()
    results = {}
    wanted = sys.argv[2:]
    for name, flow in FLOWS.items():
        if wanted and name not in wanted:
            continue
        recorder.exchanges = []
        answers: list = []
        failure = None
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            try:
                for step, value in flow(f"{name}-{TOKEN}"):
                    answers.append([step, normal(plain(value))])
            except Exception:  # noqa: BLE001  # a flow that fails is a finding, and the next one goes on
                failure = traceback.format_exc()[-3000:]
            os.chdir("/")
        exchanges = sorted(
            (normal(item) for item in recorder.exchanges), key=lambda item: json.dumps(item, sort_keys=True)
        )
        results[name] = {"answers": answers, "exchanges": exchanges, "failure": failure}
    print(json.dumps(results, sort_keys=True))


if __name__ == "__main__":
    main()
