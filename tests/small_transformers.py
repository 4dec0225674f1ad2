"""Small transformers with random weights, and torchvision's where it imports."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from synq.models.build import frozen

SHAPE = (3, 32, 32)
WIDTH, HEADS, CLASSES = 24, 3, 5


def torchvision_models():
    try:
        from torchvision import models
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"torchvision does not import: {str(error).splitlines()[0]}")
    return models


def deit_tiny():
    models = torchvision_models()
    return _seeded(lambda: models.VisionTransformer(224, 16, 12, 3, 192, 768))


def swin_tiny(version=1):
    models = torchvision_models()
    return _seeded(models.swin_t if version == 1 else models.swin_v2_t)


def small_swin():
    """Windows of 3 x 3 on maps of 8 x 8 and 4 x 4, so that maps are padded and windows shifted."""
    models = torchvision_models()
    sizes = {"patch_size": [4, 4], "embed_dim": WIDTH, "depths": [2, 2], "num_heads": [HEADS, 6]}
    make = models.swin_transformer.SwinTransformer
    return _seeded(lambda: make(**sizes, window_size=[3, 3], num_classes=CLASSES))


def small_swin_v2():
    """The same with an MLP of the distances in each attention."""
    swin = torchvision_models().swin_transformer
    sizes = {"patch_size": [4, 4], "embed_dim": WIDTH, "depths": [2, 2], "num_heads": [HEADS, 6]}
    kinds = {"block": swin.SwinTransformerBlockV2, "downsample_layer": swin.PatchMergingV2}
    make = swin.SwinTransformer
    return _seeded(lambda: make(**sizes, **kinds, window_size=[4, 4], num_classes=CLASSES))


def small():
    """Two blocks on 4 x 4 patches and a class token, as in torchvision's VisionTransformer."""
    return _seeded(
        lambda: Transformer(lambda: nn.MultiheadAttention(WIDTH, HEADS, batch_first=True))
    )


def fused(functional_calls):
    """The same with the attention of timm's transformers, which calls its layers, or of Swin."""
    return _seeded(lambda: Transformer(lambda: Fused(functional_calls)))


def separate(names):
    """The same with a layer for each of queries, keys and values, by these names."""
    return _seeded(lambda: Transformer(lambda: Separate(names)))


def blocks_that_attend():
    """The same whose blocks own these layers themselves, beside their MLP."""
    return _seeded(lambda: Transformer(None, Attending))


def _seeded(make):
    torch.manual_seed(0)
    model = make()
    # Zeros in torchvision's fresh networks, which would hide everything before them.
    for name, parameter in model.named_parameters():
        if name.startswith("heads") or name == "class_token":
            nn.init.normal_(parameter, std=0.1)
    return frozen(model)


class Transformer(nn.Module):
    def __init__(self, attention, block=None):
        super().__init__()
        block = block or (lambda: Block(attention()))
        self.patches = nn.Conv2d(3, WIDTH, 8, 8)
        self.class_token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.positions = nn.Parameter(0.5 * torch.randn(1, 17, WIDTH))
        self.blocks = nn.Sequential(block(), block())
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)
        for block in self.blocks:
            for parameter in block.parameters():
                if parameter.dim() > 1:
                    nn.init.normal_(parameter, std=0.3)

    def forward(self, images):
        patches = self.patches(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(images.shape[0], -1, -1), patches], 1)
        return self.head(self.norm(self.blocks(tokens + self.positions))[:, 0])


class Block(nn.Module):
    def __init__(self, attention):
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(WIDTH), attention
        self.norm2 = nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(
            *(nn.Linear(WIDTH, 48), nn.GELU(), nn.Dropout(0.1), nn.Linear(48, WIDTH))
        )

    def forward(self, tokens):
        x = self.norm1(tokens)
        if isinstance(self.attention, nn.MultiheadAttention):
            tokens = tokens + self.attention(x, x, x, need_weights=False)[0]
        else:
            tokens = tokens + self.attention(x)
        return tokens + self.mlp(self.norm2(tokens))


class Fused(nn.Module):
    def __init__(self, functional_calls):
        super().__init__()
        self.functional_calls = functional_calls
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.drop = nn.Dropout(0.1)
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, tokens):
        if self.functional_calls:
            qkv = functional.linear(tokens, self.qkv.weight, bias=self.qkv.bias)
        else:
            qkv = self.qkv(tokens)
        q, k, v = (x.unflatten(2, (HEADS, -1)).transpose(1, 2) for x in qkv.chunk(3, -1))
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        if self.functional_calls:
            return functional.linear(mixed, self.proj.weight, self.proj.bias)
        return self.proj(self.drop(mixed))


class Separate(nn.Module):
    def __init__(self, names):
        super().__init__()
        self.names = names
        for name in names:
            self.add_module(name, nn.Linear(WIDTH, WIDTH))
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, tokens):
        layers = map(self.get_submodule, self.names)
        q, k, v = (layer(tokens).unflatten(2, (HEADS, -1)).transpose(1, 2) for layer in layers)
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.proj(mixed)


class Attending(Separate):
    def __init__(self):
        super().__init__(("q", "k", "v"))
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 48), nn.GELU(), nn.Linear(48, WIDTH))

    def forward(self, tokens):
        tokens = tokens + super().forward(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))
