"""Writes the TorchScript models of the tests: ``<engines>/bin/python torch_files.py FOLDER``."""

from __future__ import annotations

import sys
from pathlib import Path

import torch


class Net(torch.nn.Module):
    def forward(self, first: torch.Tensor, second: torch.Tensor):
        return first * 2 + second, first.t().contiguous().t() - second


class Cut(torch.nn.Module):
    def forward(self, x: torch.Tensor):
        return x.to(torch.bfloat16)


class Words(torch.nn.Module):
    def forward(self, words: list[str]) -> list[str]:
        return [word + "!" for word in words]


if __name__ == "__main__":
    for name, module in (("net", Net()), ("cut", Cut()), ("words", Words())):
        torch.jit.script(module).save(str(Path(sys.argv[1]) / f"{name}.pt"))
