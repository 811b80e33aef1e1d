"""What can be chosen when a language model is scored on AR slices; light to import."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from gatework.checks import check_bool, check_choice, check_int, check_number

Split = Literal["train", "validation", "test", "all"]
Packing = Literal["windows", "documents"]


@dataclass(frozen=True)
class SliceOptions:
    """What is scored, and which tokens are AR hits; also the options of ``gatework evaluate ar-slices``.

    How a text is read is said by :func:`~gatework.data.tokens.load_tokens`, how a threshold is chosen by
    :func:`~gatework.data.ar_slices.default_max_train_count`.

    Attributes:
        train: Text whose bigrams are counted, all of it: a path, or stdlib. By default the text that is
            scored is split by document, and its train split is counted.
        split: Part that is scored: validation, test (default) or, with another text in train, train or all
            (then the default).
        suffixes: Take only files of a folder whose names end so, such as [.txt,.md].
        max_bytes: Use no more of a text than this: whole documents.
        dataset: Name or path for datasets.load_dataset, in place of a text.
        dataset_config: Its configuration.
        dataset_split: Its split that is read.
        text_column: Its column that holds the text.
        cache: Folder that keeps the tokens, for texts larger than the memory.
        tokenizer: Name, path, or bytes; the model's own by default.
        max_train_count: A bigram is rare if training shows it at most this often; by default 1250 for 10
            billion training tokens, in proportion.
        ar_share: Choose that instead so that this share of the scored tokens is AR hits, as nearly as can be.
        length: Tokens of a context; by default what the models take, and at most 1024.
        packing: windows: the text in stretches of equal length. documents: each document on its own, longer
            ones in stretches.
        max_tokens: Score about this many tokens, in contexts spread evenly over the text.
        batch_size: Contexts at a time; by default what keeps the logits of a batch below half a gigabyte.
        dtype: Type of the models' weights: float32, bfloat16 or float16.
        device: Where models compute: cpu, cuda, ...; the GPU by default, if there is one.
        trust_remote_code: Run code that comes with a model.

    Raises:
        TypeError: If a number has the wrong type.
        ValueError: If a value is out of range, or options exclude each other.
    """

    train: str | None = None
    split: Split | None = None
    suffixes: Sequence[str] | None = None
    max_bytes: int | None = None
    dataset: str | None = None
    dataset_config: str | None = None
    dataset_split: str = "train"
    text_column: str = "text"
    cache: str | None = None
    tokenizer: str | None = None
    max_train_count: int | None = None
    ar_share: float | None = None
    length: int | None = None
    packing: Packing = "windows"
    max_tokens: int | None = None
    batch_size: int | None = None
    dtype: str = "float32"
    device: str | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        check_choice("packing", self.packing, get_args(Packing))
        check_bool("trust_remote_code", self.trust_remote_code)
        for name, least in {
            "max_train_count": 0,
            "length": 2,
            "max_bytes": 1,
            "max_tokens": 1,
            "batch_size": 1,
        }.items():
            if getattr(self, name) is not None:
                check_int(name, getattr(self, name), at_least=least)
        if self.split is not None:
            check_choice("split", self.split, get_args(Split))
        if self.train is None and self.split in ("train", "all"):
            raise ValueError(
                f"split={self.split!r} scores the text that is counted, in which no bigram is rare: name "
                "another text to count with train"
            )
        if self.ar_share is not None:
            check_number("ar_share", self.ar_share, at_least=0, at_most=1)
        if self.ar_share is not None and self.max_train_count is not None:
            raise ValueError("ar_share chooses max_train_count: give one of them")

    @property
    def scored_split(self) -> Split:
        """The part of the text that is scored."""
        return self.split or ("test" if self.train is None else "all")
