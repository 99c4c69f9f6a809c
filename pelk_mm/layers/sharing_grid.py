"""The sharing grid of peripheral convolution (PeLK, section 4.1)."""

from collections.abc import Sequence

GROWTH = 2  # m of Eq. 2


def check_kernel_size(kernel_size: int) -> None:
    """Raise a ``ValueError`` unless a kernel size is a positive odd integer."""
    if not isinstance(kernel_size, int) or kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(
            f'kernel size {kernel_size!r} is not a positive odd integer; with any '
            'other size the output would not have the size of the input'
        )


def make_sharing_grid(kernel_size: int, central_radius: int) -> tuple[int, ...]:
    """Cell sizes along one axis by the paper's rule (PeLK, Eq. 2).

    A cell i steps away from the centre has size 1 while i <= central_radius and
    2^(i - central_radius) beyond that; the outermost cell takes the remainder.

    Args:
        kernel_size: K, odd.
        central_radius: r_c, radius of the fine-grained centre, >= 0.

    Returns:
        The k' cell sizes from edge to edge, symmetric, with sum K.

    Raises:
        ValueError: If either argument is out of its range.
    """
    check_kernel_size(kernel_size)
    if not isinstance(central_radius, int) or central_radius < 0:
        raise ValueError(
            f'central_radius {central_radius!r} is not a non-negative integer'
        )
    half: list[int] = []
    left = kernel_size // 2
    while left:
        step = len(half) + 1
        cell = min(left, GROWTH ** max(0, step - central_radius))
        half.append(cell)
        left -= cell
    return (*reversed(half), 1, *half)


def check_sharing_grid(
    sharing_grid: Sequence[int], kernel_size: int
) -> tuple[int, ...]:
    """Check that an explicit sharing grid fits its kernel; return it as a tuple.

    Args:
        sharing_grid: Cell sizes along one axis, from edge to edge.
        kernel_size: K, odd.

    Raises:
        ValueError: If the kernel size is not odd, a cell is not a positive
            integer, or the cells do not sum to the kernel size.
    """
    check_kernel_size(kernel_size)
    grid = tuple(sharing_grid)
    if any(not isinstance(cell, int) or cell < 1 for cell in grid):
        raise ValueError(
            f'sharing_grid {grid} has a cell that is not a positive integer'
        )
    if sum(grid) != kernel_size:
        raise ValueError(
            f'sharing_grid {grid} sums to {sum(grid)}, not to the kernel size '
            f'{kernel_size}'
        )
    return grid
