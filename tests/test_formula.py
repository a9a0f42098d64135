"""Formulas against Qdrant's own evaluation of them."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import msgspec
import numpy as np
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from qdrant_client import QdrantClient, models
from qdrant_client.hybrid import formula as oracle

from router.query.formula import MAX_EXPRESSIONS, Formula, Operand
from router.query.fusion import Ranking
from shard.errors import InvalidInput
from shard.model import Scores, encode_ids
from tests import filters


class Query(msgspec.Struct):
    formula: Operand
    defaults: dict[str, Any] | None = None


def compiled(query: Any) -> Formula:
    """As it is sent, and decoded."""
    decoded = msgspec.json.decode(orjson.dumps(query), type=Query)
    return Formula(decoded.formula, decoded.defaults, "query")


def ranking(scored: dict[Any, float]) -> Ranking:
    ids = [UUID(one) if isinstance(one, str) else one for one in scored]
    return encode_ids(ids), np.array(list(scored.values()), np.float32)


def evaluated(query: Any, *payloads: Any, ranked: tuple[dict[Any, float], ...] = ()) -> Scores:
    """For points 0, 1, and so on."""
    stored = [orjson.dumps(payload) if payload else b"" for payload in payloads]
    keys = encode_ids(range(len(payloads)))
    return compiled(query).scores(
        [ranking(one) for one in ranked], keys, stored, {"": np.ones(len(keys), np.bool_)}
    )


numbers = st.integers(-3, 3).map(float) | st.sampled_from([0.5, -2.5, 1e-3])
fields = st.sampled_from(["x", "y", "n", "a", "o.a", "n[]", '"a.b"', "missing"])
variables = st.sampled_from(["$score", "$score[0]", "$score[1]", "$score[7]"]) | fields
payloads = st.builds(
    lambda given, more: {**given, **more},
    filters.payloads,
    st.fixed_dictionaries(
        {
            "y": filters.numbers,
            "at": filters.places | st.lists(filters.places, min_size=1, max_size=1),
            "when": filters.times,
        },
        optional={"x": filters.numbers | st.lists(filters.numbers, max_size=2)},
    ),
)
defaults = st.fixed_dictionaries(
    {},
    optional={
        "$score": numbers,
        "$score[1]": numbers | st.none(),
        "x": filters.numbers | st.lists(filters.numbers, max_size=2) | filters.words,
        "y": filters.numbers,
        "n": st.none() | filters.numbers,
        "a": filters.numbers,
        "o.a": filters.numbers,
        "n[]": filters.numbers,
        '"a.b"': filters.numbers,
        "missing": filters.numbers,
        "o": filters.places,
    },
)
Models = st.SearchStrategy[Any]


def decays(inner: Models) -> Models:
    parameters = st.builds(
        models.DecayParamsExpression,
        x=inner,
        target=st.none() | inner,
        scale=st.none() | st.sampled_from([0.5, 2.0, 1e7]),
        midpoint=st.none() | st.sampled_from([0.1, 0.5, 0.9]),
    )
    return st.one_of(
        st.builds(models.LinDecayExpression, lin_decay=parameters),
        st.builds(models.ExpDecayExpression, exp_decay=parameters),
        st.builds(models.GaussDecayExpression, gauss_decay=parameters),
    )


def folds(inner: Models) -> Models:
    return st.one_of(
        st.builds(models.SumExpression, sum=st.lists(inner, max_size=3)),
        st.builds(models.MultExpression, mult=st.lists(inner, max_size=3)),
        st.builds(models.MaxExpression, max=st.lists(inner, min_size=1, max_size=3)),
        st.builds(models.MinExpression, min=st.lists(inner, min_size=1, max_size=3)),
        st.builds(models.NegExpression, neg=inner),
        st.builds(models.AbsExpression, abs=inner),
    )


def exact(inner: Models) -> Models:
    """What NumPy and Python round in the same way, so that they agree on what is zero."""
    parameters = st.builds(
        models.DivParams, left=inner, right=inner, by_zero_default=st.none() | numbers
    )
    return st.one_of(
        folds(inner),
        st.builds(models.DivExpression, div=parameters),
        st.builds(models.SqrtExpression, sqrt=inner),
    )


def rounded(inner: Models) -> Models:
    power = st.builds(models.PowParams, base=inner, exponent=inner)
    return st.one_of(
        st.builds(models.PowExpression, pow=power),
        st.builds(models.ExpExpression, exp=inner),
        st.builds(models.Log10Expression, log10=inner),
        st.builds(models.LnExpression, ln=inner),
        st.builds(models.AcoshExpression, acosh=inner),
        decays(inner),
    )


places = st.builds(
    models.GeoDistanceParams,
    origin=filters.points,
    to=st.sampled_from(["at", "at", "o", "missing"]),
)
leaves = st.one_of(
    numbers,
    variables,
    variables,
    filters.conditions,
    st.builds(models.DatetimeExpression, datetime=st.sampled_from(filters.TIMES[:-1])),
    st.builds(models.DatetimeKeyExpression, datetime_key=st.sampled_from(["when", "a"])),
)
operands = st.recursive(leaves, exact, max_leaves=6)
outer = rounded(operands) | st.builds(models.GeoDistance, geo_distance=places)
expressions = operands | outer | folds(operands | outer)


@pytest.mark.filterwarnings("ignore:Generating overly large repr")
@settings(
    deadline=None,
    max_examples=1_000,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(
    expressions,
    defaults,
    st.lists(payloads, min_size=1, max_size=5),
    st.lists(st.dictionaries(st.sampled_from(filters.IDS[:5]), numbers, max_size=5), max_size=3),
)
def test_the_same_scores_as_in_qdrant(
    formula: Any,
    defaults: dict[str, Any],
    payloads: list[dict[str, Any]],
    ranked: list[dict[Any, float]],
) -> None:
    ids = filters.IDS[: len(payloads)]
    query = orjson.loads(
        models.FormulaQuery(formula=formula, defaults=defaults).model_dump_json(
            by_alias=True, exclude_none=True
        )
    )
    stored = [orjson.dumps(payload) if payload else b"" for payload in payloads]
    keys = encode_ids([UUID(one) if isinstance(one, str) else one for one in ids])
    expected: list[float] | None = None
    try:
        oracle.validate_expression(formula)
        expected = [
            oracle.evaluate_expression(
                formula, one, ranked, payload, {"": True}, oracle.parse_defaults(defaults)
            )
            for one, payload in zip(ids, payloads, strict=True)
        ]
    except (ValueError, TypeError, AttributeError):  # What it says of what is no number or time.
        pass
    if expected is None or not np.isfinite(np.array(expected, np.float32)).all():
        with pytest.raises(InvalidInput, match=r"^query\."):
            compiled(query).scores(
                [ranking(one) for one in ranked], keys, stored, {"": np.ones(len(keys), np.bool_)}
            )
    else:
        found = compiled(query).scores(
            [ranking(one) for one in ranked], keys, stored, {"": np.ones(len(keys), np.bool_)}
        )
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_prefetches_are_scored_again_as_by_the_client() -> None:
    client = QdrantClient(":memory:")
    client.create_collection(
        "c", vectors_config=models.VectorParams(size=2, distance=models.Distance.DOT)
    )
    payloads = [{"price": 3 * one, "tags": ["a"] * (one % 2)} for one in range(6)]
    client.upsert(
        "c",
        [
            models.PointStruct(id=one, vector=[float(one), 5.0 - one], payload=payload)
            for one, payload in enumerate(payloads)
        ],
    )
    prefetches = [
        models.Prefetch(query=[1.0, 0.0], limit=3),
        models.Prefetch(query=[0.0, 1.0], limit=3),
    ]
    tagged = models.FieldCondition(key="tags", match=models.MatchValue(value="a"))
    query = models.FormulaQuery(
        formula=models.SumExpression(
            sum=[
                models.MultExpression(mult=["$score[1]", 2.0]),
                models.MultExpression(mult=[0.25, tagged]),
                models.LinDecayExpression(
                    lin_decay=models.DecayParamsExpression(x="price", target=6.0, scale=9.0)
                ),
            ]
        ),
        defaults={"$score[1]": -1.0},
    )
    expected = client.query_points("c", prefetch=prefetches, query=query).points
    ranked = [
        {hit.id: hit.score for hit in client.query_points("c", query=one.query, limit=3).points}
        for one in prefetches
    ]
    sent = orjson.loads(query.model_dump_json(exclude_none=True))
    found = evaluated(sent, *payloads, ranked=tuple(ranked))
    assert sorted(hit.id for hit in expected) == list(range(6))
    np.testing.assert_allclose(
        [found[int(hit.id)] for hit in expected], [h.score for h in expected]
    )


def test_what_a_formula_reads_is_told() -> None:
    nested = {"nested": {"key": "e[]", "filter": {"must": [{"key": "f", "match": {"value": 1}}]}}}
    query = {
        "formula": {
            "sum": [
                "$score",
                "a.b[].c",
                '"quoted.d"',
                {"must": [nested, {"is_null": {"key": "g.h"}}, {"has_id": [1]}]},
                {"geo_distance": {"origin": {"lat": 0, "lon": 0}, "to": "i"}},
                {"datetime_key": "j[0]"},
            ]
        },
        "defaults": {"unused": 1},
    }
    assert compiled(query).fields == {"a", "quoted.d", "e", "g", "i", "j"}
    assert compiled({"formula": {"sum": ["$score", {"has_id": [1]}]}}).fields == set()


def test_payloads_are_not_decoded_for_scores_and_ids() -> None:
    formula = compiled({"formula": {"sum": ["$score", {"has_id": [2]}]}})
    keys = encode_ids([1, 2])
    assert formula.scores([ranking({2: 0.5})], keys, [b"{", b"{"]).tolist() == [0.0, 1.5]


def test_zeros_hide_what_would_be_wrong_point_by_point() -> None:
    query = {"formula": {"mult": ["x", {"div": {"left": "y", "right": 0}}]}}
    assert evaluated(query, {"x": 0}, {"x": 1, "y": 0}).tolist() == [0.0, 0.0]
    with pytest.raises(InvalidInput, match=r"got inf from 2\.0 and 0\.0 for point 2$"):
        evaluated(query, {"x": 0}, {"x": 1, "y": 0}, {"x": 1, "y": 2})


@pytest.mark.parametrize(
    ("formula", "payload", "message"),
    [
        ("x", {}, "query.formula: expected a number as 'x' of point 0 or among the defaults, got"),
        ({"neg": "x"}, {"x": None}, "query.formula.neg: expected a number as 'x' of point 0"),
        ({"neg": "x"}, {"x": True}, "got True"),
        ({"neg": "x"}, {"x": [1, 2]}, "got [1, 2]"),
        ({"neg": "x"}, {"x": "1"}, "got '1'"),
        ({"datetime_key": "x"}, {"x": 5}, "query.formula.datetime_key: expected a date and time"),
        ({"sqrt": -1}, {}, "query.formula.sqrt: expected a finite number for each point, got nan"),
        ({"ln": 0}, {}, "query.formula.ln: expected a finite number"),
        ({"acosh": 0.5}, {}, "query.formula.acosh: expected a finite number"),
        ({"exp": 1e3}, {}, "query.formula.exp: expected a finite number"),
        (
            {"sum": [1, {"pow": {"base": -8, "exponent": 0.5}}]},
            {},
            "query.formula.sum[1].pow: expected a finite number for each point, got nan from -8.0",
        ),
        (1e39, {}, "query.formula: expected a finite number for each point, got inf from 1e+39"),
        (
            {"geo_distance": {"origin": {"lat": 0, "lon": 0}, "to": "x"}},
            {"x": {"lat": 91, "lon": 0}},
            "query.formula.geo_distance.to: expected a place with `lat` and `lon` as 'x'",
        ),
    ],
)
def test_what_has_no_score_is_told(formula: Any, payload: Any, message: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        evaluated({"formula": formula}, payload)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("formula", "message"),
    [
        ({"mult": [1, {"neg": 1, "abs": 2}]}, "query.formula.mult[1]: neg, abs make no expression"),
        ({"neg": 1, "key": "a"}, "query.formula: key, neg make no expression together"),
        ({"sum": [{"key": "a"}]}, "query.formula.sum[0]: key make no condition together"),
        ({"sum": [{"must": [{"key": "a"}]}]}, "query.formula.sum[0].must[0]: key make no"),
        ({"max": []}, "query.formula.max: expected at least one operand"),
        ({"min": []}, "query.formula.min: expected at least one operand"),
        ("a..b", "query.formula: 'a..b' is not a path"),
        ({"abs": "$score[-1]"}, "query.formula.abs: expected `$score` or such as `$score[1]`, got"),
        ("$scores", "query.formula: expected `$score`"),
        ("$other", "query.formula: expected `$score`"),
        ({"datetime": "now"}, "query.formula.datetime: expected a date and time, got 'now'"),
        ({"datetime_key": ""}, "query.formula.datetime_key: '' is not a path"),
        (
            {"geo_distance": {"origin": {"lat": 0, "lon": 0}, "to": "a."}},
            "query.formula.geo_distance.to: 'a.' is not a path",
        ),
        (
            {"lin_decay": {"x": 1, "midpoint": 1.5}},
            "query.formula.lin_decay.midpoint: expected a number from 0 to 1, got 1.5",
        ),
        (
            {"exp_decay": {"x": 1, "midpoint": 1}},
            "query.formula.exp_decay.midpoint: expected a number between 0 and 1",
        ),
        (
            {"gauss_decay": {"x": 1, "scale": 0}},
            "query.formula.gauss_decay.scale: expected a number above 0, got 0.0",
        ),
        ({"exp_decay": {"x": "$s"}}, "query.formula.exp_decay.x: expected `$score`"),
        ({"div": {"left": 1, "right": "a["}}, "query.formula.div.right: 'a[' is not a path"),
        ({"sum": [1] * MAX_EXPRESSIONS}, "query.formula: expected at most 1024 expressions"),
        (
            {"must": [{"has_id": [1]}] * (MAX_EXPRESSIONS + 1)},
            "query.formula: expected at most 1024 expressions",
        ),
    ],
)
def test_what_is_no_formula_is_told(formula: Any, message: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        compiled({"formula": formula})
    assert message in str(raised.value)


def test_defaults_that_are_none_are_told() -> None:
    for defaults, message in (
        ({"$score[1]": "x"}, r"query\.defaults\['\$score\[1\]'\]: expected a number, got 'x'"),
        ({"$score": 10**400}, r"query\.defaults\['\$score'\]: expected a number"),
        ({"$scor": 1}, r"query\.defaults\['\$scor'\]: expected `\$score`"),
        ({"a..b": 1}, r"query\.defaults\['a\.\.b'\]: 'a\.\.b' is not a path"),
    ):
        with pytest.raises(InvalidInput, match=message):
            Formula("$score", defaults, "query")


def test_depth_is_bounded() -> None:
    deep: Any = 1
    for _ in range(32):
        deep = {"neg": deep}
    assert evaluated({"formula": deep}, {}).tolist() == [1.0]
    with pytest.raises(InvalidInput, match=r"query\.formula: expected at most 32 expressions"):
        compiled({"formula": {"neg": deep}})


def test_extremes_of_decays_are_finite() -> None:
    tiny, large = 5e-324, 1.7e308
    for name in ("lin_decay", "exp_decay", "gauss_decay"):
        for x in (0.0, tiny, large, -large):
            for scale in (tiny, large):
                query = {"formula": {name: {"x": x, "target": -x, "scale": scale}}}
                (found,) = evaluated(query, {})
                assert 0 <= found <= 1
