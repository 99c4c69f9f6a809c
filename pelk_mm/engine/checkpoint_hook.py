"""Checkpoints of a training that are complete whenever it is killed."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mmengine.dist import broadcast_object_list, is_main_process, master_only
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from mmengine.runner import IterBasedTrainLoop, Runner

from pelk_mm.checkpoints.files import CheckpointError, first_line
from pelk_mm.files import write_atomically

from .resume import LAST, ResumePoint, find_resume_point, require_readable

#: Name of `AtomicLocalBackend` among mmengine's file backends.
ATOMIC = 'pelk_mm_atomic'

#: How the name of the folder begins in which a checkpoint is published.
PUBLISHING = '.publish.'

#: Where the log's record has the names of the checkpoints to remove after a save.
OUTDATED = 'outdated_ckpts'

#: What `write_atomically` adds to a name, as a pattern: a dot before, eight characters
#: after it.
_LEFT_OVER = '.{}.????????'


def _megabytes(count: int) -> str:
    return f'{count / 1e6:.1f} MB'


@register_backend(ATOMIC)
class AtomicLocalBackend(LocalBackend):
    """mmengine's local files, written under a temporary name and renamed."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write a file completely or not at all.

        Raises:
            OSError: If it cannot be written; the message says how much space it takes
                and how much is free.
        """
        path = Path(filepath)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with write_atomically(path) as temporary:
                temporary.write_bytes(obj)
            _sync_folder(path.parent)
        except OSError as error:
            free = shutil.disk_usage(path.parent).free
            raise OSError(
                error.errno,
                f'{error.strerror} ({_megabytes(len(obj))} needed, '
                f'{_megabytes(free)} free)',
            ) from error

    def put_text(self, obj: str, filepath: str | Path, encoding: str = 'utf-8') -> None:
        """Write a text file completely or not at all."""
        self.put(obj.encode(encoding), filepath)


def _sync_folder(folder: Path) -> None:
    """Have a renamed file survive a power failure, before others are deleted."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _explained(resume: Callable[..., None]) -> Callable[..., None]:
    """``Runner.resume`` with a `CheckpointError` for whatever a state makes it raise.

    States of the optimizer, the schedulers and the log are read by torch and mmengine,
    which take them to be sound.
    """

    def call(filename: str, *args: Any, **kwargs: Any) -> None:
        try:
            resume(filename, *args, **kwargs)
        except CheckpointError:
            raise
        except Exception as error:
            raise CheckpointError(
                f'{filename} cannot be resumed: {type(error).__name__}: '
                f'{first_line(error)}; resume another one, or start from its weights: '
                f'load_from={filename} without --resume'
            ) from error

    return call


class _LateRemoval:
    """A file backend that puts off removals until they are asked for."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._waiting: list[tuple[Callable[[str], None], str]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def remove(self, path: str) -> None:
        """Note a file to remove."""
        self._waiting.append((self._backend.remove, path))

    def rmtree(self, path: str) -> None:
        """Note a folder to remove."""
        self._waiting.append((self._backend.rmtree, path))

    def remove_now(self, keep: set[str | None]) -> None:
        """Remove what was noted, but not what has been written anew since."""
        for remove, path in self._waiting:
            if path not in keep:
                remove(path)


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """mmengine's ``CheckpointHook``, with files that a kill at any moment leaves whole.

    A checkpoint is written under a temporary name and renamed when it is on the disk;
    ``last_checkpoint`` names it only then, and only then are older and formerly best
    ones removed. mmengine writes in place and removes first: killed meanwhile, or on a
    full disk, it leaves a broken checkpoint, with ``max_keep_ckpts=1`` and no other.

    A training resumes from the checkpoint that was saved last or, where that is missing
    or damaged, from the newest that is neither, with a warning. What a killed run left
    under temporary names is deleted when the next one starts.

    Checkpoints in remote storage (``out_dir='s3://...'``, or with ``file_client_args``)
    are written by mmengine's own backends.

    Args:
        **kwargs: As for mmengine's ``CheckpointHook``. ``backend_args`` of your own
            replace the backend that renames.

    Raises:
        CheckpointError: At a resume, if there are checkpoints and none can be read; in
            the training, if a checkpoint cannot be written. The earlier ones stay.
    """

    #: Path of the latest complete checkpoint, or None.
    complete: str | None = None
    backend_args: Any
    file_backend: Any

    def before_run(self, runner: Runner) -> None:
        """Choose the checkpoint to resume from; rank 0 does, for all.

        Raises:
            CheckpointError: If there are checkpoints and none can be read.
        """
        if not runner._resume or getattr(runner, '_has_loaded', False):
            return
        runner.resume = _explained(runner.resume)
        found: list[Any] = [None]
        if is_main_process():
            try:
                found = [self._find_resume_point(runner)]
            except CheckpointError as error:
                found = [error]
        broadcast_object_list(found)
        if isinstance(found[0], CheckpointError):
            raise found[0]
        path, notice = found[0]
        if notice is not None:
            runner.logger.warning(f'{notice[0].upper()}{notice[1:]}.')
        self.complete = path
        if path is not None:
            runner._load_from = path

    def after_load_checkpoint(self, runner: Runner, checkpoint: Any) -> None:
        """Check where a resumed training is, before mmengine loads data up to there.

        Raises:
            CheckpointError: If that is beyond its end, or nowhere.
        """
        if not runner._resume:
            return
        loop = runner.train_loop
        name, most = 'epoch', loop.max_epochs
        if isinstance(loop, IterBasedTrainLoop):
            name, most = 'iter', loop.max_iters
        meta = checkpoint.get('meta')
        number = meta.get(name) if isinstance(meta, dict) else None
        if type(number) is not int or not 0 <= number <= most:
            raise CheckpointError(
                f'the checkpoint is at {name} {number!r:.40}, and the training goes '
                f'from 0 to {most}; resume another one, or set train_cfg.max_{name}s'
            )

    def _find_resume_point(self, runner: Runner) -> ResumePoint:
        folder = self._folder(runner)
        if runner._load_from is None:
            return find_resume_point(Path(runner.work_dir), folder, self.filename_tmpl)
        require_readable(runner._load_from, folder, self.filename_tmpl)
        return ResumePoint(runner._load_from, None)

    def _folder(self, runner: Runner) -> Path:
        """Where the checkpoints go, before mmengine's `before_train` decides it."""
        work_dir = Path(runner.work_dir)
        if self.out_dir is None or str(self.out_dir) == runner.work_dir:
            return work_dir
        return Path(self.out_dir) / work_dir.name

    def before_train(self, runner: Runner) -> None:
        """Take the backend that renames, and delete what a killed run left."""
        local = '://' not in str(self.out_dir or runner.work_dir)
        if local and self.backend_args is None and self.file_client_args is None:
            self.backend_args = dict(backend=ATOMIC)
        super().before_train(runner)
        if is_main_process():
            if local:
                self._delete_left_overs(Path(self.out_dir), Path(runner.work_dir))
            # A run killed between a save and the removals that follow it.
            self._remove(runner.message_hub.runtime_info.get(OUTDATED, []))

    def _delete_left_overs(self, folder: Path, work_dir: Path) -> None:
        name = self.filename_tmpl.format('*')
        for place, pattern in (
            (folder, name),
            (folder, f'best_*_{name}'),
            (work_dir, LAST),
        ):
            for path in place.glob(_LEFT_OVER.format(pattern)):
                path.unlink()
                print_log(f'Deleted {path}, left by a killed run', logger='current')
        for path in folder.glob(f'{PUBLISHING}*'):
            shutil.rmtree(path)

    def _save_checkpoint_with_step(
        self, runner: Runner, step: int, meta: dict[str, Any]
    ) -> None:
        """Save a checkpoint, name it in ``last_checkpoint``, and remove outdated ones.

        Raises:
            CheckpointError: If a file cannot be written.
        """
        name = self.filename_tmpl.format(step)
        path = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', path)
        outdated = self._count_in(runner, step)
        with self._explained(path):
            runner.save_checkpoint(
                self.out_dir,
                name,
                self.file_client_args,
                save_optimizer=self.save_optimizer,
                save_param_scheduler=self.save_param_scheduler,
                meta=meta,
                by_epoch=self.by_epoch,
                backend_args=self.backend_args,
                **self.args,
            )
            self.last_ckpt = self.complete = path
            if not is_main_process():
                return
            AtomicLocalBackend().put_text(path, Path(runner.work_dir, LAST))
        self._remove(outdated)

    def _remove(self, names: list[str]) -> None:
        for name in names:
            path = self.file_backend.join_path(self.out_dir, name)
            if self.file_backend.isfile(path):
                self.file_backend.remove(path)
            elif self.file_backend.isdir(path):  # DeepSpeed's are folders
                self.file_backend.rmtree(path)

    def _count_in(self, runner: Runner, step: int) -> list[str]:
        """Count a checkpoint among those to keep; returns names of the outdated."""
        if self.max_keep_ckpts <= 0:
            return []
        kept = [*self.keep_ckpt_ids]
        if step not in kept[-1:]:
            kept.append(step)
        outdated = kept[: -self.max_keep_ckpts]
        self.keep_ckpt_ids.clear()
        self.keep_ckpt_ids.extend(kept[-self.max_keep_ckpts :])
        names = [self.filename_tmpl.format(old) for old in outdated]
        # In the checkpoint they have to be as they are after it.
        runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        runner.message_hub.update_info(OUTDATED, names)
        return names

    def _save_best_checkpoint(self, runner: Runner, metrics: dict[str, Any]) -> None:
        """Save a best checkpoint, and only then remove the one that was best."""
        backend, self.file_backend = self.file_backend, _LateRemoval(self.file_backend)
        late = self.file_backend
        try:
            with self._explained('the best checkpoint'):
                super()._save_best_checkpoint(runner, metrics)
        finally:
            self.file_backend = backend
        late.remove_now(
            keep={
                getattr(self, 'best_ckpt_path', None),
                *getattr(self, 'best_ckpt_path_dict', {}).values(),
            }
        )

    @master_only
    def _publish_model(self, runner: Runner, ckpt_path: str) -> None:
        """Publish a checkpoint without the entries that only a training needs."""
        path = Path(ckpt_path)
        if not path.is_file():  # remote
            super()._publish_model(runner, ckpt_path)
            return
        # mmengine names the file by its contents, and writes it in place: elsewhere.
        with TemporaryDirectory(dir=path.parent, prefix=PUBLISHING) as folder:
            source = Path(folder, path.name)
            source.symlink_to(path.absolute())
            with self._explained(f'the published {path}'):
                super()._publish_model(runner, str(source))
                for made in set(Path(folder).iterdir()) - {source}:
                    made.replace(path.with_name(made.name))

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        """Turn an error of the disk into a sentence that says what is left."""
        try:
            yield
        except OSError as error:
            rest = (
                f'{self.complete} is complete: free space, then go on with --resume'
                if self.complete is not None
                else 'no checkpoint had been saved before; free space and start again'
            )
            raise CheckpointError(
                f'{what} cannot be written: {error.strerror or error}; {rest}'
            ) from error
