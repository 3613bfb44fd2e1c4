"""Warnings about rows that ingest may have misinterpreted, in addition to the manifest's counts."""

import logging

_log = logging.getLogger(__name__)

_JOINED = 0.2  # share of the log's items that some metadata should know
_NOTES = {
    "times_before_1990": "are before 1990: if they are not seconds, set data.time_unit or data.time_format; if "
    "they are only positions, set data.columns.time=null and data.columns.order",
    "times_in_future": "are in the future: check data.time_unit and data.time_format",
    "mixed_time_units": "are in another unit than the first rows of their file and were interpreted by their size: set "
    "data.time_unit if that is wrong",
    "unread_ratings": "are not numbers and were left empty",
    "unread_ties": "are no whole numbers of 0 or more; their rows come first among those of equal time",
    "inexact_ids": "of users or items are floats above 2**53, where ids collide: write ids as integers or text",
}
_WHAT = {"mixed_time_units": "times", "unread_ratings": "ratings", "unread_ties": "ties", "inexact_ids": "ids"}


def warn(counts: dict, unmatched: tuple[list[str], list[str]]) -> None:
    """A warning for each suspicious count.

    unmatched: a few ids of metadata that are not in the log, and of the log's items without metadata.
    """
    for name, text in _NOTES.items():
        if counts.get(name):
            _log.warning(f"{counts[name]:,} {_WHAT.get(name, 'times')} {text}")
    found = counts.get("items_with_metadata", 0)
    if counts.get("metadata_read") and found < _JOINED * counts["items"]:
        of_metadata, of_log = ("; ".join(map(repr, ids)) or "none" for ids in unmatched)
        _log.warning(
            f"metadata was found for {found:,} of {counts['items']:,} items: check that data.items and the log name "
            f"items alike (only in metadata: {of_metadata}; only in the log: {of_log})"
        )
