"""Which proxy the way to a server leads through: HTTP_PROXY, HTTPS_PROXY and NO_PROXY."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from percmae.errors import UserError


@dataclass(frozen=True)
class Proxy:
    """A proxy; ``url`` is without the user and password, which are shown nowhere."""

    url: str
    variable: str
    user: str | None = field(default=None, repr=False)
    """``user:password`` where it wants them."""

    def __str__(self) -> str:
        return f"the proxy {self.url} ({self.variable})"


def proxy_for(server: str) -> Proxy | None:
    """The proxy that the environment names for the URL ``server``.

    As other S3 clients have it: names in small letters go before those in capitals, a server in
    NO_PROXY is reached directly (``*``, names and the domains below them, addresses, networks such
    as 10.0.0.0/8), and so is this machine itself. Raises UserError for what is no proxy's URL.
    """
    parts = urlsplit(server)
    host, variable = parts.hostname or "", f"{parts.scheme}_proxy"
    if is_loopback(host) or not (os.environ.get(variable) or os.environ.get(variable.upper())):
        return None
    # Slow to import, and seldom needed.
    from urllib import request

    bypassed: Callable[[str, Mapping[str, str]], bool] = request.proxy_bypass_environment  # type: ignore[attr-defined]
    proxies = request.getproxies_environment()
    text = proxies.get(parts.scheme)
    if not text:  # as where the name in small letters is set to nothing
        return None
    if bypassed(parts.netloc, proxies) or _in_network(host, proxies.get("no", "")):
        return None
    return _parsed(text, variable if os.environ.get(variable) else variable.upper())


def is_loopback(host: str) -> bool:
    """Whether this machine itself is meant."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _in_network(host: str, listed: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    for entry in listed.split(","):
        try:
            if address in ipaddress.ip_network(entry.strip(), strict=False):
                return True
        except ValueError:  # a name
            continue
    return False


def _parsed(text: str, variable: str) -> Proxy:
    text = text.strip()
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    # The text is not repeated: it may have a password in it.
    if not host or parts.scheme not in ("http", "https"):
        raise UserError(
            f"{variable} is not the URL of an HTTP proxy: give http://host:port, with"
            " user:password@ in front of the host where it wants them"
        )
    shown = f"[{host}]" if ":" in host else host
    url = f"{parts.scheme}://{shown}" + (f":{port}" if port else "")
    user = None
    if parts.username is not None:
        user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        if not user.isascii():
            raise UserError(f"{variable}: user and password of a proxy must be ASCII")
    return Proxy(url, variable, user)
