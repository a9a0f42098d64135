"""Collections as Parquet files: exports and snapshots."""
