"""Which column is the user, the item, the time and the rating: by its name, and by what its values look like."""

import re
import time
from collections.abc import Collection
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from llmcfsr_merlin.dataset.raw import amazon, yelp
from llmcfsr_merlin.dataset.raw.fields.times import EARLY, TimeReader, Times
from llmcfsr_merlin.dataset.raw.records import Layout
from llmcfsr_merlin.planning.file_heads import Head, is_number
from llmcfsr_merlin.runtime.errors import InputError

# Names without case and marks, the most certain first; and words that a longer name may hold.
_NAMES = {
    "user": "userid user customerid customer clientid client visitorid memberid accountid account buyerid reviewerid "
    "uid shopperid householdkey passengerid sessionid session",
    "item": "itemid item productid product sku articleid article asin parentasin movieid trackid songid bookid isbn "
    "businessid stockcode contentid videoid newsid recipeid gameid appid offerid iid",
    "time": "timestamp unixtime unixreviewtime time datetime eventtime ts createdat date purchasedate orderdate "
    "invoicedate tdat day",
    "rating": "rating stars overall score rate",
    "order": "order position step",
}
_WORDS = {
    "user": {"user", "customer", "client", "visitor", "member", "account", "buyer", "reviewer", "shopper", "session"},
    "item": {"item", "product", "sku", "article", "movie", "track", "song", "book", "business", "offer", "asin"},
    "time": {"time", "date", "timestamp", "at", "day"},
    "rating": {"rating", "stars", "score"},
    "order": set(),
}
_KNOWN = {name: tuple(names.split()) for name, names in _NAMES.items()}
_BEST_RATING = 100


@dataclass
class Guess:
    """column: None if it was not decided, then `candidates` are the columns that it may be. why: in a few words."""

    column: str | None
    why: str = ""
    candidates: list[str] = field(default_factory=list)


def guess_format(head: Head) -> tuple[str, str]:
    """data.format of a log, and why: raw Amazon and Yelp files know their own columns."""
    if head.source.kind in ("json", "literal"):
        for name, layout in (("amazon", amazon.REVIEWS), ("yelp", yelp.REVIEWS)):
            found = [next((key for key in keys if key in head.columns), None) for keys in _fields(layout)]
            if all(found):
                return name, f"fields {', '.join(map(str, found))} of {layout.format}"
    return "table", f"columns {', '.join(list(head.columns)[:12])}"


def _fields(layout: Layout) -> tuple[tuple[str | int, ...], ...]:
    return layout.user, layout.item, layout.time, layout.rating


def guess_columns(head: Head) -> dict[str, Guess]:
    """Role -> Guess for user, item, time, rating and order of a table; a column has one role."""
    found: dict[str, Guess] = {}
    left = list(head.columns)
    for role in ("time", "user", "item", "rating", "order"):
        guess = _by_name(role, left, head)
        if guess.column is None and role == "time":
            guess = _by_values(left, head)
        if guess.column is not None:
            left.remove(guess.column)
        found[role] = guess
    ids = [name for name in left if _may_be_id(head.columns[name])]
    for role in ("user", "item"):
        other = found["item" if role == "user" else "user"].column
        if found[role].column is None and head.headless and len(ids) >= (2 if other is None else 1):
            found[role] = Guess(ids.pop(0), f"the {'first' if role == 'user' else 'next'} column of ids, as is usual")
        elif found[role].column is None and not found[role].candidates:
            found[role].candidates = ids[:8]
    if found["rating"].column is None and head.headless:
        rest = [name for name in left if name not in {guess.column for guess in found.values()}]
        rated = [name for name in rest if _are_ratings(head.columns[name])]
        if len(rated) == 1:
            found["rating"] = Guess(rated[0], "few numbers, none above 100")
    return found


def guess_item_column(head: Head, log_items: Collection[str], log_column: str | None) -> Guess:
    """The id of a table of items: the column whose values are in the log, else by name."""
    known = set(log_items)
    shares = {}
    for name, values in head.columns.items():
        texts = [_id(value) for value in values if value is not None and not isinstance(value, list | dict)]
        if texts and known:
            shares[name] = sum(text in known for text in texts) / len(texts)
    if shares and max(shares.values()) > 0:
        best = max(shares, key=lambda name: (shares[name], name == log_column))
        return Guess(best, f"{shares[best]:.0%} of its first {len(head.columns[best]):,} values are items of the log")
    if log_column in head.columns:
        return Guess(log_column, "named as in the log (no value of its first rows is in the log)")
    guess = _by_name("item", list(head.columns), head)
    return guess if guess.column else Guess(None, "", [name for name in head.columns if _may_be_id(head.columns[name])])


def said_values(values: list) -> str:
    """A column in a few words: how many different values, and the first ones."""
    known = [value for value in values if value is not None]
    shown = ", ".join(_short(value) for value in list(dict.fromkeys(map(str, known)))[:3])
    return f"{len(set(map(str, known))):,} different values in {len(values):,} rows: {shown}"


def _by_name(role: str, names: list[str], head: Head) -> Guess:
    plain = {name: re.sub(r"[^a-z0-9]", "", name.lower()) for name in names}
    fitting = [name for name in names if _fits(role, head.columns[name])]
    for known in _KNOWN[role]:
        same = [name for name in fitting if plain[name] == known]
        if len(same) == 1:
            return Guess(same[0], "by its name" + _said_time(role, head.columns[same[0]]))
    close = [name for name in fitting if _WORDS[role] & set(re.findall(r"[a-z]+", _spaced(name)))]
    ids = [name for name in close if {"id", "code", "key", "number"} & set(re.findall(r"[a-z]+", _spaced(name)))]
    chosen = ids if len(ids) == 1 else close
    if len(chosen) == 1:
        return Guess(chosen[0], "by its name" + _said_time(role, head.columns[chosen[0]]))
    return Guess(None, "", close)


def _by_values(names: list[str], head: Head) -> Guess:
    times = [name for name in names if _are_times(head.columns[name])]
    if len(times) == 1:
        return Guess(times[0], "its values are times" + _said_time("time", head.columns[times[0]]))
    return Guess(None, "", times)


def _fits(role: str, values: list) -> bool:
    if role == "time":
        return _are_times(values, lenient=True)
    if role in ("rating", "order"):
        return all(value is None or value == "" or is_number(value) for value in values)
    return _may_be_id(values)


def _may_be_id(values: list) -> bool:
    known = [value for value in values if value is not None]
    if not known or any(isinstance(value, list | dict | bool) for value in known):
        return False
    return all(value == value // 1 for value in known if isinstance(value, float))


def _are_times(values: list, lenient: bool = False) -> bool:
    """Whether all values are times between 1990 and tomorrow. lenient: or dates that can be read in two ways."""
    try:
        seconds = read_times(values)[1].seconds
    except InputError:
        return lenient
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        return False
    if not len(seconds) or seconds.null_count > len(seconds) // 2:
        return False
    low, high = pc.min(seconds).as_py(), pc.max(seconds).as_py()
    return lenient or (low >= EARLY and high <= time.time() + 86_400)


def read_times(values: list, where: str = "the log") -> tuple[TimeReader, Times]:
    """The reader that ingest would choose for some values, and what it makes of them; InputError as there."""
    if any(isinstance(value, str) for value in values):
        values = [None if value is None else str(value) for value in values]
    array = pa.array(values)
    reader = TimeReader.of(pa.chunked_array([array]), where)
    return reader, reader(array)


def _said_time(role: str, values: list) -> str:
    if role != "time":
        return ""
    try:
        reader, _ = read_times(values)
    except (InputError, pa.ArrowInvalid, pa.ArrowTypeError):
        return ""
    if reader.digits:
        return ", dates written as numbers"
    return f", numbers in {reader.usual}" if reader.usual and any(map(is_number, values)) else ""


def _are_ratings(values: list) -> bool:
    known = [float(value) for value in values if is_number(value)]
    return bool(known) and len(set(known)) <= _BEST_RATING and all(abs(value) <= _BEST_RATING for value in known)


def _spaced(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()


def _id(value: object) -> str:
    return str(int(value)) if isinstance(value, float) and value == int(value) else str(value)


def _short(text: str) -> str:
    return text if len(text) <= 24 else text[:24] + "..."
