"""Killed anywhere and resumed, a training equals one that nobody disturbed, bit for bit."""

from __future__ import annotations

import random
import signal

import pytest

from tests.training.runs import contents, die_at, differing, finish, kill_after, recipe, stop_after_save

KINDS = {
    "workers": {"trainer": {"num_workers": 2}},
    "bf16, accumulation": {
        "trainer": {"precision": "bf16-mixed", "accumulate_grad_batches": 2, "checkpoint_every": 1}
    },
    "average": {"trainer": {"ema_decay": 0.8, "checkpoint_every": 3, "num_workers": 2}},
    "float64, sgd": {
        "training": {"optimizer": "sgd", "evaluations": 1},
        "trainer": {"precision": "64-true", "checkpoint_every": 5},
    },
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Contents of trainings that nobody disturbed, made when they are asked for."""
    made = {}

    def find(kind):
        if kind not in made:
            directory = tmp_path_factory.mktemp("undisturbed") / "run"
            assert finish(recipe(**KINDS[kind]), directory) == 0
            made[kind] = contents(directory)
        return made[kind]

    return find


def torment(kind, directory, seed, *, most=1000):
    """Kill a training at random places until one start survives; return what was done."""
    rng, done = random.Random(seed), []
    while len(done) < most:
        if rng.random() < 0.5:
            seconds = round(rng.uniform(0.05, 1.0), 3)
            done.append(("time", seconds, kill_after(seconds, recipe(**KINDS[kind]), directory)))
        else:
            name, count = rng.choice(("fsync", "replace")), rng.randrange(1, 13)
            done.append((name, count, finish(recipe(**KINDS[kind]), directory, die_at(name, count))))
        if done[-1][-1] == 0:
            return done
        assert done[-1][-1] == -signal.SIGKILL, f"seed {seed}: {done}"
    done.append(("left alone", finish(recipe(**KINDS[kind]), directory)))
    assert done[-1][-1] == 0, f"seed {seed}: {done}"
    return done


def test_the_same_training_twice_is_the_same(undisturbed, tmp_path):
    changed = recipe(trainer={"num_workers": 0, "checkpoint_every": 4})
    assert finish(changed, tmp_path / "run") == 0
    found = contents(tmp_path / "run")
    assert found.pop("recipe") != undisturbed("workers")["recipe"]
    assert differing(found, {name: undisturbed("workers")[name] for name in found}) == []
    assert found["metrics"].count("\n") == 1 + 6 + 5
    weights = found["last"]["state_dict"]
    other = recipe(seed=1)
    assert finish(other, tmp_path / "other") == 0
    assert differing(weights, contents(tmp_path / "other")["last"]["state_dict"])


@pytest.mark.parametrize("kind", KINDS)
def test_killed_and_resumed(undisturbed, tmp_path, kind):
    seed = sorted(KINDS).index(kind)
    late = [
        ("replace", count, finish(recipe(**KINDS[kind]), tmp_path / "run", die_at("replace", count)))
        for count in (5, 6)
    ]
    assert [code for _, _, code in late] == [
        -signal.SIGKILL
    ] * 2  # so the next start goes on from a checkpoint
    done = late + torment(kind, tmp_path / "run", seed, most=2)
    assert differing(contents(tmp_path / "run"), undisturbed(kind)) == [], f"seed {seed}: {done}"


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_it_saves_and_says_how_to_resume(undisturbed, tmp_path, signum):
    stopped = 0
    while stopped < 3:
        code = stop_after_save(recipe(**KINDS["workers"]), tmp_path / "run", signum)
        if code == 0:  # it was over before it could hear
            break
        assert code == 128 + signum
        stopped += 1
        said = (tmp_path / "run.log").read_text().splitlines()[-1]
        assert said == f"stopped by {signum.name} after saving; to resume: the same command"
    assert stopped > 0
    assert finish(recipe(**KINDS["workers"]), tmp_path / "run") == 0
    assert differing(contents(tmp_path / "run"), undisturbed("workers")) == []


@pytest.mark.slow
def test_forty_kills_and_more(undisturbed, tmp_path):
    kills, seed = dict.fromkeys(KINDS, 0), 100
    while min(kills.values()) < 15:
        kind = min(kills, key=kills.get)
        seed += 1
        done = torment(kind, tmp_path / str(seed), seed)
        kills[kind] += len(done) - 1
        assert differing(contents(tmp_path / str(seed)), undisturbed(kind)) == [], f"seed {seed}: {done}"
    assert sum(kills.values()) >= 60


def test_a_training_that_ends_early_resumes_too(tmp_path):
    stopping = {"monitor": "validation_loss", "patience": 1, "min_delta": 1.0}
    early = recipe(
        callbacks=[{"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": stopping}],
        training={"evaluations": 6},
    )
    assert finish(early, tmp_path / "whole") == 0
    whole = contents(tmp_path / "whole")
    assert whole["result"]["steps"] == 6  # 3 steps set the mark, 3 more do not improve it
    for count in range(1, 14):
        if finish(early, tmp_path / "killed", die_at("replace", count)) == 0:
            break
    assert count > 3
    assert differing(contents(tmp_path / "killed"), whole) == []
