"""From EmoBench rows to batches: masking, packing, collation, the plan of an epoch."""
