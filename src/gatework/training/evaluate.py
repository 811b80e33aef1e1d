"""What comes of a recipe: its task, its model, weights from anywhere, scores and predictions."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import torch
from lightning import Callback
from torch import Tensor
from tqdm import tqdm

from gatework.checkpoints import CheckpointError, load_checkpoint
from gatework.data.loader import ResumableLoader
from gatework.data.segment import TokenBatch
from gatework.models.language.decoder import GateworkConfig, GateworkForCausalLM
from gatework.registry import suggestion
from gatework.tasks import create_task
from gatework.tasks.next_token import NextTokenModule
from gatework.tasks.task import Task, Training
from gatework.training.checkpoint_io import read_checkpoint
from gatework.training.options import TrainerOptions, single_process
from gatework.training.recipe import Recipe
from gatework.training.trainer import device_of, make_trainer, quiet

MODEL, WEIGHTS = "model", "model.safetensors"


def make_task(recipe: Recipe) -> Task:
    """Make the task of a recipe.

    Raises:
        ValueError: If there is no such task, or its setting is impossible.
        TypeError: If the setting has an unknown option.
    """
    return create_task(recipe.task, recipe.setting)


def make_model(recipe: Recipe, task: Task) -> GateworkForCausalLM:
    """Make the model of a recipe: at least two layers, and every entry of ``mixers`` at least once.

    Raises:
        ValueError: If an option is impossible.
        TypeError: If there is no such option.
    """
    own = {"vocab_size", "context_length"}
    known = sorted(set(GateworkConfig.__annotations__) - own - {"model_type"})
    for option in recipe.model:
        if option not in known:
            raise TypeError(f"model has no option {option!r}{suggestion(str(option), known)}")
    mixers = recipe.model.get("mixers") or ["attention"]
    options = {"num_hidden_layers": max(2, len(mixers)), "use_cache": False, **recipe.model}
    config = GateworkConfig(vocab_size=task.vocab_size, context_length=task.length, **options)
    return GateworkForCausalLM(config)


def load_weights(model: GateworkForCausalLM, path: Path) -> None:
    """Load the weights of a training, ours or the authors', from whatever file holds them.

    A checkpoint of a training with averaged weights gives the averages.

    Raises:
        CheckpointError: If the file cannot be read, or does not fit.
    """
    source: Path | dict[str, Tensor] = path
    if path.suffix == ".ckpt":
        source = model_weights(read_checkpoint(path))
    load_checkpoint(model, source)


def model_weights(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the weights of the model alone from a checkpoint of its training."""
    weights = checkpoint["state_dict"]
    return {
        name.removeprefix("model."): tensor for name, tensor in weights.items() if name.startswith("model.")
    }


def weights_of_run(directory: Path, checkpoint: str | None = None) -> Path:
    """Return the file with the weights of a training.

    Args:
        directory: Of the training.
        checkpoint: ``"last"``, ``"best"``, a path, or None for the final weights, or the last if training
            has not ended.

    Raises:
        CheckpointError: If there is no such file.
    """
    if checkpoint in ("last", "best"):
        candidates = [directory / "checkpoints" / f"{checkpoint}.ckpt"]
    elif checkpoint is not None:
        candidates = [Path(checkpoint)]
    else:
        candidates = [directory / MODEL / WEIGHTS, directory / "checkpoints" / "last.ckpt"]
    for path in candidates:
        if path.is_file():
            return path
    raise CheckpointError(f"{candidates[-1]} does not exist; train with `gatework fit` first")


def score(
    module: NextTokenModule,
    batches: Iterable[TokenBatch],
    options: TrainerOptions,
    callbacks: Sequence[Callback] = (),
) -> dict[str, Any]:
    """Return ``loss``, ``quality`` and ``slices`` of a model on some batches."""
    with quiet():
        trainer = make_trainer(single_process(options), steps=1, validate_every=1, callbacks=callbacks)
        trainer.test(module, batches, verbose=False)
    return {
        "loss": module.summary["loss"],
        "quality": module.quality(),
        "slices": dict(module.summary["slices"]),
    }


def split_batches(task: Task, split: str) -> Iterable[TokenBatch]:
    """Return the batches of ``"validation"`` or ``"test"``.

    Raises:
        ValueError: If ``split`` is another word.
    """
    if split not in ("validation", "test"):
        raise ValueError(f"split must be 'validation' or 'test', got {split!r}")
    return task.validation_batches() if split == "validation" else task.test_batches()


def predict(
    recipe: Recipe, model: GateworkForCausalLM, task: Task, split: str, *, bar: bool
) -> Iterator[dict[str, Any]]:
    """Yield what the model makes of each sequence of a split; its task says what that is."""
    device = device_of(recipe.trainer)
    module = task.module(model, Training(), recipe.learning_rate).to(device).eval()
    batches = split_batches(task, split)
    total = len(batches) if isinstance(batches, ResumableLoader) else None
    with torch.inference_mode(), tqdm(total=total, desc="predict", unit="batch", disable=not bar) as progress:
        for batch in batches:
            moved = TokenBatch(batch.inputs.to(device), batch.labels.to(device), batch.slices)
            yield from module.predictions(moved)
            progress.update()


def write_rows(file: IO[bytes], rows: Iterable[dict[str, Any]]) -> int:
    """Write one JSON object per line and return how many."""
    count = 0
    for row in rows:
        file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        count += 1
    return count


def continue_text(
    model: GateworkForCausalLM, prompt: str, *, max_new_tokens: int, temperature: float, seed: int
) -> str:
    """Continue a text byte by byte: with the likeliest byte, or with draws at a ``temperature`` above 0.

    Raises:
        ValueError: If the prompt is empty, a number is out of range, or the model is not one of bytes.
    """
    if not prompt:
        raise ValueError("prompt must hold at least one character, got ''")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    if temperature < 0:
        raise ValueError(f"temperature must be at least 0, got {temperature}")
    if model.config.vocab_size < 256:
        raise ValueError(
            f"prompt needs a model of bytes, and this one knows {model.config.vocab_size} tokens"
        )
    torch.manual_seed(seed)
    inputs = torch.tensor([list(prompt.encode())])
    chosen: dict[str, Any] = {"do_sample": temperature > 0}
    if temperature > 0:
        chosen |= {"temperature": temperature, "top_k": 0}
    generator: Any = model.train(False)  # Transformers does not say that it may be called
    output = generator.generate(
        inputs,
        attention_mask=torch.ones_like(inputs),
        max_new_tokens=max_new_tokens,
        use_cache=True,
        pad_token_id=0,
        **chosen,
    )
    return bytes(output[0, inputs.shape[1] :].clamp(max=255).tolist()).decode(errors="replace")
