"""Context managers that watch or shorten a forward pass. Each removes its traces on any exit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .errors import ConfigError
from .products import quick_products


class _Stopped(Exception):  # noqa: N818 (it reports no error)
    """Leaves a forward pass whose remaining layers are not needed."""


def hidden_states(output: Tensor | tuple[Any, ...]) -> Tensor:
    """The hidden states of a decoder layer's output, which is a tensor or, in some models, a tuple that starts so."""
    return output if isinstance(output, Tensor) else output[0]


@contextmanager
def on_input(module: nn.Module, function: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Call `function` with the first input of `module`; a tensor that it returns takes the input's place."""

    def hook(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        replacement = function(args[0])
        return None if replacement is None else (replacement, *args[1:])

    handle = module.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def on_output(module: nn.Module, function: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Call `function` with the hidden states that `module` returns; a tensor that it returns takes their place."""

    def hook(_module: nn.Module, _args: tuple[Any, ...], output: Tensor | tuple[Any, ...]) -> Any:
        replacement = function(hidden_states(output))
        if replacement is None:
            return None
        return replacement if isinstance(output, Tensor) else (replacement, *output[1:])

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def raw_outputs(module: nn.Module) -> Iterator[list[Any]]:
    """Collect what `module` returns, in the form in which it returns it."""
    outputs: list[Any] = []

    def hook(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        outputs.append(output)

    handle = module.register_forward_hook(hook)
    try:
        yield outputs
    finally:
        handle.remove()


@contextmanager
def stop_after(module: nn.Module) -> Iterator[None]:
    """End the forward pass in the body, and the body with it, as soon as `module` has returned."""

    def stop(_module: nn.Module, _args: tuple[Any, ...], _output: object) -> None:
        raise _Stopped

    handle = module.register_forward_hook(stop)
    try:
        yield
    except _Stopped:
        pass
    finally:
        handle.remove()


@contextmanager
def forward_as(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Let `module` compute `forward`; hooks on it see what goes in and out of that."""
    own = vars(module).get("forward")  # accelerate's, where layers are on several devices
    try:
        module.forward = forward
        yield
    finally:
        vars(module).pop("forward", None)  # uncovers the method of the class
        if own is not None:
            module.forward = own


@contextmanager
def start_above(skipped: Sequence[nn.Module], hidden: Tensor, *, as_tuple: bool) -> Iterator[None]:
    """Let each of the `skipped` first decoder layers return `hidden` [rows, tokens, d_model] without computing.

    `as_tuple` says in which form these layers return it.
    """

    def forward(*_args: object, **_kwargs: object) -> Tensor | tuple[Tensor]:
        return (hidden,) if as_tuple else hidden

    with ExitStack() as stack:
        for layer in skipped:
            stack.enter_context(forward_as(layer, forward))
        yield


@contextmanager
def at_positions(head: nn.Module, rows: Tensor, columns: Tensor) -> Iterator[None]:
    """Let the vocabulary projection `head` see only the hidden states at (rows[i], columns[i]): logits [1, m, vocab].

    What a model does with its logits afterwards (scaling, soft-capping) still happens.
    """
    with on_input(head, lambda hidden: hidden[rows.to(hidden.device), columns.to(hidden.device)].unsqueeze(0)):
        yield


def require_gradients() -> None:
    """Raise ConfigError where torch cannot compute gradients."""
    if torch.is_inference_mode_enabled():
        message = "expected a place where gradients can be computed, got torch.inference_mode(): "
        message += "make and use the Editor outside of it (torch.no_grad() does no harm)"
        raise ConfigError(message)


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, no parameter gradients, and products by oneDNN where they are quicker, in the body only."""
    modules = [module for module in model.modules() if module.training]
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for module in modules:
            module.training = False
        for parameter in parameters:
            parameter.requires_grad_(False)
        with torch.enable_grad(), quick_products(model):
            yield
    finally:
        for module in modules:
            module.training = True
        for parameter in parameters:
            parameter.requires_grad_(True)
