"""``generate``: a text that goes on, without a chat template."""

from __future__ import annotations

import threading

from taskrouter.backends.hf.batching import Steps
from taskrouter.backends.hf.loading import Parts
from taskrouter.backends.hf.writing import Text, check, fitting
from taskrouter.errors import BadInput
from taskrouter.verbs import GenerateAnswer, GenerateRequest


def complete(parts: Parts, request: GenerateRequest, context: int | None, stop: threading.Event) -> Steps:
    """Go on with the prompt: wants a text written. Blocks between.

    The tokenizer begins it as it was trained to (a beginning-of-text token where there is one). Raises ``BadInput`` for
    nonsensical sampling, and ``ContextTooLong``.
    """
    check(request)
    inputs = parts.processor(request.prompt, return_tensors="pt", return_token_type_ids=False)
    if not inputs["input_ids"].shape[1]:
        raise BadInput("the prompt comes to no tokens at all.")
    text, reason, usage = yield Text(parts, request, fitting(parts, request, context, inputs), stop, lambda _: None)
    return GenerateAnswer(text, reason, usage)
