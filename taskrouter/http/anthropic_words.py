"""Requests of Anthropic's Messages API as calls of ours. Pure.

What a request asks for and nobody here can do is refused rather than left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from taskrouter.errors import BadInput
from taskrouter.manager.asking import chat_request
from taskrouter.verbs import ChatRequest

_IDLE = frozenset({"metadata", "service_tier", "cache_control"})
"""Fields that only say something to Anthropic's own service, and change nothing in an answer."""
_SAMPLING = frozenset({"max_tokens", "temperature", "top_p", "top_k", "stop_sequences"})
_KNOWN = frozenset(
    {"model", "messages", "system", "tools", "tool_choice", "thinking", "output_config", "stream"} | _IDLE | _SAMPLING
)
_OF_TOOL = frozenset(
    {"name", "description", "input_schema", "type", "strict", "cache_control", "eager_input_streaming"}
)
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
_MEDIA_TYPE = re.compile(r"[\w.+-]+/[\w.+-]+", re.ASCII)
_THOUGHTS = ("thinking", "redacted_thinking")
_MOST_MESSAGES = 100_000


def request_of(body: Mapping[str, Any]) -> ChatRequest:
    """A message's body as a call. Raises ``BadInput``."""
    unknown = sorted(name for name in body.keys() - _KNOWN if body[name] is not None)
    if unknown:
        raise BadInput(f"{', '.join(unknown)[:200]}: this server can't do what that asks for; leave it out")
    if body.get("max_tokens") is None:
        raise BadInput("max_tokens is missing; it must say how many tokens the answer may have")
    thinking = body.get("thinking")
    if thinking is not None and not (isinstance(thinking, Mapping) and thinking.get("type") == "disabled"):
        raise BadInput("thinking can't be asked for here: leave it out, or send {'type': 'disabled'}")
    given = body.get("messages")
    if not isinstance(given, list) or not given or len(given) > _MOST_MESSAGES:
        raise BadInput("messages must be a list of messages, at least one, each with a role and a content")
    messages: list[dict[str, Any]] = []
    if (system := _system(body.get("system"), "system")) is not None:
        messages.append(system)
    for place, message in enumerate(given):
        messages += _messages(message, f"messages[{place}]")
    if given[-1]["role"] == "assistant":
        raise BadInput("the last message is the assistant's; answers that go on from a beginning aren't written here")
    return chat_request(
        messages, max_tokens=body["max_tokens"], temperature=body.get("temperature"), top_p=body.get("top_p"),
        stop=_stops(body.get("stop_sequences")), extra=_extra(body),
    )  # fmt: skip


def _stops(given: Any) -> tuple[str, ...]:
    if given is None:
        return ()
    if not isinstance(given, list) or not all(isinstance(each, str) and each for each in given):
        raise BadInput("stop_sequences must be a list of texts that aren't empty")
    return tuple(given)


def _system(given: Any, where: str) -> dict[str, Any] | None:
    if given is None or given in ("", []):
        return None
    texts = [block.get("text") for block in _blocks(given, where) if block["type"] == "text"]
    if len(texts) != len(_blocks(given, where)):
        raise BadInput(f"{where} must be a text, or a list of blocks of type text")
    return {"role": "system", "content": "\n\n".join(_text(text, where) for text in texts)}


def _messages(message: Any, where: str) -> list[dict[str, Any]]:
    """What a message comes to: the results of tools are messages of their own."""
    role = message.get("role") if isinstance(message, Mapping) else None
    if role not in ("user", "assistant", "system"):
        raise BadInput(f"{where} must be an object with a role (user, assistant or system) and a content")
    content = message.get("content")
    if role == "system":
        found = _system(content, where)
        return [found] if found is not None else []
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    blocks = _blocks(content, where)
    if not blocks:
        raise BadInput(f"{where} has no content")
    return [_assistant(blocks, where)] if role == "assistant" else _user(blocks, where)


def _blocks(content: Any, where: str) -> list[Mapping[str, Any]]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise BadInput(f"{where}: content must be a text, or a list of blocks")
    for place, block in enumerate(content):
        if not isinstance(block, Mapping) or not isinstance(block.get("type"), str):
            raise BadInput(f"{where}.content[{place}] must be an object with a type")
    return content


def _user(blocks: Sequence[Mapping[str, Any]], where: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    parts: list[dict[str, Any]] = []
    for place, block in enumerate(blocks):
        here = f"{where}.content[{place}]"
        if block["type"] != "tool_result":
            parts += _parts(block, here)
            continue
        if parts:
            found.append({"role": "user", "content": _content(parts)})
            parts = []
        found.append(_result(block, here))
    if parts:
        found.append({"role": "user", "content": _content(parts)})
    return found


def _result(block: Mapping[str, Any], where: str) -> dict[str, Any]:
    asked = block.get("tool_use_id")
    if not isinstance(asked, str) or not asked:
        raise BadInput(f"{where} needs a tool_use_id, that of the call it is the result of")
    content = block.get("content")
    inner = [] if content is None else _blocks(content, where)
    parts = [part for place, each in enumerate(inner) for part in _parts(each, f"{where}.content[{place}]")]
    if block.get("is_error") is True:
        # The OpenAI API has no field for it, so the model is told in words.
        parts.insert(0, {"type": "text", "text": "The tool failed: "})
    if all(part["type"] == "text" for part in parts):
        return {"role": "tool", "tool_call_id": asked, "content": "".join(part["text"] for part in parts)}
    return {"role": "tool", "tool_call_id": asked, "content": parts}


def _assistant(blocks: Sequence[Mapping[str, Any]], where: str) -> dict[str, Any]:
    texts, calls = [], []
    for place, block in enumerate(blocks):
        here = f"{where}.content[{place}]"
        if block["type"] == "text":
            texts.append(_text(block.get("text"), here))
        elif block["type"] == "tool_use":
            identity, name, given = block.get("id"), block.get("name"), block.get("input")
            if not (isinstance(identity, str) and isinstance(name, str) and name and isinstance(given, Mapping)):
                raise BadInput(f"{here}: a tool_use needs an id, a name, and an input that is an object")
            function = {"name": name, "arguments": _json(given, here)}
            calls.append({"id": identity, "type": "function", "function": function})
        elif block["type"] not in _THOUGHTS:  # whose thoughts those were, only its own service can read
            raise BadInput(f"{here} is of type {block['type'][:60]!r}, which an assistant's message can't have here")
    text = "".join(texts)
    message: dict[str, Any] = {"role": "assistant", "content": text if text or not calls else None}
    return {**message, "tool_calls": calls} if calls else message


def _content(parts: list[dict[str, Any]]) -> Any:
    """A single text as a text: the chat templates of models know that best."""
    return parts[0]["text"] if len(parts) == 1 and parts[0]["type"] == "text" else parts


def _parts(block: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """A block as content parts of the OpenAI API."""
    match block["type"]:
        case "text":
            return [{"type": "text", "text": _text(block.get("text"), where)}]
        case "image":
            return [{"type": "image_url", "image_url": {"url": _url(block.get("source"), where)}}]
        case "document":
            return _document(block, where)
        case kind:
            raise BadInput(
                f"{where} is of type {kind[:60]!r}; text, image, document, tool_use and tool_result are known here"
            )


def _document(block: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """A file as a file; what is text already as text, which every model reads."""
    cited = block.get("citations")
    if isinstance(cited, Mapping) and cited.get("enabled"):
        raise BadInput(f"{where}: citations can't be asked for here")
    title, context, source = block.get("title"), block.get("context"), block.get("source")
    before = [{"type": "text", "text": _text(each, where)} for each in (context,) if each]
    kind = source.get("type") if isinstance(source, Mapping) else None
    if kind in ("text", "content"):
        assert isinstance(source, Mapping)
        inner = source.get("data") if kind == "text" else source.get("content")
        if title:
            before.insert(0, {"type": "text", "text": f"{_text(title, where)}\n\n"})
        inside = _blocks(inner, f"{where}.source")
        if not all(each["type"] in ("text", "image") for each in inside):
            raise BadInput(f"{where}: the content of a document can only be of type text and image")
        return before + [part for each in inside for part in _parts(each, f"{where}.source")]
    name = _text(title, where) if title else "document.pdf"
    return [*before, {"type": "file", "file": {"filename": name, "file_data": _url(source, where)}}]


def _url(source: Any, where: str) -> str:
    kind = source.get("type") if isinstance(source, Mapping) else None
    if kind == "base64":
        media_type, data = source.get("media_type"), source.get("data")
        if not isinstance(media_type, str) or not _MEDIA_TYPE.fullmatch(media_type) or not isinstance(data, str):
            raise BadInput(f"{where}: a base64 source needs a media_type, such as image/png, and data")
        return f"data:{media_type};base64,{data}"
    if kind == "url":
        url = source.get("url")
        # Nothing else: what names no host would be looked for among this machine's own files.
        if not isinstance(url, str) or not url.lower().startswith(("http://", "https://")):
            raise BadInput(f"{where}: a url source needs a url that begins with https:// or http://")
        return url
    raise BadInput(f"{where}: its source must be of type base64 or url; files that were uploaded before aren't kept")


def _text(given: Any, where: str) -> str:
    if not isinstance(given, str):
        raise BadInput(f"{where}: its text is missing, or isn't text")
    return given


def _extra(body: Mapping[str, Any]) -> dict[str, Any]:
    """Tools and the like, as ``extra`` has them."""
    found: dict[str, Any] = {}
    if body.get("top_k") is not None:
        found["top_k"] = body["top_k"]
    tools = body["tools"] if body.get("tools") is not None else []
    if not isinstance(tools, list):
        raise BadInput("tools must be a list of tools, each with a name and an input_schema")
    if tools:
        found["tools"] = [_tool(tool, f"tools[{place}]") for place, tool in enumerate(tools)]
    if (choice := body.get("tool_choice")) is not None:
        found |= _choice(choice, bool(tools))
    if (config := body.get("output_config")) is not None:
        found |= _output(config)
    return found


def _tool(tool: Any, where: str) -> dict[str, Any]:
    if not isinstance(tool, Mapping) or tool.get("type") not in (None, "custom"):
        raise BadInput(f"{where}: only tools that the caller runs itself can be used here (no type, or 'custom')")
    unknown = sorted(name for name in tool.keys() - _OF_TOOL if tool[name] is not None)
    if unknown:
        raise BadInput(f"{where}: {', '.join(unknown)[:200]} can't be done here")
    name, schema, about = tool.get("name"), tool.get("input_schema"), tool.get("description")
    if not isinstance(name, str) or not name or not isinstance(schema, Mapping):
        raise BadInput(f"{where} needs a name, and an input_schema that is an object")
    _json(schema, where)
    function: dict[str, Any] = {"name": name, "parameters": schema}
    if about is not None:
        function["description"] = _text(about, where)
    if tool.get("strict") is not None:
        function["strict"] = tool["strict"] is True
    return {"type": "function", "function": function}


def _choice(choice: Any, tools: bool) -> dict[str, Any]:
    kind = choice.get("type") if isinstance(choice, Mapping) else None
    if not tools:
        raise BadInput("tool_choice is given, and there are no tools to choose from")
    if kind == "tool" and isinstance(choice.get("name"), str):
        found: dict[str, Any] = {"tool_choice": {"type": "function", "function": {"name": choice["name"]}}}
    elif isinstance(kind, str) and kind in _CHOICES:
        found = {"tool_choice": _CHOICES[kind]}
    else:
        raise BadInput("tool_choice must be an object of type auto, any, none, or tool with a name")
    if choice.get("disable_parallel_tool_use") is True:
        found["parallel_tool_calls"] = False
    return found


def _output(config: Any) -> dict[str, Any]:
    if not isinstance(config, Mapping) or any(config[name] is not None for name in config.keys() - {"format"}):
        raise BadInput("output_config can only ask for a format here")
    form = config.get("format")
    if form is None:
        return {}
    if (
        not isinstance(form, Mapping)
        or form.get("type") != "json_schema"
        or not isinstance(form.get("schema"), Mapping)
    ):
        raise BadInput("output_config.format must be of type json_schema, with a schema that is an object")
    _json(form["schema"], "output_config.format")
    written = {"name": "answer", "schema": form["schema"], "strict": True}
    return {"response_format": {"type": "json_schema", "json_schema": written}}


def _json(value: Any, where: str) -> str:
    """A value as JSON. Raises ``BadInput`` for what can be read and not be written again: nested hundreds of times."""
    try:
        return orjson.dumps(value).decode()
    except orjson.JSONEncodeError as error:
        raise BadInput(f"{where} is nested too deep") from error
