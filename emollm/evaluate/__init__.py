"""EmoBench + EmoLLM → results.json, samples.parquet and report.html."""
