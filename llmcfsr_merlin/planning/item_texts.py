"""Which attributes of the items stage embed would read, and which it leaves out."""

from dataclasses import dataclass

from llmcfsr_merlin.dataset.names import ITEM
from llmcfsr_merlin.dataset.raw import amazon, yelp
from llmcfsr_merlin.dataset.raw.metadata import TableAttributes
from llmcfsr_merlin.planning.file_heads import Head
from llmcfsr_merlin.text.prompts import Prompter

_EXAMPLE = 160


@dataclass(frozen=True)
class ItemText:
    """template: embed.template. labels: the attributes that prompts hold. said: that in a sentence or two."""

    template: str
    labels: tuple[str, ...]
    said: str


def describe_items(head: Head, data_format: str, item: str | None) -> ItemText:
    """What the first items of a table have to say."""
    template = {"amazon": "beauty", "yelp": "yelp"}.get(data_format, "generic")
    attributes = {"amazon": amazon.attributes, "yelp": yelp.attributes}.get(data_format) or TableAttributes(str(item))
    prompter = Prompter.of(template)
    rows = [dict(zip(head.columns, values)) for values in zip(*head.columns.values())]
    read = [attributes(row) for row in rows]
    used: dict[str, int] = {}
    for row in read:
        for label, _ in prompter.attributes(row):
            used[label] = used.get(label, 0) + 1
    example = next((text for row in read if (text := prompter(row))), "")
    names = {str(name).replace("_", " ") for row in read for name in row if name != ITEM}
    left = sorted(names - set(used))
    said = ", ".join(f"{label} ({count / len(read):.0%})" for label, count in used.items()) or "nothing"
    without = f"; left out (empty, or no text, or it would leak popularity): {', '.join(left[:12])}" if left else ""
    short = example[:_EXAMPLE] + ("..." if len(example) > _EXAMPLE else "")
    return ItemText(template, tuple(used), f"a prompt holds {said}{without}. The first one: {short!r}")
