"""Qdrant's gRPC protocol, in front of the same application that answers its REST dialect.

A call becomes the REST request that asks the same, and the JSON that answers that becomes the
call's answer: `operations` says which request it is, `to_rest` and `from_rest` convert, with the
names that differ in `names`. ``qdrant.binpb`` is made of ``proto/`` by ``scripts/generate-proto``.
"""
