"""Compiled kernels as PyTorch operators, so that autograd, torch.export and torch.compile see one node.

`torch.library.custom_op` does the same, but its first call imports PyTorch's compiler: 1.5 s that a person who enhances
one short file would wait for nothing.
"""

from collections.abc import Callable
from typing import Any

import torch

NAMESPACE = "clearstate"
_library = torch.library.Library(NAMESPACE, "FRAGMENT")


class Operator:
    """A function of tensors, annotated, that writes to none of them and returns none of them. Called like it.

    The function itself is the kernel for the CPU; `register_kernel` adds those of other devices.
    """

    def __init__(self, name: str, function: Callable) -> None:
        self.name = name
        self.kernels: dict[str, Callable] = {}
        schema = torch.library.infer_schema(function, mutates_args=())
        _library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
        self.register_kernel("cpu")(function)
        self._call = getattr(getattr(torch.ops, NAMESPACE), name).default

    def __call__(self, *inputs: Any) -> Any:
        return self._call(*inputs)

    def register_kernel(self, device: str) -> Callable[[Callable], Callable]:
        """Decorator: this function runs the operator on a device; a later one takes the place of an earlier."""

        def decorate(function: Callable) -> Callable:
            if device not in self.kernels:
                _library.impl(self.name, lambda *inputs: self.kernels[device](*inputs), device.upper())
            self.kernels[device] = function
            return function

        return decorate

    def register_fake(self, function: Callable) -> Callable:
        """Decorator: this function gives empty results of the right shapes, for tracing."""
        torch.library.register_fake(f"{NAMESPACE}::{self.name}", function, lib=_library)
        return function

    def register_autograd(self, backward: Callable, *, setup_context: Callable | None = None) -> None:
        torch.library.register_autograd(
            f"{NAMESPACE}::{self.name}", backward, setup_context=setup_context, lib=_library
        )

    def has_no_gradient(self) -> None:
        """Differentiating through the operator is an error, not a silent zero."""

        def refuse(ctx, *grads):
            raise RuntimeError(
                f"{NAMESPACE}::{self.name} has no gradient: for second derivatives use the backend 'reference'"
            )

        self.register_autograd(refuse)


def operator(name: str) -> Callable[[Callable], Operator]:
    """Decorator: the function becomes the operator ``clearstate::name``."""
    return lambda function: Operator(name, function)
