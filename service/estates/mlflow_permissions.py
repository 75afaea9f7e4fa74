"""Reads the permissions of MLflow's basic-auth app and says them in rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from service.errors import BadConfiguration
from service.estates.granting import Grants, can_be
from service.estates.reading import Ask

_USERS = "/api/2.0/mlflow/users"
_EXPERIMENTS = "/api/2.0/mlflow/experiments/get"
_OWN_ROLE = "__user_"
"""MLflow 3 keeps what one user was granted in a role of this name and the user's number."""
_LEVEL = {"READ": "READ", "USE": "READ", "EDIT": "EDIT", "MANAGE": "MANAGE"}
_NOTHING = frozenset({"DENY", "NO_PERMISSIONS"})
_INSIDE = {
    "run": {"READ": ["run:read"], "EDIT": ["run:create", "run:update"], "MANAGE": ["run:delete"]},
    "registered_model_version": {
        "READ": ["version:read"],
        "EDIT": ["version:create", "version:update"],
        "MANAGE": ["version:delete"],
    },
}
_PLACE = {"run": "experiments/*", "registered_model_version": "models/*/versions"}
_EVERYBODY, _ADMINS = "role:mlflow-user", "role:mlflow-admin"


@dataclass(frozen=True, slots=True)
class Grant:
    """A permission on one thing, or on all of a kind."""

    kind: str
    name: str
    permission: str


@dataclass(frozen=True, slots=True)
class Estate:
    """What a server says about who may do what."""

    users: Mapping[str, bool]
    """By name: whether an administrator."""
    grants: Mapping[str, Sequence[Grant]]
    """By subject: a user, or a role."""
    roles: Sequence[tuple[str, str]]
    """Member and role."""
    experiments: Mapping[str, str]
    """Names by number."""
    left_out: Sequence[str] = ()


async def read(ask: Ask, workspace: str, users: Sequence[str] | None = None) -> Estate:
    """Read the permissions that hold in *workspace*: of all users that the server lists, or of *users*.

    Raises:
        BadConfiguration: it cannot list users or permissions.
    """
    known = await _users(ask, users)
    grants: dict[str, list[Grant]] = {}
    roles: dict[tuple[str, str], None] = {}
    left_out: dict[str, None] = {}
    for user in known:
        subject = f"user:{user['username']}"
        if "roles" in user:
            for role in user["roles"]:
                if role["workspace"] != workspace:
                    left_out[f"the role {role['name']} of the workspace {role['workspace']}"] = None
                    continue
                own = role["name"].startswith(_OWN_ROLE)
                holder = subject if own else f"role:{role['name']}"
                if not own:
                    roles[subject, holder] = None
                found = [Grant(p["resource_type"], p["resource_pattern"], p["permission"]) for p in role["permissions"]]
                grants[holder] = list(dict.fromkeys([*grants.get(holder, ()), *found]))
        else:
            grants[subject] = [
                *(
                    Grant("experiment", str(p["experiment_id"]), p["permission"])
                    for p in user["experiment_permissions"]
                ),
                *(Grant("registered_model", p["name"], p["permission"]) for p in user["registered_model_permissions"]),
            ]
    numbers = {g.name for items in grants.values() for g in items if g.kind == "experiment" and g.name != "*"}
    names = {}
    for number in sorted(numbers):
        answer = await ask(_EXPERIMENTS, experiment_id=number)
        if answer is not None:
            names[number] = answer["experiment"]["name"]
    users_found = {user["username"]: bool(user["is_admin"]) for user in known}
    return Estate(users_found, grants, tuple(roles), names, tuple(left_out))


async def _users(ask: Ask, names: Sequence[str] | None) -> list[Mapping[str, Any]]:
    if names is None:
        answer = await ask(f"{_USERS}/list")
        if answer is None or "users" not in answer:
            message = (
                "the server does not list users: is it run with --app-name basic-auth? --users names a file of them"
            )
            raise BadConfiguration(message)
        known = list(answer["users"])
    else:
        known = [{"username": name} for name in names]
    found = []
    for user in known:
        if "roles" in user or "experiment_permissions" in user:
            found.append(user)
            continue
        answer = await ask(f"{_USERS}/get", username=user["username"])
        if answer is None:
            message = f"the server knows no user {user['username']!r}"
            raise BadConfiguration(message)
        whole = dict(answer["user"])
        if "experiment_permissions" not in whole:  # MLflow 3 keeps them in roles
            held = await ask("/api/3.0/mlflow/users/roles/list", username=user["username"])
            if held is None:
                message = "the server lists no permissions: it is neither MLflow 2 nor 3 with --app-name basic-auth"
                raise BadConfiguration(message)
            whole["roles"] = held["roles"]
        found.append(whole)
    return found


def grants_of(estate: Estate, registry: str, default: str) -> Grants:
    """Say *estate* in rows; *default* is what its server's configuration gives to everybody."""
    made = Grants(registry)
    made.head = [
        f"Rows for the permissions of MLflow's basic-auth app, for the registry {registry}.",
        f"The server does not tell its default_permission; these rows are for {default} (--default-permission).",
        "An alias or a stage that marks an environment needs environment:promote, which MLflow does not know.",
        "So it is with approvals, evidence and the audit trail: add rows for those who need them.",
        "In MLflow 2 a permission below the default takes away from it; only NO_PERMISSIONS does here.",
        "Who creates a model or an experiment gets MANAGE of it from MLflow; no row here says so.",
        *(f"Left out: {what}, which is not this registry's." for what in estate.left_out),
    ]
    made.allow(_EVERYBODY, "models/*", "model:create")
    made.allow(_EVERYBODY, "experiments/*", "experiment:create")
    if default in _LEVEL:
        for kind in ("models", "experiments"):
            made.level(_EVERYBODY, kind, "*", _LEVEL[default])
    for name, admin in estate.users.items():
        subject = f"user:{name}"
        if not can_be(subject):
            made.head.append(f"Left out: the user {name!r}, whom no row can name.")
            continue
        made.member(subject, _ADMINS if admin else _EVERYBODY)
    if any(estate.users.values()):
        for kind in ("models", "experiments"):
            made.level(_ADMINS, kind, "*", "MANAGE")
        made.member(_ADMINS, _EVERYBODY)
        made.note(_ADMINS, "to manage users and roles")
    for member, role in estate.roles:
        if can_be(member) and can_be(role):
            made.member(member, role)
    for subject, grants in estate.grants.items():
        if not can_be(subject):
            made.head.append(f"Left out: the rights of {subject!r}, which no row can name.")
            continue
        for grant in grants:
            _one(made, estate, subject, grant, default)
    return made


def _one(made: Grants, estate: Estate, subject: str, grant: Grant, default: str) -> None:
    said = f"{grant.permission} on the {grant.kind} {grant.name}"
    if grant.kind in ("experiment", "registered_model", "prompt"):
        kind = "experiments" if grant.kind == "experiment" else "models"
        name = estate.experiments.get(grant.name) if kind == "experiments" and grant.name != "*" else grant.name
        if name is None:
            made.note(subject, f"{said}: there is no such experiment any more")
        elif grant.permission == "NO_PERMISSIONS" and default == "NO_PERMISSIONS":
            made.note(subject, f"{said}: nothing is allowed without a row")
        elif grant.permission in _NOTHING:
            made.deny(subject, kind, name)
        elif grant.permission in _LEVEL:
            made.level(subject, kind, name, _LEVEL[grant.permission])
        else:
            made.note(subject, f"{said}: an unknown permission")
    elif grant.kind in _INSIDE and grant.permission in _LEVEL:
        steps = ("READ", "EDIT", "MANAGE")
        for step in steps[: steps.index(_LEVEL[grant.permission]) + 1]:
            for action in _INSIDE[grant.kind][step]:
                made.allow(subject, _PLACE[grant.kind], action)
    elif grant.kind == "workspace" and grant.permission in ("USE", "MANAGE"):
        made.allow(subject, "models/*", "model:create")
        made.allow(subject, "experiments/*", "experiment:create")
        if grant.permission == "MANAGE":
            made.note(subject, f"{said}: to manage users and roles")
    else:
        made.note(subject, f"{said}: the gateway has no resource of its own for it")
