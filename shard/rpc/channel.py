"""What both ends of a connection agree on."""

from __future__ import annotations

SERVICE = "shoal.v1.ShardService"
MAX_MESSAGE_BYTES = 64 * 1024 * 1024
"""Largest request and largest answer."""
REQUEST_ID, TRACEPARENT, COST = "x-request-id", "traceparent", "cost-bin"
"""Metadata, as `shard.proto` has them."""

# A peer that vanished without closing its connection is noticed within 15 seconds.
KEEPALIVE = (
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
)
_ENVELOPE_BYTES = 4_096
"""More than a request or an answer has around it where it shares a stream."""
MESSAGE_LIMITS = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES + _ENVELOPE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES + _ENVELOPE_BYTES),
)
