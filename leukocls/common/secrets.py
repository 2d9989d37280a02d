"""Secrets: access tokens and passwords stay out of every file, log and name."""

import os
import re
from typing import Any

STARS = "***"
# A name whose last words say that it holds a secret: WANDB_API_KEY, hub_token, Authorization.
NAME = re.compile(
    r"(^|[_-])(api[_-]?key|access[_-]?key|private[_-]?key|secret[_-]?key|token|secret|passphrase|password|passwd"
    r"|auth|authorization|credentials?)$",
    re.IGNORECASE,
)
# Forms that only an access token has: Hugging Face, GitHub, AWS, OpenAI and others like it.
TOKEN = re.compile(
    r"\b(hf_\w{16,}|gh[opsu]_\w{16,}|github_pat_\w{16,}|AKIA[0-9A-Z]{16}|sk-[\w-]{16,})"
)
PASSWORD_IN_URL = re.compile(r"(?<=://)[^\s/@:]*:[^\s/@]+(?=@)")
SHORTEST = 8  # characters of an environment variable's value that is taken for a secret


def is_secret(key: str) -> bool:
    """True if a dotted key names a secret, such as an access token; never for keys of `model`."""
    return not key.startswith("model.") and NAME.search(key.split(".")[-1]) is not None


def without_secrets(text: str) -> str:
    """The text with `***` for secrets: tokens, passwords in URLs, secrets of the environment."""
    for name, value in os.environ.items():
        if len(value) >= SHORTEST and NAME.search(name):
            text = text.replace(value, STARS)
    return TOKEN.sub(STARS, PASSWORD_IN_URL.sub(STARS, text))


def starred(node: Any, path: str = "") -> Any:
    """A copy of nested dicts and lists with `***` for secrets, by key and by value.

    Args:
        path: dotted key of `node` itself, which decides what `is_secret` says of keys below it.
    """
    if isinstance(node, dict):
        paths = {key: f"{path}.{key}".lstrip(".") for key in node}
        return {
            key: STARS if value and is_secret(paths[key]) else starred(value, paths[key])
            for key, value in node.items()
        }
    if isinstance(node, list):
        return [starred(value, path) for value in node]
    return without_secrets(node) if isinstance(node, str) else node
