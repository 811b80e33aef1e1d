"""``gatework predict``: what a trained model makes of each sequence, or of a text that it continues."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from gatework.cli.recipe_options import add_recipe_arguments, add_weights_arguments, recipe_and_weights


def add_arguments(parser: ArgumentParser) -> None:
    """Add the command's arguments."""
    add_weights_arguments(parser)
    parser.add_argument("--split", choices=["validation", "test"], default="test", help="which data")
    parser.add_argument(
        "--output", type=str, default="predictions.jsonl", help="file with one JSON object per sequence"
    )
    parser.add_argument("--prompt", type=str, default=None, help="continue this text instead (task text)")
    parser.add_argument("--max_new_tokens", type=int, default=200, help="tokens to add to the prompt")
    parser.add_argument(
        "--temperature", type=float, default=0.0, help="draw with this temperature; 0 takes the likeliest"
    )
    add_recipe_arguments(parser)


def run(arguments: Namespace, *, command: Sequence[str]) -> int:
    """Write the predictions, or print the text."""
    recipe, weights = recipe_and_weights(arguments)
    from gatework.files import replacing
    from gatework.training import evaluate

    task = evaluate.make_task(recipe)
    model = evaluate.make_model(recipe, task)
    evaluate.load_weights(model, weights)
    if arguments.prompt is not None:
        text = evaluate.continue_text(
            model,
            evaluate.tokenizer_of(task, weights),
            arguments.prompt,
            max_new_tokens=arguments.max_new_tokens,
            temperature=arguments.temperature,
            seed=arguments.seed,
        )
        print(arguments.prompt + text)
        return 0
    path = Path(arguments.output)
    rows = evaluate.predict(recipe, model, task, arguments.split, bar=sys.stderr.isatty())
    with replacing(path) as file:
        count = evaluate.write_rows(file, rows)
    print(f"{path}: {count:,} sequences of the {arguments.split} data", file=sys.stderr)
    return 0
