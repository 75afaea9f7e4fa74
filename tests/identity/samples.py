"""Claims as well-known issuers send them, from their own documentation."""

from __future__ import annotations

TENANT = "aaaabbbb-0000-cccc-1111-dddd2222eeee"
GITHUB = {
    "jti": "example-id", "sub": "repo:octo-org/octo-repo:environment:prod", "environment": "prod",
    "aud": "https://github.com/octo-org", "ref": "refs/heads/main", "sha": "example-sha", "repository_id": "74",
    "repository": "octo-org/octo-repo", "repository_owner": "octo-org", "actor_id": "12", "repository_owner_id": "65",
    "repository_visibility": "private", "run_id": "example-run-id", "run_number": "10", "run_attempt": "2",
    "runner_environment": "github-hosted", "actor": "octocat", "workflow": "example-workflow", "head_ref": "",
    "base_ref": "", "event_name": "workflow_dispatch", "ref_type": "branch", "ref_protected": "true",
    "job_workflow_ref": "octo-org/octo-automation/.github/workflows/oidc.yml@refs/heads/main",
    "iss": "https://token.actions.githubusercontent.com", "nbf": 1632492967, "exp": 1632493867, "iat": 1632493567,
}  # fmt: skip
GITLAB = {
    "namespace_id": "72", "namespace_path": "my-group", "project_id": "20", "project_path": "my-group/my-project",
    "user_id": "1", "user_login": "sample-user", "user_email": "sample-user@example.com", "user_identities": [
        {"provider": "github", "extern_uid": "2435223452345"}], "pipeline_id": "574", "pipeline_source": "push",
    "job_id": "302", "ref": "feature-branch-1", "ref_type": "branch", "ref_path": "refs/heads/feature-branch-1",
    "ref_protected": "false", "groups_direct": ["mygroup/mysubgroup"], "environment": "test-environment2",
    "environment_protected": "false", "deployment_tier": "testing", "environment_action": "start", "runner_id": 1,
    "runner_environment": "self-hosted", "sha": "714a629c0b401fdce83e847fc9589983fc6f46bc",
    "project_visibility": "public", "ci_config_sha": "714a629c0b401fdce83e847fc9589983fc6f46bc",
    "ci_config_ref_uri": "gitlab.example.com/my-group/my-project//.gitlab-ci.yml@refs/heads/main",
    "jti": "235b3a54-b797-45c7-ae9a-f72d7bc6ef5b", "iss": "https://gitlab.example.com", "iat": 1681395193,
    "nbf": 1681395188, "exp": 1681398793, "aud": "https://vault.example.com",
    "sub": "project_path:my-group/my-project:ref_type:branch:ref:feature-branch-1",
}  # fmt: skip
KUBERNETES = {
    "aud": ["https://my-audience.example.com"], "exp": 1729605240, "iat": 1729601640,
    "iss": "https://my-cluster.example.com", "jti": "aed34954-b33a-4142-b1ec-389d6bbb4936", "nbf": 1729601640,
    "kubernetes.io": {
        "namespace": "my-namespace", "node": {"name": "my-node", "uid": "646e7c5e-32d6-4d42-9dbd-e504e6cbe6b1"},
        "pod": {"name": "my-pod", "uid": "5e0bd49b-f040-43b0-99b7-22765a53f7f3"},
        "serviceaccount": {"name": "my-serviceaccount", "uid": "14ee3fa4-a7e2-420f-9f9a-dbc4507c3798"},
    },
    "sub": "system:serviceaccount:my-namespace:my-serviceaccount",
}  # fmt: skip
ENTRA = {
    "aud": "00001111-aaaa-2222-bbbb-3333cccc4444", "iss": f"https://login.microsoftonline.com/{TENANT}/v2.0",
    "iat": 1537231048, "nbf": 1537231048, "exp": 1537234948, "aio": "AXQAi/8IAAAA", "ver": "2.0", "azpacr": "0",
    "azp": "11112222-bbbb-3333-cccc-4444dddd5555", "name": "Abe Lincoln", "oid": "0000aaaa-11bb-cccc-dd22-eeeeee333333",
    "preferred_username": "AbeLi@contoso.com", "rh": "I", "scp": "access_as_user", "sub": "HKZpfaHyWadeOouYlitjrI",
    "tid": TENANT, "uti": "fqiBqXLPj0eQa82S-IYFAA", "groups": ["22223333-cccc-4444-dddd-5555eeee6666"],
    "roles": ["Promoter", "Reader"],
}  # fmt: skip
LIKE = {"github": GITHUB, "gitlab": GITLAB, "kubernetes": KUBERNETES, "entra": ENTRA}
