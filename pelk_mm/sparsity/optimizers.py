"""What the sparsity hook asks of the runner's optimizer and of its wrapper."""

import re

import mmengine
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import Runner
from torch import nn

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
