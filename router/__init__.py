"""What faces users: the HTTP dialect, the fan-out to shards and the command line."""
