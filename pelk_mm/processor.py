"""What the system tells of the processor."""

from pathlib import Path


def cpu_fields() -> dict[str, str]:
    """What the system tells of its last processor; nothing where it tells nothing."""
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:
        return {}
    fields = dict(line.split(':', 1) for line in lines if ':' in line)
    return {key.strip(): value.strip() for key, value in fields.items()}


def multiplies_bfloat16() -> bool | None:
    """Whether the processor has instructions for bfloat16; None where it is unknown."""
    flags = cpu_fields().get('flags')
    if flags is None:
        return None
    return not {'avx512_bf16', 'amx_bf16'}.isdisjoint(flags.split())
