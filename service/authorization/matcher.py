"""Reads the access model and compiles Casbin's own matcher and effect for one snapshot."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import casbin
from casbin.effect import Effector

from service.authorization.patterns import FUNCTIONS
from service.authorization.rows import Row
from service.errors import BadConfiguration

_OF_MODEL = {
    "r": "r_sub,r_reg,r_obj,r_act",
    "p": "p_sub,p_reg,p_obj,p_act,p_eft",
    "g": "_,_",
    "e": "some(where(p_eft==allow))&&!some(where(p_eft==deny))",
}
_SHARED = 'g(r_sub,p_sub)&&(p_reg=="*"||r_reg==p_reg)&&'
_PLAIN = _SHARED + "resourceMatch(r_obj,p_obj)&&actionMatch(r_act,p_act)"
_WITH_SETS = (
    _SHARED + "actionMatch(r_act,p_act)&&"
    "(resourceMatch(r_obj,p_obj)||(g2(memberOf(r_obj),setOf(p_obj))&&belowMatch(r_obj,p_obj)))"
)
_SPACE = re.compile(r"""(?P<text>"[^"]*"|'[^']*')|\s+""")
_EFFECTS = {"allow": Effector.ALLOW, "deny": Effector.DENY}


class Subject(str):
    """A principal's name that carries every role it has, for the matcher's ``g``."""

    __slots__ = ("roles",)
    roles: frozenset[str]

    def __new__(cls, name: str, roles: frozenset[str]) -> Self:
        """Name a principal of *roles*."""
        subject = super().__new__(cls, name)
        subject.roles = roles
        return subject


def _has_role(subject: Subject, role: str) -> bool:
    return role in subject.roles


class Matcher:
    """Casbin's matcher and effect."""

    def __init__(self, path: Path, text: str, sets: Mapping[str, frozenset[str]]) -> None:
        """Compile the model *text* of *path*; *sets* are those of each member.

        Raises:
            BadConfiguration: it is another model. An index finds rows for this one only, so another would be denied
                and allowed by chance.
        """

        def in_set(member: str, name: str) -> bool:
            return name in sets.get(member, ())

        try:
            model = casbin.Enforcer.new_model(text=text)
            found = {
                "r": ",".join(model["r"]["r"].tokens),
                "p": ",".join(model["p"]["p"].tokens),
                "g": model["g"]["g"].value,
                "e": model["e"]["e"].value,
            }
            expression = model["m"]["m"].value
            different = [name for name, value in _OF_MODEL.items() if _bare(found[name]) != value]
            self.knows_sets = _bare(expression) == _WITH_SETS
            if _bare(expression) not in (_PLAIN, _WITH_SETS):
                different.append("m")
            if self.knows_sets and _bare(model["g"]["g2"].value) != _OF_MODEL["g"]:
                different.append("g2")
            enforcer = casbin.Enforcer(model)
            compiled = enforcer._get_expression(expression, {**FUNCTIONS, "g": _has_role, "g2": in_set})  # noqa: SLF001  # no public way
        except Exception as error:  # noqa: BLE001  # casbin raises many kinds; a broken model fails the load
            message = f"{path}:1: not the access model that is shipped as policies/model.conf: {error!r}"
            raise BadConfiguration(message) from None
        if different:
            message = (
                f"{path}:1: not the access model that is shipped as policies/model.conf: "
                f"{', '.join(different)} differs; put that file back"
            )
            raise BadConfiguration(message)
        self._expression = compiled
        self._effector = enforcer.eft
        self._lock = threading.Lock()  # an expression holds the names it is evaluated with

    def matches(self, names: Mapping[str, str], row: Row) -> bool:
        """Ask the matcher whether *row* is about the question *names*."""
        of_row = {"p_sub": row.subject, "p_reg": row.registry, "p_obj": row.resource, "p_act": row.action}
        with self._lock:
            return bool(self._expression.eval({**names, **of_row}))

    def allows(self, row: Row | None) -> bool:
        """Ask the effect what follows from *row*, a denial if any matched, else the first that allows; from none."""
        effect = Effector.INDETERMINATE if row is None else _EFFECTS[row.effect]
        return bool(self._effector.final_effect({effect}) == Effector.ALLOW)


def _bare(text: str) -> str:
    """Leave out white space, but not that of a quoted text: ``" *"`` is no ``"*"``."""
    return _SPACE.sub(lambda found: found["text"] or "", text)
