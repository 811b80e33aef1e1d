"""What all tasks on tokens share: mixers at widths are compared, and decoding is timed. Light to import.

A task whose models read and write tokens subclasses :class:`LanguageTask` and adds its data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from gatework.registry import list_mixers, mixer_entry
from gatework.tasks.candidates import Candidate, check_candidates, own_model, own_rates
from gatework.tasks.declaration import Axis, Cost, Declaration, Scaling, ScalingCurve, Unit
from gatework.tasks.task import Task

if TYPE_CHECKING:
    from gatework.data.segment import TokenBatch
    from gatework.models.language.decoder import GateworkConfig, GateworkForCausalLM

#: Mixers compared when none are named: attention, a gated convolution, a hybrid of both, a linear recurrence.
DEFAULT_MIXERS = ("attention", "base_conv", "base_conv+attention", "gated_linear_attention")

#: Lengths of context at which decoding is timed: a second or two per run, on one core at a width of 64.
DECODE_CONTEXTS = (64, 256, 1024, 4096)

#: Options that give ``"all"`` mixers states of a laptop's size, at widths that 16 divides; else defaults.
SMALL_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "based": {"feature_dim": 8},
    "big_bird": {"block_size": 8, "num_random": 1},
    "h3": {"state_dim": 16, "head_dim": 2},
    "mamba2": {"state_dim": 16, "head_dim": 16},
    "nsa": {"block_size": 8, "num_selected_blocks": 2, "window_size": 16},
    "rwkv5": {"head_dim": 16},
    "rwkv7": {"head_dim": 16, "decay_rank": 16, "rate_rank": 16, "gate_rank": 32},
    "sliding_window": {"window_size": 16},
}

#: Bytes of a number of the decoding state, as costs count it.
FLOAT_BYTES = 4


MIXERS = Axis(
    "mixer",
    about=(
        "token mixers: names such as [attention,base_conv+attention], labels with their layers (YAML), or "
        "`all`"
    ),
    default=DEFAULT_MIXERS,
)


def parse_mixers(mixers: Any, axis: Axis = MIXERS) -> list[Candidate]:
    """Read the mixers of a study; the definition of each is a list of layers.

    Args:
        mixers: Names, where ``"base_conv+attention"`` alternates two of them layer by layer; or labels with
            a list of layers, or with ``layers``, ``learning_rates`` and ``model``; or ``"all"`` for every
            registered mixer by itself, with :data:`SMALL_OPTIONS`.
        axis: What they are called.

    Raises:
        ValueError: If there is none, or no mixer of that name.
        TypeError: If an entry has another form.
    """
    if mixers == "all":
        mixers = {name: [{"name": name, **SMALL_OPTIONS.get(name, {})}] for name in list_mixers()}
    if isinstance(mixers, str) or not isinstance(mixers, Sequence | Mapping):
        raise TypeError(
            f"{axis.plural} must be a list of names, a mapping of labels or 'all', got {mixers!r}"
        )
    if not mixers:
        raise ValueError(f"{axis.plural} must name at least one sequence mixer, got none")
    check_candidates(mixers, axis)
    if isinstance(mixers, Mapping):
        candidates = [_candidate(str(label), value, axis) for label, value in mixers.items()]
    else:
        candidates = [_candidate(name, name.split("+"), axis) for name in mixers]
    for candidate in candidates:
        for layer in candidate.definition:
            if not isinstance(layer, Mapping) or not isinstance(layer.get("name"), str):
                raise TypeError(
                    f"each layer of mixer {candidate.label!r} must be a name, or an object with a 'name', "
                    f"got {layer!r:.80}"
                )
        check_layers(candidate.definition)
    return candidates


def check_layers(layers: Any) -> None:
    """Refuse layers whose mixers are not registered here.

    Raises:
        ValueError: Naming the first.
    """
    for layer in layers:
        mixer_entry(layer["name"])


def _candidate(label: str, value: Any, axis: Axis) -> Candidate:
    options = dict(value) if isinstance(value, Mapping) else {"layers": value}
    unknown = sorted(set(options) - {"layers", "learning_rates", "model"})
    if unknown or "layers" not in options:
        raise TypeError(
            f"mixer {label!r} must be a list of layers, or have layers, learning_rates and model, "
            f"got {value!r}"
        )
    layers = options["layers"]
    if isinstance(layers, str) or not isinstance(layers, Sequence) or not layers:
        raise TypeError(f"layers of mixer {label!r} must be a list of mixers, got {layers!r}")
    definition = [{"name": layer} if isinstance(layer, str) else layer for layer in layers]
    rates = own_rates(options.get("learning_rates"), label, axis)
    return Candidate(label, definition, rates, own_model(options.get("model"), label, axis))


def describe_layers(layers: Any) -> str:
    """Say what the registry knows of the mixers in a list of layers; nothing of those it does not know."""
    names = dict.fromkeys(
        layer.get("name") for layer in layers if isinstance(layers, list) and isinstance(layer, Mapping)
    )
    entries = [mixer_entry(name) for name in names if name in list_mixers()]
    return "; ".join(f"{entry.summary} ({entry.source})" for entry in entries)


def effort(setting: Mapping[str, Any], width: int) -> float:
    """Estimate the work of one sequence: its tokens times the channels, from what a setting names."""
    segments = setting.get("train")
    settings = [setting, *(segments if isinstance(segments, list) else ())]
    lengths = [_count(options, name) for options in settings for name in ("length", "input_seq_len")]
    return float(max(lengths) * width)


def _count(options: Any, name: str) -> int:
    """The option ``name`` if it is a positive integer, otherwise 1."""
    value = options.get(name) if isinstance(options, Mapping) else None
    return value if isinstance(value, int) and value > 0 else 1


DECODING = Scaling(
    key="decoding",
    option="decode_contexts",
    point="context",
    default=DECODE_CONTEXTS,
    least=2,
    about="lengths of context, growing, at which decoding is timed after the training; [] for none",
    question="How fast does it generate?",
    caption=(
        "Tokens per second when one sequence is decoded greedily, at the end of contexts of growing length, "
        "and the bytes that are carried there from token to token. Both were taken of the trained models; "
        "speed depends on the machine, which was busy with other runs meanwhile. Symbols are means over "
        "seeds, bars reach from the slowest to the fastest."
    ),
    title="Context in tokens",
    hover="context of {} tokens",
    column="tokens/s decoding at {}",
    curves=(
        ScalingCurve(
            "tokens_per_second",
            heading="Generation: tokens per second against context length",
            title="Generated tokens/s",
            hover="generates {} tokens/s",
            is_timed=True,
        ),
        ScalingCurve(
            "state_bytes",
            heading="Decoding state against context length",
            title="Decoding state",
            format="bytes",
            hover="carries {}",
        ),
    ),
)

LANGUAGE = Declaration(
    candidates=MIXERS,
    sizes=Axis(
        "width",
        title="model width (channels)",
        about="numbers of channels, such as [32,64]",
        default=(32,),
    ),
    unit=Unit("token", example="sequence"),
    definition="layers",
    costs=(
        Cost("state_bytes", "decoding state", "bytes", switch="as decoding carries it"),
        Cost(
            "published_state_bytes",
            "state as published",
            "bytes",
            noun="decoding state as published",
            instead_of="state_bytes",
            switch="as published",
        ),
    ),
    lean="state_bytes",
    scalings=(DECODING,),
    parse=parse_mixers,
    check=check_layers,
    about=describe_layers,
    effort=effort,
)


class LanguageTask(Task):
    """A task whose models read tokens and give the next ones.

    Subclasses also have ``vocab_size``, the number of tokens, and ``length``, that of the longest sequences.
    """

    declaration: ClassVar[Declaration] = LANGUAGE

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        raise NotImplementedError

    @property
    def length(self) -> int:
        """Length of the longest sequences."""
        raise NotImplementedError

    def model_options(self, definition: Any, size: int) -> dict[str, Any]:
        """Return a list of layers at a width as options of the model."""
        return {"mixers": [dict(layer) for layer in definition], "hidden_size": size}

    def build_model(self, options: Mapping[str, Any]) -> GateworkForCausalLM:
        """Build a language model of at least two layers, with every entry of ``mixers`` at least once.

        Args:
            options: Those of :class:`~gatework.models.language.decoder.GateworkConfig`, without
                ``vocab_size`` and ``context_length``, which are the task's.

        Raises:
            TypeError: If there is no such option.
            ValueError: If a value is impossible.
        """
        from gatework.models.language.decoder import GateworkForCausalLM

        return GateworkForCausalLM(self.model_config(options))

    def model_config(self, options: Mapping[str, Any]) -> GateworkConfig:
        """Return the configuration of :meth:`build_model`.

        Raises:
            TypeError: If there is no such option.
            ValueError: If a value is impossible.
        """
        from gatework.models.language.decoder import model_config

        own = {"vocab_size": self.vocab_size, "context_length": self.length}
        for option in own:
            if option in options:
                raise TypeError(f"model has no option {option!r} here: the task says it")
        mixers = options.get("mixers")
        num_layers = max(2, len(mixers)) if isinstance(mixers, list | tuple) else 2
        defaults = {"num_hidden_layers": num_layers, "use_cache": False}
        return model_config({**own, **defaults, **options})

    def work(self, batch: TokenBatch) -> int:
        """Return the number of tokens that are read, padding not counted."""
        return batch.num_tokens

    def costs(self, model: GateworkForCausalLM) -> dict[str, int | float | None]:
        """Count the bytes that decoding carries after the longest sequence, ours and as papers count them."""
        published = model.published_state_size(self.length)
        return {
            "state_bytes": model.state_size(self.length) * FLOAT_BYTES,
            "published_state_bytes": None if published is None else published * FLOAT_BYTES,
        }

    def measure(self, model: GateworkForCausalLM, scaling: Scaling, points: Sequence[int]) -> dict[str, Any]:
        """Time greedy decoding at growing lengths of context."""
        from gatework.tasks.decoding import decoding_speed

        return decoding_speed(model, points)

    def save_model(self, model: GateworkForCausalLM, directory: Path) -> None:
        """Write the model as ``save_pretrained`` does, and the task's tokenizer beside it if it has one."""
        from gatework.hf import without_bars

        model.config.use_cache = True
        with without_bars():
            model.save_pretrained(directory)
        tokenizer = getattr(self, "tokenizer", None)
        if tokenizer is not None:
            tokenizer.pretrained().save_pretrained(str(directory))
