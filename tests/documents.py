"""What the tests of documents share."""

import re


def code_blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of `language` in a Markdown text."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
