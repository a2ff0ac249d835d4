"""Extension of the API pages: doctests at the end of a docstring are shown as code, under the heading Examples."""

import inspect

import griffe

SECTIONS = ("Args:", "Returns:", "Raises:", "Examples:")


def with_examples(text: str) -> str:
    """A docstring whose last paragraphs, from the first doctest on, are a section of their own.

    A paragraph right before the first doctest that ends in a colon introduces it and moves with it.
    """
    paragraphs = inspect.cleandoc(text).split("\n\n")
    starts = [n for n, paragraph in enumerate(paragraphs) if paragraph.startswith(">>>")]
    if not starts:
        return text
    start = starts[0]
    before = paragraphs[start - 1]
    if start > 1 and before.endswith(":") and not before.startswith((*SECTIONS, " ")):
        start -= 1
    examples = "\n\n".join(paragraphs[start:])
    indented = "\n".join(f"    {line}" if line else "" for line in examples.splitlines())
    return "\n\n".join([*paragraphs[:start], f"Examples:\n{indented}"])


class DoctestsAsExamples(griffe.Extension):
    """Rewrites docstrings before they are parsed."""

    def on_object(self, *, obj: griffe.Object, **kwargs: object) -> None:
        """Called for each module, class, function and attribute."""
        del kwargs
        if obj.docstring is not None:
            obj.docstring.value = with_examples(obj.docstring.value)
