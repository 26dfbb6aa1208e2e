"""Pages and generated files from the templates in ``templates/``."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).parent / "templates"


@functools.cache
def _environment() -> Environment:
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        # What a name ends in decides: a shell script has other rules than a page.
        autoescape=lambda name: name is not None and ".html" in name,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def render(template: str, **values: Any) -> str:
    """A template with its values; in pages every value is escaped.

    Args:
        template: Name of the file in ``templates/``.
        values: What the template names; a name that is missing is an error.
    """
    return _environment().get_template(template).render(**values)
