"""The recall study that accompanies a study on text: where it is, what it inherits, and its own options."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gatework.files import FileError
from gatework.registry import suggestion
from gatework.study.results import ResultStore
from gatework.study.spec import STUDY_FILE, StudyError, StudySpec
from gatework.study.summary import Summary, summarise

#: Its folder inside the directory of the study on text.
COMPANION_FOLDER = "recall"
COMPANION_TASK = "recall"
#: What describes the models is that of the study on text unless the mapping ``recall`` says otherwise.
INHERITED = ("mixers", "widths", "seeds", "model", "decode_contexts")
#: What describes the training is the recall study's own, with the defaults of every study.
OWN = ("learning_rates", "setting", "settings", "training", "budget", "budget_amount", "title", "notes")


def companion_options(options: Mapping[str, Any], text: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of the recall study, of those in :data:`INHERITED` and :data:`OWN`.

    Args:
        options: The mapping ``recall``.
        text: The arguments of the study on text. Learning rates of single mixers are not inherited.

    Raises:
        TypeError: If there is no such option.
        ValueError: If a mixer has a label that the study on text has not.
    """
    known = (*INHERITED, *OWN)
    for option in options:
        if option not in known:
            raise TypeError(f"recall has no option {option!r}{suggestion(str(option), list(known))}")
    inherited = {name: text[name] for name in INHERITED}
    inherited["mixers"] = _without_rates(text["mixers"])
    labels, wanted = _labels(text["mixers"]), _labels(options.get("mixers"))
    for label in wanted or ():
        if labels is not None and label not in labels:
            known_labels = suggestion(label, labels)
            raise ValueError(
                f"recall.mixers must have labels of the study on text, got {label!r}{known_labels}"
            )
    return {**inherited, **options}


def read_companion(directory: Path) -> Summary | None:
    """Read the recall study that accompanies the study on text in ``directory``; None if there is none.

    Raises:
        FileError: If its folder holds a study of another task, or one of its files is broken.
    """
    folder = directory / COMPANION_FOLDER
    if not (folder / STUDY_FILE).exists():
        return None
    study = StudySpec.read(folder)
    if study.task != COMPANION_TASK:
        raise StudyError(
            f"{folder} must hold a recall study to accompany {directory}, got one of task {study.task!r}; "
            "move it away"
        )
    return summarise(study, ResultStore(folder).read_all())


@contextmanager
def named_recall() -> Iterator[None]:
    """Let whatever is wrong with an option of the recall study be named so: ``recall.widths must be ...``."""
    try:
        yield
    except FileError:
        raise
    except (TypeError, ValueError) as error:
        message = str(error)
        separator = "." if message.split(" ", 1)[0] in (*INHERITED, *OWN) else ": "
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"recall{separator}{message}") from error


def _labels(mixers: Any) -> list[str] | None:
    """Labels of the mixers as they were asked for; None if that says only later which they are."""
    if isinstance(mixers, str) or not isinstance(mixers, Sequence | Mapping):
        return None
    return [str(mixer) for mixer in mixers]


def _without_rates(mixers: Any) -> Any:
    if not isinstance(mixers, Mapping):
        return mixers
    return {
        label: {name: entry for name, entry in value.items() if name != "learning_rates"}
        if isinstance(value, Mapping)
        else value
        for label, value in mixers.items()
    }
