"""Arguments that a backbone does not take, and what to write instead.

Configs and scripts of the released implementations, and mmpretrain's, call the same
things by other names.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from typing import Any

#: Names of the released implementations, of mmpretrain's and of timm's ConvNeXt: ours.
RENAMED = {
    # SLaK
    'in_chans': 'in_channels',
    'dims': 'channels',
    'LoRA': 'decomposed',
    'Decom': 'decomposed',
    'drop_path': 'drop_path_rate',
    'ls_init_value': 'layer_scale_init_value',
    # RepLKNet, mmpretrain's too
    'large_kernel_sizes': 'kernel_sizes',
    'layers': 'depths',
    'use_checkpoint': 'with_cp',
    'merge_small_kernel': 'small_kernel_merged',
}

_NO_CLASSIFIER = 'leave it out; a backbone has no classifier'
_FIXED = 'leave it out; it is fixed'
_NO_STRIPES = 'leave it out; only SLaK has kernels of two stripes'

#: Names of theirs without a counterpart: what to do.
REMEDIES = {
    'pretrained': "init_cfg=dict(type='Pretrained', checkpoint=...) with a file that "
    '`pelk-mm convert_checkpoint` has converted; leave it out for None',
    'use_sync_bn': "norm_cfg=dict(type='SyncBN') for True, dict(type='BN') for False",
    'bn': "norm_cfg=dict(type='BN') for True, None for False",
    'num_classes': _NO_CLASSIFIER,
    'head_init_scale': _NO_CLASSIFIER,
    'sparse': 'leave it out; DynamicSparsityHook keeps the zeros of sparse weights',
    'norm_intermediate_features': 'leave it out; a norm follows each output already',
    'small_kernel_merged': 'deploy=True',
    'LoRA': _NO_STRIPES,
    'Decom': _NO_STRIPES,
    'decomposed': _NO_STRIPES,
    'act_cfg': _FIXED,
    'conv_cfg': _FIXED,
    'strides': _FIXED,
    'dilations': _FIXED,
}


def argument_names(constructors: Iterable[Callable]) -> list[str]:
    """Names of the arguments of constructors that hand the rest on to the next."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    names = [
        parameter.name
        for constructor in constructors
        for parameter in inspect.signature(constructor).parameters.values()
        if parameter.kind in named and parameter.name != 'self'
    ]
    return list(dict.fromkeys(names))


def explain_unknown(
    unknown: Mapping[str, Any],
    in_arch: bool,
    arguments: Iterable[str],
    arch_keys: Iterable[str],
) -> str:
    """Say of each name that a backbone does not know what to write instead.

    Args:
        unknown: The names, and the values given.
        in_arch: Whether they were keys of an ``arch`` dict, not arguments.
        arguments: Names of the arguments that the backbone takes.
        arch_keys: Keys that its ``arch`` dict may have.

    Returns:
        A line per name, each after a line break.
    """
    arguments, arch_keys = list(arguments), list(arch_keys)
    arch: dict[str, Any] = {}
    lines = []
    for name, value in unknown.items():
        ours = RENAMED.get(name, name)
        if name == 'kernel_size' and isinstance(value, (list, tuple)):
            # SLaK's ends in the size of the small kernel.
            entries = dict(kernel_sizes=list(value[:-1]), small_kernel=value[-1])
        else:
            entries = {ours: value} if ours in arch_keys else {}
        if entries:
            arch |= entries
            remedy = _spell(entries) + ' in the arch dict' * (not in_arch)
        elif ours in arguments:
            remedy = f'{ours}={value!r}' + ' next to arch, not in it' * in_arch
        elif name in REMEDIES:
            remedy = REMEDIES[name]
        else:
            remedy = _closest(name, [*arguments, *arch_keys])
        lines.append(f'\n  {name}: {remedy}')
    if arch and not in_arch:
        lines.append(f'\nTogether: arch=dict({_spell(arch)})')
    return ''.join(lines)


def _spell(entries: Mapping[str, Any]) -> str:
    """Entries as they are written between the brackets of ``dict()``."""
    return ', '.join(f'{key}={value!r}' for key, value in entries.items())


def _closest(name: str, known: list[str]) -> str:
    ours = {other: mine for other, mine in RENAMED.items() if mine in known}
    ours |= {mine: mine for mine in known}
    by_lower = {other.lower(): mine for other, mine in ours.items()}
    close = get_close_matches(name.lower(), by_lower, n=1)
    return f'did you mean {by_lower[close[0]]}?' if close else 'nothing here is like it'
