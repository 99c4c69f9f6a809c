"""Where the configs are, in an installed package or in a checkout."""

from pelk_mm_cli import config_folder, config_path

__all__ = ['config_folder', 'config_path']
