"""What the counts of the GPU kernels read in a compiler's output."""

import importlib.util
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / 'benchmarks'

#: A loop that was unrolled twice, with its rest, within a loop; the last jump is none.
SASS = """
        .size           toy,(.L_x_4 - toy)
.text.toy:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
.L_x_0:
        /*0010*/                   IMAD.MOV.U32 R2, RZ, RZ, R1 ;
.L_x_1:
        /*0020*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0030*/                   LDG.E.128 R8, desc[UR4][R2.64+0x10] ;
        /*0040*/                   FADD R4, R4, R8 ;
        /*0050*/               @P0 BRA `(.L_x_1) ;
.L_x_2:
        /*0060*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0070*/               @P1 BRA `(.L_x_2) ;
        /*0080*/                   HMMA.16816.F32.BF16 R4, R8, R12, R4 ;
        /*0090*/              @!P2 BRA `(.L_x_0) ;
        /*00a0*/                   EXIT ;
.L_x_3:
        /*00b0*/                   BRA `(.L_x_3);
        /*00c0*/                   BRA `(.L_x_0);
.L_x_4:
"""

#: A loop that only waits.
WAIT = """
.L_x_0:
        /*0000*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P3, [UR34], R4 ;
        /*0010*/              @!P3 BRA `(.L_x_0) ;
        /*0020*/                   EXIT ;
"""


@pytest.fixture(scope='module')
def sass():
    spec = importlib.util.spec_from_file_location('sass', BENCHMARKS / 'sass.py')
    module = importlib.util.module_from_spec(spec)
    sys.modules['sass'] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules['sass']


@pytest.fixture(scope='module')
def code(sass):
    return sass.parse_sass(SASS)


def test_instructions_and_loops(sass, code):
    assert [each.opcode.split('.')[0] for each in code] == [
        *('LDC', 'IMAD', 'LDG', 'LDG', 'FADD', 'BRA', 'LDG', 'BRA', 'HMMA', 'BRA'),
        *('EXIT', 'BRA', 'BRA'),
    ]
    assert sass.find_loops(code) == [(1, 9), (2, 5), (6, 7)]
    assert sass.find_loops(sass.parse_sass(WAIT)) == []
    assert sass.unrolled(code, sass.find_loops(code)) == [[(1, 9)], [(2, 5), (6, 7)]]


def test_times_that_instructions_run(sass, code):
    """The inner loop runs 5 times, then 4: two pairs and one, then two pairs."""
    times = sass.times_run(code, ((3,), (5, 4)))
    assert times == [1, 3, 6, 6, 6, 6, 1.5, 1.5, 3, 3, 1, 1, 1]
    with pytest.raises(ValueError, match='made 2 loops.*knows how often 1 run'):
        sass.times_run(code, ((3,),))


def test_cycles_of_pipes(sass, code):
    arch = sass.ARCHITECTURES['sm_90']
    taken = sass.count_cycles(code, ((1,), (2,)), arch)
    assert taken['tensor'] == 16 * 8 * 16 / 2048
    assert taken['load/store'] == 2 * 32 * 16 / 128
    assert taken['fma'] == 32 / 128 + 32 / 64  # an addition, and a move by IMAD
    # All but the rest of the unrolled loop, which does not run, and a quarter each.
    assert taken['issue'] == 11 / 4


@pytest.mark.parametrize(
    ('opcode', 'operands', 'pipes'),
    [
        ('LDGSTS.E.128', '[R1], desc[UR4][R2.64]', {'load/store': 4, 'shared': 4}),
        ('LDG.E.U16', 'R1, [R2.64]', {'load/store': 1}),
        ('STS.64', '[R1], R2', {'shared': 2}),
        ('LDSM.16.M88.4', 'R4, [R1]', {'shared': 4}),
        ('MUFU.RCP', 'R1, R2', {'special': 2}),
        ('LOP3.LUT', 'R1, R2, R3', {'integer': 0.5}),
        ('UIADD3', 'UR4, UR5, 0x1', {}),
        ('BAR.SYNC', '0x0', {}),
        # A warp's quarter of 64 x 256 x 16 products; both operands in shared memory.
        (
            'HGMMA.64x256x16.F32.BF16',
            'R24, gdesc[UR8], R24',
            {'tensor': 32, 'shared': (64 + 256) * 16 * 2 / 4 / 128},
        ),
        (
            'HGMMA.64x256x16.F32.BF16',
            'R24, R4, gdesc[UR8], R24',
            {'tensor': 32, 'shared': 256 * 16 * 2 / 4 / 128},
        ),
    ],
)
def test_cycles_of_an_instruction(sass, opcode, operands, pipes):
    instruction = sass.Instruction(opcode, operands)
    taken = sass.cycles(instruction, sass.ARCHITECTURES['sm_90'])
    assert taken.pop('issue') == 0.25
    assert taken == pytest.approx(pipes)


def test_resources(sass):
    text = ' Function toy:\n  REG:254 STACK:8 SHARED:1024 LOCAL:0 CONSTANT[0]:628'
    assert sass.parse_resources(text) == (254, 8)
    with pytest.raises(ValueError, match='no resource usage'):
        sass.parse_resources('cuobjdump: not a cubin')


@pytest.mark.parametrize(
    ('registers', 'shared', 'warps', 'resident'),
    [
        (32, 0, 4, 64),  # as many as there may be
        (254, 0, 4, 8),  # registers
        (64, 80 << 10, 8, 16),  # shared memory
    ],
)
def test_resident_warps(sass, registers, shared, warps, resident):
    arch = sass.ARCHITECTURES['sm_90']
    assert sass.resident_warps(registers, shared, warps, arch) == resident
