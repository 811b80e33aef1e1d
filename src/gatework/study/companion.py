"""The study that accompanies another: where it is, what it inherits, and its own options.

A task declares which one may (:class:`gatework.tasks.declaration.Companion`): text, one on recall.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gatework.checks import check_names, suggestion
from gatework.files import FileError
from gatework.study.results import ResultStore
from gatework.study.spec import STUDY_FILE, StudyError, StudySpec
from gatework.study.summary import Summary, summarise
from gatework.tasks import task_declaration
from gatework.tasks.declaration import Companion, Declaration

if TYPE_CHECKING:
    from gatework.study.options import CompareOptions

#: What describes the models is that of the main study unless the companion's options say otherwise.
INHERITED = ("candidates", "sizes", "seeds", "model", "measure")
#: What describes the training is the companion's own, with the defaults of every study.
OWN = ("learning_rates", "setting", "settings", "training", "budget", "budget_amount", "title", "notes")


def companion_options(options: Mapping[str, Any], main: CompareOptions) -> dict[str, Any]:
    """Return the fields of the companion's options, of those in :data:`INHERITED` and :data:`OWN`.

    Args:
        options: What was asked for, by the names that the companion's task has for its axes.
        main: The study that it accompanies. Learning rates of single candidates are not inherited.

    Raises:
        TypeError: If there is no such option.
        ValueError: If a candidate has a label that the main study has not.
    """
    companion = main.declaration.companion
    assert companion is not None
    declared = task_declaration(companion.task)
    meant = companion_meanings(declared)
    check_names(f"{companion.option} has no option", options, meant)
    fields: dict[str, Any] = {name: getattr(main, name) for name in INHERITED}
    fields["candidates"] = _without_rates(fields["candidates"])
    known = {scaling.option for scaling in declared.scalings}
    fields["measure"] = {option: points for option, points in fields["measure"].items() if option in known}
    for option, value in options.items():
        if meant[option] == "measure":
            fields["measure"][option] = value
        else:
            fields[meant[option]] = value
    named = declared.candidates.plural
    labels, wanted = _labels(main.candidates), _labels(options.get(named))
    for label in wanted or ():
        if labels is not None and label not in labels:
            raise ValueError(
                f"{companion.option}.{named} must have labels of the study on {main.task}, "
                f"got {label!r}{suggestion(label, labels)}"
            )
    return fields


def companion_meanings(declared: Declaration) -> dict[str, str]:
    """Return the options of a companion by the names of its task, each with the field that it means."""
    meant = {declared.candidates.plural: "candidates", declared.sizes.plural: "sizes"}
    meant |= {scaling.option: "measure" for scaling in declared.scalings}
    return {**meant, **{name: name for name in (*INHERITED[2:4], *OWN)}}


def read_companion(directory: Path, companion: Companion | None) -> Summary | None:
    """Read the study that accompanies the one in ``directory``; None if there is none.

    Raises:
        FileError: If its folder holds a study of another task, or one of its files is broken.
    """
    if companion is None:
        return None
    folder = directory / companion.option
    if not (folder / STUDY_FILE).exists():
        return None
    study = StudySpec.read(folder)
    if study.task != companion.task:
        raise StudyError(
            f"{folder} must hold a {companion.task} study to accompany {directory}, got one of task "
            f"{study.task!r}; move it away"
        )
    return summarise(study, ResultStore(folder).read_all())


@contextmanager
def named_companion(companion: Companion | None) -> Iterator[None]:
    """Let whatever is wrong with an option of the companion be named so: ``recall.widths must be ...``."""
    try:
        yield
    except FileError:
        raise
    except (TypeError, ValueError) as error:
        if companion is None:
            raise
        message = str(error)
        if message.startswith(f"{companion.option} "):
            raise
        name = message.split(" ", 1)[0].split(".", 1)[0]
        separator = "." if name in companion_meanings(task_declaration(companion.task)) else ": "
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{companion.option}{separator}{message}") from error


def _labels(candidates: Any) -> list[str] | None:
    """Labels of the candidates as they were asked for; None if that says only later which they are."""
    if isinstance(candidates, str) or not isinstance(candidates, Sequence | Mapping):
        return None
    return [str(candidate) for candidate in candidates]


def _without_rates(candidates: Any) -> Any:
    if not isinstance(candidates, Mapping):
        return candidates
    return {
        label: {name: entry for name, entry in value.items() if name != "learning_rates"}
        if isinstance(value, Mapping)
        else value
        for label, value in candidates.items()
    }
