"""Before the first run: a recipe written from the files (`llmcfsr init`), and what a run would do (`llmcfsr check`)."""
