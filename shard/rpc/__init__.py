"""The gRPC service of a process that hosts shards, and its client.

`shard_pb2.py` is made from `shard.proto` by ``scripts/generate-proto``.
"""
