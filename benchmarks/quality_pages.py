"""docs/results/<dataset>-<split>.md and their figures, and the tables in docs/results/README.md and README.md, from the
rows there.

The first screen of a page answers whether llm_cfsr is better than the best other model, for whom, and how sure that is.
The layout is in quality_page.md.j2.
"""

from pathlib import Path

import jinja2
import pandas as pd
import quality_figures as figures
from quality_rows import read
from quality_runs import recipe_of

from llmcfsr_merlin.config.load import Config
from llmcfsr_merlin.dataset.names import HISTORY_RULES
from llmcfsr_merlin.evaluation.groups import LAST_PAIR, SHUFFLED, SUMMARY_GROUPS

FOCUS, METRIC = "llm_cfsr", "ndcg@10"
OF_IDS = "ids_only"  # what a page is about where items have no text
SPLITS = {"loo": "leave-one-out", "temporal": "temporal split"}
PROTOCOLS = {"full": "full ranking", "sampled": "1 positive, 100 uniform negatives"}
LISTS = tuple(f"{name}@10" for name in ("coverage", "gini", "arp", "novelty", "ild", "serendipity", "calibration"))
EARLIER = "before"  # the commit of rows that are older than results.csv.gz
_SAME = 5e-5  # by which llm_cfsr's mean in a test differs at most from that of the rows it is of
_OF_OTHERS = " (the tests, and the figure by group, are of an earlier {model}, of {value:.4f}, as of commit {commit})"
_START, _END = "<!-- summary -->", "<!-- end of summary -->"
_FRONT = {
    "llm_cfsr": "**LLM-CFSR**", "llm_init": "LLMInit", "bsarec": "BSARec", "sasrec": "SASRec", "gru4rec": "GRU4Rec",
    "two_tower_ssl": "two-tower SSL", "llm_esr": "LLM-ESR", "item_knn": "item-kNN", "ease": "EASE",
    "popularity": "popularity",
}  # fmt: skip


def write(folder: Path) -> None:
    """All pages of the rows in `folder`."""
    rows, runs, paired, published = (
        read(name, folder) for name in ("results.csv.gz", "runs.csv", "paired.csv.gz", "published.csv")
    )
    layout = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), trim_blocks=True, keep_trailing_newline=False
    ).get_template("quality_page.md.j2")
    heads = ["data, history", "better?", "llm_cfsr, best other model", "difference", "tail items", "seeds"]
    summary, lacking, pages = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"], [], {}
    for (dataset, split), of in rows.groupby(["dataset", "split"]):
        parts = (frame[_is_of(frame, dataset, split)] if len(frame) else frame for frame in (runs, paired, published))
        page = pages[dataset, split] = Page(dataset, split, of, *parts)
        drawn = {"deciles": figures.deciles(folder, page), "forest": figures.forest(folder, page)}
        names = {name: path and path.name for name, path in drawn.items()}
        text = layout.render(page=page, answer=page.answer, **names)
        (folder / f"{page.slug}.md").write_text(text.rstrip() + "\n")
        summary += page.summary
        lacking += [page.link] if page.answer is None else []
    if lacking:
        summary += ["", f"Without llm_cfsr so far: {', '.join(lacking)}."]
    _put(summary, folder / "README.md")
    if {("beauty", "loo"), ("yelp", "loo")} <= pages.keys():
        _put(front(pages["beauty", "loo"], pages["yelp", "loo"]), folder.resolve().parents[1] / "README.md")


def front(beauty: "Page", yelp: "Page") -> list[str]:
    """The table of the project's first page: HR@10 / NDCG@10 in full ranking."""
    columns = [(beauty, "masked"), (yelp, "kept"), (yelp, "masked")]
    heads = [
        f"{name}{part}" for name in ("Beauty, masked", "Yelp, kept", "Yelp, masked") for part in ("", ", tail items")
    ]
    lines = [f"| | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for model, named in _FRONT.items():
        cells = []
        for page, rule in columns:
            for group in ("overall", "tail_item"):
                found = [page.of(model, group, metric, rule) for metric in ("hr@10", "ndcg@10")]
                told = "-" if None in found else " / ".join(f"{value:.4f}".removeprefix("0") for value in found)
                cells.append(f"**{told}**" if model == FOCUS else told)
        lines.append(f"| {named} | {' | '.join(cells)} |")
    return lines


def _put(lines: list[str], path: Path) -> None:
    """Put lines between the marks of a page that has them."""
    if path.is_file() and _START in (text := path.read_text()):
        head, tail = text.split(_START)[0], text.split(_END)[1]
        path.write_text(f"{head}{_START}\n" + "\n".join(lines) + f"\n{_END}{tail}")


def _is_of(frame: pd.DataFrame, dataset: str, split: str) -> pd.Series:
    """Which rows are of a dataset and split; published numbers are all of leave-one-out."""
    return (frame["dataset"] == dataset) & (frame["split"] == split if "split" in frame else split == "loo")


def _said(test: dict) -> str:
    return "{difference:+.4f}, 95% interval {low:+.4f} to {high:+.4f}, p after Holm {p_holm:.4f}".format(**test)


class Page:
    """What the page of one dataset and split says. rows, runs, paired, published: what the files have of it."""

    def __init__(self, dataset, split, rows, runs, paired, published):
        self.dataset, self.split, self.slug, self.title = dataset, split, f"{dataset}-{split}", SPLITS[split]
        anew = set(rows.loc[rows["commit"] != EARLIER, "model"])
        rows = rows[(rows["commit"] != EARLIER) | ~rows["model"].isin(anew)]  # seeds of two versions make no mean
        self.rows = rows
        self.focus = OF_IDS if OF_IDS in set(rows["model"]) and FOCUS not in set(rows["model"]) else FOCUS
        served = Config.load(recipe_of(dataset)).evaluate.history
        known = set(rows["rule"])
        self.rules = [rule for rule in sorted(HISTORY_RULES, key=lambda one: one != served) if rule in known]
        keys = ["protocol", "rule", "model", "group", "metric"]
        self.values = rows.groupby(keys)["value"].agg(["mean", "std", "count"])
        self.users = rows.groupby("group")["users"].first().to_dict()
        self.groups = [group for group in SUMMARY_GROUPS if group in self.users]
        self.earlier = set(rows.loc[rows["commit"] == EARLIER, "model"])
        # Tests of an earlier one say nothing of the one that is measured now.
        self.paired = paired if self.focus in self.earlier or not len(paired) else paired[paired["commit"] != EARLIER]
        names = sorted(set(rows["model"]), key=lambda model: (-(self.of(model) or 0.0), model))
        self.parts = [model for model in names if model.startswith(("with_", "without_"))]
        self.vectors = [model for model in names if "_on_" in model]
        self.models = [model for model in names if model not in (*self.parts, *self.vectors)]
        self.published = [self._beside(row) for row in published.to_dict("records")]
        columns = ("model", "seed", "trials", "most_epochs", "epochs", "fit_seconds", "rank_seconds", "commit")
        self.runs = runs[list(columns)].to_numpy().tolist() if len(runs) else []

    def of(self, model, group="overall", metric=METRIC, rule=None, protocol="full") -> float | None:
        """A mean over seeds, None if it is not measured. rule: None, that of the recipe."""
        key = (protocol, rule or self.rules[0], model, group, metric)
        return float(self.values["mean"][key]) if key in self.values.index else None

    def cell(self, *key: str) -> str:
        """key: protocol, rule, model, group, metric."""
        if key not in self.values.index:
            return "-"
        mean, spread, seeds = self.values.loc[key]
        return f"{mean:.4f}" + (f" ± {spread:.4f}" if seeds > 1 else "")

    def best_other(self, group="overall", rule=None) -> str | None:
        """The best model beside the one that the page is about, and its variants."""
        values = {model: self.of(model, group, rule=rule) for model in self._others}
        known = {model: value for model, value in values.items() if value is not None}
        return max(known, key=known.__getitem__, default=None)

    @property
    def answer(self) -> dict | None:
        return self.answer_for(self.rules[0])

    def answer_for(self, rule: str) -> dict | None:
        """llm_cfsr and the best other model by a history rule; None if one of them is not measured.

        verdict: better or worse only if a paired test over users says so (p after Holm below 0.05).
        """
        other = self.best_other(rule=rule)
        ours, theirs = self.of(self.focus, rule=rule), other and self.of(other, rule=rule)
        if ours is None or not theirs:
            return None
        seeds = [int(self.values["count"]["full", rule, model, "overall", METRIC]) for model in (self.focus, other)]
        found = {"other": other, "ours": ours, "theirs": theirs, "seeds": seeds, "test": "", "verdict": "undecided"}
        found["difference"] = f"{ours / theirs - 1:+.1%}"
        if row := self._tested(other, rule):
            # Of a temporal split a user's targets are averaged first, so that the two means are not the same.
            of_these = self.split != "loo" or abs(row["value"] - ours) < _SAME
            found["test"] = _said(row) + ("" if of_these else _OF_OTHERS.format(**row))
            if of_these:
                found["difference"] += f" [{row['low'] / theirs:+.0%}, {row['high'] / theirs:+.0%}]"
            shown = "better" if row["difference"] > 0 else "worse"
            found["verdict"] = shown if row["p_holm"] < 0.05 else "no difference shown"
        elif tests := {model: row for model in self._others if (row := self._tested(model, rule))}:
            nearest = max(tests, key=lambda model: self.of(model, rule=rule) or 0.0)
            found["nearest"] = f"{nearest}, {_said(tests[nearest])}"
        return found

    @property
    def _others(self) -> list[str]:
        return [model for model in self.models if not model.startswith(self.focus)]

    def _tested(self, other: str, rule: str) -> dict | None:
        """The paired test over everybody, if there is one."""
        paired = self.against(other, rule)
        rows = paired[paired["group"] == "overall"].to_dict("records") if len(paired) else []
        return rows[0] if rows else None

    @property
    def link(self) -> str:
        return f"[{self.dataset}, {self.title}]({self.slug}.md)"

    @property
    def summary(self) -> list[str]:
        """Lines of the table in README.md."""
        lines = []
        for rule in self.rules:
            if found := self.answer_for(rule):
                bold = "**" if found["verdict"] in ("better", "worse") else ""
                old = " †" if self.focus in self.earlier else ""
                ours = f"{found['ours']:.4f}{old}" if self.focus == FOCUS else f"{self.focus} {found['ours']:.4f}"
                cells = [f"{self.link}, {rule}", f"{bold}{found['verdict']}{bold}"]
                cells += [f"{ours}, {found['other']} {found['theirs']:.4f}", found["difference"]]
                cells += [self._share("tail_item", rule)[0], ", ".join(map(str, found["seeds"]))]
                lines.append(f"| {' | '.join(cells)} |")
        return lines

    @property
    def for_whom(self) -> list[list[str]]:
        """A row a group: its name, how many targets, and a cell a history rule."""
        return [
            [group, f"{self.users[group]:,}", *(self._compared(group, rule) for rule in self.rules)]
            for group in self.groups
            if group == "overall" or self.users[group] != self.users["overall"]  # nobody returns, or all do
        ]

    def _compared(self, group: str, rule: str) -> str:
        """llm_cfsr in a group, and by how much it is better than the best other model there."""
        ours, (share, other) = self.of(self.focus, group, rule=rule), self._share(group, rule)
        return "-" if ours is None else f"{ours:.4f}, {share}" + (f" ({other})" if other else "")

    def _share(self, group: str, rule: str) -> tuple[str, str]:
        """What llm_cfsr gains in a group over the best other model there, and that model's name, empty without one."""
        other = self.best_other(group, rule)
        ours, theirs = self.of(self.focus, group, rule=rule), other and self.of(other, group, rule=rule)
        if ours is None:
            return "-", ""
        if not theirs:
            return "others find none" if ours else "nobody finds any", ""
        return f"{ours / theirs - 1:+.0%}", other

    def against(self, other: str, rule: str | None = None) -> pd.DataFrame:
        """Paired tests in full ranking, of NDCG@10. rule: None, that of the recipe."""
        if not len(self.paired):
            return self.paired
        wanted = {"against": other, "rule": rule or self.rules[0], "protocol": "full", "metric": METRIC}
        wanted["model"] = self.focus
        return self.paired[(self.paired[list(wanted)] == pd.Series(wanted)).all(axis=1)]

    def tables(self, models: list[str]) -> list[tuple[str, list, list]]:
        """(title, columns, rows) of each protocol."""
        found = []
        for protocol, title in PROTOCOLS.items():
            columns = [("overall", metric) for metric in ("hr@10", "ndcg@10", "mrr@10", "mrr")]
            columns += [(group, METRIC) for group in self.groups[1:]]
            known = {(key[3], key[4]) for key in self.values.index if key[0] == protocol and key[2] in models}
            columns = [column for column in columns if column in known]
            rows: list[list] = []
            for rule in self.rules:
                for model in models:
                    if (key := (protocol, rule, model, "overall", METRIC)) not in self.values.index:
                        continue
                    named = model + (" †" if model in self.earlier else "")
                    cells = [self.cell(protocol, rule, model, *column) for column in columns]
                    alike = [row for row in rows if protocol == "sampled" and (row[0], row[3:]) == (named, cells)]
                    if alike:  # candidates are outside of the history: without weights the rules do not differ
                        alike[0][1] = "both"
                    else:
                        rows.append([named, rule, int(self.values["count"][key]), *cells])
            if rows:
                found.append((title, columns, rows))
        return found

    def _beside(self, row: dict) -> list[str]:
        """A published number beside ours."""
        paper = [row["hr@10"], row["ndcg@10"]]

        def ours(model) -> list[float | None]:
            return [self.of(model, "overall", metric, row["rule"], row["protocol"]) for metric in ("hr@10", "ndcg@10")]

        def said(values) -> str:
            return "" if None in values else " / ".join(f"{value:.4f}" for value in values)

        same = ours(row["model"])
        near = "" if None in same else " / ".join(f"{mine - theirs:+.4f}" for mine, theirs in zip(same, paper))
        source = row["source"] + (f"; {row['remark']}" if isinstance(row["remark"], str) else "")
        return [
            row["method"],
            row["rule"],
            row["protocol"],
            said(paper),
            said(same),
            near,
            said(ours(self.focus)),
            source,
        ]

    @property
    def lists(self) -> tuple[list[str], list[list[str]]]:
        names = [name for name in LISTS if any(self.of(model, metric=name) is not None for model in self.models)]
        rows = []
        for model in self.models:
            cells = (self.of(model, metric=name) for name in names)
            told = ("-" if one is None else f"{one:.1f}" if one >= 100 else f"{one:.4f}" for one in cells)
            rows.append([model, *told])
        return names, rows

    @property
    def order(self) -> tuple[list[str], list[list[str]]]:
        groups = {"overall": "all", **{name: name.split("_")[-1] for name in LAST_PAIR}, SHUFFLED: "histories shuffled"}
        groups = {name: said for name, said in groups.items() if name in self.users}
        known = [model for model in self.models if any(self.of(model, name) is not None for name in [*groups][1:])]
        rows = [[model, *(self.cell("full", self.rules[0], model, name, METRIC) for name in groups)] for model in known]
        return [*groups.values()] if known else [], rows

    @property
    def tests(self) -> list[list[str]]:
        if not len(self.paired):
            return []
        shown = self.paired[(self.paired["metric"] == METRIC) & self.paired["group"].isin(("overall", "tail_item"))]
        rows = []
        for row in shown.sort_values(["rule", "protocol", "group", "difference"]).to_dict("records"):
            bold = "**" if row["p_holm"] < 0.05 else ""
            told = [f"{bold}{row['difference']:+.4f}{bold}", "[{low:+.4f}, {high:+.4f}]".format(**row)]
            rows.append([row["against"], row["rule"], row["protocol"], row["group"], *told, f"{row['p_holm']:.4f}"])
        return rows
