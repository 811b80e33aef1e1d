"""The page about attention: its code is executed, its pictures are drawn again, its table is asked for."""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from gatework import masks, ops
from gatework.masks import Causal, Mask
from gatework.ops.attention import ENGINES, blocked, choice, flex
from gatework.ops.attention.options import Options
from tests.ops.test_engines import OPERATORS
from tests.warm_python import run_python

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = DOCS / "attention.md"
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_the_code_of_the_page_works(tmp_path):
    text = PAGE.read_text()
    blocks = FENCE.findall(text)
    assert len(blocks) >= 12
    assert {language for language, _ in blocks} == {"python", "bash"}
    assert text.count("```") == 2 * len(blocks)  # none is skipped by mistake
    program = "\n".join(block for language, block in blocks if language == "python")
    done = run_python(["-W", "error", "-c", program], cwd=tmp_path)
    assert done.returncode == 0, done.stderr


# --- the gallery ---


@pytest.fixture(scope="module")
def pictures():
    spec = importlib.util.spec_from_file_location("attention_pictures", DOCS / "attention_pictures.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_the_pictures_are_those_of_the_masks(pictures):
    files = pictures.files()
    stale = [path.name for path, text in files.items() if not path.exists() or path.read_text() != text]
    assert not stale, f"run docs/attention_pictures.py: {stale}"
    assert set((DOCS / "attention").iterdir()) == files.keys() - {PAGE}


def test_every_family_has_a_picture(pictures):
    families = {
        each
        for each in (getattr(masks, name) for name in masks.__all__)
        if inspect.isclass(each) and issubclass(each, Mask) and not inspect.isabstract(each)
    } - {masks.Entry}  # a part of another mask

    def kinds(mask):
        return {type(mask)}.union(*map(kinds, mask._parts()))

    assert families == set().union(*(kinds(picture.mask()) for picture in pictures.PICTURES))


def test_rectangles_cover_what_is_allowed(pictures):
    allowed = torch.rand(13, 17) < 0.6
    covered = torch.zeros(13, 17, dtype=torch.int64)
    for x, y, width, height in pictures.rectangles(allowed):
        covered[y : y + height, x : x + width] += 1
    assert torch.equal(covered, allowed.long())


# --- what engines can do ---


@dataclass(frozen=True)
class Own(Mask):
    """A mask that no engine has ever heard of."""

    def __call__(self, batch, head, q_idx, kv_idx):
        return (q_idx * kv_idx) % 3 == 0


OPTIONS = Options(Causal(), None, 0.5, None, None, 0.0, False)

#: For each row of the table what is asked for: see `refused`, and where.
ROWS = {
    "results": {},
    "gradients": {"requires_grad": True},
    "float32, bfloat16, float16": {"dtypes": (torch.float32, torch.bfloat16, torch.float16)},
    "float64": {"dtypes": (torch.float64,)},
    "under autocast": {"autocast": True},
    "fewer heads of keys than of queries": {"kv_heads": 1},
    "`mask` of your own": {"options": {"mask": Own()}},
    "`mask` as a boolean tensor": {"options": {"mask": torch.ones(5, 5, dtype=torch.bool)}},
    "`bias` as a tensor": {"options": {"bias": torch.zeros(5, 5)}},
    "gradient of the bias": {"options": {"bias": torch.zeros(5, 5, requires_grad=True)}},
    "`bias=Alibi(...)`": {"options": {"bias": ops.Alibi.for_heads(2)}},
    "`softcap`": {"options": {"softcap": 10.0}},
    "`sinks`": {"options": {"sinks": torch.zeros(2)}},
    "`dropout_p`": {"options": {"dropout_p": 0.5}},
    "`return_lse`": {"options": {"return_lse": True}},
    "tensors on a GPU": {"gpu": True},
    "inside `torch.compile`": {"compiling": True},
}


def table():
    """The table of the page: what it says of each engine, row by row."""
    _, _, rest = PAGE.read_text().partition("<!-- capabilities:")
    lines = rest[: rest.index("\n\n", rest.index("|---"))].splitlines()[2:]
    header, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    assert header[1:] == list(ENGINES)
    return {name: dict(zip(header[1:], cells, strict=True)) for name, *cells in rows}


def refused(
    engine, device, *, options=None, dtypes=(torch.float32,), kv_heads=2, requires_grad=False, autocast=False
):
    """Whether an engine refuses what a row asks for, with tensors of this device."""
    answers = set()
    for dtype in dtypes:
        with FakeTensorMode():  # has a GPU everywhere
            q = torch.zeros(1, 2, 5, 4, dtype=dtype, device=device)
            k = torch.zeros(1, kv_heads, 5, 4, dtype=dtype, device=device, requires_grad=requires_grad)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            reason = ENGINES[engine].refusal(q, k, k, OPTIONS._replace(**(options or {})))
        answers.add(reason is not None)
    (answer,) = answers
    return answer


def test_operators_take_the_engines_that_the_page_lists():
    _, _, rest = PAGE.read_text().partition("<!-- operators:")
    rows = rest[rest.index("|---") : rest.index("\n\n", rest.index("|---"))].splitlines()[1:]
    listed = {}
    for row in rows:
        names, engines = (re.findall(r"`([\w-]+)`", cell) for cell in row.strip("|").split("|"))
        listed |= dict.fromkeys(names, engines)
    assert listed == {name: list(engines) for name, (engines, _) in OPERATORS.items()}


def test_every_row_is_known():
    assert list(table()) == list(ROWS)


@pytest.mark.parametrize("row", ROWS)
def test_engines_do_what_the_table_says(row, monkeypatch):
    # Everything that could be missing is there.
    monkeypatch.setattr(blocked, "has_kernels", lambda: True)
    monkeypatch.setattr(flex, "_missing_on_cpu", lambda: None)
    asked = dict(ROWS[row])
    if asked.pop("compiling", False):
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    on_gpu_alone = asked.pop("gpu", False)
    for engine, says in table()[row].items():
        on_cpu, on_gpu = (refused(engine, device, **asked) for device in ("cpu", "cuda"))
        if on_gpu_alone:
            on_cpu = on_gpu
        elif engine.startswith("blocked"):  # whatever is asked for, not on a GPU
            assert on_gpu
            on_gpu = on_cpu
        expected = {"yes": (False, False), "no": (True, True), "GPU only": (True, False)}[says]
        assert (on_cpu, on_gpu) == expected, engine


def test_the_numbers_of_the_choice_are_the_page_s():
    text = PAGE.read_text()
    assert f"fewer than {choice._FEWEST_PAIRS} pairs" in text
    shares = [f"{choice._LARGEST_SHARE[use_kernels]}" for use_kernels in (True, False)]
    assert f"less than {shares[0]} of all pairs with compiled kernels, or {shares[1]} without" in " ".join(
        text.split()
    )
