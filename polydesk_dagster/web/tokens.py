"""Tokens that are capabilities: drawn at random, kept only as hashes."""

from __future__ import annotations

import hashlib
import hmac
import secrets


def draw() -> str:
    """A new token of 256 bits, fit for a cookie and an address."""
    return secrets.token_urlsafe(32)


def hashed(token: str) -> bytes:
    """What is kept of a token. No salt: nobody guesses 256 bits."""
    return hashlib.sha256(token.encode()).digest()


def of_form(session_token: str) -> str:
    """What a form of this session must send back; it cannot be turned into the session's token."""
    return hmac.new(session_token.encode(), b"form", hashlib.sha256).hexdigest()
