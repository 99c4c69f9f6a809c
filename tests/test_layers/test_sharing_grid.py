import pytest
from hypothesis import given
from hypothesis import strategies as st

from pelk_mm.layers import check_sharing_grid, make_sharing_grid


@pytest.mark.parametrize(
    ('kernel_size', 'central_radius', 'half'),
    [
        # printed in the paper
        (31, 2, (7, 4, 2, 1, 1, 1)),
        (33, 2, (8, 4, 2, 1, 1, 1)),
        (51, 0, (11, 8, 4, 2, 1)),
        (51, 1, (10, 8, 4, 2, 1, 1)),
        (51, 2, (9, 8, 4, 2, 1, 1, 1)),
        (51, 3, (8, 8, 4, 2, 1, 1, 1, 1)),
        # by the same rule
        (49, 2, (8, 8, 4, 2, 1, 1, 1)),
        (47, 2, (7, 8, 4, 2, 1, 1, 1)),
        (13, 2, (2, 2, 1, 1, 1)),
        (101, 3, (17, 16, 8, 4, 2, 1, 1, 1, 1)),
        (69, 3, (1, 16, 8, 4, 2, 1, 1, 1, 1)),
        (67, 3, (16, 8, 4, 2, 1, 1, 1, 1)),
        (1, 2, (1,)),
    ],
)
def test_grids_of_the_paper(kernel_size, central_radius, half):
    grid = make_sharing_grid(kernel_size, central_radius)
    assert grid == (*half, *half[-2::-1])


@given(st.integers(0, 100), st.integers(0, 12))
def test_any_grid_is_symmetric_and_sums_to_its_kernel(half_size, central_radius):
    size = 2 * half_size + 1
    grid = make_sharing_grid(size, central_radius)
    assert sum(grid) == size
    assert grid == grid[::-1]
    assert min(grid) >= 1
    centre = len(grid) // 2
    assert set(grid[max(centre - central_radius, 0) : centre + 1]) == {1}


@pytest.mark.parametrize('size', [0, -3, 2, 30, 3.0, None])
def test_kernel_size_must_be_odd(size):
    with pytest.raises(ValueError, match=f'kernel size {size} is not a positive odd'):
        make_sharing_grid(size, 2)


@pytest.mark.parametrize('radius', [-1, 1.5])
def test_central_radius_must_be_a_radius(radius):
    with pytest.raises(ValueError, match=f'central_radius {radius} is not'):
        make_sharing_grid(31, radius)


def test_explicit_grid_becomes_a_tuple():
    assert check_sharing_grid([2, 1, 2], 5) == (2, 1, 2)


@pytest.mark.parametrize(
    ('grid', 'size', 'message'),
    [
        ((2, 1, 1), 5, 'sums to 4, not to the kernel size 5'),
        ((2, 0, 3), 5, 'is not a positive integer'),
        ((2.0, 1, 2), 5, 'is not a positive integer'),
        ((2, 2), 4, 'kernel size 4'),
        ((), 5, 'sums to 0'),
    ],
)
def test_bad_grids(grid, size, message):
    with pytest.raises(ValueError, match=message):
        check_sharing_grid(grid, size)
