"""One OpenID issuer as the configuration names it, and what is wrong with several of them."""

from __future__ import annotations

import ipaddress
import itertools
from collections.abc import Callable, Sequence
from typing import Literal
from urllib.parse import urlsplit

import msgspec

from service.authentication.algorithms import ALGORITHMS, DEFAULT_ALGORITHMS, MAX_LEEWAY_SECONDS
from service.authentication.presets import PRESETS, Preset
from service.authentication.templates import Template
from service.strict import has_control

MAX_CLAIMS = 40
_MAX_LIFETIME_SECONDS = 30 * 86_400.0
_MAX_REFRESH_SECONDS = 86_400.0
_MAX_STALE_SECONDS = 7 * 86_400.0
Wanted = str | bool | int
PresetName = Literal["generic", "github", "gitlab", "kubernetes", "entra"]


class Issuer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An issuer whose tokens are believed, for one audience."""

    issuer: str
    """Exactly what its tokens say as ``iss``."""
    audience: str
    preset: PresetName = "generic"
    jwks_url: str | None = None
    jwks_file: str | None = None
    ca_file: str | None = None
    """Certificates of the authorities that the key server's own must come from; without it the system's."""
    principal: str | None = None
    """A template: ``user:{sub}``."""
    groups: str | tuple[str, ...] | None = None
    acting_for: str | None = None
    claims: tuple[str, ...] | None = None
    """What rules are told of a token."""
    require: dict[str, Wanted | tuple[Wanted, ...]] = {}
    """Claims that must be exactly this, or one of these."""
    algorithms: tuple[str, ...] = tuple(sorted(DEFAULT_ALGORITHMS))
    typ: str | None = None
    leeway_seconds: float = 30.0
    max_lifetime_seconds: float | None = None
    jwks_refresh_seconds: float = 300.0
    jwks_stale_seconds: float = 86_400.0
    shared: bool = False
    """Its names may be those of another issuer too."""

    @property
    def defaults(self) -> Preset:
        """What the preset says."""
        return PRESETS[self.preset]

    @property
    def keys_url(self) -> str | None:
        """Where its keys are, unless in a file."""
        known = self.defaults.jwks_url if self.issuer == self.defaults.issuer else None
        return None if self.jwks_file else self.jwks_url or known

    @property
    def lifetime_seconds(self) -> float:
        """How long its tokens may live."""
        return self.defaults.max_lifetime_seconds if self.max_lifetime_seconds is None else self.max_lifetime_seconds

    def principal_template(self) -> Template:
        """Return what makes the principal.

        Raises:
            ValueError: there is none, or it is wrong.
        """
        text = self.principal or self.defaults.principal
        if text is None:
            message = "principal is missing, such as principal: user:{sub}"
            raise ValueError(message)
        return Template.parse(text, "user:", "service:")

    def group_templates(self) -> tuple[Template, ...]:
        """Return what makes the groups.

        Raises:
            ValueError: one is wrong.
        """
        given = (self.groups,) if isinstance(self.groups, str) else self.groups
        return tuple(Template.parse(text, "group:") for text in (self.defaults.groups if given is None else given))

    def acting_for_template(self) -> Template | None:
        """Return what makes the person behind it, if anything does.

        Raises:
            ValueError: it is wrong.
        """
        text = self.defaults.acting_for if self.acting_for is None else self.acting_for
        return Template.parse(text, "user:", "service:") if text else None

    def claim_names(self) -> tuple[str, ...]:
        """Return the claims that rules are told."""
        return self.defaults.claims if self.claims is None else self.claims


def check_issuers(issuers: Sequence[Issuer], error: Callable[..., Exception]) -> None:
    """Return if *issuers* can be served; else raise ``error(problem, index, key)``."""
    for index, one in enumerate(issuers):
        for key, problem in _problems(one):
            if problem:
                raise error(f"{key}: {problem}", index, key)
    for (first, one), (second, other) in itertools.combinations(enumerate(issuers), 2):
        if (one.issuer, one.audience) == (other.issuer, other.audience):
            raise error(f"issuer and audience are those of issuers.{first} too", second, "issuer")
        problem = _collision(one, other)
        if problem and not (one.shared and other.shared):
            raise error(f"{problem} of issuers.{first}; name them apart, or say shared: true on both", second, "issuer")


def _collision(one: Issuer, other: Issuer) -> str | None:
    """Say which names of two issuers could be the same; the same template of the same issuer names the same things."""
    pairs = [("principal", one.principal_template(), other.principal_template())]
    pairs += [("groups", *pair) for pair in itertools.product(one.group_templates(), other.group_templates())]
    for key, mine, theirs in pairs:
        if mine.meets(theirs) and not (one.issuer == other.issuer and mine == theirs):
            return f"{key}: {theirs.text!r} could give a name that is also one by {mine.text!r}"
    return None


def _problems(one: Issuer) -> list[tuple[str, str | None]]:
    return [
        (
            "issuer",
            _text_problem(one.issuer) or ("is what events say of API keys" if one.issuer == "api-key" else None),
        ),
        ("audience", _text_problem(one.audience)),
        ("jwks_url", _keys_problem(one)),
        ("ca_file", None if not one.ca_file or _scheme(one.keys_url) == "https" else "only for an https:// jwks_url"),
        ("principal", _wrong(one.principal_template)),
        ("groups", _wrong(one.group_templates)),
        ("acting_for", _wrong(one.acting_for_template)),
        ("claims", _claims_problem(one.claim_names())),
        ("require", _require_problem(one)),
        ("algorithms", _algorithms_problem(one.algorithms)),
        ("typ", None if one.typ is None else _text_problem(one.typ)),
        ("leeway_seconds", _range(one.leeway_seconds, 0, MAX_LEEWAY_SECONDS)),
        ("max_lifetime_seconds", _range(one.lifetime_seconds, 1, _MAX_LIFETIME_SECONDS)),
        ("jwks_refresh_seconds", _range(one.jwks_refresh_seconds, 10, _MAX_REFRESH_SECONDS)),
        ("jwks_stale_seconds", _range(one.jwks_stale_seconds, one.jwks_refresh_seconds, _MAX_STALE_SECONDS)),
    ]


def _text_problem(text: str) -> str | None:
    wrong = not text or len(text) > 1000 or has_control(text) or any(letter.isspace() for letter in text)
    return "must be text without white space and control characters" if wrong else None


def _range(value: float, least: float, most: float) -> str | None:
    return None if least <= value <= most else f"{least:.0f} to {most:.0f}"


def _wrong(parse: Callable[[], object]) -> str | None:
    try:
        parse()
    except ValueError as error:
        return str(error)
    return None


def _scheme(url: str | None) -> str:
    return urlsplit(url or "").scheme


def _keys_problem(one: Issuer) -> str | None:
    if one.jwks_url and one.jwks_file:
        return "jwks_url or jwks_file, not both"
    if one.jwks_file:
        return None
    if one.keys_url is None:
        return "name jwks_url or jwks_file: keys are not looked for where a token says"
    try:
        url = urlsplit(one.keys_url)
        _ = url.port
    except ValueError as error:
        return str(error)
    if url.username is not None or url.password is not None or url.fragment:
        return "no credentials and no fragment"
    if url.hostname and (url.scheme == "https" or (url.scheme == "http" and _is_loopback(url.hostname))):
        return None
    return "must be https://, or http:// to this machine's loopback address"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _claims_problem(names: Sequence[str]) -> str | None:
    if len(names) > MAX_CLAIMS or len(set(names)) != len(names) or not all(names):
        return f"at most {MAX_CLAIMS} different names"
    return None


def _algorithms_problem(names: Sequence[str]) -> str | None:
    unknown = [name for name in names if name not in ALGORITHMS]
    if unknown or not names:
        return f"{', '.join(map(repr, unknown)) or 'none'} cannot be used; there are: {', '.join(ALGORITHMS)}"
    return None


def _require_problem(one: Issuer) -> str | None:
    for name, wanted in one.require.items():
        if not name or wanted in ((), ""):
            return f"{name!r} needs a value, or a list of them"
        values = wanted if isinstance(wanted, tuple) else (wanted,)
        other = next((value for value in values if not isinstance(value, str)), None)
        if PRESETS[one.preset].text_only and other is not None:
            return f"the claims of {one.preset} are text: write {name}: '{str(other).lower()}', with quotation marks"
    narrow = next((preset.narrow for preset in PRESETS.values() if preset.narrow_issuer == one.issuer), ())
    if narrow and not any(name in one.require for name in narrow):
        return (
            f"everybody can get a token of {one.issuer}; say whose count: one of {', '.join(narrow)}"
            f", such as require: {{{narrow[1]}: '1234567'}}"
        )
    return None
