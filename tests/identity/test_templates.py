"""Names that nothing can break out of: templates with claims in braces."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.authentication.templates import ClaimError, Template

PART = st.text(max_size=12) | st.sampled_from(["", "/", ":", "a/b", "group:x", "\u202e", " a", "a ", "{sub}", "*"])


@settings(max_examples=300, deadline=None)
@given(PART, PART, PART, PART)
def test_a_name_never_leaves_its_template_and_is_read_in_one_way(one, two, other_one, other_two):
    template = Template.parse("user:x-{a}/{b}", "user:")
    names = []
    for a, b in ((one, two), (other_one, other_two)):
        try:
            names.append(template.fill({"a": a, "b": b}))
        except ClaimError:
            names.append(None)
    for name in names:
        assert name is None or re.fullmatch(r"user:x-[^:/]+/[^:]+", name)
    if names[0] is not None and (one, two) != (other_one, other_two):
        assert names[0] != names[1]


TEMPLATE = st.builds(
    lambda start, between, end: f"user:{start}{{a}}{between}" + (f"{{b}}{end}" if between else ""),
    st.sampled_from(["", "x-", "xy-", "y/"]), st.sampled_from(["", "/", "-"]), st.sampled_from(["", "-z", "/q"]),
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(TEMPLATE, TEMPLATE, st.tuples(*[st.text("abxyzq/-", min_size=1, max_size=4)] * 4))
def test_templates_that_are_said_not_to_meet_never_do(first, second, values):
    one, other = Template.parse(first), Template.parse(second)
    try:
        same = one.fill(dict(zip("ab", values, strict=False))) == other.fill(dict(zip("ab", values[2:], strict=True)))
    except ClaimError:
        return
    assert not same or (one.meets(other) and other.meets(one))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("admin", "does not begin with"), ("group:{g}", "does not begin with user: or service:"), ("user:", "no claim"),
        ("user:admin", "no claim"), ("user:{}", "no claim"), ("user:{a}{b}", "nothing between"),
        ("user: {a}", "white space"), ("user:{a} ", "white space"), ("user:{a", "no claim"),
        ("user:{a}}", "a brace"), ("user:\u200b{a}", "control"), ("{a}", "does not begin"),
        ("User:{a}", "does not begin"), ("user:{a}:{b}", "a colon"),
    ],
)  # fmt: skip
def test_templates_that_are_refused(text, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        Template.parse(text, "user:", "service:")


@pytest.mark.parametrize(("length", "fits"), [(294, True), (295, False)])
def test_a_name_is_no_longer_than_the_journal_keeps(length, fits):
    template = Template.parse("user:{a}/{b}", "user:")
    claims = {"a": "a" * 150, "b": "b" * (length - 150)}
    if fits:
        assert len(template.fill(claims)) == 300
    else:
        with pytest.raises(ClaimError, match="becomes a name of 301 characters, over 300"):
            template.fill(claims)
