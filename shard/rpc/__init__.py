"""The gRPC service of a process that hosts shards, and its client."""
