"""Users a second of the evaluation's full ranking, beside RecTools' TorchRanker on the same factors and filter.

    pip install rectools --target DIR --no-deps    # it resolves with no profile of ours
    PYTHONPATH=DIR python benchmarks/evaluation.py [--repeats 5] [--device cuda]

Work: the ten best items of each user without the history, and the target's rank. RecTools has no function for the
second: it is counted by a plain second pass over the scores, in the ranker's batches; what TorchRanker takes for the
ten alone is told beside it. Ours ranks by both history rules, reads the cases from Parquet and adds up the measures of
the lists besides. The sides take turns; medians, and the median of the ratios, go into
benchmarks/results/evaluation.json. On the CPU one thread and its processor time, which other work on the machine hardly
changes; on a GPU the time of the clock.
"""

import argparse
import json
import resource
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy import sparse

from llmcfsr_merlin.dataset.names import FIRST_ITEM, ITEM, SEQUENCES, USER
from llmcfsr_merlin.evaluation.cases import write_cases
from llmcfsr_merlin.evaluation.ranks import RANK, rank_users
from llmcfsr_merlin.runtime.stage import write_json

RESULTS = Path(__file__).parent / "results" / "evaluation.json"
SIZES = ((4_096, 12_000), (1_024, 100_000), (64, 1_000_000))  # users, items
K, FACTORS, LENGTH, BATCH = 10, 64, 10, 128


def measure(users: int, items: int, repeats: int, device: str, ranker_of) -> dict:
    generator = np.random.default_rng(0)
    sequences = generator.integers(FIRST_ITEM, items + FIRST_ITEM, (users, LENGTH + 1))
    for row in sequences:  # the target is new, as the filter of the other side would hide it
        while row[-1] in row[:-1]:
            row[-1] = generator.integers(FIRST_ITEM, items + FIRST_ITEM)
    people, things = (generator.normal(size=(size, FACTORS)).astype(np.float32) for size in (users, items))
    table = torch.cat([torch.zeros(FIRST_ITEM, FACTORS), torch.from_numpy(things)]).to(device)
    factors = torch.from_numpy(people).to(device)
    counts = np.r_[np.zeros(FIRST_ITEM, np.int64), np.ones(items, np.int64)]
    with tempfile.TemporaryDirectory() as folder:
        prepare = Path(folder)
        (prepare / SEQUENCES).mkdir()
        names = [f"{number:09d}" for number in range(users)]
        frame = pd.DataFrame({USER: names, ITEM: list(sequences)})
        frame.to_parquet(prepare / SEQUENCES / "part-0.parquet")
        write_cases(prepare, prepare / "cases.parquet", len(counts), negatives=0)

        def ours() -> np.ndarray:
            done = 0

            def scorer(histories: torch.Tensor) -> torch.Tensor:
                nonlocal done
                done += len(histories)
                return factors[done - len(histories) : done] @ table.T

            found = rank_users(
                scorer, prepare / "cases.parquet", train_counts=counts, max_length=LENGTH, protocols=("full",), ks=(K,),
                batch_size=BATCH,
            )  # fmt: skip
            return found.ranks[RANK["full", "masked"]].to_numpy()

        def theirs() -> np.ndarray:
            rows = np.repeat(np.arange(users), LENGTH)
            seen = sequences[:, :-1].ravel() - FIRST_ITEM
            hidden = sparse.csr_matrix((np.ones(len(rows), np.float32), (rows, seen)), (users, items))
            ranker = ranker_of(people, things, BATCH)
            start = clock()
            ranker.rank(np.arange(users), k=K, filter_pairs_csr=hidden)
            seconds["rectools, ten alone"].append(clock() - start)
            ranks = []
            for start in range(0, users, BATCH):
                part = slice(start, start + BATCH)
                scores = factors[part] @ table[FIRST_ITEM:].T
                mask = torch.from_numpy(hidden[part].toarray()).to(device) != 0
                scores = torch.masked_fill(scores, mask, -torch.inf)
                own = scores.gather(1, torch.from_numpy(sequences[part, -1:] - FIRST_ITEM).to(device))
                ranks.append((1 + (scores > own).sum(1)).cpu().numpy())
            return np.concatenate(ranks)

        clock = time.perf_counter if device == "cuda" else time.process_time
        seconds: dict[str, list[float]] = {"ours": [], "rectools": [], "rectools, ten alone": []}
        ranks = {}
        for _ in range(repeats):
            for name, run in (("ours", ours), ("rectools", theirs)):
                start = clock()
                ranks[name] = run()
                seconds[name].append(clock() - start)
    same = float((ranks["ours"] == ranks["rectools"]).mean())
    pairs = [other / own for own, other in zip(seconds["ours"], seconds["rectools"])]
    return {
        "users": users, "items": items, "factors": FACTORS, "repeats": repeats, "device": device,
        "ours users/s": round(users / statistics.median(seconds["ours"])),
        "rectools users/s": round(users / statistics.median(seconds["rectools"])),
        "rectools users/s, ten alone": round(users / statistics.median(seconds["rectools, ten alone"])),
        "ratio": round(statistics.median(pairs), 2), "ratios": [round(min(pairs), 2), round(max(pairs), 2)],
        "same ranks": same, "peak MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    from rectools.models.rank import Distance, TorchRanker

    torch.set_num_threads(torch.get_num_threads() if arguments.device == "cuda" else 1)

    def ranker_of(people, things, batch):
        return TorchRanker(Distance.DOT, arguments.device, people, things, batch)

    rows = []
    for users, items in SIZES:
        rows.append(measure(users, items, arguments.repeats, arguments.device, ranker_of))
        print(json.dumps(rows[-1]), flush=True)
        write_json(RESULTS, {"threads": torch.get_num_threads(), "torch": torch.__version__, "sizes": rows})


if __name__ == "__main__":
    main()
