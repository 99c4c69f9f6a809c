"""Packaging of pelk_mm."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent

# mmsegmentation forgets to name ftfy and regex, which its text encoders import.
OPENMMLAB = [
    'mmengine==0.10.7',
    'mmcv==2.1.0',
    'mmdet==3.3.0',
    'mmsegmentation==1.2.2',
    'ftfy',
    'regex',
    'setuptools<81',  # mmengine imports pkg_resources, which 81 no longer has
]
ONEDL = [
    'onedl-mmengine',
    'onedl-mmcv==2.3.6',
    'onedl-mmdetection',
    'onedl-mmsegmentation',
    'ftfy',
    'regex',
]

setup(
    name='pelk_mm',
    version=re.search(
        r"__version__ = '(.+)'", (ROOT / 'pelk_mm' / '__init__.py').read_text()
    ).group(1),
    description='PeLK, SLaK and RepLKNet backbones for MMSegmentation and MMDetection',
    long_description=(ROOT / 'README.md').read_text(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    packages=find_packages(include=['pelk_mm', 'pelk_mm.*']),
    python_requires='>=3.10',
    # The mm packages are extras because two distributions provide the same
    # modules: a hard requirement on one would break users of the other.
    install_requires=['torch>=2.6', 'numpy'],
    extras_require={
        'openmmlab': OPENMMLAB,
        'onedl': ONEDL,
        'export': ['onnx', 'onnxruntime'],
        'dev': ['pytest', 'pytest-xdist', 'hypothesis', 'ruff'],
    },
)
