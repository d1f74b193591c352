"""Tokenizers on small vocabularies, known facts, and (where installed) against the `tokenizers` package."""

from __future__ import annotations

import json
import random
import sys
import unicodedata
from pathlib import Path

import pytest
from report_files import BERT, VOCABULARY, bert_weights, write_bert_folder

from fastffn.report.bpe import GPT2_PATTERN, PRE_TOKENIZERS, BpeTokenizer, byte_alphabet
from fastffn.report.errors import FileFormatError
from fastffn.report.spm import SpmTokenizer
from fastffn.report.unicode_regex import compile_pattern, split, translate
from fastffn.report.wordpiece import WordPieceTokenizer

AWKWARD = [
    "",
    " ",
    "a",
    "Hello, world! It's 2026; I'll pay 3.50€.\n\n  x = y**2\t",
    "tabs\t\tand  spaces   \n\r\n end ",
    "naïve café — “quoted” ½ ²³ Ⅻ ٣ 漢字かな 한국어 😀🏳️‍🌈 \u00a0\u3000\u200b",
    "\x00\x1c\x1d\x85\ufeff\U0010ffff",
    "<end> is no token here, nor is <|im_start|>",
    "CAN'T WON'T i'Ve",
]


def random_text(rng: random.Random) -> str:
    ranges = [
        (0x20, 0x7E),
        (0x9, 0xD),
        (0xA0, 0x24F),
        (0x300, 0x36F),
        (0x660, 0x669),
        (0x4E00, 0x4E80),
        (0x1F600, 0x1F640),
    ]
    return "".join(chr(rng.randint(*rng.choice(ranges))) for _ in range(rng.randint(0, 40)))


def byte_level(merges: list[tuple[str, str]], pre: str = "smollm") -> BpeTokenizer:
    tokens = [*VOCABULARY, *(left + right for left, right in merges)]
    return BpeTokenizer(tokens, merges, PRE_TOKENIZERS[pre], {"<end>": 256, "<begin>": 257})


def test_byte_alphabet_is_a_bijection_that_keeps_ascii() -> None:
    alphabet = byte_alphabet()
    assert len(set(alphabet)) == 256
    assert alphabet[ord("a")] == "a" and alphabet[ord(" ")] == "Ġ" and alphabet[ord("\n")] == "Ċ"
    assert all(character.isprintable() and not character.isspace() for character in alphabet)


@pytest.mark.parametrize("pre", sorted(PRE_TOKENIZERS))
def test_bpe_round_trip(pre: str) -> None:
    tokenizer = byte_level([("h", "e"), ("l", "l"), ("he", "ll"), ("Ġ", "w"), ("Ã", "¯")], pre)
    rng = random.Random(1)
    for text in AWKWARD + [random_text(rng) for _ in range(200)]:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_bpe_merges_by_rank_not_by_length() -> None:
    tokens = byte_level([("b", "c"), ("a", "b"), ("a", "bc")]).tokens
    assert [tokens[i] for i in byte_level([("b", "c"), ("a", "b"), ("a", "bc")]).encode("abc")] == ["abc"]
    second = byte_level([("a", "b"), ("b", "c")])
    assert [second.tokens[i] for i in second.encode("abc")] == ["ab", "c"]
    # The leftmost of equals goes first.
    third = byte_level([("a", "a")])
    assert [third.tokens[i] for i in third.encode("aaa")] == ["aa", "a"]


def test_merges_do_not_cross_words() -> None:
    tokenizer = byte_level([("1", "2"), ("o", "Ġ")])
    assert [tokenizer.tokens[i] for i in tokenizer.encode("12")] == ["1", "2"]  # smollm: digits alone
    assert [tokenizer.tokens[i] for i in tokenizer.encode("o o")] == ["o", "Ġ", "o"]


def test_a_byte_outside_the_vocabulary_is_unknown_or_an_error() -> None:
    few = [*VOCABULARY[:10], "<unk>"]
    assert BpeTokenizer(few, [], (GPT2_PATTERN,), {"<unk>": 10}, unknown=10).encode("a") == [10]
    with pytest.raises(FileFormatError, match="no token 'a'"):
        BpeTokenizer(few, [], (GPT2_PATTERN,)).encode("a")


def test_special_tokens_only_when_asked() -> None:
    tokenizer = byte_level([])
    assert tokenizer.encode("<end>a", parse_special=True) == [256, ord_of("a")]
    assert 256 not in tokenizer.encode("<end>a")
    assert tokenizer.decode([257, ord_of("a"), 256]) == "<begin>a<end>"


def ord_of(character: str) -> int:
    return VOCABULARY.index(character)


def test_bpe_from_gguf_metadata_and_its_errors() -> None:
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": [*VOCABULARY, "ab"],
        "tokenizer.ggml.token_type": [1] * 256 + [3, 3, 1],
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.bos_token_id": 257,
        "tokenizer.ggml.add_bos_token": True,
    }
    tokenizer = BpeTokenizer.from_gguf(metadata)
    assert tokenizer.encode("ab") == [257, 258] and tokenizer.special == {"<end>": 256, "<begin>": 257}
    for change, message in (
        ({"tokenizer.ggml.model": "bert"}, "'bert' is not supported"),
        ({"tokenizer.ggml.pre": "tekken"}, "'tekken' is not supported"),
        ({"tokenizer.ggml.tokens": None}, "no key tokenizer.ggml.tokens"),
    ):
        damaged = {k: v for k, v in {**metadata, **change}.items() if v is not None}
        with pytest.raises(FileFormatError, match=message):
            BpeTokenizer.from_gguf(damaged)


@pytest.mark.parametrize(("pre", "key", "begins"), [
    ("llama-bpe", None, True), ("llama3", None, True), ("llama-bpe", False, False), ("smollm", None, False),
    ("qwen2", True, True),
])  # fmt: skip
def test_gguf_of_llama3_begins_texts_unless_it_says_otherwise(pre: str, key: bool | None, begins: bool) -> None:
    """Files from before the key existed do not have it, and mean that the model begins as it was trained to."""
    metadata = {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": pre, "tokenizer.ggml.tokens": VOCABULARY,
        "tokenizer.ggml.token_type": [1] * 256 + [3, 3], "tokenizer.ggml.merges": [],
        "tokenizer.ggml.bos_token_id": 257, "tokenizer.ggml.add_bos_token": key,
    }  # fmt: skip
    metadata = {name: value for name, value in metadata.items() if value is not None}
    assert BpeTokenizer.from_gguf(metadata).encode("a")[:-1] == ([257] if begins else [])
    del metadata["tokenizer.ggml.bos_token_id"]
    named = [*VOCABULARY[:257], "<|begin_of_text|>"]
    found = BpeTokenizer.from_gguf({**metadata, "tokenizer.ggml.tokens": named})
    assert found.encode("a")[:-1] == ([257] if begins else [])


def test_bpe_of_llama3_takes_whole_words_and_begins_texts(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    vocabulary = {token: i for i, token in enumerate([*VOCABULARY[:256], "abc", "bc"])}
    start = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<begin>", "type_id": 0}}, {"Sequence": {}}],
    }
    split = {
        "type": "Split",
        "pattern": {"Regex": PRE_TOKENIZERS["llama3"][0]},
        "behavior": "Isolated",
        "invert": False,
    }
    data = {
        "normalizer": {"type": "NFC"},
        "model": {"type": "BPE", "vocab": vocabulary, "merges": ["b c"], "ignore_merges": True},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, {"type": "ByteLevel", "use_regex": False}]},
        "post_processor": {"type": "Sequence", "processors": [{"type": "ByteLevel"}, start]},
        "added_tokens": [{"id": 258, "content": "<begin>"}],
    }
    path.write_text(json.dumps(data))
    tokenizer = BpeTokenizer.from_json(path)
    assert tokenizer.encode("abc") == [258, 256], "no merge makes abc"
    assert tokenizer.encode("xbc") == [258, ord_of("x"), 257]
    assert tokenizer.decode(tokenizer.encode("e\u0301")[1:]) == "\u00e9"
    assert len(tokenizer.encode("1234")) == 5
    path.write_text(json.dumps({**data, "normalizer": {"type": "Lowercase"}}))
    with pytest.raises(FileFormatError, match="Lowercase"):
        BpeTokenizer.from_json(path)


def test_bpe_from_tokenizer_json(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    vocabulary = {token: i for i, token in enumerate([*VOCABULARY[:256], "ab"])}
    data = {
        "model": {"type": "BPE", "vocab": vocabulary, "merges": [["a", "b"]]},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, {"type": "ByteLevel", "use_regex": True}],
        },
        "added_tokens": [{"id": 257, "content": "<end>"}],
    }
    path.write_text(json.dumps(data))
    tokenizer = BpeTokenizer.from_json(path)
    assert tokenizer.encode("ab<end>", parse_special=True) == [256, 257]
    for change, message in (
        ({"model": {**data["model"], "type": "Unigram"}}, "Unigram is not supported"),  # type: ignore[dict-item]
        ({"model": {**data["model"], "byte_fallback": True}}, "byte fallback"),  # type: ignore[dict-item]
        ({"pre_tokenizer": {"type": "Metaspace"}}, "Metaspace"),
        ({"pre_tokenizer": None}, "no pre_tokenizer"),
        ({"model": {}}, "cannot be read"),
    ):
        path.write_text(json.dumps({**data, **change}))
        with pytest.raises(FileFormatError, match=message):
            BpeTokenizer.from_json(path)


@pytest.mark.parametrize("name", ["L", "N", "Lu", "P"])
def test_unicode_classes_hold_exactly_their_characters(name: str) -> None:
    inside, outside = compile_pattern(rf"\p{{{name}}}"), compile_pattern(rf"\P{{{name}}}")
    mixed = compile_pattern(rf"[^\p{{{name}}}x]")
    rng = random.Random(0)
    codes = [*range(0x3000), *rng.sample(range(0x3000, sys.maxunicode + 1), 20_000)]
    for code in codes:
        belongs = unicodedata.category(chr(code)).startswith(name)
        assert (inside.match(chr(code)) is not None) == belongs, hex(code)
        assert (outside.match(chr(code)) is not None) != belongs
        assert (mixed.match(chr(code)) is not None) == (not belongs and chr(code) != "x")


def test_white_space_is_unicodes() -> None:
    space, other = compile_pattern(r"\s"), compile_pattern(r"[^\s]")
    white = {*range(0x9, 0xE), 0x20, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000}
    for code in range(0x3100):
        assert (space.match(chr(code)) is not None) == (code in white), hex(code)
        assert (other.match(chr(code)) is not None) == (code not in white)


def test_patterns_split_as_gpt2_does() -> None:
    assert split(GPT2_PATTERN, "I'll  go, 42 times!\n\nok ") == [
        "I",
        "'ll",
        " ",
        " go",
        ",",
        " 42",
        " times",
        "!",
        "\n",
        "\n",
        "ok",
        " ",
    ]
    assert split(r"\p{N}", "a12b") == ["a", "1", "2", "b"]
    assert "".join(split(GPT2_PATTERN, "\x00 x\u3000")) == "\x00 x\u3000"
    with pytest.raises(FileFormatError, match="does not know"):
        translate(r"\p{Han}")


def test_wordpiece_takes_the_longest_piece(tmp_path: Path) -> None:
    write_bert_folder(tmp_path, bert_weights())
    tokenizer = WordPieceTokenizer.from_folder(tmp_path, BERT["max_position_embeddings"])  # type: ignore[arg-type]

    def pieces(text: str) -> list[str]:
        return [tokenizer.tokens[i] for i in tokenizer.encode(text)]

    assert pieces("The éing, A.") == ["[CLS]", "the", "e", "##ing", ",", "a", ".", "[SEP]"]
    assert pieces("ab9") == ["[CLS]", "[UNK]", "[SEP]"]
    assert pieces("a\u0000b\ufffd c\td") == ["[CLS]", "a", "##b", "c", "d", "[SEP]"]
    assert pieces("") == ["[CLS]", "[SEP]"]
    assert pieces("x" * 101) == ["[CLS]", "[UNK]", "[SEP]"]
    assert len(WordPieceTokenizer.from_folder(tmp_path, 8).encode("a b c d e f g h i")) == 8
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    with pytest.raises(FileFormatError, match="no token"):
        WordPieceTokenizer.from_folder(tmp_path)
    (tmp_path / "vocab.txt").unlink()
    with pytest.raises(FileFormatError, match="neither"):
        WordPieceTokenizer.from_folder(tmp_path)


def spm() -> SpmTokenizer:
    plain = [("▁", -1.0), ("a", -2.0), ("b", -3.0), ("▁a", -0.5), ("ab", -0.4), ("▁ab", -0.3), ("bb", -0.1)]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *(token for token, _ in plain)]
    scores = [0.0] * 259 + [score for _, score in plain]
    return SpmTokenizer(tokens, scores, [2, 3, 3, *[6] * 256, *[1] * len(plain)], bos=1)


def test_spm_merges_by_score_and_falls_back_to_bytes() -> None:
    tokenizer = spm()

    def pieces(text: str) -> list[str]:
        return [tokenizer.tokens[i] for i in tokenizer.encode(text)]

    assert pieces("ab") == ["<s>", "▁ab"]
    assert pieces("abb") == ["<s>", "▁a", "bb"]  # bb outscores ab
    assert pieces("é") == ["<s>", "▁", "<0xC3>", "<0xA9>"]
    assert pieces("a\nb") == ["<s>", "▁a", "<0x0A>", "b"]
    assert pieces("") == ["<s>"]
    assert "<s>" not in pieces("<s>")[1:]
    rng = random.Random(2)
    for text in AWKWARD + [random_text(rng) for _ in range(200)]:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    with pytest.raises(FileFormatError, match="byte tokens"):
        SpmTokenizer(["<s>"], [0.0], [3], None)


@pytest.mark.model
def test_smollm2_tokens_are_those_of_the_tokenizers_package(smollm2_path: Path) -> None:
    peer = pytest.importorskip("tokenizers")
    from fastffn._files.gguf import GgufFile

    metadata = GgufFile(smollm2_path).metadata
    ours = BpeTokenizer.from_gguf(metadata)
    assert ours.encode("<|im_start|>user", parse_special=True)[0] == 1
    vocabulary = {token: i for i, token in enumerate(ours.tokens)}
    merges = [tuple(merge.split(" ", 1)) for merge in metadata["tokenizer.ggml.merges"]]
    theirs = peer.Tokenizer(peer.models.BPE(vocab=vocabulary, merges=merges))
    digits = peer.pre_tokenizers.Digits(individual_digits=True)
    theirs.pre_tokenizer = peer.pre_tokenizers.Sequence([digits, peer.pre_tokenizers.ByteLevel(add_prefix_space=False)])
    from fastffn.report.run import shipped_text

    rng = random.Random(3)
    for text in [shipped_text(), *AWKWARD, *(random_text(rng) for _ in range(300))]:
        found = ours.encode(text)
        # Its vocabulary lacks a few control bytes: unknown here, dropped there.
        expected = theirs.encode(text, add_special_tokens=False).ids
        assert [index for index in found if index != ours.unknown] == expected, repr(text)
        assert ours.unknown in found or ours.decode(found) == text


@pytest.mark.model
def test_minilm_tokens_are_those_of_the_tokenizers_package(minilm_path: Path) -> None:
    peer = pytest.importorskip("tokenizers")
    from fastffn.report.run import shipped_text

    ours = WordPieceTokenizer.from_folder(minilm_path.parent, max_tokens=10_000)
    theirs = peer.Tokenizer.from_file(str(minilm_path.parent / "tokenizer.json"))
    theirs.no_padding()
    theirs.no_truncation()
    rng = random.Random(4)
    for text in [shipped_text(), *AWKWARD, *(random_text(rng) for _ in range(300))]:
        assert ours.encode(text) == theirs.encode(text).ids, repr(text)


@pytest.mark.parametrize("pre", ["gpt-2", "llama3", "qwen2"])
def test_patterns_split_as_the_tokenizers_package_does(pre: str) -> None:
    peer = pytest.importorskip("tokenizers")
    (pattern,) = PRE_TOKENIZERS[pre]
    theirs = peer.pre_tokenizers.Split(peer.Regex(pattern), "isolated")
    rng = random.Random(5)
    for text in [*AWKWARD, *(random_text(rng) for _ in range(500))]:
        assert split(pattern, text) == [piece for piece, _ in theirs.pre_tokenize_str(text)], repr(text)
