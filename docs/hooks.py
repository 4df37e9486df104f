"""What MkDocs calls while it builds the site: puts in what is made of the code and of files outside docs/."""

from generate import outside
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are files of the repository: examples, the changelog and the like."""
    for path, content in outside.pages().items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns links that lead out of docs/ into links to the pages added above."""
    return outside.with_links_inside(markdown, page.file.src_uri)
