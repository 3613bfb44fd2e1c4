"""The stages as scripts, in reading order: ingest, prepare, embed, train, evaluate, export; and the recipes."""
