"""What a real MLflow server answers and the gateway refuses on purpose, each with its reason."""

from __future__ import annotations

from collections.abc import Mapping

_LATER = "is not served through the gateway yet; nothing was forwarded"
_ADMIN = "administers the MLflow server itself and is not served through the gateway"
_OUTWARD = "makes the MLflow server call other systems and is not served through the gateway"
_UNGOVERNED = "hands out access that the gateway could not govern; use the proxied artifact routes"

_DATABRICKS = "searchUnifiedTraceHandler getOnlineTraceDetails"
_GENAI = """
    createIssue updateIssue getIssue searchIssues createLabelSchema getLabelSchema getLabelSchemaByName
    listLabelSchemas updateLabelSchema deleteLabelSchema createDataset getDataset deleteDataset
    searchEvaluationDatasets setDatasetTags deleteDatasetTag upsertDatasetRecords getDatasetExperimentIds
    registerScorer listScorers listScorerVersions getScorer deleteScorer getDatasetRecords deleteDatasetRecords
    addDatasetToExperiments removeDatasetFromExperiments createReviewQueue getOrCreateUserQueue getReviewQueue
    getReviewQueueByName listReviewQueues updateReviewQueue deleteReviewQueue addItemsToReviewQueue
    removeItemsFromReviewQueue listReviewQueueItems setReviewQueueItemStatus
"""
_SERVER = "listWorkspaces createWorkspace getWorkspace updateWorkspace deleteWorkspace"
_GATEWAY = """
    createGatewaySecret getGatewaySecretInfo updateGatewaySecret deleteGatewaySecret listGatewaySecretInfos
    createGatewayEndpoint getGatewayEndpoint updateGatewayEndpoint deleteGatewayEndpoint listGatewayEndpoints
    createGatewayModelDefinition getGatewayModelDefinition listGatewayModelDefinitions updateGatewayModelDefinition
    deleteGatewayModelDefinition attachModelToEndpoint detachModelFromEndpoint createEndpointBinding
    deleteEndpointBinding listEndpointBindings setGatewayEndpointTag deleteGatewayEndpointTag createBudgetPolicy
    getBudgetPolicy updateBudgetPolicy deleteBudgetPolicy listBudgetPolicies listBudgetWindows
    createGatewayGuardrail getGatewayGuardrail deleteGatewayGuardrail listGatewayGuardrails addGuardrailToEndpoint
    removeGuardrailFromEndpoint listEndpointGuardrailConfigs updateEndpointGuardrailConfig
    createPromptOptimizationJob getPromptOptimizationJob searchPromptOptimizationJobs cancelPromptOptimizationJob
    deletePromptOptimizationJob
"""


def _refuse(service: str, names: str, reason: str) -> dict[str, str]:
    return {f"{service}.{name}": f"{name} {reason}." for name in names.split()}


REFUSED: Mapping[str, str] = {
    **_refuse("MlflowService", _DATABRICKS, "exists on Databricks only; an MLflow server does not answer it"),
    **_refuse("MlflowService", _GENAI, _LATER),
    **_refuse("MlflowService", _SERVER, _ADMIN),
    **_refuse("MlflowService", _GATEWAY, _OUTWARD),
    **_refuse("MlflowService", "createPresignedUploadUrl createPresignedDownloadUrl", _UNGOVERNED),
    **_refuse(
        "MlflowArtifactsService",
        "createMultipartUpload completeMultipartUpload abortMultipartUpload getPresignedDownloadUrl",
        _UNGOVERNED,
    ),
    **_refuse(
        "WebhookService",
        "createWebhook listWebhooks getWebhook updateWebhook deleteWebhook testWebhook",
        _OUTWARD,
    ),
}
"""Refused RPCs by ``Service.name`` -> the sentence a caller is told. An RPC added by a new MLflow must come
here or into the table before it is answered with anything but 404."""
