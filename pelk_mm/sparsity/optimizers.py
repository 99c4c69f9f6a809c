"""What the sparsity hook asks of the runner's optimizer and of its wrapper."""

import re
from collections.abc import Callable
from typing import Any

import mmengine
import torch
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import Runner
from torch import nn
from torch.optim import Optimizer

#: In the names of classes that spread weights or optimizer state over processes. By
#: name: importing these libraries to compare types would require them.
SHARDED = re.compile('FullySharded|FSDP|DTensor|DeepSpeed|Colossal|ZeroRedundancy')


def find_optim_wrapper(
    optim_wrapper: OptimWrapper | OptimWrapperDict, params: dict[str, nn.Parameter]
) -> OptimWrapper:
    """Find the wrapper of the optimizer that trains the chosen weights.

    Raises:
        ValueError: If none trains all of them.
    """
    wrappers = (
        optim_wrapper.optim_wrappers.values()
        if isinstance(optim_wrapper, OptimWrapperDict)
        else [optim_wrapper]
    )
    wanted = set(params.values())
    for wrapper in wrappers:
        groups = wrapper.optimizer.param_groups
        if wanted <= {param for group in groups for param in group['params']}:
            return wrapper
    raise ValueError(
        'no optimizer trains all weights that are to be sparse; freeze the others '
        '(requires_grad) or choose by patterns those that one optimizer trains'
    )


def accumulative_counts(optim_wrapper: OptimWrapper) -> int:
    """How many iterations a wrapper accumulates gradients over for one step.

    Raises:
        RuntimeError: If the wrapper does not tell.
    """
    # mmengine has no public name for it.
    if not hasattr(optim_wrapper, '_accumulative_counts'):
        raise RuntimeError(
            f'{type(optim_wrapper).__name__} in mmengine {mmengine.__version__} has no '
            '_accumulative_counts, which tells the number of optimizer steps of the '
            "training; use OptimWrapper or AmpOptimWrapper, or set mode='off'"
        )
    return optim_wrapper._accumulative_counts


def require_unsharded(runner: Runner) -> None:
    """Refuse what leaves no process with whole weights and optimizer state.

    Raises:
        RuntimeError: Under FSDP, DeepSpeed, ColossalAI or a sharded optimizer.
    """
    parts = [
        runner.model,
        *runner.model.modules(),
        *runner.model.parameters(),
        runner.optim_wrapper,
        getattr(runner.optim_wrapper, 'optimizer', None),
        getattr(runner, 'strategy', None),
    ]
    for part in parts:
        if any(SHARDED.search(base.__name__) for base in type(part).__mro__):
            raise RuntimeError(
                f'DynamicSparsityHook cannot run with {type(part).__name__}: weights '
                'or optimizer state are spread over processes, and no process sees a '
                "whole layer to prune; train with DDP or set mode='off'"
            )


class AfterEveryStep:
    """Calls a function after every step of an optimizer, outside compiled code.

    It is called inside the step, so that a step that gradient accumulation puts off
    or the loss scaler skips needs none, and nobody else sees the weights before. Where
    ``torch.compile`` traces the step, as mmengine's ``compile=True`` has it do, the
    compiled code only counts the steps, and the call follows the compiled
    ``train_step``: tracing the function would break the graph in many places and
    compile it anew whenever a number that it reads has changed.

    Args:
        model: The runner's model, compiled or not.
        optimizer: Its steps count.
        function: What to call, once per step.
        with_gradients: Whether the function reads gradients, which ``train_step`` has
            deleted when it returns. A compiled step then calls the function, not
            traced, at the price of one graph break.
    """

    def __init__(
        self,
        model: Any,
        optimizer: Optimizer,
        function: Callable[[], None],
        with_gradients: bool,
    ) -> None:
        self._function = torch.compiler.disable(function)
        self._with_gradients = with_gradients
        #: Steps of compiled code whose call is to come; 0 whenever that code starts,
        #: so that the value is no reason to compile it again.
        self._pending = 0
        self._handle = optimizer.register_step_post_hook(self._note)
        self._model = model
        #: Where mmengine puts the compiled one.
        self._train_step: Any = vars(model).get('train_step')
        if self._train_step is not None:
            self._model.train_step = self._run_train_step

    def _note(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if torch.compiler.is_compiling() and not self._with_gradients:
            self._pending += 1
        else:
            self._function()

    def _run_train_step(self, *args: Any, **kwargs: Any) -> Any:
        outputs = self._train_step(*args, **kwargs)
        self.catch_up()
        return outputs

    def catch_up(self) -> None:
        """Make the calls that steps of compiled code are waiting for."""
        while self._pending:
            self._pending -= 1
            self._function()

    def remove(self) -> None:
        """Call no more, and give the model its ``train_step`` back."""
        self._handle.remove()
        if self._train_step is not None:
            self._model.train_step = self._train_step
