"""What times depend on: the processor, the card and its clocks, threads, versions."""

import os
import platform
import subprocess

import torch

from pelk_mm import ops
from pelk_mm.ops.stopwatch import driver_version, triton_version
from pelk_mm.processor import cpu_fields


def processor() -> str:
    """Name the processor, as far as the system tells."""
    fields = cpu_fields()
    if not fields:
        return platform.processor() or platform.machine()
    name = fields.get('model name', platform.machine())
    return f'{name}, model {fields.get("model", "?")}'


def clocks() -> str:
    """The card's clocks now and at most, as far as nvidia-smi tells."""
    fields = ('clocks.sm', 'clocks.max.sm', 'clocks.mem', 'clocks.max.mem')
    command = ['nvidia-smi', f'--query-gpu={",".join(fields)}', '--format=csv,noheader']
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError):
        return 'unknown'
    told = [field.strip() for field in done.stdout.splitlines()[0].split(',')]
    return 'SM {} of {}, memory {} of {}'.format(*told)


def load() -> str:
    """Processes that ran or waited to run in the last minute, on average."""
    try:
        return f'{os.getloadavg()[0]:.1f}'
    except OSError:
        return 'unknown'


def describe_machine(threads: int, device: str = 'cpu') -> dict[str, str | int]:
    """Name what times depend on.

    Args:
        threads: Threads that are to compute.
        device: Type of the device that computes.

    Returns:
        Processor, instruction set of the compiled kernels, threads and torch's version;
        on CUDA the card, its driver and clocks and triton's version too.
    """
    machine: dict[str, str | int] = {
        'processor': processor(),
        'instruction set': ops.instruction_set() or 'none',
        'threads': threads,
        'torch': torch.__version__,
    }
    if device == 'cuda':
        machine |= {
            'card': torch.cuda.get_device_name(),
            'driver': driver_version(),
            'triton': triton_version(),
            'clocks': clocks(),
        }
    return machine


def set_up_device(threads: int, device: str = 'cpu') -> None:
    """Set torch's threads and seed.

    On CUDA convolutions are timed and chosen as in training by our configs, and float32
    is float32, without tf32.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    if device == 'cuda':
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
