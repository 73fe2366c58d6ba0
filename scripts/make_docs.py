"""Makes the generated pages of the documentation anew: python scripts/make_docs.py"""

from pathlib import Path

import plugin_reference

from gpustack.extensions import load_catalogue
from gpustack.settings.reference import page

DOCS = Path(__file__).parents[1] / "docs"


def pages() -> dict[Path, str]:
    """Return each generated page's text by its path."""
    return {
        DOCS / "reference" / "start.md": page(load_catalogue().options),
        DOCS / "reference" / "plugins.md": plugin_reference.page(),
    }


if __name__ == "__main__":
    for path, text in pages().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
