"""The story of Registry Gateway, told by an unmodified MLflow client and scikit-learn.

    make run                                        # in another shell
    .venv/bin/python examples/quickstart.py         # --url, --tokens if they are elsewhere

It trains a model as a data scientist, meets a closed gate, satisfies it, promotes, serves, and reads the trail.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import urllib.error
import urllib.request
import warnings

os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
warnings.filterwarnings("ignore")

import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

logging.getLogger("mlflow").setLevel(logging.ERROR)
DATA = os.environ.get("REGISTRY_GATEWAY_DATA_DIR", ".gateway")


class Gateway:
    """The governance API, in the standard library."""

    def __init__(self, url: str, tokens: dict[str, str]) -> None:
        self.url, self.tokens = url, tokens

    def ask(self, principal: str, method: str, path: str, body: dict | None = None) -> tuple[int, dict]:
        request = urllib.request.Request(
            self.url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {self.tokens[principal]}", "Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def become(self, principal: str) -> MlflowClient:
        """Use another key; the client itself is MLflow's own."""
        os.environ["MLFLOW_TRACKING_TOKEN"] = self.tokens[principal]
        mlflow.set_tracking_uri(self.url)
        return MlflowClient()


def say(principal: str, text: str) -> None:
    print(f"{principal:<15} {text}")


def show_findings(verdict: dict) -> None:
    for finding in verdict["findings"]:
        if finding["passed"]:
            print(f"{'':<15}   met   {finding['rule']}")
        else:
            print(f"{'':<15}   UNMET {finding['rule']}: {finding['because']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--tokens", default=f"{DATA}/demo-tokens.json")
    parser.add_argument("--model", default="iris")
    options = parser.parse_args()
    with open(options.tokens) as file:
        gateway = Gateway(options.url, json.load(file))
    name, base = options.model, f"/v1/registries/main/models/{options.model}"

    # 1. A data scientist trains, logs and registers, as ever.
    client = gateway.become("user:scientist")
    mlflow.set_experiment(name)
    features, target = load_iris(return_X_y=True, as_frame=True)
    with mlflow.start_run() as run:
        model = LogisticRegression(max_iter=200).fit(features, target)
        mlflow.log_params({"max_iter": 200})
        mlflow.log_metric("accuracy", model.score(features, target))
        mlflow.sklearn.log_model(
            model,
            name="model",
            registered_model_name=name,
            signature=mlflow.models.infer_signature(features, model.predict(features)),
        )
    version = max(client.search_model_versions(f"name='{name}'"), key=lambda item: int(item.version)).version
    say("user:scientist", f"registered {name} version {version} from run {run.info.run_id[:8]}")

    # 2. The policy says who may do what.
    try:
        client.set_registered_model_alias(name, "champion", version)
    except MlflowException as error:
        say("user:scientist", f"sets the alias champion: {error.error_code}")
    try:
        gateway.become("user:viewer").create_registered_model(f"{name}-2")
    except MlflowException as error:
        say("user:viewer", f"creates a model: {error.error_code}")

    # 3. The gate says what is fit, through MLflow's own call too.
    client = gateway.become("service:ci")
    try:
        client.set_registered_model_alias(name, "champion", version)
    except MlflowException as error:
        say("service:ci", f"sets the alias champion: {str(error).splitlines()[0]}")
    _, dry = gateway.ask(
        "service:ci", "POST", f"{base}/environments/production/promotions", {"version": version, "dry_run": True}
    )
    say("service:ci", "asks what is missing (dry run):")
    show_findings(dry["verdict"])

    # 4. Evidence and an approval open it.
    status, _ = gateway.ask(
        "service:ci",
        "POST",
        f"{base}/versions/{version}/evidence",
        {"kind": "validation", "result": "passed", "facts": {"tests": 12}},
    )
    say("service:ci", f"posts a passed validation: {status}")
    status, _ = gateway.ask(
        "user:lead",
        "POST",
        f"{base}/versions/{version}/approvals",
        {"environment": "production", "decision": "approve", "reason": "looks right"},
    )
    say("user:lead", f"approves version {version} for production: {status}")
    status, promotion = gateway.ask(
        "service:ci",
        "POST",
        f"{base}/environments/production/promotions",
        {"version": version, "reason": "first release"},
    )
    say("service:ci", f"promotes: {status} {promotion['state']}, {promotion['before']} -> {promotion['after']}")
    show_findings(promotion["verdict"])

    # 5. A service resolves and predicts, with read access only.
    gateway.become("user:viewer")
    predictions = mlflow.pyfunc.load_model(f"models:/{name}@champion").predict(features.head(3))
    say("user:viewer", f"models:/{name}@champion predicts {predictions.tolist()}")
    _, live = gateway.ask("user:viewer", "GET", f"{base}/environments/production")
    say("user:viewer", f"production is version {live['version']}, by {live['by']}, flavors {live['flavors']}")

    # 6. The trail knows all of it.
    _, trail = gateway.ask("user:admin", "GET", f"/v1/audit/events?model={name}&limit=1000")
    say("user:admin", f"reads the trail of {name}:")
    for event in trail["events"]:
        data = event["data"]
        print(
            f"{'':<15}   {event['time'][11:19]} {data['actor']['subject']:<14} {data['action']:<20} "
            f"{data['phase']:<9} {data['outcome'] or ''}"
        )


if __name__ == "__main__":
    main()
