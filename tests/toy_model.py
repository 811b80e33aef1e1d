"""A small attention network with three foreign layouts, and writers of its weights in each of them."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from gatework.layouts import Layout, change, join, resize_bilinear, split

_NORM = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}


class Block(nn.Module):
    """Window attention with a table of relative biases; q apart, k and v together."""

    def __init__(self, dim, heads, window):
        super().__init__()
        self.heads, self.window = heads, window
        self.norm = nn.LayerNorm(dim)
        self.q, self.kv, self.proj = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        self.table = nn.Parameter(torch.randn(heads, 2 * window - 1, 2 * window - 1))

    def forward(self, x):
        normed = self.norm(x)
        k, v = self.kv(normed).chunk(2, -1)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (self.q(normed), k, v))
        at = torch.cartesian_prod(torch.arange(self.window), torch.arange(self.window))
        offset = at[None] - at[:, None] + self.window - 1
        bias = self.table[:, offset[..., 0], offset[..., 1]]
        return x + self.proj(F.scaled_dot_product_attention(q, k, v, bias).transpose(1, 2).flatten(-2))


class Toy(nn.Module):
    """One window of pixels after a patch embedding."""

    def __init__(self, dim=8, depth=2, heads=2, window=3, num_classes=5):
        super().__init__()
        self.dim, self.num_heads = dim, heads
        self.stem, self.stem_norm = nn.Conv2d(3, dim, 2, 2), nn.BatchNorm2d(dim)
        self.blocks = nn.ModuleList(Block(dim, heads, window) for _ in range(depth))
        self.head = nn.Linear(dim, num_classes)

    def forward(self, images):
        x = self.stem_norm(self.stem(images)).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))

    @property
    def layouts(self):
        shared = {"positions": {"blocks.{i}.table": resize_bilinear}, "head": ("head.{rest}",)}
        return (
            Layout(
                "tensorflow",
                marks=("stem/conv/kernel", "block_{i}/attention/q/weight"),
                renames={
                    "stem/conv/kernel": "stem.weight",
                    "stem/conv/bias": "stem.bias",
                    **{f"stem/norm/{theirs}": f"stem_norm.{ours}" for theirs, ours in _NORM.items()},
                    "block_{i}/norm/gamma": "blocks.{i}.norm.weight",
                    "block_{i}/norm/beta": "blocks.{i}.norm.bias",
                    "block_{i}/attention/relative_bias": "blocks.{i}.table",
                    "block_{i}/attention/o/{rest}": "blocks.{i}.proj.{rest}",
                    "block_{i}/attention/{part}/{rest}": "blocks.{i}.{part}.{rest}",
                    "head/{rest}": "head.{rest}",
                },
                convert=self._from_tensorflow,
                ignore=("global_step",),
                keep=("stem_norm.num_batches_tracked",),
                **shared,
            ),
            Layout(
                "timm",
                marks=("patch_embed.weight", "blocks.{i}.attn.qkv.weight"),
                renames={
                    "patch_embed.{rest}": "stem.{rest}",
                    "patch_norm.{rest}": "stem_norm.{rest}",
                    "blocks.{i}.attn.relative_position_bias_table": "blocks.{i}.table",
                    "blocks.{i}.attn.{rest}": "blocks.{i}.{rest}",
                },
                convert=self._split_qkv,
                ignore=("blocks.{i}.attn.relative_position_index",),
                **shared,
            ),
            Layout(
                "torchvision",
                marks=("features.0.weight", "features.{i}.to_qkv.weight"),
                without=("patch_embed.weight",),
                renames={
                    "features.0.{rest}": "stem.{rest}",
                    "features.1.{rest}": "stem_norm.{rest}",
                    "classifier.{rest}": "head.{rest}",
                    **{
                        f"features.{index + 2}.{theirs}": f"blocks.{index}.{ours}"
                        for index in range(len(self.blocks))
                        for theirs, ours in (
                            ("to_qkv.{rest}", "qkv.{rest}"),
                            ("merge.{rest}", "proj.{rest}"),
                            ("relative_position_bias_table", "table"),
                            ("{rest}", "{rest}"),
                        )
                    },
                },
                convert=self._from_torchvision,
                ignore=("{rest}.relative_position_index", "{rest}.num_batches_tracked"),
                keep=("stem_norm.num_batches_tracked",),
                **shared,
            ),
        )

    def _split_qkv(self, weights):
        for leaf in ("weight", "bias"):
            parts = (f"blocks.{{i}}.q.{leaf}", f"blocks.{{i}}.kv.{leaf}")
            weights = split(weights, f"blocks.{{i}}.qkv.{leaf}", parts, (self.dim, 2 * self.dim))
        return weights

    def _from_tensorflow(self, weights):
        weights = change(weights, "stem.weight", lambda t: t.permute(3, 2, 0, 1))
        weights = change(weights, "head.weight", lambda t: t.T)
        for part in "qkv":
            weights = change(weights, f"blocks.{{i}}.{part}.weight", lambda t: t.flatten(1).T)
            weights = change(weights, f"blocks.{{i}}.{part}.bias", lambda t: t.flatten())
        weights = change(weights, "blocks.{i}.proj.weight", lambda t: t.flatten(0, 1).T)
        for leaf in ("weight", "bias"):
            parts = (f"blocks.{{i}}.k.{leaf}", f"blocks.{{i}}.v.{leaf}")
            weights = join(weights, parts, f"blocks.{{i}}.kv.{leaf}")
        return weights

    def _from_torchvision(self, weights):
        def unflatten(table):
            side = round(table.shape[0] ** 0.5)
            return table.T.unflatten(1, (side, side))

        return self._split_qkv(change(weights, "blocks.{i}.table", unflatten))


def as_tensorflow(state, heads=2):
    """Kernels with the inputs first, q, k and v apart and per head, slashes and numbers of two digits."""
    written = {"global_step": torch.tensor(7)} if "stem_norm.num_batches_tracked" in state else {}
    for name, tensor in state.items():
        parts = name.split(".")
        leaf = parts[-1]
        if name.startswith("stem."):
            written["stem/conv/" + ("kernel" if leaf == "weight" else leaf)] = (
                tensor.permute(2, 3, 1, 0) if leaf == "weight" else tensor
            )
        elif name.startswith("stem_norm."):
            if leaf != "num_batches_tracked":
                written["stem/norm/" + {ours: theirs for theirs, ours in _NORM.items()}[leaf]] = tensor
        elif name.startswith("head."):
            written[f"head/{leaf}"] = tensor.T if leaf == "weight" else tensor
        else:
            block, kind = f"block_{int(parts[1]):02}", parts[2]
            if kind == "norm":
                written[f"{block}/norm/{'gamma' if leaf == 'weight' else 'beta'}"] = tensor
            elif kind == "table":
                written[f"{block}/attention/relative_bias"] = tensor
            elif kind == "proj":
                o = tensor.T.unflatten(0, (heads, -1)) if leaf == "weight" else tensor
                written[f"{block}/attention/o/{leaf}"] = o
            else:
                for part, piece in zip(kind, tensor.chunk(len(kind)), strict=True):
                    per_head = (piece.T if piece.ndim == 2 else piece).unflatten(-1, (heads, -1))
                    written[f"{block}/attention/{part}/{leaf}"] = per_head
    return {name: tensor.contiguous() for name, tensor in written.items()}


def as_timm(state):
    """q, k and v joined, and an index table."""
    written = {}
    for name, tensor in state.items():
        name = name.replace("stem_norm.", "patch_norm.").replace("stem.", "patch_embed.")
        if ".q." in name:
            tensor = torch.cat([tensor, state[name.replace(".q.", ".kv.")]])
            name = name.replace(".q.", ".attn.qkv.")
        elif ".kv." in name:
            continue
        elif name.endswith(".table"):
            written[name.replace("table", "attn.relative_position_index")] = torch.zeros(
                9, 9, dtype=torch.long
            )
            name = name.replace("table", "attn.relative_position_bias_table")
        elif ".proj." in name:
            name = name.replace(".proj.", ".attn.proj.")
        written[name] = tensor
    return written


def as_torchvision(state):
    """All blocks in one list after the stem, and flat tables."""
    written = {}
    for name, tensor in as_timm(state).items():
        if name.endswith("bias_table"):
            tensor = tensor.flatten(1).T.contiguous()
        name = name.replace("patch_embed.", "features.0.").replace("patch_norm.", "features.1.")
        name = name.replace("head.", "classifier.").replace(".qkv.", ".to_qkv.").replace(".proj.", ".merge.")
        if name.startswith("blocks."):
            _, index, *rest = name.replace(".attn.", ".").split(".")
            name = ".".join(["features", str(int(index) + 2), *rest])
        written[name] = tensor
    return written


WRITERS = {"tensorflow": as_tensorflow, "timm": as_timm, "torchvision": as_torchvision}
