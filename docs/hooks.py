"""mkdocs hook: the reference pages that are generated from the code at every build."""

from mkdocs.structure.files import File, Files

from llmcfsr_merlin.cli.command_reference import command_reference
from llmcfsr_merlin.config.settings_reference import settings_reference

PAGES = {"reference/settings.md": settings_reference, "reference/commands.md": command_reference}


def on_files(files: Files, config) -> Files:
    for path, write in PAGES.items():
        files.append(File.generated(config, path, content=write()))
    return files
