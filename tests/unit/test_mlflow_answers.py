"""How the MLflow dialect tells errors and promotions, so that MLflow's client understands them."""

from __future__ import annotations

import json

import pytest

from service import errors
from service.dialects.mlflow import MlflowDialect, render_error, render_promotion
from service.model import Finding, PromotionResult, Verdict
from service.records import ModelVersion

CLOSED = Verdict(
    findings=(Finding("ready", passed=True, because="fine"), Finding("floor", passed=False, because="too low"))
)


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (errors.Unauthenticated("x"), 401, "UNAUTHENTICATED"),
        (errors.IdentityUnavailable("x"), 503, "TEMPORARILY_UNAVAILABLE"),
        (errors.RateLimited("x"), 429, "REQUEST_LIMIT_EXCEEDED"),
        (errors.Denied("x"), 403, "PERMISSION_DENIED"),
        (errors.UnknownRoute("x"), 404, "ENDPOINT_NOT_FOUND"),
        (errors.RefusedRoute("x"), 404, "ENDPOINT_NOT_FOUND"),
        (errors.MethodNotAllowed("x"), 405, "ENDPOINT_NOT_FOUND"),
        (errors.InvalidRequest("x"), 400, "INVALID_PARAMETER_VALUE"),
        (errors.BodyTooLarge("x"), 413, "INVALID_PARAMETER_VALUE"),
        (errors.NotFound("x"), 404, "RESOURCE_DOES_NOT_EXIST"),
        (errors.GateClosed("x", CLOSED), 409, "RESOURCE_CONFLICT"),
        (errors.OperationPending("x"), 409, "RESOURCE_CONFLICT"),
        (errors.Busy("x"), 503, "TEMPORARILY_UNAVAILABLE"),
        (errors.JournalUnavailable("x"), 503, "TEMPORARILY_UNAVAILABLE"),
        (errors.OutcomeUnknown("x"), 424, "OUTCOME_UNKNOWN"),
        (errors.RegistryRefused("x", status=418, error_code="TEAPOT"), 418, "TEAPOT"),
        (errors.GatewayError("x"), 500, "INTERNAL_ERROR"),
    ],
)
def test_errors_have_mlflows_shape(error: errors.GatewayError, status: int, code: str) -> None:
    found, headers, body = render_error(error)
    assert (found, json.loads(body)["error_code"]) == (status, code)
    assert ("retry-after" in headers) is (status in (429, 503) or isinstance(error, errors.OperationPending))
    assert ("www-authenticate" in headers) is (status == 401)


def test_a_closed_gate_names_each_failed_rule_and_the_operation() -> None:
    _, headers, body = render_error(errors.GateClosed("Closed.", CLOSED, operation="op-1"))
    assert json.loads(body)["message"] == "Closed.\n- floor: too low\n(operation op-1)"
    assert headers["registry-gateway-operation"] == "op-1"


def test_a_promotion_by_stage_answers_with_the_version() -> None:
    version = ModelVersion("iris", "1", "READY", "Production", "s", "", (), {}, 0, "", {"name": "iris", "version": "1"})
    done = PromotionResult("p", "succeeded", dry_run=False, before=None, after="1", verdict=Verdict(), version=version)
    dialect = MlflowDialect()
    by_stage = dialect.match("POST", "/api/2.0/mlflow/model-versions/transition-stage")
    assert render_promotion(by_stage, done) == {"model_version": {"name": "iris", "version": "1"}}
    assert render_promotion(dialect.match("POST", "/api/2.0/mlflow/registered-models/alias"), done) == {}
