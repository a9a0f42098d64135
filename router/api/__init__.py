"""The HTTP API in Qdrant's REST dialect, one module a resource."""
