"""How a Maya is scored: one file a benchmark, one runner, one results format."""
