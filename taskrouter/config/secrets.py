"""What looks like a secret: such a value in the file is refused, and never shown.

Two ways to tell: the well-known shapes of keys, wherever they stand; and any value under a name that promises a secret
(``password``, ``api-key``), or a random-looking one under a name that may (``token``, ``key``).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from taskrouter.config.paths import Path

SECRET = "this looks like a secret, and secrets are not read from the file"
ADVICE = "keep it in an environment variable and name that: api_key_env: NAME"
HIDDEN = "<hidden: looks like a secret>"

_SHAPES = re.compile(
    r"""
    (?<![A-Za-z0-9])(?:
        sk-(?=[A-Za-z_-]*[0-9])[A-Za-z0-9_-]{16,}           # OpenAI, Anthropic and those who copy them
      | AIza[A-Za-z0-9_-]{20,}                              # Google
      | hf_[A-Za-z0-9]{16,}                                 # Hugging Face
      | (?:ghp|gho|ghu|ghs|ghr)_[A-Za-z0-9]{16,} | github_pat_[A-Za-z0-9_]{16,} | glpat-[A-Za-z0-9_-]{16,}
      | xox[abeoprs]-[A-Za-z0-9-]{8,}                       # Slack
      | (?:AKIA|ASIA)[A-Z0-9]{12,}                          # AWS
      | gsk_[A-Za-z0-9]{16,} | r8_[A-Za-z0-9]{16,} | nvapi-[A-Za-z0-9_-]{16,} | ya29\.[A-Za-z0-9_-]{16,}
      | eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}          # JSON Web Token
      | [Bb]earer\s+(?!\$)[A-Za-z0-9._~+/=-]{8,}
    )
    | -----BEGIN\ [A-Z ]*PRIVATE\ KEY
    | ://[^/\s:@]*:[^/\s@]+@                                # user:password@host
    | [?&](?:api_?key|key|token|access_token|sig|secret)=[^&\s]{8,}
    """,
    re.VERBOSE,
)
_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[0-9]+")
_SECRET_NAMES = frozenset({"password", "passwd", "passphrase", "secret", "secrets", "apikey", "apikeys", "credential",
                           "credentials", "authorization"})  # fmt: skip
_MAYBE_NAMES = frozenset({"key", "keys", "token", "tokens", "auth", "bearer"})
_NAMES_A_PLACE = frozenset({"env", "file", "path", "name"})
_NOTHING = frozenset({"", "{api_key}", "none", "null", "empty", "dummy", "no", "false"})


def looks_secret(value: str, *, name: str = "") -> bool:
    """Whether ``value``, standing under the key ``name``, looks like a key, token or password."""
    if _SHAPES.search(value):
        return True
    if value.startswith("--") and "=" in value:
        name, value = value.split("=", 1)
    words = [word.lower() for word in _WORDS.findall(name)]
    if not words or words[-1] in _NAMES_A_PLACE or value.lower() in _NOTHING:
        return False
    joined = "".join(words)
    if _SECRET_NAMES.intersection(words) or joined.endswith(("apikey", "apikeys")):
        return True
    return bool(_MAYBE_NAMES.intersection(words)) and looks_random(value)


def looks_random(value: str) -> bool:
    """Whether this is a long unbroken mix of letters and digits that nobody would write (over 3 bits a character)."""
    if len(value) < 20 or not re.fullmatch(r"(?=.*[0-9])(?=.*[A-Za-z])\S+", value):
        return False
    counts = Counter(value)
    return -sum(n / len(value) * math.log2(n / len(value)) for n in counts.values()) > 3.0


def find_secrets(value: Any, path: Path = ()) -> Iterator[Path]:
    """The paths of the texts in plain data that look like secrets."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from find_secrets(item, (*path, key))
    elif isinstance(value, (list, tuple)):
        flag = ""
        for index, item in enumerate(value):
            if isinstance(item, str):
                # The second of `--api-key VALUE` in a command line.
                if _is_secret(item, path) or (flag and not item.startswith("-") and looks_secret(item, name=flag)):
                    yield (*path, index)
                flag = item if item.startswith("-") and "=" not in item else ""
            else:
                yield from find_secrets(item, (*path, index))
    elif isinstance(value, str) and _is_secret(value, path):
        yield path


def _is_secret(value: str, path: Path) -> bool:
    return looks_secret(value, name=next((part for part in reversed(path) if isinstance(part, str)), ""))


def show(value: object) -> str:
    """A value as an error message may show it: short, and hidden where it looks like a secret."""
    if value is None:
        return "nothing (null)"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, (list, tuple)):
        return "a list"
    text = str(value)
    if looks_secret(text):
        return HIDDEN
    text = text if len(text) <= 60 else text[:57] + "..."
    return repr(text) if isinstance(value, str) else text


def join(path: Path) -> str:
    """A key's path as people write it, with nothing secret in it."""
    return ".".join(show(part)[1:-1] if isinstance(part, str) else str(part) for part in path)
