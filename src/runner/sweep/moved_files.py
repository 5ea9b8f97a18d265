"""Files of a sweep's data that are in another place when it is resumed."""

from __future__ import annotations

from collections.abc import Sequence

from runner.config.compose import compose
from runner.config.overrides import key_of
from runner.config.resume import other_data, same_data
from runner.config.schema import config_hash
from runner.data.progress import unreported
from runner.errors import CheckpointError, ConfigError
from runner.runs.sinks.reporter import Reporter
from runner.sweep.arguments import SweepArguments
from runner.sweep.manifest import Manifest
from runner.sweep.trials import PATHS, Composer


def move_files(manifest: Manifest, arguments: SweepArguments, typed: Sequence[str], config_dir: str | None) -> None:
    """Give the trials of a sweep the paths among the `typed` keys, if the files have the content that trials were trained on.

    `arguments` are those of the sweep with the typed ones. Raises `ConfigError` for a path in which the trials differ,
    `DataError` for a file that cannot be read, and `CheckpointError` for other content.
    """
    keys = [key for key in typed if key in PATHS]
    if not keys:
        return
    if problems := [
        f"`{key}` must not change for a sweep whose trials differ in it; put the files back"
        for key in keys
        if key in (*manifest.values["swept"], *arguments.swept)
    ]:
        raise ConfigError(problems)
    from runner.runs import saved_state  # imports torch

    data = compose(arguments.sample, config_dir).config.data
    known = filter(None, (saved_state.data_sha256(manifest.member_directory(n)) for n in manifest.members))
    sha256 = next(known, None)
    if sha256 is not None:
        found = data.build(0, unreported).sha256
        if found != sha256:
            raise CheckpointError(other_data(data, sha256, found, manifest.directory))
        moved = {key: path for key, path in data.paths.items() if key in keys}
        Reporter().warn(same_data(moved, found, manifest.directory))
    composer, paths = Composer(config_dir), [override for override in arguments.fixed if key_of(override) in keys]
    for member in manifest.members.values():
        before = tuple(member["overrides"])
        after = (*(override for override in before if key_of(override) not in keys), *paths)
        if member["asked_hash"] == config_hash(composer.config(before)):
            member.update(overrides=list(after), asked_hash=config_hash(composer.config(after)))
