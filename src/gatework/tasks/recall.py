"""Recall: read key-value pairs, then give the values asked for (MQAR and its variants, arXiv:2312.04927)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from gatework.checks import check_choice, check_compat, check_names, check_seed, check_sizes, suggestion
from gatework.data import counting
from gatework.data.mqar import Mode, MQARConfig
from gatework.data.recall_mixture import (
    Compat,
    RecallConfig,
    RecallMixture,
    SegmentBatches,
    Split,
    batch_loader,
    make_split,
)
from gatework.data.recall_variants import CompositionalConfig, ForgettingConfig
from gatework.data.segment import TokenBatch
from gatework.models.language.decoder import GateworkForCausalLM
from gatework.tasks.language import LanguageTask
from gatework.tasks.next_token import NextTokenModule
from gatework.tasks.task import Quality, Training

#: Variants by name.
VARIANTS: dict[str, type[RecallConfig]] = {
    "mqar": MQARConfig,
    "compositional": CompositionalConfig,
    "forgetting": ForgettingConfig,
    "parity": counting.ParityConfig,
    "majority": counting.MajorityConfig,
    "vocab_majority": counting.VocabMajorityConfig,
    "cumulative_parity": counting.CumulativeParityConfig,
    "cumulative_majority": counting.CumulativeMajorityConfig,
}

#: Sequences per batch of the evaluation.
_TEST_BATCH = 250


@dataclass(frozen=True)
class RecallTask(LanguageTask):
    """A mixture of recall settings to train on, and others to choose by and to test on.

    Attributes:
        train: Settings of the training segments.
        test: Settings of the test segments.
        data_seed: Seed of all examples, the same for every model.
        mode: ``"fast"``, or ``"compat"`` for the very examples of the authors' generator.
        compat: ``"official"`` repeats the errors of the authors' generators.
        validation: Settings of the segments to choose by; None for those of the test. The examples are
            others in any case.
    """

    train: tuple[RecallConfig, ...]
    test: tuple[RecallConfig, ...]
    data_seed: int = 123
    mode: Mode = "fast"
    compat: Compat | None = None
    validation: tuple[RecallConfig, ...] | None = None

    def __post_init__(self) -> None:
        check_choice("mode", self.mode, ("fast", "compat"))
        check_compat(self.compat)
        check_seed(self.data_seed, "data_seed")
        if not self.test:
            raise ValueError("test must hold at least one setting, got none")
        if self.validation is not None and not self.validation:
            raise ValueError("validation must hold at least one setting, got none")
        self._mixture(1)

    @classmethod
    def from_setting(cls, setting: Mapping[str, Any]) -> RecallTask:
        """Make the task from a JSON setting.

        Either lists ``train`` and ``test`` of segments, each with ``variant`` and its options, and if
        wanted ``validation`` (by default other examples of the test's segments), or the options of one
        segment with ``num_train``, ``num_validation`` and ``num_test`` examples.

        Raises:
            ValueError: If a value is out of range; the message names it.
            TypeError: If an option is unknown.
        """
        options = dict(setting)
        common = {name: options.pop(name) for name in ("data_seed", "mode", "compat") if name in options}
        if options.keys() & {"train", "validation", "test"}:
            splits = [options.pop("train", []), options.pop("validation", None), options.pop("test", [])]
            if options:
                raise TypeError(f"setting has train or test, and beside them {', '.join(sorted(options))}")
        else:
            num_train, num_test = options.pop("num_train", 20_000), options.pop("num_test", 1_000)
            num_validation = options.pop("num_validation", num_test)
            numbers = {"num_train": num_train, "num_validation": num_validation, "num_test": num_test}
            check_sizes(**numbers)
            splits = [[{**options, "num_examples": number}] for number in numbers.values()]
        train, validation, test = (
            None if split is None else tuple(map(segment_config, split)) for split in splits
        )
        assert train is not None
        assert test is not None
        return cls(train, test, validation=validation, **common)

    @property
    def quality(self) -> Quality:
        """Accuracy; guessing among the values is the chance level where values are half the vocabulary."""
        chance = 1 / (self.vocab_size - self.vocab_size // 2) if self._is_mqar() else None
        return Quality("accuracy", "higher", chance=chance, range=(0.0, 1.0))

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        return self._mixture(1).vocab_size

    @property
    def length(self) -> int:
        """Length of the longest sequences."""
        return self._mixture(1).max_length

    def describe(self) -> list[str]:
        """Return a sentence each on the training, the validation and the test examples."""
        made = "the authors' generator" if self.mode == "compat" else "the vectorised generator"
        return [
            f"Training data: {_describe(self.train)}, from {made} with seed {self.data_seed}; "
            "every mixer reads the same examples.",
            f"Validation data: {_describe(self._validation())}, from seeds that no other split has; "
            "whatever is chosen is chosen by them.",
            f"Test data: {_describe(self.test)}, from a disjoint range of seeds; nothing is chosen by them.",
        ]

    def train_batches(self, batch_size: int, *, steps: int, seed: int) -> Iterable[TokenBatch]:
        """Return the training batches in an order that follows from ``seed`` and changes every epoch."""
        return batch_loader(self._split("train", batch_size), shuffle_seed=seed)

    def batches_per_epoch(self, batch_size: int) -> int:
        """Return the number of batches in a pass over the training examples."""
        return sum(-(-config.num_examples // batch_size) for config in self.train)

    def validation_batches(self) -> Iterable[TokenBatch]:
        """Return the validation batches."""
        return batch_loader(self._split("validation"))

    def test_batches(self) -> Iterable[TokenBatch]:
        """Return the test batches."""
        return batch_loader(self._split("test"))

    def module(self, model: GateworkForCausalLM, training: Training, learning_rate: float) -> NextTokenModule:
        """Return the Lightning module that trains ``model``."""
        return NextTokenModule(model, training, learning_rate)

    def _split(self, split: Split, batch_size: int = 1) -> SegmentBatches:
        return make_split(self._mixture(batch_size), split, mode=self.mode, compat=self.compat)

    def _mixture(self, batch_size: int) -> RecallMixture:
        sizes = (batch_size, _TEST_BATCH)
        return RecallMixture(self.train, self.test, sizes, self.data_seed, self._validation())

    def _validation(self) -> tuple[RecallConfig, ...]:
        return self.test if self.validation is None else self.validation

    def _is_mqar(self) -> bool:
        return all(isinstance(config, MQARConfig) for config in self.test)


def segment_config(options: Mapping[str, Any]) -> RecallConfig:
    """Make the setting of one segment from ``variant`` (MQAR by default) and its options.

    Raises:
        ValueError: If there is no such variant, or a value is out of range.
        TypeError: If the variant has no such option.
    """
    options = dict(options)
    name = options.pop("variant", "mqar")
    if name not in VARIANTS:
        raise ValueError(f"variant {name!r} is not a recall task{suggestion(str(name), sorted(VARIANTS))}")
    check_names(f"variant {name!r} has no option", options, {field.name for field in fields(VARIANTS[name])})
    return VARIANTS[name](**options)


def _describe(configs: tuple[RecallConfig, ...]) -> str:
    return "; ".join(
        f"{config.num_examples:,} examples of "
        + ", ".join(f"{key}={value}" for key, value in config.slices.items())
        + f", vocabulary {config.vocab_size}"
        for config in configs
    )
