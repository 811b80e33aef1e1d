"""The numba kernels, on random plans, against attention with the plan's dense mask in float64."""

import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("numba")

from gatework.ops.attention import kernels
from gatework.ops.attention.kernels import call
from gatework.ops.attention.plan import Plan
from gatework.ops.cpu import blas

SEEDS = st.integers(0, 2**31)
PROVIDERS = [source for source in (blas.mkl(), blas.scipy_blas()) if source is not None]


def flat(values, dtype=torch.int32):
    return torch.tensor([int(value) for value in values], dtype=dtype)


def ends(parts):
    return flat(np.cumsum([0, *map(len, parts)]))


def make_plan(patterns, pattern_of=((0,),)):
    """A plan of patterns, each a list of tiles: queries, runs (start, length), pieces (column, mask)."""
    tiles = [tile for pattern in patterns for tile in pattern]
    queries, runs, pieces = ([tile[part] for tile in tiles] for part in range(3))
    flat_runs = [run for tile in runs for run in tile]
    flat_pieces = [piece for tile in pieces for piece in tile]
    pool, places, size = [], {}, 0
    for _, mask in flat_pieces:
        if (mask.shape, mask.tobytes()) not in places:
            places[mask.shape, mask.tobytes()] = size
            pool.append(mask.ravel())
            size += mask.size
    return Plan(
        torch.tensor(pattern_of, dtype=torch.int32),
        ends(patterns),
        ends(queries),
        flat(query for tile in queries for query in tile),
        ends(runs),
        flat(start for start, _ in flat_runs),
        flat(length for _, length in flat_runs),
        ends(pieces),
        flat(column for column, _ in flat_pieces),
        flat(mask.shape[1] for _, mask in flat_pieces),
        flat([places[mask.shape, mask.tobytes()] for _, mask in flat_pieces], torch.int64),
        torch.from_numpy(np.concatenate([*pool, np.zeros(0, np.uint8)])),
    )


def pieces_of(allowed):
    """Cover the columns in which something is not allowed."""
    doubtful = np.concatenate([[False], ~allowed.all(0), [False]])
    edges = np.flatnonzero(doubtful[1:] != doubtful[:-1])
    return [(a, allowed[:, a:b].astype(np.uint8)) for a, b in edges.reshape(-1, 2)]


def tile_of(queries, runs, allows):
    keys = np.array([key for start, length in runs for key in range(start, start + length)], dtype=int)
    return queries, runs, pieces_of(allows(np.asarray(queries)[:, None], keys[None]))


def window_plan(length, left, right, size):
    def allows(i, j):
        return (j - i >= -left) & (j - i <= right)

    tiles = []
    for start in range(0, length, size):
        queries = np.arange(start, min(start + size, length))
        low, high = max(0, start - left), min(length, queries[-1] + right + 1)
        tiles.append(tile_of(queries, [(low, high - low)], allows))
    return make_plan([tiles])


def block_plan(length, size, share, seed=0):
    kept = np.random.default_rng(seed).random((length // size, length // size)) < share
    tiles = []
    for block, row in enumerate(kept):
        runs = [(other * size, size) for other in np.flatnonzero(row)]
        tiles.append((np.arange(block * size, (block + 1) * size), runs, []))
    return make_plan([tiles])


def neighborhood_plan(height, width, window, tile):
    def low(x, size):
        return np.clip(x - window // 2, 0, size - window)

    def allows(i, j):
        inside = True
        for a, b, size in ((i // width, j // width, height), (i % width, j % width, width)):
            inside = inside & (b >= low(a, size)) & (b < low(a, size) + window)
        return inside

    tiles = []
    for top in range(0, height, tile):
        for left in range(0, width, tile):
            y, x = np.arange(top, min(top + tile, height)), np.arange(left, min(left + tile, width))
            first, last = low(x[0], width), low(x[-1], width) + window
            rows = range(low(y[0], height), low(y[-1], height) + window)
            runs = [(row * width + first, last - first) for row in rows]
            tiles.append(tile_of((y[:, None] * width + x).ravel(), runs, allows))
    return make_plan([tiles])


def random_runs(rng, length, longest):
    """Disjoint runs of keys in any order; none now and then."""
    runs, start = [], int(rng.integers(0, 3))
    while start < length:
        size = int(min(rng.integers(1, longest + 1), length - start))
        if rng.random() < 0.6:
            runs.append((start, size))
        start += size + int(rng.integers(0, 4))
    if runs and rng.random() < 0.2:
        runs = []
    return [runs[i] for i in rng.permutation(len(runs))]


def random_pattern(rng, q_length, kv_length):
    longest = int(rng.choice([1, 3, 20, 200, 2000]))
    share = float(rng.choice([0.0, 0.3, 0.95, 1.0]))
    order = rng.permutation(q_length) if rng.random() < 0.5 else np.arange(q_length)
    cuts = np.sort(rng.integers(0, q_length + 1, int(rng.integers(0, 5))))

    def allows(i, j):
        some = rng.random((len(i), j.shape[1])) < share
        some[:, rng.random(j.shape[1]) < 0.5] = True
        return some

    # cuts that coincide make tiles without queries
    return [tile_of(part, random_runs(rng, kv_length, longest), allows) for part in np.split(order, cuts)]


def dense_mask(plan, batch, heads, q_length, kv_length):
    p = [part.numpy() for part in plan]
    mask = np.zeros((batch, heads, q_length, kv_length), bool)
    for b in range(batch):
        for h in range(heads):
            pattern = np.broadcast_to(p[0], (batch, heads))[b, h]
            for t in range(p[1][pattern], p[1][pattern + 1]):
                queries = p[3][p[2][t] : p[2][t + 1]]
                runs = [np.arange(p[5][r], p[5][r] + p[6][r]) for r in range(p[4][t], p[4][t + 1])]
                keys = np.concatenate([np.zeros(0, int), *runs])
                allowed = np.ones((len(queries), len(keys)), bool)
                for c, w, m in zip(*(part[p[7][t] : p[7][t + 1]] for part in p[8:11]), strict=True):
                    allowed[:, c : c + w] = p[11][m : m + len(queries) * w].reshape(len(queries), w)
                mask[b, h, queries[:, None], keys] = allowed
    return torch.from_numpy(mask)


def reference(q, k, v, mask, *, scale, softcap=None, bias=None, slopes=None, query_offset=0):
    group = q.shape[1] // max(1, k.shape[1])
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    s = scale * (q @ k.mT)
    if softcap:
        s = softcap * torch.tanh(s / softcap)
    if bias is not None:  # through -inf itself, autograd would have no gradient
        mask = mask & (bias != -math.inf)
        s = s + bias.masked_fill(bias == -math.inf, 0.0)
    if slopes is not None:
        distance = torch.arange(q.shape[2])[:, None] + query_offset - torch.arange(k.shape[2])
        s = s - slopes.double()[:, None, None] * distance.abs()
    s = s.masked_fill(~mask, -math.inf)
    lse = s.logsumexp(-1)
    empty = lse == -math.inf
    p = torch.exp(s - lse.masked_fill(empty, 0.0)[..., None])
    return p @ v, lse


def both(q, k, v, plan, **options):
    """Outputs and gradients of the kernels, and of the reference in float64."""
    batch, heads, q_length, _ = q.shape
    mask = dense_mask(plan, batch, heads, q_length, k.shape[2])
    leaves = [x.double().requires_grad_() for x in (q, k, v)]
    expected = reference(*leaves, mask, **options)
    gen = torch.Generator().manual_seed(1)
    grad_out, grad_lse = (torch.randn(x.shape, generator=gen) for x in expected)
    finite = expected[1].masked_fill(expected[1] == -math.inf, 0.0)
    total = (expected[0] * grad_out).sum() + (finite * grad_lse).sum()
    expected = [*expected, *torch.autograd.grad(total, leaves)]
    out, lse = kernels.forward(q, k, v, plan, **options)
    delta = (grad_out * out).sum(-1) - grad_lse
    gradients = kernels.backward(grad_out, delta, q, k, v, lse, plan, **options)
    return [out, lse, *gradients], [x.float() for x in expected]


def check(q, k, v, plan, tolerance=2e-5, **options):
    ours, expected = both(q, k, v, plan, **options)
    for x, y in zip(ours, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance)


def rows(gen, batch, heads, length, dim):
    """Normal numbers in one of the layouts that callers have."""
    layout = int(torch.randint(0, 5, (), generator=gen))
    if layout == 0:  # heads last
        return torch.randn(batch, length, heads, dim, generator=gen).transpose(1, 2)
    if layout == 1:  # the last axis is not contiguous
        return torch.randn(batch, heads, dim, length, generator=gen).mT
    if layout == 2:  # part of larger rows
        return torch.randn(batch, heads, 2 * length, dim + 3, generator=gen)[:, :, ::2, 1 : dim + 1]
    if layout == 3:  # the same for all heads
        return torch.randn(batch, 1, length, dim, generator=gen).expand(-1, heads, -1, -1)
    return torch.randn(batch, heads, length, dim, generator=gen)


@st.composite
def calls(draw):
    rng = np.random.default_rng(draw(SEEDS))
    gen = torch.Generator().manual_seed(draw(SEEDS))
    batch, kv_heads, group = draw(st.integers(0, 2)), draw(st.integers(1, 2)), draw(st.integers(1, 3))
    heads = kv_heads * group
    lengths = st.sampled_from([0, 1, 2, 7, 33, 70, 150])
    q_length, kv_length = draw(lengths), draw(lengths)
    dim, value_dim = draw(st.sampled_from([0, 1, 4, 7, 16])), draw(st.sampled_from([0, 1, 5, 16]))
    patterns = [random_pattern(rng, q_length, kv_length) for _ in range(draw(st.integers(1, 3)))]
    rank = draw(st.sampled_from([1, batch or 1])), draw(st.sampled_from([1, heads]))
    plan = make_plan(patterns, rng.integers(0, len(patterns), rank))
    options = {"scale": draw(st.sampled_from([0.3, 0.3, -0.7, 0.0]))}
    options["softcap"] = draw(st.sampled_from([None, None, 0.5, 3.0]))
    if draw(st.booleans()):
        shape = draw(st.sampled_from([1, batch])), draw(st.sampled_from([1, heads])), q_length, kv_length
        bias = torch.randn(shape, generator=gen)
        options["bias"] = bias.masked_fill(torch.rand(shape, generator=gen) < 0.2, -math.inf)
    if draw(st.booleans()):
        options["slopes"] = torch.rand(heads, generator=gen)
        options["query_offset"] = draw(st.integers(-5, 5))
    q = rows(gen, batch, heads, q_length, dim)
    return (
        q,
        rows(gen, batch, kv_heads, kv_length, dim),
        rows(gen, batch, kv_heads, kv_length, value_dim),
        plan,
        options,
    )


@pytest.fixture
def threads():
    """Set the number of threads, however small the problem."""
    before = call.LEAST_SHARED
    call.LEAST_SHARED = 0
    yield torch.set_num_threads
    call.LEAST_SHARED = before
    torch.set_num_threads(1)


@settings(max_examples=200, deadline=None)
@given(case=calls(), number=st.integers(1, 3))
def test_any_plan_equals_the_definition(case, number):
    q, k, v, plan, options = case
    before = call.LEAST_SHARED
    torch.set_num_threads(number)
    call.LEAST_SHARED = 0
    try:
        # Slopes take scores to minus the distance. Float32 rounds that, and with it what a weight is the
        # exponent of: 1e-5 at 150, where the gradient of a key adds up the weights of 450 queries.
        farthest = max(q.shape[2], k.shape[2]) if "slopes" in options else 0
        check(q, k, v, plan, tolerance=2e-5 * max(1, farthest / 15), **options)
    finally:
        call.LEAST_SHARED = before
        torch.set_num_threads(1)


@pytest.mark.parametrize("source", PROVIDERS, ids=lambda source: source.name)
@pytest.mark.parametrize(
    ("plan", "length"),
    [
        (window_plan(600, 200, 150, 96), 600),
        (window_plan(1500, 1500, 1500, 700), 1500),  # tiles of more rows and keys than fit
        (block_plan(1024, 64, 0.4), 1024),
        (block_plan(1280, 128, 0.7), 1280),
        (neighborhood_plan(17, 21, 7, 4), 17 * 21),
    ],
)
def test_patterns_of_practice(plan, length, source, threads, monkeypatch):
    monkeypatch.setattr(blas, "provider", lambda: source)
    threads(2)
    q, k, v = torch.randn(1, 4, length, 32), torch.randn(1, 2, length, 32), torch.randn(1, 2, length, 24)
    check(q, k, v, plan, scale=0.2)


def test_two_libraries_are_tested():
    assert "scipy" in {source.name for source in PROVIDERS}


def test_threads_of_the_library_are_restored(threads):
    source = blas.scipy_blas()
    if source.limit_process is None:
        pytest.skip("this BLAS has no setting that we know")
    get, put = source.limit_process
    before = get()
    put(2)
    try:
        inside = []
        source = source._replace(limit_process=(get, put))
        blas.limit_process(source)
        blas.limit_process(source)
        blas.restore_process(source)
        inside.append(get())
        blas.restore_process(source)
        assert (inside, get()) == ([1], 2)
    finally:
        put(before)


def test_rows_without_keys_are_zero():
    plan = make_plan([[([1, 0], [], []), ([2], [(0, 3)], [])]])
    x = torch.randn(1, 1, 3, 4)
    out, lse = kernels.forward(x, x, x, plan, scale=1.0)
    assert (out[0, 0, :2] == 0).all()
    assert (lse[0, 0, :2] == -math.inf).all()
    gradients = kernels.backward(x, torch.zeros(1, 1, 3), x, x, x, lse, plan, scale=1.0)
    assert (gradients[0][0, 0, :2] == 0).all()
    assert all(x.isfinite().all() for x in gradients)


def test_a_chunk_that_masks_whole_rows(monkeypatch):
    """Whether the first or the last chunk of a row has nothing for it, the other decides."""
    monkeypatch.setattr(call, "MAX_COLUMNS", 128)
    allowed = np.zeros((4, 400), bool)
    allowed[0, :3], allowed[1, -3:], allowed[2, 200] = True, True, True
    plan = make_plan([[([0, 1, 2, 3], [(0, 400)], pieces_of(allowed))]])
    check(torch.randn(1, 1, 4, 8), torch.randn(1, 1, 400, 8), torch.randn(1, 1, 400, 8), plan, scale=1.0)


@pytest.mark.parametrize("size", [1e2, 1e4])
def test_large_logits(size):
    plan = window_plan(300, 300, 300, 64)
    q, k, v = torch.randn(1, 1, 300, 1).sign(), size * torch.randn(1, 1, 300, 1), torch.randn(1, 1, 300, 8)
    out, lse = kernels.forward(q, k, v, plan, scale=1.0)
    expected = reference(q.double(), k.double(), v.double(), torch.tensor(True), scale=1.0)
    torch.testing.assert_close(lse, expected[1].float(), rtol=1e-6, atol=1e-4)
    torch.testing.assert_close(out, expected[0].float(), rtol=1e-2, atol=1e-2 * size / 1e4)
    gradients = kernels.backward(v, torch.zeros(1, 1, 300), q, k, v, lse, plan, scale=1.0)
    assert all(x.isfinite().all() for x in gradients)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_what_is_not_finite_stays_where_it_belongs(bad, which):
    plan = window_plan(200, 10, 10, 32)
    tensors = [torch.randn(1, 1, 200, 8) for _ in range(3)]
    tensors[which][0, 0, 100, 3] = bad
    out, lse = kernels.forward(*tensors, plan, scale=1.0)
    kernels.backward(out, lse, *tensors, lse, plan, scale=1.0)
    assert out[0, 0, [0, 60, 140, 199]].isfinite().all()
    if math.isnan(bad):
        near = slice(100, 101) if which == 0 else slice(90, 111)
        assert out[0, 0, near, 3].isnan().all()


def test_same_bits_for_the_same_threads(threads):
    q, k, v = torch.randn(1, 3, 700, 16), torch.randn(1, 1, 700, 16), torch.randn(1, 1, 700, 16)
    plan = window_plan(700, 300, 300, 32)
    threads(3)
    first, second = (both(q, k, v, plan, scale=0.3)[0] for _ in range(2))
    for x, y in zip(first, second, strict=True):
        assert torch.equal(x, y)


def test_calls_from_several_threads(threads):
    threads(2)
    plan = window_plan(400, 60, 40, 32)
    inputs = [torch.randn(3, 1, 2, 400, 16, generator=torch.Generator().manual_seed(i)) for i in range(6)]

    def run(x):
        out, lse = kernels.forward(*x, plan, scale=0.3)
        return [out, *kernels.backward(x[0], lse, *x, lse, plan, scale=0.3)]

    expected = [run(x) for x in inputs]
    with ThreadPoolExecutor(6) as pool:
        for _ in range(5):
            for ours, right in zip(pool.map(run, inputs), expected, strict=True):
                assert all(torch.equal(x, y) for x, y in zip(ours, right, strict=True))


CHILD = """
import os, sys, warnings
import numpy as np, torch
from tests.ops.test_attention_kernels import window_plan, kernels, call
torch.set_num_threads(2)
call.LEAST_SHARED = 0
plan, x = window_plan(300, 50, 50, 32), torch.randn(1, 2, 300, 8)
before = kernels.forward(x, x, x, plan, scale=1.0)[0]
warnings.simplefilter("ignore")  # of forking a process that has threads
child = os.fork()
if child == 0:
    same = torch.equal(kernels.forward(x, x, x, plan, scale=1.0)[0], before)
    os._exit(0 if same else 3)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def run_python(code):
    command = [sys.executable, "-c", code]
    return subprocess.run(command, timeout=300, capture_output=True, text=True, check=False)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_has_its_own_threads():
    done = run_python(CHILD)
    assert done.returncode == 0, done.stderr


def test_a_cache_that_cannot_be_written_costs_only_time(tmp_path):
    code = """
import numba.core.caching as caching
caching.CacheImpl._locator_classes = []  # no directory of any kind can be written
from gatework.ops.attention.kernels.compiled import kernel
kernel("list_parts")
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr


def test_numba_is_imported_only_when_needed_and_may_be_missing():
    code = """
import sys
from gatework.ops.attention import kernels
assert not {"numba", "llvmlite"} & set(sys.modules)
sys.modules["numba"] = None
assert kernels.is_available() is False
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr
