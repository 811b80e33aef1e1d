"""A decoder language model whose layers are named in its config, as a Transformers model.

Pre-norm blocks around any registered sequence mixer, one per layer: a plain Transformer, a stack of gated
convolutions or a hybrid of both is a list of names. Zoology's models (arXiv:2312.04927) are configurations
of it, and checkpoints in Zoology's layout load with :func:`gatework.load_checkpoint`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, no_type_check

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from gatework.checks import check_names, named_in
from gatework.layers.channel_mixers import GLU, MLP
from gatework.layers.sequence.mixer import Mixer, State
from gatework.layers.sequence.packed_documents import PackedDocuments
from gatework.layouts import Layout
from gatework.models.language.config_checks import check_config, check_mixers, warn_of_unknown
from gatework.models.language.head_loss import head_loss
from gatework.models.language.inputs import check_padding, labels_within_documents, packed_documents
from gatework.models.language.residual_outputs import residual_outputs
from gatework.models.language.zoology_names import zoology_layout
from gatework.registry import create_mixer, mixer_options


@no_type_check  # Transformers makes a dataclass of it whose constructor takes keys that are no fields
class GateworkConfig(PreTrainedConfig):
    """Configuration of :class:`GateworkForCausalLM`.

    Args:
        vocab_size: Number of tokens.
        hidden_size: Number of channels.
        num_hidden_layers: Number of blocks.
        mixers: Sequence mixers, repeated over the layers: names, or dicts with ``name`` and that mixer's
            options, e.g. ``["base_conv", {"name": "attention", "num_heads": 2}]``.
        channel_mixer: ``"mlp"``, ``"glu"``, ``"identity"`` (adds the normalised stream to itself, as in
            Zoology's published sweeps) or ``"none"`` (the block ends after the sequence mixer).
        mlp_ratio: Hidden width of the channel mixer over ``hidden_size``.
        norm: ``"layernorm"`` or ``"rmsnorm"`` in the blocks; the last norm is always a LayerNorm.
        norm_eps: Epsilon of the norms in the blocks.
        final_norm_eps: Epsilon of the last norm.
        learned_positions: Length of the learned position table; 0 for none.
        context_length: Longest sequence, given to mixers that need to know it (long filters).
        embed_dropout: Dropout after the embedding.
        resid_dropout: Dropout on what each mixer adds to the stream.
        drop_path_rate: Probability, below 1, of dropping that whole for a sequence (stochastic depth).
        initializer_range: Standard deviation of initial linear and embedding weights; that of residual
            outputs is divided by ``sqrt(2 * num_hidden_layers)``.
        init_linear: Whether linear layers are drawn so; otherwise they keep the mixer's own initialisation,
            mostly PyTorch's, and residual outputs are divided by ``sqrt(num_hidden_layers)`` (as Mamba's
            authors do).
        residual_init: Which layers are residual outputs: ``"declared"``, those that write to the residual
            stream as the mixers say (:class:`~gatework.layers.sequence.mixer.Mixer`), or ``"zoology"``, those
            whose names end in ``out_proj`` or ``fc2``, which is the rule of Zoology's code, for its recipes.
        embedding_init: ``"default"`` (``initializer_range``), ``"normal"`` (unit variance) or
            ``"spherical"`` (rows of unit length).
        train_embeddings: Whether word embeddings learn. Frozen ones are never tied to the head.
        pad_vocab_size_multiple: ``vocab_size`` is rounded up to a multiple of it.
    """

    model_type = "gatework"

    vocab_size: int = 256
    hidden_size: int = 128
    num_hidden_layers: int = 2
    mixers: list[Any] | None = None
    channel_mixer: str = "mlp"
    mlp_ratio: float = 4.0
    norm: str = "layernorm"
    norm_eps: float = 1e-5
    final_norm_eps: float = 1e-5
    learned_positions: int = 0
    context_length: int = 2048
    embed_dropout: float = 0.0
    resid_dropout: float = 0.0
    drop_path_rate: float = 0.0
    initializer_range: float = 0.02
    init_linear: bool = True
    residual_init: str = "declared"
    embedding_init: str = "default"
    train_embeddings: bool = True
    pad_vocab_size_multiple: int = 1
    tie_word_embeddings: bool = True
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        """Complete and check the values.

        What is no option, of ours or of Transformers, is kept as an attribute, with a warning.

        Raises:
            TypeError: If a value has another type, or a mixer no such option.
            ValueError: If a value is impossible, or there is no such mixer.
        """
        if self.mixers is None:
            self.mixers = ["attention"]
        check_config(self)
        self.mixers = [{"name": mixer} if isinstance(mixer, str) else dict(mixer) for mixer in self.mixers]
        self.vocab_size += -self.vocab_size % self.pad_vocab_size_multiple
        self.tie_word_embeddings = self.tie_word_embeddings and self.train_embeddings
        warn_of_unknown(type(self), kwargs)
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call]
        check_mixers(self)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Read a configuration as Transformers does, and check what is given in place of its values.

        Raises:
            TypeError: If a value has another type, or a mixer no such option.
            ValueError: If a value is impossible, or there is no such mixer.
        """
        made = super().from_dict(config_dict, **kwargs)
        config = made[0] if isinstance(made, tuple) else made
        check_config(config)
        check_mixers(config)
        return made

    def mixer_of_layer(self, index: int) -> Mixer:
        """Make the sequence mixer of one layer."""
        assert self.mixers is not None
        position = index % len(self.mixers)
        options = dict(self.mixers[position])
        name = options.pop("name")
        known = mixer_options(name)
        if "max_length" in known:
            options.setdefault("max_length", self.context_length)
        if {"layer_index", "num_layers"} <= known:
            # Initial values that follow the depth; in a model of up to 12 layers as if it had 12, as Zoology.
            options.setdefault("layer_index", index)
            options.setdefault("num_layers", max(12, self.num_hidden_layers))
        with named_in(f"mixers[{position}]", options):
            return create_mixer(name, self.hidden_size, **options)


class DecoderBlock(GradientCheckpointingLayer):
    """``x = x + mixer(norm(x))``, then ``x = x + channel_mixer(norm(x))``.

    Raises:
        TypeError: If a mixer declares ``residual_outputs`` that it does not have.
    """

    def __init__(self, config: GateworkConfig, index: int) -> None:
        super().__init__()
        self.mixer_norm = _norm(config)
        self.mixer = config.mixer_of_layer(index)
        self.channel_mixer = _channel_mixer(config)
        if self.channel_mixer is not None:
            self.channel_norm = _norm(config)
        self.dropout = nn.Dropout(config.resid_dropout)
        self.drop_path = _drop_path(config.drop_path_rate)
        for output in residual_outputs(self, config.residual_init):
            setattr(output, "writes_to_stream", True)  # noqa: B010 (initial weights shrink with the depth)

    def forward(
        self,
        x: Float[Tensor, "batch length channels"],
        state: State | None = None,
        *,
        tokens: Int[Tensor, "batch length"] | None = None,
        documents: PackedDocuments | None = None,
        return_state: bool = False,
        with_auxiliary_loss: bool = False,
    ) -> tuple[Float[Tensor, "batch length channels"], State | None, Float[Tensor, ""] | None]:
        """Mix tokens, then channels.

        Args:
            x: The stream.
            state: What to continue after, with ``return_state``.
            tokens: Token ids, for mixers that read them.
            documents: Documents packed into the rows, which must not see each other; without a state.
            return_state: Whether to return a new state.
            with_auxiliary_loss: Whether to return what the mixer adds to the loss.

        Returns:
            The stream, the new state or ``None``, and the auxiliary loss or ``None``.
        """
        normed = self.mixer_norm(x)
        auxiliary = _auxiliary_loss(self.mixer, normed, documents) if with_auxiliary_loss else None
        reads = {"tokens": tokens} if self.mixer.reads_tokens else {}
        if documents is not None:
            mixed = _mix_documents(self.mixer, normed, documents, tokens)
        elif not return_state:
            mixed = self.mixer(normed, **reads)
        elif state is not None and x.shape[1] == 1:
            reads = {name: None if ids is None else ids.squeeze(1) for name, ids in reads.items()}
            mixed, state = self.mixer.step(normed.squeeze(1), state, **reads)
            mixed = mixed.unsqueeze(1)
        else:
            mixed, state = self.mixer.prefill(normed, state, **reads)
        x = x + self.drop_path(self.dropout(mixed))
        if self.channel_mixer is not None:
            x = x + self.drop_path(self.dropout(self.channel_mixer(self.channel_norm(x))))
        return x, state, auxiliary


class GateworkPreTrainedModel(PreTrainedModel):
    """What the backbone and the language model share: config class, initialisation, loading."""

    config_class = GateworkConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["DecoderBlock"]  # noqa: RUF012 (as in Transformers)
    _is_stateful = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        config = self.config
        if isinstance(module, nn.Linear):
            scaled = getattr(module, "writes_to_stream", False)
            if config.init_linear:
                std = config.initializer_range / (math.sqrt(2 * config.num_hidden_layers) if scaled else 1)
                module.weight.normal_(std=std)
            elif scaled:
                getattr(module, "draw_weight", _draw_as_linear)(module.weight)
                module.weight.div_(math.sqrt(config.num_hidden_layers))
            if module.bias is not None and not getattr(module, "keeps_bias", False):
                module.bias.zero_()
        elif isinstance(module, nn.Embedding):
            random = config.embedding_init != "default" and getattr(module, "holds_words", False)
            module.weight.normal_(std=1.0 if random else config.initializer_range)
            if random and config.embedding_init == "spherical":
                module.weight.div_(module.weight.norm(dim=1, keepdim=True))


@dataclass
class MixerCache:
    """What generation carries: one state per layer, and how many tokens they have seen."""

    states: list[State]
    length: int
    is_compileable: bool = False

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the number of tokens seen."""
        return self.length

    def reorder_cache(self, beam_idx: Int[Tensor, " batch"]) -> None:
        """Keep the states of the sequences ``beam_idx``, in that order (beam search)."""
        self.states = [
            {name: tensor.index_select(0, beam_idx) for name, tensor in state.items()}
            for state in self.states
        ]


class GateworkModel(GateworkPreTrainedModel):
    """Embedding, blocks and a last norm: token ids to hidden states."""

    def __init__(self, config: GateworkConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        setattr(self.embed_tokens, "holds_words", True)  # noqa: B010 (nn.Module attributes are typed as tensors)
        self.embed_tokens.weight.requires_grad_(config.train_embeddings)
        if config.learned_positions > 0:
            self.embed_positions = nn.Embedding(config.learned_positions, config.hidden_size)
        self.dropout = nn.Dropout(config.embed_dropout)
        self.layers = nn.ModuleList(DecoderBlock(config, i) for i in range(config.num_hidden_layers))
        self.final_dropout = nn.Dropout(config.resid_dropout)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.final_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()  # type: ignore[no-untyped-call]

    def get_input_embeddings(self) -> nn.Module:
        """Return the word embedding."""
        return self.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the word embedding."""
        assert isinstance(value, nn.Embedding)
        self.embed_tokens = value

    def forward(
        self,
        input_ids: Int[Tensor, "batch length"] | None = None,
        *,
        inputs_embeds: Float[Tensor, "batch length channels"] | None = None,
        attention_mask: Tensor | None = None,
        seq_idx: Int[Tensor, "batch length"] | None = None,
        past_key_values: MixerCache | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_auxiliary_loss: bool = False,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast | tuple[Any, ...]:
        """Map tokens to hidden states.

        Args:
            input_ids: Token ids; or give ``inputs_embeds``.
            inputs_embeds: Embeddings in place of ids.
            attention_mask: ``(batch, length)``, 0 at padding. Padding may only follow the tokens (right):
                later positions reach no earlier ones. Left padding would enter every state and is refused.
            seq_idx: Number of the document that each position belongs to, -1 at padding; ``None`` if a row is
                one context. A stretch of one number along a row is mixed, and counted, as if it were alone.
            past_key_values: States to continue after.
            use_cache: Whether to return states.
            output_hidden_states: Whether to return the stream before every block and at the end.
            output_auxiliary_loss: Whether to return the sum of what the mixers add to the loss, as the entry
                ``"auxiliary_loss"``, which is absent if none adds anything.
            return_dict: Whether to return a named output instead of a tuple.
            **kwargs: Ignored arguments that Transformers passes to every model (``position_ids``, …).

        Raises:
            TypeError: If ``seq_idx`` does not hold integers.
            ValueError: If neither or both inputs are given, the mask pads on the left, the sequence outgrows
                the position table, a mixer reads ids but has embeddings, or ``seq_idx`` does not fit them or
                comes with padding in the mask, ``past_key_values`` or ``use_cache``.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if input_ids is None:
            self._check_reads_no_tokens()
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        use_cache = bool(use_cache) and not (self.gradient_checkpointing and self.training)
        seen = 0 if past_key_values is None else past_key_values.length
        cached = use_cache or past_key_values is not None
        documents = self._documents(seq_idx, x, attention_mask, cached=cached)
        if documents is None:
            check_padding(attention_mask, cached=use_cache or seen > 0)
        x = self.dropout(self._add_positions(x, seen, documents))
        hidden, states, auxiliary = self._run_layers(
            x,
            past_key_values,
            tokens=input_ids,
            documents=documents,
            return_state=use_cache,
            with_auxiliary_loss=output_auxiliary_loss,
        )
        x = self.norm(self.final_dropout(hidden[-1]))
        # Transformers annotates a cache of keys and values; ours holds whatever each mixer carries.
        cache: Any = MixerCache(states, seen + x.shape[1]) if use_cache else None
        all_hidden = (*hidden[:-1], x) if output_hidden_states else None
        output = BaseModelOutputWithPast(last_hidden_state=x, past_key_values=cache, hidden_states=all_hidden)
        if auxiliary:
            output["auxiliary_loss"] = torch.stack(auxiliary).sum()
        return output if return_dict is not False else output.to_tuple()

    def _run_layers(
        self,
        x: Tensor,
        past: MixerCache | None,
        *,
        tokens: Tensor | None,
        documents: PackedDocuments | None,
        return_state: bool,
        with_auxiliary_loss: bool,
    ) -> tuple[list[Tensor], list[Any], list[Tensor]]:
        """The stream before every block and after the last, new states, and auxiliary losses."""
        hidden, states, auxiliary = [x], [], []
        for index, layer in enumerate(self.layers):
            x, state, extra = layer(
                x,
                None if past is None else past.states[index],
                tokens=tokens,
                documents=documents,
                return_state=return_state,
                with_auxiliary_loss=with_auxiliary_loss,
            )
            hidden.append(x)
            states.append(state)
            auxiliary += [] if extra is None else [extra]
        return hidden, states, auxiliary

    def _check_reads_no_tokens(self) -> None:
        for index, layer in enumerate(self.layers):
            mixer = layer.mixer
            if isinstance(mixer, Mixer) and mixer.reads_tokens:
                raise ValueError(
                    f"inputs_embeds were given, but layer {index}, a {type(mixer).__name__}, reads token "
                    "ids: give input_ids"
                )

    def _documents(
        self, seq_idx: Tensor | None, x: Tensor, mask: Tensor | None, *, cached: bool
    ) -> PackedDocuments | None:
        if seq_idx is None:
            return None
        most = self.config.learned_positions or None
        documents: PackedDocuments = packed_documents(
            seq_idx, tuple(x.shape[:2]), mask=mask, cached=cached, most_positions=most
        )
        return documents

    def _add_positions(self, x: Tensor, seen: int, documents: PackedDocuments | None) -> Tensor:
        table = self.config.learned_positions
        if table <= 0:
            return x
        if documents is not None:
            return x + F.embedding(documents.positions, self.embed_positions.weight)
        end = seen + x.shape[1]
        if end > table:
            raise ValueError(
                f"sequence of {end} tokens is longer than the position table, learned_positions={table}"
            )
        return x + self.embed_positions.weight[seen:end]


class GateworkForCausalLM(GateworkPreTrainedModel, GenerationMixin):
    """The decoder with a language-model head, for training and ``generate``."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012 (Transformers reads it)

    def __init__(self, config: GateworkConfig) -> None:
        super().__init__(config)
        self.model = GateworkModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()  # type: ignore[no-untyped-call]

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # each mixer brings a state of its own kind

    def forward(
        self,
        input_ids: Int[Tensor, "batch length"] | None = None,
        *,
        labels: Int[Tensor, "batch length"] | None = None,
        shift_labels: Int[Tensor, "batch length"] | None = None,
        seq_idx: Int[Tensor, "batch length"] | None = None,
        logits_to_keep: int = 0,
        return_dict: bool | None = None,
        **inputs: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Map tokens to logits, and to the loss where labels are given.

        While training with labels the head is applied only at labelled positions, and ``logits`` is
        ``None``: in recall tasks few positions have a label, and the head is most of the work; on text,
        logits are most of the memory (:func:`~gatework.models.language.head_loss.head_loss`). What mixers add
        to the loss (:meth:`~gatework.layers.sequence.mixer.Mixer.auxiliary_loss`) is in ``loss`` then.

        Args:
            input_ids: Token ids.
            labels: What Transformers calls labels: the ids themselves, shifted here; -100 is no label. The
                last token of a packed document predicts nothing.
            shift_labels: Labels that are shifted already: what should come after each position.
            seq_idx: Documents packed into the rows, see :meth:`GateworkModel.forward`.
            logits_to_keep: Compute logits only for this many last positions; 0 for all.
            return_dict: Whether to return a named output instead of a tuple.
            **inputs: Passed on to :class:`GateworkModel`.

        Raises:
            ValueError: If both kinds of labels are given.
        """
        if labels is not None:
            if shift_labels is not None:
                raise ValueError("give labels or shift_labels, not both")
            shift_labels = labels_within_documents(labels, seq_idx)
        trains = self.training and shift_labels is not None
        outputs = self.model(input_ids, seq_idx=seq_idx, output_auxiliary_loss=trains, **inputs)
        hidden = outputs.last_hidden_state
        loss = logits = None
        if shift_labels is not None:
            loss = head_loss(self.lm_head, *_at_labels(hidden, shift_labels))
        if "auxiliary_loss" in outputs:
            loss = loss + outputs["auxiliary_loss"]
        if not trains:
            logits = self.lm_head(hidden[:, -logits_to_keep:])
        output = CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
        )
        return output if return_dict is not False else output.to_tuple()

    def labelled_logits(
        self,
        input_ids: Int[Tensor, "batch length"],
        shift_labels: Int[Tensor, "batch length"],
        seq_idx: Int[Tensor, "batch length"] | None = None,
    ) -> tuple[Float[Tensor, "labelled vocab"], Int[Tensor, " labelled"]]:
        """Return the logits at labelled positions only, row by row, and the labels there."""
        outputs = self.model(input_ids, seq_idx=seq_idx)
        hidden, labels = _at_labels(outputs.last_hidden_state, shift_labels)
        return self.lm_head(hidden), labels

    def state_size(self, length: int) -> int:
        """Return the number of elements that decoding carries per sequence after ``length`` tokens."""
        return sum(layer.mixer.state_size(length) for layer in self.model.layers)

    def published_state_size(self, length: int) -> int | None:
        """Return the sum of the states as the mixers' papers count them; ``None`` if one of them does not."""
        sizes = [layer.mixer.published_state_size(length) for layer in self.model.layers]
        return None if None in sizes else sum(sizes)

    @property
    def layouts(self) -> tuple[Layout, ...]:
        """The layouts of weights that are not ours: that of Zoology's ``LanguageModel``."""
        return (zoology_layout([layer.mixer for layer in self.model.layers]),)


def model_config(options: Mapping[str, Any]) -> GateworkConfig:
    """Make a configuration of options by name; here alone is checked which there are.

    Raises:
        TypeError: If there is no such option.
        ValueError: If a value is impossible.
    """
    check_names("model has no option", options, set(GateworkConfig.__annotations__) - {"model_type"})
    return GateworkConfig(**options)


def create_decoder(**options: Any) -> GateworkForCausalLM:
    """Make a language model of the options of :class:`GateworkConfig`.

    Raises:
        TypeError: If there is no such option.
        ValueError: If a value is impossible.
    """
    return GateworkForCausalLM(model_config(options))


def _at_labels(hidden: Tensor, shift_labels: Tensor) -> tuple[Tensor, Tensor]:
    labelled = shift_labels != -100
    return hidden[labelled], shift_labels[labelled]


@torch.compiler.disable  # type: ignore[untyped-decorator] # a graph for these documents serves no other batch
def _mix_documents(mixer: Mixer, x: Tensor, documents: PackedDocuments, tokens: Tensor | None) -> Tensor:
    return mixer.forward_documents(x, documents, tokens=tokens)


def _auxiliary_loss(mixer: Mixer, x: Tensor, documents: PackedDocuments | None) -> Tensor | None:
    if documents is None:
        return mixer.auxiliary_loss(x)
    loss: Tensor | None = _auxiliary_loss_of_documents(mixer, x, documents)
    return loss


@torch.compiler.disable  # type: ignore[untyped-decorator] # likewise
def _auxiliary_loss_of_documents(mixer: Mixer, x: Tensor, documents: PackedDocuments) -> Tensor | None:
    return mixer.auxiliary_loss_of_documents(x, documents)


def _norm(config: GateworkConfig) -> nn.Module:
    norm = nn.LayerNorm if config.norm == "layernorm" else nn.RMSNorm
    return norm(config.hidden_size, eps=config.norm_eps)


def _channel_mixer(config: GateworkConfig) -> nn.Module | None:
    hidden = int(config.hidden_size * config.mlp_ratio)
    if config.channel_mixer == "mlp":
        return MLP(config.hidden_size, hidden)
    if config.channel_mixer == "glu":
        return GLU(config.hidden_size, hidden)
    return nn.Identity() if config.channel_mixer == "identity" else None


def _drop_path(rate: float) -> nn.Module:
    """What drops a whole branch, per sequence, while training (arXiv:1603.09382)."""
    if rate == 0:
        return nn.Identity()
    # Imported here: timm takes seconds, and few models need it.
    from timm.layers.drop import DropPath

    drop_path: nn.Module = DropPath(rate)
    return drop_path


def _draw_as_linear(weight: Tensor) -> None:
    nn.init.kaiming_uniform_(weight, a=math.sqrt(5))  # as nn.Linear does
