"""``gatework convert``: bring weights of another layout to ours, and say what became of each tensor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

from gatework.cli import add_plugin_argument
from gatework.cli.plain_values import PlainValue
from gatework.files import check_file

if TYPE_CHECKING:
    from torch import Tensor, nn

    from gatework.checkpoints import Conversion


def add_arguments(parser: ArgumentParser, argv: Sequence[str]) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "model", type=str, help="name of a model, directory of a training by `gatework fit`, or YAML recipe"
    )
    parser.add_argument(
        "source", type=str, help="weights: .safetensors, a file of torch.save, an index of shards, a folder"
    )
    parser.add_argument("output", type=str, help="the .safetensors file to write")
    parser.add_argument("--layout", type=str, default=None, help="the layout it is in, recognised by default")
    parser.add_argument(
        "--entry", type=str, default=None, help="which of several sets of weights, such as model_ema"
    )
    parser.add_argument(
        "--options",
        type=dict[str, PlainValue],
        default={},
        help="options of a model that is named, such as --options.num_classes 21843",
    )
    parser.add_argument(
        "--resize_positions", action="store_true", help="resize position tables of another size"
    )
    parser.add_argument(
        "--drop_head", action="store_true", help="leave out what depends on the number of classes"
    )
    parser.add_argument("--force", action="store_true", help="overwrite the output")
    add_plugin_argument(parser)


def run(arguments: Namespace, *, command: Sequence[str]) -> int:
    """Write the weights in our layout, and print a table of what was mapped, resized and ignored."""
    output = Path(arguments.output)
    if output.suffix != ".safetensors":
        raise ValueError(f"output must be a .safetensors file, got {str(output)!r}")
    if output.exists() and not arguments.force:
        raise ValueError(f"output {str(output)!r} exists; --force overwrites it")
    check_file("output", output)
    model = _make_model(arguments.model, arguments.options)
    from gatework.checkpoints import convert_checkpoint

    conversion = convert_checkpoint(
        model,
        Path(arguments.source),
        layout=arguments.layout,
        resize_positions=arguments.resize_positions,
        drop_head=arguments.drop_head,
        entry=arguments.entry,
    )
    own = model.state_dict()
    _write(output, conversion, own)
    print(_table(arguments.source, type(model).__name__, conversion, own))
    print(f"{output}: {len(conversion.weights)} tensors")
    return 0


def _make_model(name: str, options: Mapping[str, Any]) -> nn.Module:
    """The model of a finished training or a recipe, or a registered one.

    Raises:
        ValueError: If there is no such model, or options are given to that of a recipe.
        TypeError: If it has no such option.
    """
    path = Path(name)
    if path.is_dir() or path.suffix in (".yaml", ".yml"):
        if options:
            raise ValueError("--options is for a model that is named; a recipe has its own")
        from gatework.training.recipe import read_recipe
        from gatework.training.trained import make_task

        recipe = read_recipe(path / "recipe.yaml" if path.is_dir() else path)
        return make_task(recipe).build_model(recipe.model)
    from gatework.registry import create_model

    return create_model(name, **options)


def _write(path: Path, conversion: Conversion, own: Mapping[str, Tensor]) -> None:
    """Write the file whole or not at all, without the head that was left out, and tied weights once."""
    from safetensors.torch import save

    from gatework.files import replacing
    from gatework.layouts import matches

    head = conversion.layout.head if conversion.headless else ()
    kept = {name: own[name] for name in conversion.kept if not matches(head, name)}
    tensors: dict[str, Tensor] = {}
    stored: set[tuple[int, ...]] = set()
    for name, tensor in {**conversion.weights, **kept}.items():
        memory = (own[name].data_ptr(), *own[name].shape, *own[name].stride())
        if own[name].numel() == 0 or memory not in stored:
            tensors[name] = tensor.contiguous()
            stored.add(memory)
    data = save(tensors, metadata={"format": "pt"})
    with replacing(path) as file:
        file.write(data)


def _table(source: str, model: str, conversion: Conversion, own: Mapping[str, Tensor]) -> str:
    made = [
        (name, _shape(tensor.shape), "<- " + ", ".join(theirs))
        for (name, theirs), tensor in zip(
            conversion.sources().items(), conversion.weights.values(), strict=True
        )
    ]
    resized = [
        (name, f"{_shape(shape)} -> {_shape(own[name].shape)}") for name, shape in conversion.resized.items()
    ]
    parts = (
        ("mapped", made),
        ("resized", resized),
        ("ignored", [(name, _shape(conversion.given[name])) for name in conversion.ignored]),
        ("left out", [(name,) for name in conversion.dropped]),
        ("the model's own", [(name, _shape(own[name].shape)) for name in conversion.kept]),
    )
    layout = f"layout {conversion.layout.name!r} of {model}"
    lines = [f"{source}: {layout}, {len(conversion.given)} tensors"]
    for title, rows in parts:
        if rows:
            lines += [f"{title} ({len(rows)})", *_aligned(rows)]
    return "\n".join(lines)


def _aligned(rows: Sequence[Sequence[str]]) -> Iterable[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  " + "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"
