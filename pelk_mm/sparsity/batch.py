"""One batch of the training data, drawn as training draws its own."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from mmengine.registry import DATA_SAMPLERS
from mmengine.runner import Runner
from torch.utils.data import DataLoader, IterableDataset


def draw_batch(runner: Runner, seed: int) -> Any:
    """Draw a batch with samplers as the training's, which stay untouched.

    The samplers of the training are streams: what is taken from them here, the
    training would not see. So they are built anew, from the config where there is
    one, and with them everything that they decide: that small data sets repeat, which
    images a batch groups, and what each rank sees.

    Args:
        runner: A runner about to train.
        seed: Seed of samplers that have none in the config, in [0, 2**32). What data
            set and transforms draw comes from the global generators.

    Returns:
        What the training's loader would return, with the same ``collate_fn``.

    Raises:
        ValueError: If the samplers cannot be built anew, or yield no batch.
    """
    loader = runner.train_dataloader
    if not isinstance(loader, DataLoader):
        raise ValueError(
            f'SNIP draws a batch from a DataLoader, but the training data come from '
            f"{type(loader).__name__}; set init='erk', which needs no data"
        )
    # None where the runner was given a loader instead of a config.
    cfg = getattr(runner, '_train_dataloader', None)
    for batch in _with_new_samplers(loader, cfg, seed):
        return batch
    raise ValueError(
        'the training data have no batch: there are no images, or fewer than one '
        'batch for every process, which drop_last drops; set '
        'train_dataloader.drop_last=False, a smaller batch_size, or '
        'sampler.type=InfiniteSampler'
    )


def _with_new_samplers(loader: DataLoader, cfg: Any, seed: int) -> DataLoader:
    """The loader without workers, at the start of its data."""
    cfg = cfg if isinstance(cfg, Mapping) else {}
    dataset, collate_fn = loader.dataset, loader.collate_fn
    if isinstance(dataset, IterableDataset):
        return DataLoader(
            dataset,
            loader.batch_size,
            drop_last=loader.drop_last,
            collate_fn=collate_fn,
        )
    batches: Any = loader.batch_sampler
    made = getattr(batches, 'sampler', loader.sampler)
    sampler = _build(cfg.get('sampler'), made, dict(dataset=dataset, seed=seed))
    if batches is None:  # The data set itself yields batches.
        return DataLoader(
            dataset, batch_size=None, sampler=sampler, collate_fn=collate_fn
        )
    batch_sampler = _build(
        cfg.get('batch_sampler'),
        batches,
        dict(sampler=sampler, batch_size=getattr(batches, 'batch_size', None)),
    )
    return DataLoader(dataset, batch_sampler=batch_sampler, collate_fn=collate_fn)


def _build(cfg: Any, made: Any, arguments: Mapping[str, Any]) -> Any:
    """Build a sampler as mmengine does, or again from the attributes of the made one.

    Args:
        cfg: Its config; anything else than a dict if it has none.
        made: The sampler of the training.
        arguments: What mmengine gives in addition to the config.
    """
    if isinstance(cfg, Mapping):
        return DATA_SAMPLERS.build(cfg, default_args=dict(arguments))
    given = {}
    for name, parameter in inspect.signature(type(made)).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if hasattr(made, name) and name not in ('sampler', 'seed'):
            given[name] = getattr(made, name)
        elif name in arguments:
            given[name] = arguments[name]
        elif parameter.default is parameter.empty:
            raise ValueError(
                f'SNIP cannot build another {type(made).__name__} to draw a batch '
                f'with: it does not keep its argument {name}; give train_dataloader '
                "and its samplers as dicts, or set init='erk', which needs no data"
            )
        if isinstance(given.get(name), torch.Generator):
            # The training draws from it.
            given[name] = torch.Generator().manual_seed(arguments['seed'])
    return type(made)(**given)
