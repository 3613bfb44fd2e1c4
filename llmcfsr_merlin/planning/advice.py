"""The sections below `data` of a drafted recipe: filters, split, history, text and model, each with its reason."""

from collections.abc import Callable

import numpy as np

from llmcfsr_merlin.config.prepare_settings import PrepareConfig
from llmcfsr_merlin.dataset.prepare.time_cut import format_time
from llmcfsr_merlin.planning.item_texts import ItemText
from llmcfsr_merlin.planning.log_facts import Facts, Log, Sizes, facts_of, sizes_of
from llmcfsr_merlin.planning.yaml_lines import Lines
from llmcfsr_merlin.runtime.errors import InputError

_CORES = (5, 3, 2)
_KEEPS = 0.6  # of the interactions: the strictest filter that leaves so many is taken
_LENGTHS = (50, 100)
_CUT = 0.05  # of the training interactions that max_length may leave out before a longer one is taken
_FEWEST = 200  # rows of validation and of test for a temporal split
_RETURNS = 0.005  # of the validation targets: below it nobody returns
_TIED = 0.05  # of the steps
_MOST_TIED = 0.5  # of users' last steps, in a log of days
_IN_ORDER = 0.9  # of tied steps that go up in the catalogue: sorted by item
_TAIL = 0.8  # of the items, and of the users, are the tail

Say = Callable[[str, str], None]


def advise(lines: Lines, log: Log | None, counts: dict, text: ItemText | None, say: Say) -> None:
    """Write the sections prepare, embed or model, and evaluate. say: takes what was decided, and how."""
    if log is None:
        lines.blank()
        lines.comment(
            "Filters, split, history and lengths are advised from the log: run `llmcfsr init` again with what is "
            "decided, e.g. --set data.columns.user=NAME, and another --out."
        )
        _text(lines, text, say)
        return
    facts = facts_of(log)
    _duplicates(lines, counts, facts, say)
    lines.section("prepare")
    _said_log(lines, facts)
    chosen, kept = _core(lines, log, say)
    chosen = _length(lines, kept, chosen, say)
    sizes = sizes_of(kept, chosen, None)
    _ties(lines, facts, sizes, kept, say)
    _split(lines, log, kept, chosen, say)
    _text(lines, text, say)
    _evaluate(lines, kept, sizes, say)


def _duplicates(lines: Lines, counts: dict, facts: Facts, say: Say) -> None:
    repeated = counts.get("duplicates_kept", 0)
    if not repeated:
        return
    what = f"{repeated:,} of {facts.interactions:,} rows repeat a (user, item, time)"
    if facts.whole_days or facts.untimed:
        lines.comment(f"{what}: several pieces on one day, or rows written twice? `drop` keeps one of each.", 1)
        lines.off("duplicates", "drop", None, 1)
    else:
        lines.put("duplicates", "drop", f"{what}, to the second: rows written twice rather than bought twice", 1)
        say("duplicates", f"drop: {what}")


def _said_log(lines: Lines, facts: Facts) -> None:
    days = f"{format_time(facts.first)[:10]} to {format_time(facts.last)[:10]}{', whole days' * facts.whole_days}"
    span = "positions in an order, no times" if facts.untimed else days
    lines.comment(
        f"The log: {facts.interactions:,} interactions, {facts.users:,} users, {facts.items:,} items, {span}; a user "
        f"has {facts.mean_length:.1f} on average, at most {facts.longest:,}. {facts.returns:.1%} of the interactions "
        "are with an item that the user had before.",
        1,
    )


def _core(lines: Lines, log: Log, say: Say) -> tuple[PrepareConfig, Log]:
    """Write the filter; its settings, and the log that it leaves."""
    found: list[tuple[int, PrepareConfig, Log]] = []
    table = []
    for core in _CORES:
        settings = PrepareConfig(min_user=core, min_item=core)
        try:
            left, _ = log.filtered(settings)
        except InputError:
            table.append(f"{core}: nothing")
            continue
        found.append((core, settings, left))
        share = len(left.item) / len(log.item)
        table.append(f"{core}: {len(left.first):,} users, {len(np.unique(left.item)):,} items, {share:.0%}")
    if not found:
        lines.put("filter", "none", "no filter by counts leaves anything", 1)
        return PrepareConfig(filter="none"), log.filtered(PrepareConfig(filter="none"))[0]
    wide = [one for one in found if len(one[2].item) >= _KEEPS * len(log.item)]
    core, settings, left = (wide or found[-1:])[0]
    why = f"users and items with at least so many interactions, until all have them. What is left by {'; '.join(table)}"
    lines.put("min_user", core, why, 1)
    lines.put("min_item", core, indent=1)
    say(
        "filter",
        f"{core}-core: {len(left.first):,} users, {len(np.unique(left.item)):,} items, "
        f"{len(left.item) / len(log.item):.0%} of the interactions",
    )
    return settings, left


def _length(lines: Lines, kept: Log, settings: PrepareConfig, say: Say) -> PrepareConfig:
    shares = {}
    for length in (*_LENGTHS, 200):
        shares[length] = sizes_of(kept, settings.model_copy(update={"max_length": length}), None).cut_share
    chosen = next((length for length in _LENGTHS if shares[length] <= _CUT), _LENGTHS[-1])
    cuts = ", ".join(f"{length}: {share:.1%}" for length, share in shares.items())
    why = f"the latest items that are read of a history. Training data cut by {cuts}; a longer one takes longer"
    lines.put("max_length", chosen, why, 1)
    say("max_length", f"{chosen}: cuts {shares[chosen]:.1%} of the training data")
    return settings.model_copy(update={"max_length": chosen})


def _ties(lines: Lines, facts: Facts, sizes: Sizes, kept: Log, say: Say) -> None:
    if facts.tied < _TIED:
        return
    last = f"{sizes.tied_last:,} of {len(kept.first):,} users' last"
    tied = f"{facts.tied:.0%} of the steps are between equal times ({last})"
    if facts.ascending is not None and max(facts.ascending, 1 - facts.ascending) >= _IN_ORDER:
        lines.put("ties", "shuffle", f"{tied}, sorted by item there: an order in which nobody clicked", 1)
        say("ties", f"shuffle: {tied}, sorted by item")
        return
    if facts.whole_days and sizes.tied_last > _MOST_TIED * len(kept.first):
        lines.put("ties", "shuffle", f"{tied}: the times are days, and which item was the last of one is not known", 1)
        say("ties", f"shuffle: {tied}")
        return
    lines.comment(f"{tied}; the order of the file is kept (source). If it means nothing: shuffle.", 1)
    lines.put("ties", "source", indent=1)


def _split(lines: Lines, log: Log, kept: Log, settings: PrepareConfig, say: Say) -> None:
    """Leave-one-out, with the temporal split as a commented choice if the log has times for one."""
    why = "each user's last item is the test, the one before it the validation: the model learns from all days"
    lines.put("split", "leave_one_out", why, 1)
    if log.untimed:
        lines.comment("(a temporal split needs times)", 1)
        say("split", "leave_one_out: the log has no times")
        return
    temporal = PrepareConfig.model_validate(settings.model_dump() | {"split": "temporal"})
    try:
        cut = log.cut(temporal)
        sizes = sizes_of(kept, temporal, cut)
    except InputError:
        sizes, cut = None, None
    if cut is None or sizes is None or min(sizes.rows["valid"], sizes.rows["test"]) < _FEWEST:
        found = "none" if sizes is None else f"{sizes.rows['valid']:,} and {sizes.rows['test']:,}"
        lines.comment(f"(a temporal split at 80% and 90% of the log would validate and test on {found} users)", 1)
        say("split", "leave_one_out: too few users on both sides of a cut in time")
        return
    lines.comment(
        f"To measure how it does on days that come later, cut all users at {format_time(cut.valid_from)[:10]} and "
        f"{format_time(cut.test_from)[:10]} (80% and 90% of the log; {sizes.rows['valid']:,} and "
        f"{sizes.rows['test']:,} users): the model then learns from the days before only.",
        1,
    )
    lines.off("split", "temporal", None, 1)
    say("split", "leave_one_out (temporal stands as a comment)")


def _text(lines: Lines, text: ItemText | None, say: Say) -> None:
    if text is not None and text.labels:
        lines.section("embed")
        lines.put("template", text.template, text.said, 1)
        say("text", f"template {text.template}: {', '.join(text.labels)}")
        return
    lines.section("model")
    why = "no table of items was given" if text is None else "the items have no text"
    lines.comment(f"{why}: a model of ids, without the semantic view and the content score of llm_cfsr.", 1)
    lines.put("name", "ids_only", indent=1)
    say("model", f"of ids: {why}")


def _evaluate(lines: Lines, kept: Log, sizes: Sizes, say: Say) -> None:
    lines.section("evaluate")
    rare = sizes.returning < _RETURNS
    what = f"{sizes.returning:.1%} of the validation targets are items that the user had before"
    why = "they stay in the ranking, and the scorer `repeats` learns it"
    why = "nobody returns, so they are left out" if rare else why
    lines.put("exclude_history", rare, f"{what}: {why}. Decides training, the tables and what is served", 1)
    say("history", f"{'masked' if rare else 'kept'}: {what}")
    lengths = np.diff(np.r_[kept.first, len(kept.user)]) - 1
    item = int(np.quantile(sizes.item_counts, _TAIL)) + 1
    user = int(np.quantile(lengths, _TAIL)) + 1
    lines.put("tail_item", item, "four of five items have fewer training interactions: the tail in the tables", 1)
    lines.put("tail_user", user, "four of five users have a shorter history", 1)
    lines.put("baselines", ["popularity", "item_knn"], "to compare with, in seconds; sasrec trains a second network", 1)
