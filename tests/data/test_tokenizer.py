import hashlib
import os
import pickle
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from gatework.data.cutting import PART_BYTES
from gatework.data.tokenizer import (
    END_TOKEN,
    BPETokenizer,
    ByteTokenizer,
    TextTokenizer,
    id_type,
    load_tokenizer,
    train_bpe,
)

PAGES = Path(__file__).read_bytes().split(b"\n\n")


@pytest.fixture(scope="module")
def bpe():
    return train_bpe(PAGES, 400)


@pytest.fixture(params=["bytes", "bpe"])
def tokenizer(request, bpe):
    return ByteTokenizer() if request.param == "bytes" else bpe


def test_all_are_text_tokenizers(tokenizer):
    assert isinstance(tokenizer, TextTokenizer)
    assert tokenizer.end_id == 0


texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)


@settings(max_examples=60, deadline=None, suppress_health_check=["function_scoped_fixture"])
@given(pages=st.lists(texts, max_size=4))
def test_text_comes_back(tokenizer, pages):
    encoded = tokenizer.encode([page.encode() for page in pages])
    assert [tokenizer.decode(ids.tolist()) for ids in encoded] == pages
    sizes = tokenizer.token_bytes()
    assert sizes.shape == (tokenizer.vocab_size,)
    for page, ids in zip(pages, encoded, strict=True):
        assert ids.dtype == id_type(tokenizer.vocab_size)
        assert sizes[ids].sum() == len(page.encode())
        assert (ids != tokenizer.end_id).all()


def test_the_end_written_in_a_text_is_text(tokenizer):
    page = f"print('{END_TOKEN}')"
    (ids,) = tokenizer.encode([page.encode()])
    assert tokenizer.end_id not in ids
    assert tokenizer.decode(ids.tolist()) == page
    assert tokenizer.token_bytes()[tokenizer.end_id] == 1


def test_transformers_has_the_same_ids(tokenizer, tmp_path):
    tokenizer.pretrained().save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert isinstance(loaded, PreTrainedTokenizerFast)
    assert (len(loaded), loaded.eos_token_id) == (tokenizer.vocab_size, tokenizer.end_id)
    page = "def f(x):\n    return  'é 語 🙂 ' + x  \n"
    ids = tokenizer.encode([page.encode()])[0].tolist()
    assert loaded(page)["input_ids"] == ids
    assert loaded.decode(ids) == page


def test_a_pickled_one_is_the_same(tokenizer):
    copied = pickle.loads(pickle.dumps(tokenizer))
    page = f"x {END_TOKEN} y".encode()
    assert copied.identity == tokenizer.identity
    assert copied.encode([page])[0].tolist() == tokenizer.encode([page])[0].tolist()


def test_half_characters_are_dropped(bpe):
    content = "é語".encode()
    assert [bpe.decode(ids.tolist()) for ids in bpe.encode([content[1:], content[:-1]])] == ["語", "é"]


def test_bpe_starts_with_bytes_and_merges_what_is_frequent():
    tokenizer = train_bpe([b"abab abab abab"], 259)
    assert tokenizer.encode([b"abab"])[0].tolist() == [258]
    assert tokenizer.encode([b"ab"])[0].tolist() == [257]
    assert tokenizer.token_bytes().tolist() == [1] * 257 + [2, 4]
    assert tokenizer.identity.startswith("bpe 259 ")


def test_bpe_depends_on_the_text_alone(bpe):
    shuffled = random.Random(0).sample(PAGES, len(PAGES))
    assert train_bpe(shuffled, 400).identity == bpe.identity
    assert train_bpe([*PAGES, b"other " * 500], 400).identity != bpe.identity


@pytest.mark.parametrize("threads", ["1", "3"])
def test_bpe_does_not_depend_on_threads_or_process(bpe, threads):
    program = (
        "import hashlib, pathlib, sys; from gatework.data.tokenizer import train_bpe\n"
        "pages = pathlib.Path(sys.argv[1]).read_bytes().split(b'\\n\\n')\n"
        "bpe = train_bpe(pages, 400)\n"
        "ids = b''.join(ids.tobytes() for ids in bpe.encode(pages))\n"
        "print(bpe.identity, hashlib.sha256(ids).hexdigest())"
    )
    environment = {**os.environ, "RAYON_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "true"}
    process = subprocess.run(
        [sys.executable, "-c", program, __file__], env=environment, capture_output=True, text=True, check=True
    )
    ids = b"".join(ids.tobytes() for ids in bpe.encode(PAGES))
    assert process.stdout.split() == [*bpe.identity.split(), hashlib.sha256(ids).hexdigest()]


def test_cutting_changes_no_token_of_bpe(bpe):
    """The parts of a long document have the tokens of the whole, as the library gives them uncut."""
    document = b"\n\n".join(PAGES * (3 * PART_BYTES // sum(map(len, PAGES)) + 1))
    uncut = Tokenizer.from_str(bpe.to_json())
    uncut.encode_special_tokens = True
    expected = uncut.encode(document.decode(), add_special_tokens=False).ids
    assert len(document) > 3 * PART_BYTES
    assert bpe.encode([b"before", document, b"after"])[1].tolist() == expected


@pytest.mark.parametrize("letters", ["a", "abcdefghij", "語字", "    \t"])
def test_a_giant_line_takes_linear_time(bpe, letters):
    """Words of a whole part would take quadratic time to train on."""
    line = "".join(random.Random(0).choices(letters, k=2**19)).encode()
    start = time.perf_counter()
    tokenizer = train_bpe([*PAGES, line], 280)
    (ids,) = tokenizer.encode([line])
    assert tokenizer.token_bytes()[ids].sum() == len(line)
    assert tokenizer.decode(ids.tolist()).encode() == line
    assert time.perf_counter() - start < 20


def test_loads_what_transformers_saved(bpe, tmp_path):
    bpe.pretrained().save_pretrained(tmp_path / "mine")
    for path in (tmp_path / "mine", tmp_path / "mine" / "tokenizer.json"):
        loaded = load_tokenizer(path)
        assert (loaded.vocab_size, loaded.end_id) == (400, 0)
        assert all(map(np.array_equal, loaded.encode(PAGES), bpe.encode(PAGES)))
    assert load_tokenizer(tmp_path / "mine").identity.startswith("mine 400 ")


def words(end: str | None, **added: int) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words, with a gap in its ids."""
    vocab = {"[UNK]": 0, "one": 1, "two": 2, **added}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", eos_token=end)


def test_a_tokenizer_of_another_kind(tmp_path):
    words("</s>", **{"</s>": 300}).save_pretrained(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.vocab_size, tokenizer.end_id) == (301, 300)
    (ids,) = tokenizer.encode([b"two one three"])
    assert (ids.tolist(), ids.dtype) == ([2, 1, 0], np.uint16)
    sizes = tokenizer.token_bytes()
    assert (len(sizes), sizes[1], sizes[300]) == (301, 3, 1)


@pytest.mark.parametrize(("vocab_size", "kind"), [(1, "u1"), (256, "u1"), (257, "u2"), (65537, "u4")])
def test_ids_take_the_smallest_type(vocab_size, kind):
    assert id_type(vocab_size) == np.dtype(kind)


@pytest.mark.bad_input
def test_a_vocabulary_the_text_does_not_support_is_refused():
    # "abab" twice gives the pairs ab and abab, and nothing else occurs twice.
    with pytest.raises(
        ValueError, match=r"vocab_size must be at most 259, the tokens .* supports .*got 4096"
    ):
        train_bpe([b"abab", b"abab"], 4096)
    train_bpe([b"abab", b"abab"], 259)
    with pytest.raises(
        ValueError, match=r"vocab_size must be at least 257, one token for each byte.*got 256"
    ):
        train_bpe([b"abab"], 256)
    with pytest.raises(TypeError, match=r"vocab_size must be an integer, got 300.5"):
        train_bpe([b"abab"], 300.5)


@pytest.mark.bad_input
def test_bad_tokenizers_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"tokenizer='/no/such' must be .* does not exist"):
        load_tokenizer("/no/such")
    with pytest.raises(ValueError, match=r"tokenizer='byte' is no tokenizer; did you mean 'bytes'"):
        load_tokenizer("byte")
    with pytest.raises(ValueError, match=r"tokenizer='.*' must be .* cannot be loaded: "):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer='.*tokenizer\.json' must be .* cannot be loaded: "):
        load_tokenizer(tmp_path / "tokenizer.json")
    words(None).save_pretrained(tmp_path / "endless")
    for path in (tmp_path / "endless", tmp_path / "endless" / "tokenizer.json"):
        with pytest.raises(
            ValueError, match=r"has no token that ends a document: set eos_token .*save_pretrained"
        ):
            load_tokenizer(path)
    with pytest.raises(ValueError, match=r"end_token must be a token of the tokenizer, got '</s>'"):
        BPETokenizer(words(None).backend_tokenizer, end_token="</s>")
