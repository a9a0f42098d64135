"""One shard: its log, snapshots, vector index and gRPC service. Knows neither Ray nor HTTP."""
