"""Collections placed on Ray-managed shard servers. The only floor that imports Ray."""
