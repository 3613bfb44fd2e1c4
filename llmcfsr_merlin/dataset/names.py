"""The names shared by all stages: columns, reserved ids, padding side, artefacts.

Every other module imports them from here.
"""

# Columns of the interactions and of everything made from them.
USER = "user_id"  # string, raw id as in the log
ITEM = "item_id"  # string (raw id) in logs and items; int64 (encoded id) in sequences
TIME = "timestamp"  # int64, unix seconds, or the position in the user's order if the log has no time
SUBSECOND = "subsecond"  # float64 in [0, 1), the part of a second after TIME; logs without the column have 0
ROW = "row"  # int64, position in the source: the stable tie-break of equal times
RATING = "rating"  # float32, null if the log has none
CODE = "code"  # int64, the encoded item id (NVTabular's Categorify)
COUNT = "count"  # int64, interactions of an item in the whole filtered log
TRAIN_COUNT = "train_count"  # int64, interactions of an item in the training part only
TITLE = "title"  # string, the item attribute that is displayed
VECTOR = "vector"  # fixed-size list of float32, the semantic vector of an item
HAS_TEXT = "has_text"  # bool, false where the item had no attribute and carries the mean vector

# Encoded ids as NVTabular 23.8 Categorify assigns them; tests/unit/dataset/test_names.py checks a fitted workflow.
PAD, NULL, OOV = 0, 1, 2
FIRST_ITEM = 3  # row r of every item-side array belongs to encoded id r; rows below this are never recommended

# The user's own items in full ranking: masked leaves them out, kept ranks them too.
MASKED, KEPT = "masked", "kept"
HISTORY_RULES = (MASKED, KEPT)

# Histories are padded on the RIGHT (as in Transformers4Rec): [a, b, c, 0, 0].


# Artefacts, relative to their stage's directory.
INTERACTIONS = "interactions"  # ingest: part-*.parquet of USER, ITEM, TIME, SUBSECOND, ROW, RATING
ITEMS = "items"  # ingest: part-*.parquet of ITEM and one column per attribute (string or list of string)
SEQUENCES = "sequences"  # prepare: part-*.parquet of USER, ITEM (list of encoded ids, full history in time order)
TRAIN_ITEMS, VALID_ITEMS = "train_items", "valid_items"  # int64, in sequences of a temporal split alone: the user's
# interactions before validation and before test; the schema's metadata has TARGETS, the setting prepare.targets
TARGETS = "targets"
TIED = "tied"  # list of bool beside ITEM, in sequences and train: the interaction has the time of the one before it in
# the row. Files of earlier versions lack it: then nothing is known of ties
SPLITS = ("train", "valid", "test")  # prepare: part-*.parquet, rows cut to the model's length (prepare/sequences.py)
VOCABULARY = "vocabulary.parquet"  # prepare: ITEM (raw), CODE, COUNT, TRAIN_COUNT; sorted by CODE, 3, 4, ...
# prepare, of an update: a folder with SEQUENCES and VOCABULARY of its own, in which the day is what is asked for;
# the rows of train of the day's users; ITEM (raw) and TIME of each item's last interaction
DAY, RECENT, LAST_SEEN = "day", "recent", "last_seen.parquet"
SCHEMA = "schema.pbtxt"  # prepare: Merlin schema of the splits
WORKFLOW = "workflow"  # prepare, if NVTabular is installed: its fitted Categorify, for users of merlin-systems
VECTORS = "vectors"  # embed: part-*.parquet of ITEM, VECTOR, HAS_TEXT
LEXICAL = "lexical"  # embed: the same for the lexical vectors
MODEL_WEIGHTS = "model.safetensors"  # train: all weights and frozen buffers
MODEL_CONFIG = "model.json"  # train: the description from which the model is built before its weights are read
TITLES = "titles.parquet"  # train, of a model with added items: ITEM, TITLE of the items that have one
TRAIN_HISTORY = "history.json"  # train: one dict per epoch: epoch, loss, ndcg@10, hr@10, seconds
METRICS = "metrics.json"  # evaluate: list of {recipe, seed, protocol, history, weights, group, metric, value, count}
RANKS = "ranks.parquet"  # evaluate: one row per recipe and user; the target's rank in each protocol and history rule
CASES = "cases.parquet"  # evaluate: one row per user, its sequence and the stored negatives of the sampled protocol
MODEL_REPOSITORY = "model_repo"  # export: the Triton model repository


def history_rule(exclude_history: bool) -> str:
    """The history rule of `evaluate.exclude_history`."""
    return MASKED if exclude_history else KEPT
