"""One script per stage, in order: ingest, prepare, embed, train, evaluate, export; and the recipes."""
