"""What the tokens of well-known issuers say, and which of it makes a name.

A name that its owner can give up and another register (a repository, a project path, a login, a mail address) makes
no principal and no group.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Preset:
    """The mapping of one kind of issuer; each part can be replaced in the configuration."""

    principal: str | None = None
    groups: tuple[str, ...] = ()
    acting_for: str | None = None
    claims: tuple[str, ...] = ()
    """What rules and events are told."""
    issuer: str | None = None
    jwks_url: str | None = None
    max_lifetime_seconds: float = 86_400.0
    refuse: tuple[str, ...] = ()
    """Claims that say that groups were left out of the token."""
    narrow: tuple[str, ...] = ()
    """One of these must be required: everybody in the world gets tokens of *narrow_issuer*."""
    narrow_issuer: str | None = None
    text_only: bool = False
    """Its issuer writes numbers and truth values as text, too."""


_GITHUB = "https://token.actions.githubusercontent.com"
_GITLAB = "https://gitlab.com"

PRESETS: dict[str, Preset] = {
    "generic": Preset(),
    "github": Preset(
        principal="service:github-{repository_id}",
        groups=(
            "group:github-{repository_id}/environment/{environment}",
            "group:github-{repository_id}/ref/{ref}",
        ),
        acting_for="user:github-{actor_id}",
        claims=(
            "repository", "repository_id", "repository_owner_id", "ref", "ref_type", "ref_protected", "environment",
            "job_workflow_ref", "job_workflow_sha", "event_name", "actor_id", "run_id", "run_attempt", "sha",
            "runner_environment",
        ),
        issuer=_GITHUB,
        jwks_url=f"{_GITHUB}/.well-known/jwks",
        max_lifetime_seconds=3600.0,
        narrow=("repository_id", "repository_owner_id", "enterprise_id"),
        narrow_issuer=_GITHUB,
        text_only=True,
    ),
    "gitlab": Preset(
        principal="service:gitlab-{project_id}",
        groups=(
            "group:gitlab-{project_id}/ref-protected-{ref_protected}/{ref_type}/{ref}",
            "group:gitlab-{project_id}/environment-protected-{environment_protected}/{environment}",
        ),
        acting_for="user:gitlab-{user_id}",
        claims=(
            "namespace_id", "project_id", "project_path", "ref", "ref_type", "ref_protected", "environment",
            "environment_protected", "deployment_tier", "pipeline_id", "pipeline_source", "job_id", "user_id", "sha",
            "ci_config_ref_uri", "ci_config_sha", "runner_environment",
        ),
        issuer=_GITLAB,
        jwks_url=f"{_GITLAB}/oauth/discovery/keys",
        narrow=("project_id", "namespace_id"),
        narrow_issuer=_GITLAB,
        text_only=True,
    ),
    "kubernetes": Preset(
        principal="service:kubernetes/{/kubernetes.io/namespace}/{/kubernetes.io/serviceaccount/name}",
        groups=("group:kubernetes/{/kubernetes.io/namespace}",),
        claims=(
            "/kubernetes.io/namespace", "/kubernetes.io/serviceaccount/name", "/kubernetes.io/serviceaccount/uid",
            "/kubernetes.io/pod/name",
        ),
    ),
    "entra": Preset(
        principal="user:entra-{tid}/{oid}",
        groups=("group:entra-{tid}/group/{groups}", "group:entra-{tid}/role/{roles}"),
        claims=("tid", "oid", "appid", "azp", "idtyp", "roles", "scp"),
        refuse=("/_claim_names/groups", "/_claim_names/roles", "hasgroups"),
    ),
}  # fmt: skip
"""The values of ``preset``."""
