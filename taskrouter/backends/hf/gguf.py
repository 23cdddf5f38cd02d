"""GGUF through Transformers: its configuration and tokenizer are in the file, and so is the chat template."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from taskrouter.errors import PreflightFailed
from taskrouter.types import ModelRequest


def gguf_config(request: ModelRequest, file: Path) -> tuple[dict[str, Any], str]:
    """The configuration Transformers makes of a file, and the architecture of its language model.

    Raises ``PreflightFailed`` for a file whose model Transformers can't read, or that is no language model.
    """
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as LANGUAGE_MODELS

    try:
        config = transformers.AutoConfig.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True)
    except ValueError as error:
        raise PreflightFailed(
            f"{request.label}: transformers {transformers.__version__} can't read {file.name}: {error} Upgrade it, or "
            "serve the file by llama.cpp (framework: command)."
        ) from error
    names = LANGUAGE_MODELS.get(config.model_type)
    if names is None:
        raise PreflightFailed(
            f"{request.label}: {file.name} holds a {config.model_type}, which is no language model. Choose another."
        )
    found: dict[str, Any] = config.to_dict()
    return found, names if isinstance(names, str) else names[0]


@contextlib.contextmanager
def bars_like_all_others() -> Iterator[None]:
    """Within, the bar of the GGUF reader is one of Transformers' own, which can be hidden, and stopped at each step.

    The name is a module's, so this may be entered only under the load lock.
    """
    from transformers import modeling_gguf_pytorch_utils as reader
    from transformers.utils import logging as hf_logging

    before = reader.tqdm
    reader.tqdm = hf_logging.tqdm
    try:
        yield
    finally:
        reader.tqdm = before
