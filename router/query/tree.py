"""Queries of Qdrant's query API, which may work on what others, their prefetches, have found.

A tree of them is checked as a whole, the vectors of stored points that it names are read, and then
it is answered from its leaves up: each node becomes a ranking of the whole collection's points.
Filters and the points that a query names, and therefore leaves out, hold for all below.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import msgspec
import numpy as np

from cluster.catalog import Collection
from router.api import wire
from router.api.convert import parse_id, parse_query
from router.api.exchange import Context
from router.directory import PointNotFound
from router.payload_schema import text_indexes
from router.query import mmr
from router.query.formula import Formula
from router.query.fusion import RRF_K, Ranking, distribution_based, reciprocal_rank
from router.query.idf import weighted
from router.query.recommend import average
from router.security.access import Access, Level
from shard.errors import InvalidInput, NotFound
from shard.filter import Filter
from shard.index.examples import Examples, Scoring
from shard.model import (
    KEY_DTYPE,
    Hits,
    Keys,
    Mask,
    Points,
    RankParams,
    Rows,
    Scores,
    SearchParams,
    VectorColumn,
    decode_id,
    encode_id,
)
from shard.ordering import OrderBy
from shard.rpc.merge import take_points

MAX_DEPTH = 16
MAX_NODES = 256
DEFAULT_LIMIT = 10

Query: TypeAlias = (
    wire.Nearest
    | wire.Recommend
    | wire.Discover
    | wire.Context
    | wire.Ordered
    | wire.Fusion
    | wire.Rrf
    | wire.Rescore
    | wire.Sample
)
_KINDS: dict[str, type[Query]] = {
    "nearest": wire.Nearest,
    "recommend": wire.Recommend,
    "discover": wire.Discover,
    "context": wire.Context,
    "order_by": wire.Ordered,
    "fusion": wire.Fusion,
    "rrf": wire.Rrf,
    "formula": wire.Rescore,
    "sample": wire.Sample,
}
_ON_PREFETCHES = (wire.Fusion, wire.Rrf, wire.Rescore)


class Found(NamedTuple):
    """Points, best first, with their scores (n,)."""

    points: Points
    scores: Scores
    values: list[int | float] | None = None
    """What they are ordered by, if they are."""

    def take(self, rows: Rows) -> Found:
        values = None if self.values is None else [self.values[row] for row in rows.tolist()]
        return Found(take_points(self.points, rows), self.scores[rows], values)


def parse_kind(given: wire.VectorInput | None, field: str) -> Query | None:
    """The query that a request gives; what is no other is a vector to be near to."""
    if isinstance(given, dict):
        for name, kind in _KINDS.items():
            if name in given:
                return wire.convert(given, kind, field)
    return None if given is None else wire.Nearest(nearest=given)


@dataclass(frozen=True, kw_only=True)
class Node:
    """One query, checked as far as it can be without its collection."""

    field: str
    query: Query | None
    using: str
    filter: Filter | None
    asked: wire.SearchParams
    threshold: float | None
    limit: int
    lookup: wire.LookupLocation | None
    order_by: bytes
    prefetch: tuple[Node, ...]

    @staticmethod
    def of(body: wire.Prefetch, field: str, limit: int, depth: int = 0) -> Node:
        """``limit``: how many points to find. Raises InvalidInput, Malformed or OutOfRange."""
        if depth > MAX_DEPTH:
            raise InvalidInput(f"prefetch: expected at most {MAX_DEPTH} within one another")
        given = [body.prefetch] if isinstance(body.prefetch, wire.Prefetch) else body.prefetch or []
        prefetch = tuple(
            Node.of(
                one,
                f"{field}prefetch[{number}].",
                DEFAULT_LIMIT if one.limit is None else one.limit,
                depth + 1,
            )
            for number, one in enumerate(given)
        )
        query = parse_kind(body.query, f"{field}query")
        if isinstance(query, _ON_PREFETCHES) and not prefetch:
            raise InvalidInput(f"{field}query: expected a `prefetch` to work on")
        if isinstance(query, wire.Rescore):
            Formula(query.formula, query.defaults, f"{field}query")  # What is none is told now.
        order_by = b""
        if isinstance(query, wire.Ordered):
            asked = query.order_by
            asked = OrderBy(asked) if isinstance(asked, str) else asked
            order_by = asked.check(f"{field}query.order_by")
        if body.filter is not None:
            body.filter.check(f"{field}filter")
        node = Node(
            field=field,
            query=query,
            using=body.using or "",
            filter=body.filter,
            asked=body.params or wire.SearchParams(),
            threshold=body.score_threshold,
            limit=limit,
            lookup=body.lookup_from,
            order_by=order_by,
            prefetch=prefetch,
        )
        if not depth and sum(1 for _ in node.walk()) > MAX_NODES:
            raise InvalidInput(f"prefetch: expected at most {MAX_NODES} queries in all")
        return node

    def check_access(self, access: Access) -> None:
        """Raises Forbidden for a collection to look up in that is not allowed."""
        if self.lookup is not None:
            access.check(self.lookup.collection, Level.READ)

    def walk(self) -> Iterator[Node]:
        yield self
        for one in self.prefetch:
            yield from one.walk()

    @property
    def inputs(self) -> list[wire.VectorInput]:
        """The vectors, and ids of stored ones, that the query has."""
        match self.query:
            case wire.Nearest(nearest=nearest):
                return [nearest]
            case wire.Recommend(recommend=asked):
                return [*(asked.positive or []), *(asked.negative or [])]
            case wire.Discover(discover=asked):
                pairs = _pairs(asked.context)
                return [asked.target, *(one.positive for one in pairs), *_negatives(pairs)]
            case wire.Context(context=context):
                pairs = _pairs(context)
                return [*(one.positive for one in pairs), *_negatives(pairs)]
        return []

    @property
    def named(self) -> frozenset[bytes]:
        """Keys of the points that the query names."""
        return frozenset(
            encode_id(parse_id(one, f"{self.field}query"))
            for one in self.inputs
            if isinstance(one, int | str)
        )


def _pairs(context: wire.Pair | list[wire.Pair] | None) -> list[wire.Pair]:
    return [context] if isinstance(context, wire.Pair) else context or []


def _negatives(pairs: Sequence[wire.Pair]) -> Iterator[wire.VectorInput]:
    return (one.negative for one in pairs)


class Answering:
    """Answers trees about one collection, in so many seconds each.

    What the methods raise is what `Fanout` does, NotFound also for a collection to look up in,
    PointNotFound for a point that is named and not there, InvalidInput for what does not fit the
    collection.
    """

    def __init__(self, context: Context, collection: Collection, timeout: float) -> None:
        self._context = context
        self._collection = collection
        self._config = collection.config
        self._timeout = timeout
        self._stored: dict[tuple[str, str, bytes], VectorColumn] = {}

    async def find(self, root: Node, *, with_payload: bool, with_vectors: Sequence[str]) -> Found:
        """The answer to ``root``, with payloads and the vectors of these names."""
        for node in root.walk():
            self._check(node)
        await self._read_stored(root)
        found = await self._answer(root, None, frozenset(), with_payload, tuple(with_vectors))
        missing = with_payload and found.points.payloads is None
        if missing or found.points.vectors.keys() != set(with_vectors):
            points = await self._context.fanout.retrieve(
                self._collection,
                found.points.keys,
                with_payload=with_payload,
                with_vectors=tuple(with_vectors),
                timeout=self._timeout,
            )
            # One may have been deleted meanwhile.
            kept = found.take(np.flatnonzero(np.isin(found.points.keys, points.keys)))
            found = kept._replace(points=points)
        return found

    def _check(self, node: Node) -> None:
        node.check_access(self._context.access)
        if node.inputs and node.using not in self._config.names:
            raise InvalidInput(f"Not existing vector name error: {node.using}")

    # Stored vectors

    async def _read_stored(self, root: Node) -> None:
        wanted: dict[tuple[str, str], set[bytes]] = defaultdict(set)
        for node in root.walk():
            if node.named:
                wanted[self._place(node)] |= node.named
        for (name, using), keys in wanted.items():
            collection = self._collection
            if name:
                try:
                    collection = await self._context.directory.find(name)
                except NotFound as error:
                    # Not to be taken for one of the searched collection's own shards.
                    raise PointNotFound(str(error)) from None
                if using not in collection.config.names:
                    raise InvalidInput(f"Not existing vector name error: {using}")
            points = await self._context.fanout.retrieve(
                collection,
                np.array(sorted(keys), KEY_DTYPE),
                with_payload=False,
                with_vectors=(using,),
                timeout=self._timeout,
            )
            column = points.vectors[using]
            has = column.has()
            for row, key in enumerate(points.keys.tolist()):
                if has[row]:
                    self._stored[name, using, key] = column.slice(row, row + 1)
            for key in sorted(keys):
                if (name, using, key) not in self._stored:
                    raise PointNotFound(f"No point with id {decode_id(key)} found")

    @staticmethod
    def _place(node: Node) -> tuple[str, str]:
        """Collection, empty for the one that is searched, and name of the vectors to read."""
        if node.lookup is None:
            return "", node.using
        return node.lookup.collection, node.lookup.vector or node.using

    def _vectors(self, node: Node, inputs: Sequence[wire.VectorInput]) -> VectorColumn:
        """A row for each of the inputs. Raises InvalidInput where one is of another form."""
        if not inputs:
            return self._config.empty(node.using)
        rows = []
        for one in inputs:
            if isinstance(one, int | str):
                key = encode_id(parse_id(one, f"{node.field}query"))
                row = self._stored[*self._place(node), key]
                if node.lookup is not None:  # In a collection whose vectors may be any.
                    row = self._config.prepare({node.using: row}, 1)[node.using]
                rows.append(row)
            else:
                rows.append(parse_query(one, node.using, self._config))
        return VectorColumn.concatenate(rows)

    # Answers

    async def _answer(
        self,
        node: Node,
        filter: Filter | None,
        left_out: frozenset[bytes],
        with_payload: bool = False,
        with_vectors: tuple[str, ...] = (),
    ) -> Found:
        filter = _both(filter, node.filter)
        if node.lookup is None:
            left_out |= node.named
        if not node.prefetch:
            return await self._leaf(node, filter, left_out, None, with_payload, with_vectors)
        answers = await asyncio.gather(
            *(self._answer(one, filter, left_out) for one in node.prefetch)
        )
        rankings: list[Ranking] = [(one.points.keys, one.scores) for one in answers]
        match node.query:
            case wire.Fusion(fusion="dbsf"):
                keys, scores = distribution_based(rankings)
            case wire.Fusion():
                keys, scores = reciprocal_rank(rankings)
            case wire.Rrf(rrf=rrf):
                keys, scores = reciprocal_rank(rankings, rrf.k or RRF_K, rrf.weights)
            case wire.Rescore() as query:
                indexes = text_indexes(self._collection)
                formula = Formula(query.formula, query.defaults, f"{node.field}query", indexes)
                keys, scores = await self._rescored(formula, rankings)
            case _:
                among = np.unique(np.concatenate([keys for keys, _ in rankings]))
                if not len(among):
                    return Found(Points(among), np.empty(0, np.float32))
                return await self._leaf(node, filter, left_out, among, with_payload, with_vectors)
        if node.threshold is not None:
            kept = scores >= np.float32(node.threshold)
            keys, scores = keys[kept], scores[kept]
        return Found(Points(keys[: node.limit]), scores[: node.limit])

    async def _rescored(self, formula: Formula, rankings: list[Ranking]) -> Ranking:
        keys = np.unique(np.concatenate([keys for keys, _ in rankings]))
        payloads = [b""] * len(keys)
        has: dict[str, Mask] = {}
        if (formula.fields or formula.vector_names) and len(keys):
            names = tuple(formula.vector_names & set(self._config.names))
            points = await self._context.fanout.retrieve(
                self._collection,
                keys,
                with_payload=bool(formula.fields),
                with_vectors=names,
                timeout=self._timeout,
            )
            keys, payloads = points.keys, points.payloads or [b""] * len(points.keys)
            has = dict.fromkeys(formula.vector_names, np.zeros(len(keys), np.bool_))
            has |= {name: column.has() for name, column in points.vectors.items()}
        # Of many points it takes a while.
        scores = await asyncio.to_thread(formula.scores, rankings, keys, payloads, has)
        order = np.argsort(-scores, kind="stable")
        return keys[order], scores[order]

    async def _leaf(
        self,
        node: Node,
        filter: Filter | None,
        left_out: frozenset[bytes],
        among: Keys | None,
        with_payload: bool,
        with_vectors: tuple[str, ...],
    ) -> Found:
        fanout = self._context.fanout
        encoded = filter.check("filter") if filter is not None else b""
        asked = node.asked
        quantization = asked.quantization or wire.QuantizationSearchParams()
        params = SearchParams(
            # Those left out may be among the nearest.
            limit=node.limit + len(left_out),
            exact=bool(asked.exact or quantization.ignore),
            nprobe=asked.nprobe,
            oversampling=quantization.oversampling,
            score_threshold=node.threshold,
            among=b"" if among is None else among.tobytes(),
            using=node.using,
            with_payload=with_payload,
            with_vectors=with_vectors,
        )
        match node.query:
            case wire.Nearest(nearest=nearest, mmr=mmr):
                vector = self._vectors(node, [nearest])
                return await self._nearest(node, vector, params, encoded, left_out, mmr)
            case wire.Recommend(recommend=asked_for):
                positive = self._vectors(node, asked_for.positive or [])
                negative = self._vectors(node, asked_for.negative or [])
                if asked_for.strategy in (None, "average_vector"):
                    own = self._config.vectors.get(node.using)
                    vector = average(positive, negative, multi=own is not None and own.multi)
                    return await self._nearest(node, vector, params, encoded, left_out)
                if not positive.rows + negative.rows:
                    raise InvalidInput(
                        f"{node.field}query.recommend: expected at least one `positive` or "
                        "`negative` example"
                    )
                scoring = Scoring(asked_for.strategy)
                examples = Examples(scoring, positive.rows, negative.rows)
            case wire.Discover() | wire.Context():
                pairs = (len(node.inputs) - isinstance(node.query, wire.Discover)) // 2
                discover = isinstance(node.query, wire.Discover)
                scoring = Scoring.DISCOVER if discover else Scoring.CONTEXT
                examples = Examples(scoring, pairs, pairs)
            case wire.Ordered() | wire.Sample():
                ranked = await self._context.fanout.rank(
                    self._collection,
                    RankParams(
                        limit=params.limit,
                        order_by=node.order_by,
                        filter=encoded,
                        among=params.among,
                        with_payload=with_payload,
                        with_vectors=with_vectors,
                    ),
                    timeout=self._timeout,
                )
                ones = np.ones(len(ranked.values), np.float32)
                values = ranked.values if node.order_by else None
                return _without(Found(ranked.points, ones, values), left_out)
            case _:
                points = await fanout.scroll(
                    self._collection,
                    b"",
                    node.limit + len(left_out),
                    with_payload=with_payload,
                    with_vectors=with_vectors,
                    filter=encoded,
                    timeout=self._timeout,
                )
                return _without(Found(points, np.ones(len(points.keys), np.float32)), left_out)
        vectors = await self._weighted(node, self._vectors(node, node.inputs))
        params = msgspec.structs.replace(params, examples=examples.encode())
        return self._kept(await self._search(vectors, params, encoded), node, params, left_out)

    async def _nearest(
        self,
        node: Node,
        vector: VectorColumn,
        params: SearchParams,
        filter: bytes,
        left_out: frozenset[bytes],
        diverse: wire.Mmr | None = None,
    ) -> Found:
        vector = await self._weighted(node, vector)
        if diverse is None:
            return self._kept(await self._search(vector, params, filter), node, params, left_out)
        count = diverse.candidates_limit or node.limit
        wider = msgspec.structs.replace(
            params,
            limit=count + len(left_out),
            with_vectors=tuple({*params.with_vectors, node.using}),
        )
        found = self._kept(await self._search(vector, wider, filter), node, wider, left_out)
        found = found.take(np.arange(min(count, len(found.scores))))
        picked = found.take(
            mmr.pick(
                self._config.prepare({node.using: vector}, 1)[node.using],
                found.points.vectors[node.using],
                self._config.vectors.get(node.using),
                diverse.diversity,
                node.limit,
            )
        )
        vectors = {name: picked.points.vectors[name] for name in params.with_vectors}
        return Found(msgspec.structs.replace(picked.points, vectors=vectors), picked.scores)

    async def _search(self, vectors: VectorColumn, params: SearchParams, filter: bytes) -> Found:
        hits: Hits = await self._context.fanout.search(
            self._collection, vectors, params, filter=filter, timeout=self._timeout
        )
        return Found(hits.points, hits.scores)

    def _kept(
        self, found: Found, node: Node, params: SearchParams, left_out: frozenset[bytes]
    ) -> Found:
        found = _without(found, left_out)
        if node.threshold is not None:
            threshold = np.float32(node.threshold)
            higher = self._config.higher_is_nearer(params)
            near = found.scores > threshold if higher else found.scores < threshold
            found = found.take(np.flatnonzero(near))
        limit = params.limit - len(left_out)
        return found if len(found.scores) <= limit else found.take(np.arange(limit))

    async def _weighted(self, node: Node, vectors: VectorColumn) -> VectorColumn:
        corpus = node.asked.idf
        filter = b""
        if isinstance(corpus, wire.IdfCorpus):
            filter = corpus.corpus.check(f"{node.field}params.idf.corpus")
        return await weighted(
            self._context.fanout,
            self._collection,
            node.using,
            vectors,
            filter=filter,
            timeout=self._timeout,
        )


def _both(one: Filter | None, other: Filter | None) -> Filter | None:
    if one is None or other is None:
        return other if one is None else one
    return Filter(must=[one.as_condition(), other.as_condition()])


def _without(found: Found, keys: frozenset[bytes]) -> Found:
    if not keys:
        return found
    return found.take(np.flatnonzero(~np.isin(found.points.keys, np.array([*keys], KEY_DTYPE))))
