"""XML-RPC values as XenServer's ova.xml holds them: a bounded scan, no entities but the five of XML, no document types.

Source: XML-RPC specification (struct, array, scalars); xapi, `Xml_spaces`/export of a VM's metadata.
"""

from __future__ import annotations

import re
from typing import TypeAlias

Value: TypeAlias = "str | list[Value] | dict[str, Value]"

OUR_MAX_DEPTH = 64
OUR_MAX_VALUES = 1 << 18

_TOKEN = re.compile(r"<(/?)([A-Za-z0-9_.]{1,32})\s*(/?)>|([^<]+)")
_SCALARS = frozenset(("string", "int", "i4", "i8", "boolean", "double", "dateTime.iso8601", "base64", "nil"))
_ENTITIES = (("&lt;", "<"), ("&gt;", ">"), ("&quot;", '"'), ("&apos;", "'"), ("&amp;", "&"))


def parse(text: str) -> Value | None:
    """The first whole value in `text`; what an unfinished text holds so far; None when it is not XML-RPC."""
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        return None
    scan = _Scan()
    for token in _TOKEN.finditer(text):
        close, tag, empty, data = token.groups()
        if data is not None:
            scan.text.append(data)
            continue
        if not close and not scan.opened(tag):
            break
        if (close or empty) and scan.closed(tag):
            return scan.root
        if scan.values > OUR_MAX_VALUES:
            break
    return scan.unfinished()


class _Scan:
    """Open structs and arrays, the name that waits for its value, and the text since the last tag that matters."""

    def __init__(self) -> None:
        self.frames: list[dict[str, Value] | list[Value]] = []
        self.names: list[str] = []
        self.text: list[str] = []
        self.value: Value | None = None
        self.root: Value | None = None
        self.values = 0

    def opened(self, tag: str) -> bool:
        """False when nesting is deeper than any export needs."""
        if tag in ("struct", "array"):
            self.frames.append({} if tag == "struct" else [])
            self.names.append("")
        elif tag in ("value", "name"):
            self.value = None
        self.text.clear()
        return len(self.frames) <= OUR_MAX_DEPTH

    def closed(self, tag: str) -> bool:
        """True when the outermost value is complete."""
        text = "".join(self.text)
        self.text.clear()
        if tag in _SCALARS:
            self.value = _unescape(text)
        elif tag == "name" and self.names:
            self.names[-1] = _unescape(text).strip()
        elif tag in ("struct", "array") and self.frames:
            self.names.pop()
            self.value = self.frames.pop()
        elif tag == "value":
            self._keep(_unescape(text) if self.value is None else self.value)
            self.value = None
            return not self.frames
        return False

    def unfinished(self) -> Value | None:
        """The outermost struct or array with every complete value in it."""
        while self.frames:
            self.names.pop()
            inner = self.frames.pop()
            self._keep(inner)
        return self.root

    def _keep(self, value: Value) -> None:
        self.values += 1
        if not self.frames:
            self.root = value
            return
        frame = self.frames[-1]
        if isinstance(frame, dict):
            frame[self.names[-1]] = value
        else:
            frame.append(value)


def _unescape(text: str) -> str:
    if "&" in text:
        for entity, character in _ENTITIES:  # "&amp;" last: what it makes is not an entity again
            text = text.replace(entity, character)
    return text
