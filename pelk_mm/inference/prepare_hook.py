"""Test a model in the form in which it predicts fastest."""

import copy
from typing import Any

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS

from pelk_mm.checkpoints.files import CheckpointError
from pelk_mm.conversion.prepare import prepare_for_inference


@HOOKS.register_module()
class PrepareForInferenceHook(Hook):
    """Has tests run a copy of the model by `prepare_for_inference`.

    ``pelk-mm test --prepare DTYPE`` adds it. In a config::

        custom_imports = dict(imports=['pelk_mm.inference.prepare_hook'])
        custom_hooks = [dict(type='PrepareForInferenceHook', dtype='bfloat16')]

    Args:
        dtype: ``float32`` or ``bfloat16``.
        compile: Whether backbones are compiled.
    """

    #: After the hooks that put other weights into the model, as mmengine's EMAHook.
    priority = 'VERY_LOW'

    def __init__(self, dtype: str = 'float32', compile: bool = False) -> None:
        self.dtype, self.compile = dtype, compile
        self._model: Any = None

    def before_test_epoch(self, runner: Any) -> None:
        """Put a prepared copy in the place of the runner's model.

        Raises:
            CheckpointError: If the model cannot be prepared; the message says why.
        """
        self._model = runner.model
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        model = copy.deepcopy(model)
        model.zero_grad()
        try:
            runner.model = prepare_for_inference(
                model, self.dtype, compile=self.compile
            )
        except (TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f'the model cannot be prepared: {error}') from error

    def after_test_epoch(
        self, runner: Any, metrics: dict[str, float] | None = None
    ) -> None:
        """Put the model itself back."""
        runner.model, self._model = self._model, None
