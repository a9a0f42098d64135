"""Bulk loads: files in object storage become segments of shards, without the way of a write."""
