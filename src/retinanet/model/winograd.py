"""Fewer multiplications: 3x3 convolutions by Winograd's minimal filtering F(4x4, 3x3) (Lavin and Gray 2016).

A tile of 4x4 outputs takes 36 products per pair of channels instead of 144. Most of a RetinaNet's time goes into such
convolutions of 256 channels, and runtimes for x86 CPUs do not offer this in fp32. The rounding error is about five
times that of the direct sum: some 1e-5 of the largest value.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

CHANNELS, TILES = 128, 90  # from which on it is faster; both were measured
CHUNK = 400  # tiles at a time, so that what is between the steps stays in the cache

# Inputs d, filters g: outputs are A' [(G g G') * (B' d B)] A, in the names of the paper's equation 8.
_INPUT = [
    [4, 0, -5, 0, 1, 0],
    [0, -4, -4, 1, 1, 0],
    [0, 4, -4, -1, 1, 0],
    [0, -2, -1, 2, 1, 0],
    [0, 2, -1, -2, 1, 0],
    [0, 4, 0, -5, 0, 1],
]
_FILTER = [
    [1 / 4, 0, 0],
    [-1 / 6, -1 / 6, -1 / 6],
    [-1 / 6, 1 / 6, -1 / 6],
    [1 / 24, 1 / 12, 1 / 6],
    [1 / 24, -1 / 12, 1 / 6],
    [0, 0, 1],
]
_OUTPUT = [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]


def tiles(images: Tensor) -> int:
    """How many tiles of 4x4 outputs there are of (N, C, H, W)."""
    return images.shape[0] * -(-images.shape[2] // 4) * -(-images.shape[3] // 4)


def suits(conv: nn.Conv2d) -> bool:
    """Whether a convolution is one that this is right and fast for."""
    plain = conv.kernel_size == (3, 3) and conv.padding == (1, 1) and conv.padding_mode == "zeros"
    single = conv.stride == conv.dilation == (1, 1) and conv.groups == 1
    wide = min(conv.in_channels, conv.out_channels) >= CHANNELS
    return plain and single and wide and conv.weight.dtype == torch.float32


class WinogradConv(nn.Module):
    """A 3x3 convolution of stride 1; it has no parameters, and cannot be saved.

    Args:
        conv: one that :func:`suits`; its weights are copied.
        activation: its kind, applied to the output; it takes ``inplace``.
    """

    def __init__(self, conv: nn.Conv2d, activation: type[nn.Module] | None = None) -> None:
        super().__init__()
        self.activation = nn.Identity() if activation is None else activation(inplace=True)
        self.bias = None if conv.bias is None else conv.bias.detach().clone()
        transform = torch.tensor(_FILTER, dtype=torch.float64)
        weight = torch.einsum("ia,ocab,jb->ijco", transform, conv.weight.detach().double(), transform)
        self.weight = weight.flatten(0, 1).float().contiguous()  # (36, C, C')
        # both sides of a transform at once: (6 x 6) d (6 x 6)' is a matrix of (36, 36) on the entries of d
        self.into, self.out = (torch.kron(m, m) for m in (torch.tensor(_INPUT).float(), torch.tensor(_OUTPUT).float()))

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W), channels last -> (N, C', H, W), channels last."""
        n, channels, height, width = images.shape
        down, across, outputs = -(-height // 4), -(-width // 4), self.weight.shape[2]  # tiles
        right, bottom = 4 * across + 1 - width, 4 * down + 1 - height
        pixels = functional.pad(images.permute(0, 2, 3, 1), (0, 0, 1, right, 1, bottom))  # (N, 4 down + 2, ..., C)
        found = pixels.new_empty(n, 4 * down, 4 * across, outputs)
        parts = found.view(n, down, 4, across, 4, outputs).permute(2, 4, 0, 1, 3, 5)  # (4, 4, N, down, across, C')
        image, row, column, channel = pixels.stride()
        rows = max(1, CHUNK // (n * across))
        for top in range(0, down, rows):
            count = min(rows, down - top)
            patches = pixels.as_strided(  # (6, 6, N, count, across, C), neighbours overlap by two
                (6, 6, n, count, across, channels),
                (row, column, image, 4 * row, 4 * column, channel),
                pixels.storage_offset() + 4 * top * row,
            )
            entries = torch.mm(self.into, patches.reshape(36, -1)).view(36, -1, channels)
            products = torch.bmm(entries, self.weight)  # (36, tiles, C')
            results = torch.mm(self.out, products.flatten(1))
            parts[:, :, :, top : top + count] = results.view(4, 4, n, count, across, outputs)
        result = found[:, :height, :width].permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
        if self.bias is not None:
            result = result.add_(self.bias[:, None, None])
        output: Tensor = self.activation(result)
        return output
