"""How Kubernetes writes names, labels, quantities and image references.

Each function takes a value and ``what`` it is (``job setting memory``) and raises ConfigError with
one line when the API server would not have it.
"""

from __future__ import annotations

import re
from fractions import Fraction

from percmae.errors import ConfigError

_LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_DNS_LABEL = re.compile(_LABEL)
_DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_SUBDOMAIN = re.compile(rf"{_LABEL}(\.{_LABEL})*")
_QUALIFIED = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")
_ENV = re.compile(r"[-._a-zA-Z][-._a-zA-Z0-9]*")
_ENTRY = re.compile(r"[-._a-zA-Z0-9]+")


def job_name(value: str, what: str, longest: int) -> None:
    """A name that becomes part of host names (DNS-1035), with at most ``longest`` characters."""
    if len(value) > longest or not _DNS_1035.fullmatch(value):
        raise ConfigError(
            f"{what} {value!r}: lower-case letters, digits and '-', a letter first, no '-' at the "
            f"end, at most {longest} characters"
        )


def dns_label(value: str, what: str) -> None:
    """A name of at most 63 lower-case letters, digits and '-' (namespaces, volumes)."""
    if len(value) > 63 or not _DNS_LABEL.fullmatch(value):
        raise ConfigError(
            f"{what}={value!r}: not a name for Kubernetes: lower-case letters, digits and '-', "
            "a letter or digit at both ends, at most 63 characters"
        )


def subdomain(value: str, what: str, longest: int = 253) -> None:
    """A name as most objects have: DNS labels with dots between them."""
    if len(value) > longest or not _SUBDOMAIN.fullmatch(value):
        raise ConfigError(
            f"{what}={value!r}: not a name for Kubernetes: lower-case letters, digits, '-' and "
            f"'.', a letter or digit at both ends, at most {longest} characters"
        )


def entry(value: str, what: str) -> None:
    """The name of an entry of a ConfigMap or Secret."""
    if len(value) > 253 or not _ENTRY.fullmatch(value) or value in (".", ".."):
        raise ConfigError(
            f"{what}={value!r}: not the name of an entry: letters, digits, '-', '_' and '.'"
        )


def qualified_name(value: str, what: str) -> None:
    """A label's or annotation's key: ``name`` or ``dns.prefix/name``, the name of at most 63."""
    prefix, slash, name = value.rpartition("/")
    if slash and (len(prefix) > 253 or not _SUBDOMAIN.fullmatch(prefix)):
        raise ConfigError(
            f"{what}: {value!r}: what stands before '/' is a domain, such as example.com"
        )
    if len(name) > 63 or not _QUALIFIED.fullmatch(name):
        raise ConfigError(
            f"{what}: {value!r}: letters, digits, '-', '_' and '.', a letter or digit at both "
            "ends, at most 63 characters (and a domain and '/' before them, if need be)"
        )


def label_value(value: str, what: str) -> None:
    """The value of a label; it may be empty."""
    if value and (len(value) > 63 or not _QUALIFIED.fullmatch(value)):
        raise ConfigError(
            f"{what}={value!r}: letters, digits, '-', '_' and '.', a letter or digit at both ends, "
            "at most 63 characters"
        )


def env_name(value: str, what: str) -> None:
    """The name of an environment variable."""
    if not _ENV.fullmatch(value):
        raise ConfigError(
            f"{what}: {value!r} is no name of a variable: letters, digits, '_', '-' and '.', no "
            "digit first"
        )


_QUANTITY = re.compile(
    r"(?P<number>[+-]?(\d+(\.\d*)?|\.\d+))((?P<unit>[KMGTPE]i|[numkMGTPE])|[eE](?P<power>[+-]?\d+))?",
    re.ASCII,
)
_DECIMAL = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_BINARY = {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40, "Pi": 50, "Ei": 60}
_AS_PEOPLE_WRITE = re.compile(r"([\d.]+)\s*([kmgtpe])(i?)b?", re.IGNORECASE)


def quantity(value: str, what: str) -> Fraction:
    """The number that a Kubernetes quantity (``500m``, ``16Gi``) stands for; above 0."""
    match = _QUANTITY.fullmatch(value)
    if match is None:
        raise ConfigError(f"{what}={value!r}: not a quantity{_meant(value)}")
    power = int(match["power"] or 0)
    if abs(power) > 18:
        raise ConfigError(f"{what}={value!r}: out of range")
    unit = match["unit"] or ""
    scale = Fraction(2) ** _BINARY[unit] if unit in _BINARY else Fraction(10) ** _DECIMAL[unit]
    number = Fraction(match["number"]) * scale * Fraction(10) ** power
    if number <= 0:
        raise ConfigError(f"{what}={value!r}: must be more than 0")
    return number


def memory(value: str, what: str) -> Fraction:
    """The bytes of a quantity of memory or storage; less than a megabyte is a slip of the pen."""
    size = quantity(value, what)
    if size < 10**6:
        number = value.removesuffix("m")
        hint = f"for {number} megabytes write {number}M" if number != value else "add a unit"
        raise ConfigError(f"{what}={value!r}: that is {float(size):g} bytes; {hint}")
    return size


def cores(value: str, what: str) -> Fraction:
    """The cores of a quantity of CPU, in whole thousandths."""
    count = quantity(value, what)
    if (count * 1000).denominator != 1:
        raise ConfigError(f"{what}={value!r}: Kubernetes counts whole thousandths of a core (1m)")
    return count


def _meant(value: str) -> str:
    """What was probably meant: 16GB, 16 Gi, 16g."""
    match = _AS_PEOPLE_WRITE.fullmatch(value.strip())
    if match is None:
        return "; write a number with a unit such as 500m, 16G or 16Gi"
    number, unit, binary = match[1], match[2].upper(), match[3]
    decimal = f"{number}{'k' if unit == 'K' else unit}"
    return f"; write {number}{unit}i" if binary else f"; write {decimal} or {number}{unit}i"


_COMPONENT = r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*"
_HOST_LABEL = r"[A-Za-z0-9]([-A-Za-z0-9]*[A-Za-z0-9])?"
_HOST = rf"{_HOST_LABEL}(\.{_HOST_LABEL})*(:\d+)?"
_IMAGE = re.compile(
    rf"(?P<name>({_HOST}/)?{_COMPONENT}(/{_COMPONENT})*)"
    r"(:(?P<tag>\w[\w.-]{0,127}))?(@(?P<digest>sha256:[0-9a-f]{64}))?",
    re.ASCII,
)


def image(value: str, what: str) -> None:
    """An image reference: ``registry/name:tag``, best with ``@sha256:…`` behind it."""
    if len(value) <= 500 and _IMAGE.fullmatch(value):
        return
    if "@" in value and not re.search(r"@sha256:[0-9a-f]{64}$", value):
        reason = "a digest is @sha256: and 64 lower-case hexadecimal digits"
    elif value != value.strip() or " " in value or not value:
        reason = "it must be given, without spaces"
    elif "://" in value:
        reason = "leave the scheme (what ends with ://) away"
    else:
        reason = "expected registry/name:tag, the name in lower case, or registry/name@sha256:…"
    raise ConfigError(f"{what}={value!r}: not an image reference: {reason}")
