"""What MkDocs calls while it builds the site: puts in what is made of the code and of files outside docs/."""

import re
from pathlib import Path

from generate import api, keys, outside, verbs, versions
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

MADE = {
    "verbs": verbs.page,
    "keys": keys.page,
    "api": api.public,
    "versions": versions.page,
}
"""A page has `<!-- made: NAME -->` where one of these stands in the site, or `<!-- made: api MODULE -->`."""

FEW = 34
"""Characters of code that fit into a line of a phone."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are files of the repository: examples, the changelog and the like."""
    for path, content in outside.pages().items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Puts in what is made of the code, and turns links that lead out of docs/ into links to pages."""
    markdown = re.sub(r"^<!-- made: (\w+)(?: ([\w.]+))? -->$", _made, markdown, flags=re.MULTILINE)
    return outside.with_links_inside(markdown, page.file.src_uri)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Marks what is not to be broken: code of a few words in a text, and options, which begin with dashes."""
    html = re.sub(rf"<code>([^<]{{1,{FEW}}})</code>", r'<code class="whole">\1</code>', html)
    return re.sub(r"(<code[^>]*>)([^<]*--[^<]*)(?=</code>)", _with_whole_options, html)


def on_post_build(config: MkDocsConfig) -> None:
    """Writes the search's index as a script, too: from the file system a page can load no other."""
    folder = Path(config.site_dir, "search")
    index = (folder / "search_index.json").read_text("utf-8")
    (folder / "search_index.js").write_text(f"var __index = {index}", encoding="utf-8")


def _made(marker: re.Match[str]) -> str:
    return api.of(marker[2]) if marker[2] else MADE[marker[1]]()


def _with_whole_options(code: re.Match[str]) -> str:
    return code[1] + re.sub(r"--\w[\w.-]*", r'<span class="option">\g<0></span>', code[2])
