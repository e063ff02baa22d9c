"""Text of others in lines of ours: every control character is shown instead of obeyed."""

from __future__ import annotations

from typing import Any

_INVISIBLE = {
    code: f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
    for code in (
        *range(0x20),
        *range(0x7F, 0xA0),
        *(0x061C, 0x200E, 0x200F, 0x2028, 0x2029, 0xFEFF),
        *range(0x202A, 0x202F),
        *range(0x2066, 0x206A),
        *range(0xD800, 0xE000),
    )
} | {ord("\t"): "\\t", ord("\n"): "\\n", ord("\r"): "\\r"}
"""Characters that steer a terminal, or turn its lines and directions around."""

_STEERING = {code: text for code, text in _INVISIBLE.items() if chr(code) not in "\t\n"}


def visible(text: Any) -> str:
    """One line in which every control character is shown instead of obeyed."""
    shown = str(text)
    if shown.isascii() and shown.isprintable():
        return shown
    return shown.translate(_INVISIBLE)


def visible_lines(text: str) -> str:
    """The same for text of many lines."""
    return text.replace("\r\n", "\n").translate(_STEERING)
