"""The whole model of a config, with the weights of its checkpoint."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from pelk_mm.checkpoints.files import CheckpointError, first_line, read_checkpoint
from pelk_mm.checkpoints.misfit import COUNTER
from pelk_mm.checkpoints.weights import find_weights, printable, require_ordinary
from pelk_mm.config_types import ConfigError, find_framework, read_config

#: Entry of ``meta`` that marks a checkpoint in deployment form.
DEPLOYED = 'backbone_deployed'


def load_config(path: str | Path, options: Mapping[str, Any] | None = None) -> Config:
    """Read the config of a whole model.

    Args:
        path: The file.
        options: Values that replace or extend its own.

    Raises:
        CheckpointError: If it cannot be read or has no model with a backbone.
    """
    try:
        cfg = read_config(path, options)
    except ConfigError as error:
        raise CheckpointError(str(error)) from error
    if not isinstance(cfg.get('model'), dict) or 'backbone' not in cfg.model:
        raise CheckpointError(f'config {path} has no model with a backbone')
    return cfg


def build_model(cfg: Config) -> nn.Module:
    """Build a config's model, in evaluation mode.

    Raises:
        CheckpointError: If it cannot be built.
    """
    init_default_scope(find_framework(cfg) or cfg.get('default_scope') or 'mmengine')
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # about losses, which are not used here
            return MODELS.build(cfg.model).eval()
    except Exception as error:  # whatever the constructors of its parts raise
        raise CheckpointError(
            f'the model of config {cfg.filename} cannot be built: {first_line(error)}'
        ) from error


def load_weights(path: str | Path) -> tuple[Mapping[Any, Any], dict[str, Any]]:
    """Weights and notes of a checkpoint.

    Raises:
        CheckpointError: If it cannot be read or has no weights.
    """
    content = read_checkpoint(path)
    if not isinstance(content, dict):
        raise CheckpointError(
            f'{path} holds a {type(content).__name__}, not a state dict'
        )
    key, weights = find_weights(content, ('state_dict',))
    meta = content.get('meta') if key else None
    return weights, meta if isinstance(meta, dict) else {}


def require_fit(
    model: nn.Module,
    state_dict: Mapping[Any, Any],
    checkpoint: str | Path,
    leftovers: bool = False,
) -> None:
    """Raise an error unless a state dict has the model's names and shapes.

    Args:
        model: The model.
        state_dict: The state dict.
        checkpoint: Its file, for the message.
        leftovers: Whether it may have other tensors too, and may lack counters of
            norms, as it may in mmengine's own loading.

    Raises:
        CheckpointError: If it has others; the message names some.
    """
    own = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    given = {n: tuple(getattr(v, 'shape', ())) for n, v in state_dict.items()}
    missing, unexpected = own.keys() - given.keys(), given.keys() - own.keys()
    if leftovers:
        missing = {name for name in missing if not name.endswith(COUNTER)}
        unexpected = set()
    problems = {
        'missing': [printable(name) for name in missing],
        'unexpected': [printable(name) for name in unexpected],
        'wrongly shaped': [
            f'{name} of {given[name]} for {own[name]}'
            for name in own.keys() & given.keys()
            if own[name] != given[name]
        ],
    }
    for what, names in problems.items():
        if names:
            shown = ', '.join(sorted(names)[:3]) + ', ...' * (len(names) > 3)
            raise CheckpointError(
                f'{checkpoint} does not fit the config: {len(names)} {what} '
                f'tensor{"s" * (len(names) > 1)} ({shown}); give the config that it '
                'was trained with'
            )


def fill(
    model: nn.Module, state_dict: Mapping[Any, Any], checkpoint: str | Path
) -> None:
    """Load a state dict that must have exactly the model's names and shapes.

    Raises:
        CheckpointError: If it has others; the message names some.
    """
    require_fit(model, state_dict, checkpoint)
    try:
        require_ordinary(state_dict)
    except CheckpointError as error:
        raise CheckpointError(f'{checkpoint}: {error}') from error
    model.load_state_dict(state_dict)
