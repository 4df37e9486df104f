"""Files of the repository that the site shows as pages, and links to them."""

import json
import logging
import posixpath
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
LOG = logging.getLogger("mkdocs.hooks.outside")  # what it warns of fails a strict build

DOCUMENTS = {
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
"""Page of the repository -> of the site."""

EXAMPLES = {
    "tour": ["tour.ipynb"],
    "plain_loop": ["plain_loop.py"],
    "lightning_callback": ["lightning_callback.py"],
    "hf_trainer": ["hf_trainer.py"],
    "world_lines": ["world_lines.py"],
    "own_model": ["own_model/my_lab.py", "own_model/rings.yaml"],
    "own_metric": ["own_metric/alignment.py"],
    "own_launcher": ["own_launcher/background.py", "own_launcher/pyproject.toml"],
}
"""Page below examples/ -> files of examples/ that it shows."""

LANGUAGES = {".py": "python", ".yaml": "yaml", ".toml": "toml"}
LINK = re.compile(r"(?<!!)\[((?:[^\]`]|`[^`]*`)*)\]\((?!\w+:|#)([^)#\s]+)(#[^)\s]*)?\)")


def pages() -> dict[str, str]:
    """Returns the pages that are added: path within docs/ -> Markdown."""
    made = {page: (ROOT / source).read_text("utf-8") for source, page in DOCUMENTS.items()}
    for name, files in EXAMPLES.items():
        made[f"examples/{name}.md"] = _example(name, files)
    return made


def with_links_inside(markdown: str, page: str) -> str:
    """Returns a page in which no link leads out of the site.

    Args:
        markdown: The page.
        page: Where it is, within docs/.
    """
    sources = {inside: source for source, inside in DOCUMENTS.items()}
    home = posixpath.dirname(sources.get(page, f"docs/{page}"))

    def inside(link: re.Match[str]) -> str:
        words, target, anchor = link[1], link[2], link[3] or ""
        path = posixpath.normpath(posixpath.join(home, target))
        if path.startswith("docs/") and page not in sources and not (ROOT / path).is_dir():
            return link[0]  # MkDocs looks whether it is there
        if not (ROOT / path).exists():
            LOG.warning("%s links to %s, which is not there", page, path)
        if (place := _page_of(path)) is None:
            return words if words.strip("`").endswith(path.rpartition("/")[2]) else f"{words} (`{path}`)"
        return f"[{words}]({posixpath.relpath(place, posixpath.dirname(page) or '.')}{anchor})"

    return LINK.sub(inside, markdown)


def _page_of(path: str) -> str | None:
    """Returns the page of the site that shows a file or folder of the repository; None if none does."""
    if path.startswith("docs/") and not (ROOT / path).is_dir():
        return path.removeprefix("docs/")
    if path == "README.md":
        return "index.md"
    name = path.removeprefix("examples/")
    for page, files in EXAMPLES.items():
        if path.startswith("examples/") and (name == page or name in files):
            return f"examples/{page}.md"
    return DOCUMENTS.get(path)


def _example(name: str, files: list[str]) -> str:
    text = f"# `examples/{name}`\n"
    for file in files:
        path = ROOT / "examples" / file
        if path.suffix == ".ipynb":
            return _notebook(path)
        code = path.read_text("utf-8").rstrip()
        text += (
            f"\n## `examples/{file}`\n\n" if len(files) > 1 else f"\n`examples/{file}` of the repository:\n\n"
        )
        text += f"```{LANGUAGES[path.suffix]}\n{code}\n```\n"
    return text


def _notebook(path: Path) -> str:
    """Returns the cells of a notebook, without what they gave."""
    text = ""
    for cell in json.loads(path.read_text("utf-8"))["cells"]:
        source = "".join(cell["source"])
        text += f"\n```python\n{source}\n```\n" if cell["cell_type"] == "code" else f"\n{source}\n"
    return f"{text}\nThis is `examples/{path.name}` of the repository.\n"
