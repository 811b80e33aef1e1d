"""Write the recipes in this folder from the table of models, or print the tables of the documentation.

python recipes/zoology/language_models/make_recipes.py
python recipes/zoology/language_models/make_recipes.py --tables

What differs from model to model stands in ``gatework.models.language.zoology_language_models`` and in
``SCHEDULES`` below; the tests hold the files and the documentation to both.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from gatework.data.ar_slices import default_max_train_count
from gatework.models.language.decoder import GateworkForCausalLM
from gatework.models.language.zoology_language_models import (
    ZOOLOGY_LANGUAGE_MODELS,
    ZOOLOGY_LENGTH,
    ZoologyLanguageModel,
)
from gatework.study.flops import FlopCounter

FOLDER = Path(__file__).parent
PAGE = "docs/systems/zoology_language_models.md"
DEVICES = 8
#: Bytes of the Pile per token of GPT-2 are about 3.4 (arXiv:2101.00027); a little more, so that they suffice.
BYTES_PER_TOKEN = 3.6


@dataclass(frozen=True)
class Schedule:
    """How models of one size are trained; all of it ours.

    Attributes:
        learning_rate: Peak learning rate, GPT-3's for the size.
        rows: Sequences per optimizer step on all devices.
        batch_size: Sequences per batch and device.
        strategy: How the devices work together.
    """

    learning_rate: float
    rows: int
    batch_size: int
    strategy: str


#: By the largest number of parameters, in millions.
SCHEDULES = {
    100: Schedule(6.0e-4, 256, 32, "ddp"),
    200: Schedule(6.0e-4, 256, 16, "ddp"),
    500: Schedule(3.0e-4, 256, 8, "ddp"),
    2000: Schedule(2.0e-4, 512, 4, "fsdp"),
}


def schedule_of(model: ZoologyLanguageModel) -> Schedule:
    """Return the schedule for the model's size."""
    return next(own for largest, own in SCHEDULES.items() if model.published_millions <= largest)


def num_parameters(model: ZoologyLanguageModel) -> int:
    """Count the parameters, a tied head once."""
    return sum(parameter.numel() for parameter in network(model.name).parameters())


@cache
def network(name: str) -> GateworkForCausalLM:
    """Make the model without memory for its weights."""
    with torch.device("meta"):
        return GateworkForCausalLM(ZOOLOGY_LANGUAGE_MODELS[name].config())


def recipe(model: ZoologyLanguageModel) -> str:
    """Return the recipe of a model as YAML, with what is published and what is ours."""
    schedule = schedule_of(model)
    tokens_per_step = schedule.rows * ZOOLOGY_LENGTH
    steps = round(model.billion_tokens * 1e9 / tokens_per_step)
    accumulated = schedule.rows // (schedule.batch_size * DEVICES)
    return f"""\
{_header(model)}
task: text
setting:
  dataset: monology/pile-uncopyrighted  # stands in for the Pile
  dataset_split: train
  text_column: text
  max_bytes: {round(model.billion_tokens * BYTES_PER_TOKEN / 0.9)}000000000  # 90 % of it is trained on
  tokenizer: gpt2
  cache: data/pile  # tokens on disk, made once for all recipes of one max_bytes
  length: {ZOOLOGY_LENGTH}
  packing: packed
  max_train_count: {default_max_train_count(model.billion_tokens * 10**9)}  # AR hits are no more frequent
  num_validation: 256
  num_test: 2048
model:
  mixers:
{_mixers(model)}
  num_hidden_layers: {model.layers}
  hidden_size: {model.hidden_size}
  mlp_ratio: {model.model_options["mlp_ratio"]}  # {model.mlp_width} channels
  tie_word_embeddings: {str(model.tied).lower()}
  pad_vocab_size_multiple: {model.model_options["pad_vocab_size_multiple"]}
  residual_init: {model.model_options["residual_init"]}  # initial weights as in Zoology's code
learning_rate: {schedule.learning_rate}
training:
  steps: {steps}  # {model.billion_tokens} billion tokens, {tokens_per_step:,} a step
  batch_size: {schedule.batch_size}
  weight_decay: 0.1
  warmup: 0.01
  final_rate: 0.1
  gradient_clip: 1.0
  beta2: 0.95
  evaluations: 20
trainer:
  accelerator: cuda
  devices: {DEVICES}
  strategy: {schedule.strategy}
  precision: bf16-mixed
  accumulate_grad_batches: {accumulated}  # {schedule.rows} sequences a step
  checkpoint_every: 500
  log_every: 10
  num_workers: 4
"""


def _header(model: ZoologyLanguageModel) -> str:
    count = num_parameters(model)
    off = 100 * (count / 1e6 / model.published_millions - 1)
    size = f"{model.published_millions}M"
    if model.nominal:
        size = f"nominally {size} (unconfirmed)"
    lines = [
        f"{model.title} of Zoology (arXiv:2312.04927), {size} parameters, trained on",
        f"{model.billion_tokens} billion tokens of the Pile. Published perplexity: {_perplexity(model)}.",
        f"The shape is ours, for the paper prints no table of layers: {count:,} parameters ({off:+.2f} %).",
        "So are corpus, learning rate and schedule, which follow GPT-NeoX and GPT-3. Never run on a GPU: see",
        f"{PAGE} for what was checked.",
        f"gatework fit --config recipes/zoology/language_models/{model.name}.yaml",
    ]
    return "\n".join(f"# {line}" for line in lines)


def _perplexity(model: ZoologyLanguageModel) -> str:
    names = ("overall", "on AR hits", "on the rest")
    known = [f"{value:.2f} {name}" for name, value in zip(names, model.perplexity, strict=True) if value]
    return ", ".join(known) or "unconfirmed"


def _mixers(model: ZoologyLanguageModel) -> str:
    lines = []
    for mixer in model.mixers:
        options = ", ".join(f"{name}: {_plain(value)}" for name, value in mixer.items())
        lines.append(f"  - {{{options}}}")
    return "\n".join(lines)


def _plain(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def forward_flops(model: ZoologyLanguageModel) -> float:
    """Count the operations of the forward pass per token, in sequences of 2048, on tensors without content.

    Selected look-ups are counted as if every position were selected: how many are depends on the text.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    config = model.config()
    config.mixers = [
        {"name": "attention", "num_heads": mixer["num_heads"]} if "lookups" in mixer["name"] else mixer
        for mixer in config.mixers
    ]
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        counted = GateworkForCausalLM(config).train(False)
        tokens = torch.zeros(1, ZOOLOGY_LENGTH, dtype=torch.long)
        with FlopCounter() as counter:
            counted(tokens, use_cache=False)
    return counter.flops / ZOOLOGY_LENGTH


def tables() -> str:
    """Return the two tables of the documentation: published beside ours, and shapes with their cost."""
    published = [
        "| recipe | model | published | ours | off by | perplexity: all | AR hits | other | gap from AR |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    shapes = [
        "| recipe | blocks | channels | MLP | mixers | head | learning rate | GFLOPs per token | state |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for model in ZOOLOGY_LANGUAGE_MODELS.values():
        count = num_parameters(model)
        off = 100 * (count / 1e6 / model.published_millions - 1)
        mark = " (nominal)" if model.nominal else ""
        values = [f"{value:.2f}" if value else "–" for value in model.perplexity]
        share = "–" if model.gap_share is None else f"{model.gap_share:g} %"
        row = [f"`{model.name}`", model.title, f"{model.published_millions}M{mark}", f"{count / 1e6:.2f}M"]
        published.append(f"| {' | '.join([*row, f'{off:+.2f} %', *values, share])} |")
        state = network(model.name).state_size(ZOOLOGY_LENGTH)
        row = [f"`{model.name}`", f"{model.layers}", f"{model.hidden_size}", f"{model.mlp_width}"]
        row += [_pattern(model), "tied" if model.tied else "own", f"{schedule_of(model).learning_rate:g}"]
        row += [f"{forward_flops(model) / 1e9:.3f}", f"{state / 1e6:.2f}M"]
        shapes.append(f"| {' | '.join(row)} |")
    return "\n".join([*published, "", *shapes])


def _pattern(model: ZoologyLanguageModel) -> str:
    """Say the mixers in a few words."""
    names = [mixer["name"] for mixer in model.mixers]
    heads = {mixer["num_heads"] for mixer in model.mixers if "num_heads" in mixer}
    suffix = "".join(f", {count} heads" for count in heads)
    if len(set(names)) == 1:
        taps = "/".join(
            {3: "3", -1: "long"}[mixer["kernel_size"]]
            for mixer in model.mixers
            if len(mixer) == 2 and "kernel_size" in mixer
        )
        return f"`{names[0]}`" + (f" {taps}" if taps else "") + suffix
    other = next(name for name in names if name != "base_conv")
    return f"`base_conv` 3/long, `{other}` in 3{suffix}"


def main() -> None:
    """Write the recipes, or print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tables", action="store_true", help="print the tables instead")
    if parser.parse_args().tables:
        print(tables())
        return
    for model in ZOOLOGY_LANGUAGE_MODELS.values():
        (FOLDER / f"{model.name}.yaml").write_text(recipe(model))


if __name__ == "__main__":
    main()
