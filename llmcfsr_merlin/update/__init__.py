"""A day's log on top of yesterday's run: stages, the gate, publishing."""
