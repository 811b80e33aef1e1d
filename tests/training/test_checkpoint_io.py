"""Checkpoints: whole or not there, and nothing in them is executed, whatever the bytes are."""

from __future__ import annotations

import io
import os
import pickle
import random
import zipfile

import pytest
import torch

from gatework.checkpoints import CheckpointError
from gatework.files import FileError, replacing, write_json
from gatework.training.checkpoint_io import AtomicCheckpointIO, read_checkpoint
from tests.training.runs import differing


def checkpoint():
    generator = torch.Generator().manual_seed(0)
    weights = {"a": torch.randn(40, generator=generator), "b": torch.arange(7)}
    return {
        "state_dict": weights,
        "optimizer_states": [{"state": {0: torch.ones(3)}}],
        "lr_schedulers": [{"last_epoch": 3}],
        "gatework": {"step": 3},
        "losses": [(1.0, 2)],
    }


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(checkpoint(), path)
    return path


def test_what_was_written_is_read(path):
    assert differing(AtomicCheckpointIO().load_checkpoint(path), checkpoint()) == []
    assert [item.name for item in path.parent.iterdir()] == ["last.ckpt"]


class Bomb:
    """Pickles to a call."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def test_a_pickle_bomb_does_not_go_off(path, tmp_path):
    torch.save({**checkpoint(), "extra": Bomb(tmp_path / "went off")}, path)
    with pytest.raises(CheckpointError, match="cannot be read safely"):
        read_checkpoint(path)
    path.write_bytes(pickle.dumps(Bomb(tmp_path / "went off")))
    with pytest.raises(CheckpointError, match="cannot be read safely"):
        read_checkpoint(path)
    assert not (tmp_path / "went off").exists()


def test_a_zip_bomb_is_not_unpacked(path):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 2**24)
    path.write_bytes(packed.getvalue())
    with pytest.raises(CheckpointError, match="compressed"):
        read_checkpoint(path)


def test_truncated_files_are_refused(path):
    whole = path.read_bytes()
    for length in [0, 1, 100, len(whole) // 2, len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"last\.ckpt"):
            read_checkpoint(path)


def test_a_flipped_bit_is_refused_or_changes_nothing(path):
    whole, rng, refused = path.read_bytes(), random.Random(0), 0
    for _ in range(300):
        broken = bytearray(whole)
        broken[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        path.write_bytes(broken)
        try:
            loaded = read_checkpoint(path)
        except CheckpointError:
            refused += 1
        else:
            assert differing(loaded, checkpoint()) == []
    assert refused > 50


def test_every_bit_of_the_weights_is_guarded(path):
    whole = path.read_bytes()
    first = whole.index(checkpoint()["state_dict"]["a"].numpy().tobytes())
    for place in range(first, first + 160, 7):
        broken = bytearray(whole)
        broken[place] ^= 1
        path.write_bytes(broken)
        with pytest.raises(CheckpointError, match="is damaged"):
            read_checkpoint(path)


@pytest.mark.parametrize("missing", ["state_dict", "optimizer_states", "lr_schedulers", "gatework", "losses"])
def test_other_peoples_files_are_named(path, missing):
    values = checkpoint()
    del values[missing]
    torch.save(values, path)
    with pytest.raises(CheckpointError, match=f"no '{missing}'"):
        read_checkpoint(path)
    torch.save([1], path)
    with pytest.raises(CheckpointError, match="not one of `gatework fit`"):
        read_checkpoint(path)
    with pytest.raises(CheckpointError, match="is not a file"):
        read_checkpoint(path.parent / "none.ckpt")


def test_a_file_that_cannot_be_written_stays_as_it_was(path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FileError, match="No space left on device"):
        AtomicCheckpointIO().save_checkpoint({}, path)
    with pytest.raises(ZeroDivisionError), replacing(path):
        raise ZeroDivisionError
    assert path.read_bytes() == before
    assert [item.name for item in path.parent.iterdir()] == ["last.ckpt"]


def test_json_has_no_nan(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"a": float("nan")})
    assert not list(tmp_path.iterdir())
