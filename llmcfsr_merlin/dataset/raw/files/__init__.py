"""The notation of a file, whatever stands in it: compression, lines, quotes, separators, Parquet."""
