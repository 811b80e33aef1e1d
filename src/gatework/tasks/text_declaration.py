"""What the text task declares beside what all tasks on tokens do: the recall gap, and continuing a prompt."""

from __future__ import annotations

from dataclasses import dataclass, replace

from gatework.checks import check_int, check_number
from gatework.tasks.declaration import Companion
from gatework.tasks.language import LANGUAGE


@dataclass(frozen=True)
class TextPrediction:
    """Continue a text, instead of scoring the sequences of a split.

    Attributes:
        prompt: Continue this text instead.
        max_new_tokens: Tokens to add to the prompt.
        temperature: Draw with this temperature; 0 takes the likeliest.

    Raises:
        TypeError: If a number has the wrong type.
        ValueError: If the prompt is empty, or a number is out of range.
    """

    prompt: str | None = None
    max_new_tokens: int = 200
    temperature: float = 0.0

    def __post_init__(self) -> None:
        if self.prompt == "":
            raise ValueError("prompt must hold at least one character, got ''")
        check_int("max_new_tokens", self.max_new_tokens, at_least=1)
        check_number("temperature", self.temperature, at_least=0)


TEXT = replace(
    LANGUAGE,
    sections=("recall_gap", "recall_prediction"),
    companion=Companion(
        "recall",
        task="recall",
        about="options of a recall study of the same mixers, as {} or such as {widths: [32]} (YAML)",
    ),
    predict_options=TextPrediction,
)
