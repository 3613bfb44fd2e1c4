"""A local page on which runs are tried out: plain functions compute what the widgets show."""
