"""What comes of a recipe: its task, its model, weights from anywhere, scores and predictions."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, cast

import torch
from lightning import Callback
from torch import Tensor
from tqdm import tqdm

from gatework.checkpoints import CheckpointError, load_checkpoint
from gatework.data.loader import ResumableLoader
from gatework.data.segment import TokenBatch
from gatework.data.tokenizer import ByteTokenizer, TextTokenizer, load_tokenizer
from gatework.models.language.decoder import GateworkConfig, GateworkForCausalLM
from gatework.registry import suggestion
from gatework.tasks import create_task
from gatework.tasks.next_token import NextTokenModule
from gatework.tasks.task import Task, Training
from gatework.training.checkpoint_io import read_checkpoint
from gatework.training.options import TrainerOptions, single_process
from gatework.training.recipe import Recipe
from gatework.training.trainer import device_of, make_trainer, quiet

MODEL, WEIGHTS, TOKENIZER = "model", "model.safetensors", "tokenizer.json"


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
    """Return ``loss``, ``quality``, ``slices`` and what else the task measures of a model on some batches."""
    with quiet():
        trainer = make_trainer(single_process(options), steps=1, validate_every=1, callbacks=callbacks)
        trainer.test(module, batches, verbose=False)
    return {
        "loss": module.summary["loss"],
        "quality": module.quality(),
        "slices": dict(module.summary["slices"]),
        **module.summary["measures"],
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
            moved = batch._replace(
                inputs=batch.inputs.to(device),
                labels=batch.labels.to(device),
                seq_idx=None if batch.seq_idx is None else batch.seq_idx.to(device),
            )
            yield from module.predictions(moved)
            progress.update()


def write_rows(file: IO[bytes], rows: Iterable[dict[str, Any]]) -> int:
    """Write one JSON object per line and return how many."""
    count = 0
    for row in rows:
        file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        count += 1
    return count


def tokenizer_of(task: Task, weights: Path) -> TextTokenizer:
    """Return the tokenizer of a trained model: what was saved beside its weights, or its task's, or bytes.

    Raises:
        ValueError: If what was saved cannot be loaded.
    """
    own = getattr(task, "tokenizer", None)
    if own is None or isinstance(own, ByteTokenizer):
        return ByteTokenizer()
    # A tokenizer trained on the text follows from it; the text may have changed since.
    saved = weights.parent / TOKENIZER
    return load_tokenizer(weights.parent) if saved.is_file() else cast("TextTokenizer", own)


def continue_text(
    model: GateworkForCausalLM,
    tokenizer: TextTokenizer,
    prompt: str,
    *,
    max_new_tokens: int,
    temperature: float,
    seed: int,
) -> str:
    """Continue a text token by token: with the likeliest, or with draws at a ``temperature`` above 0.

    Raises:
        ValueError: If the prompt is empty, a number is out of range, or the model knows fewer tokens than the
            tokenizer.
    """
    if not prompt:
        raise ValueError("prompt must hold at least one character, got ''")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    if temperature < 0:
        raise ValueError(f"temperature must be at least 0, got {temperature}")
    known = model.config.vocab_size
    if known < tokenizer.vocab_size:
        raise ValueError(
            f"prompt needs a model of {tokenizer.identity} ({tokenizer.vocab_size} tokens), and this one "
            f"knows {known} tokens"
        )
    torch.manual_seed(seed)
    (ids,) = tokenizer.encode([prompt.encode()])
    inputs = torch.tensor([ids.tolist()])
    chosen: dict[str, Any] = {"do_sample": temperature > 0}
    if temperature > 0:
        chosen |= {"temperature": temperature, "top_k": 0}
    if known > tokenizer.vocab_size:  # rows that round the vocabulary up stand for nothing
        chosen["suppress_tokens"] = [*range(tokenizer.vocab_size, known)]
    generator: Any = model.train(False)  # Transformers does not say that it may be called
    output = generator.generate(
        inputs,
        attention_mask=torch.ones_like(inputs),
        max_new_tokens=max_new_tokens,
        use_cache=True,
        pad_token_id=tokenizer.end_id,
        **chosen,
    )
    return tokenizer.decode(output[0, inputs.shape[1] :].tolist())
