"""What pyproject.toml cannot say: how the kernels and the mm files are built."""

import os
import platform
import shlex
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
CSRC = Path('pelk_mm') / 'ops' / 'csrc'
LIBRARY_FILES = ('api', 'plan')
# Compiled once per instruction set.
KERNEL_FILES = ('column_fft', 'direct', 'fft', 'kernel_table', 'pixels', 'transpose')

# One entry per instruction set: its namespace in csrc/kernels.h, floats per vector,
# vector registers, compiler flags.
PORTABLE = ('portable', 4, 16, [])
X86 = [
    ('avx2', 8, 16, ['-mavx2', '-mfma']),
    (
        'avx512',
        16,
        32,
        ['-mavx512f', '-mavx512vl', '-mavx512bw', '-mavx512dq', '-mfma']
        + ['-mprefer-vector-width=512'],
    ),
]


class BuildKernels(build_ext):
    """Builds the CPU kernels, a plain shared library, where a compiler allows it."""

    def build_extension(self, ext):
        """Compile the kernels once per instruction set and link all of them."""
        try:
            self._build(ext)
        except Exception as error:
            print(
                f'pelk_mm: the CPU kernels were not built ({error}). Everything works '
                'through torch, large kernels several times slower; install a C++17 '
                'compiler (GCC or Clang) and reinstall to have them.'
            )

    def _build(self, ext):
        x86 = platform.machine().lower() in ('x86_64', 'amd64')
        flags = ['-std=c++17', '-O3', '-fPIC', '-fvisibility=hidden']
        flags += ['-ffp-contract=fast', *(['-DPELK_X86'] if x86 else [])]
        # More flags, as tests/sanitize has them: of each kind the last one counts.
        more = shlex.split(os.environ.get('PELK_MM_CXXFLAGS', ''))
        flags += more
        objects = self.compiler.compile(
            [str(CSRC / f'{name}.cpp') for name in LIBRARY_FILES],
            output_dir=self.build_temp,
            extra_postargs=flags,
            depends=ext.depends,
        )
        for name, lanes, registers, machine in [PORTABLE, *(X86 if x86 else [])]:
            objects += self.compiler.compile(
                [str(CSRC / f'{kernel}.cpp') for kernel in KERNEL_FILES],
                output_dir=str(Path(self.build_temp) / name),
                macros=[
                    ('PELK_ISA', name),
                    ('PELK_LANES', str(lanes)),
                    ('PELK_REGISTERS', str(registers)),
                ],
                extra_postargs=flags + machine,
                depends=ext.depends,
            )
        path = Path(self.get_ext_fullpath(ext.name))
        path.parent.mkdir(parents=True, exist_ok=True)
        self.compiler.link_shared_object(
            objects, str(path), extra_postargs=['-pthread', *more], target_lang='c++'
        )


KERNELS = Extension(
    'pelk_mm.ops.backends.cpu._kernels',
    [str(CSRC / f'{name}.cpp') for name in (*LIBRARY_FILES, *KERNEL_FILES)],
    depends=[str(path) for path in sorted(CSRC.glob('*.h'))],
    optional=True,
)


class BuildWithConfigs(build_py):
    """Puts configs and tools into the built package, as mm tools look for them.

    A checkout is left as it is: an editable install finds them at its root.
    """

    def run(self):
        """Build the package, then copy."""
        super().run()
        if getattr(self, 'editable_mode', False):
            return
        target = Path(self.build_lib) / 'pelk_mm' / '.mim'
        for source in self._mim_files():
            path = target / source.relative_to(ROOT)
            self.mkpath(str(path.parent))
            self.copy_file(str(source), str(path))

    def get_outputs(self, include_bytecode=1):
        """Files that the command makes, for the wheel's record."""
        target = Path(self.build_lib) / 'pelk_mm' / '.mim'
        mim = [str(target / source.relative_to(ROOT)) for source in self._mim_files()]
        return [*super().get_outputs(include_bytecode), *mim]

    @staticmethod
    def _mim_files():
        kinds = ('.py', '.sh', '.yml')
        yield ROOT / 'model-index.yml'
        for folder in ('configs', 'tools'):
            for path in sorted((ROOT / folder).rglob('*')):
                # These serve a checkout alone: they set it up and write its files.
                if path.name in ('setup_env.py', 'supply_chain.py', 'metafiles.py'):
                    continue
                if path.suffix in kinds and path.is_file():
                    yield path


setup(
    ext_modules=[KERNELS],
    cmdclass={'build_ext': BuildKernels, 'build_py': BuildWithConfigs},
)
