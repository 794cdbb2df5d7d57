"""Personal data, masked by typed tokens: e-mail, phone, IP addresses, card numbers, IBANs.

A pattern finds what looks like one; then arithmetic decides: Luhn's checksum for cards, the remainder by 97 for
IBANs, ranges for addresses. Private and loopback addresses identify nobody and stay, as do version numbers that look
like addresses. The tokens are those of Stanford's CS336 where it has one.

A North American phone number has no checksum: any ten digits in a row whose first is not 0 or 1 are masked.
"""

import ipaddress
import re
from collections.abc import Callable, Iterable

TOKENS = {
    "iban": "|||IBAN|||",
    "card": "|||CARD_NUMBER|||",
    "email": "|||EMAIL_ADDRESS|||",
    "ip": "|||IP_ADDRESS|||",
    "phone": "|||PHONE_NUMBER|||",
}
KINDS = tuple(TOKENS)

IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b")
CARD = re.compile(r"(?<![\d.-])\d(?:[ -]?\d){12,18}(?![\d-])(?!\.\d)")
EMAIL = re.compile(
    r"(?<![\w.+%-])[\w.+%-]{1,64}@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z]{2,24}\b"
)
IPV4 = re.compile(r"(?<![\w.-])(?:\d{1,3}\.){3}\d{1,3}(?![\w-])(?!\.\d)")
IPV6 = re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:])")
PHONE = re.compile(
    r"(?<![\w.+-])(?<!\d/)"
    r"(?:\+\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{1,4}(?:[ .-]?\d{2,4}){1,4}"  # +49 30 1234567
    r"|(?:1[ .-])?(?:\([2-9]\d{2}\)[ .-]{0,2}|[2-9]\d{2}[ .-]?)\d{3}[ .-]?\d{4})"  # (283)-182-3829
    r"(?![\w-])(?!\.\d)"
)
VERSION = re.compile(
    r"(?:\b(?:v|ver|version|versions|release|build|firmware|section)|[/=])\.? ?$", re.IGNORECASE
)
CARD_PREFIXES = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})$|5[1-5]\d{14}$|2(?:22[1-9]|2[3-9]|[3-6]|7[01]|720)\d+$|3[47]\d{13}$|"
    r"6(?:011|5\d\d|4[4-9]\d)\d{12}$|3(?:0[0-5]|[68]\d)\d{11}$|35(?:2[89]|[3-8]\d)\d{12}$"
)
UNROUTED = [
    ipaddress.ip_network(block)
    for block in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.168.0.0/16",
    )
]
FEWEST_DIGITS, MOST_DIGITS = 8, 15  # of an international number (E.164)


def mask(text: str, kinds: Iterable[str] = KINDS) -> tuple[str, dict[str, int]]:
    """Return the text with personal data replaced, and how many of each kind there were.

    >>> mask("Write to ann@example.org or call 283-182-3829.")
    ('Write to |||EMAIL_ADDRESS||| or call |||PHONE_NUMBER|||.', {'email': 1, 'phone': 1})
    """
    counts: dict[str, int] = {}
    wanted = set(kinds)
    for kind, pattern, is_real in CHECKS:
        if kind in wanted and ("@" in text or kind != "email"):
            text, found = _replace(text, pattern, is_real, TOKENS[kind])
            if found:
                counts[kind] = counts.get(kind, 0) + found
    return text, counts


def _replace(
    text: str, pattern: re.Pattern, is_real: Callable[[re.Match], bool], token: str
) -> tuple[str, int]:
    found = 0

    def replacement(match: re.Match) -> str:
        nonlocal found
        if not is_real(match):
            return match[0]
        found += 1
        return token

    return pattern.sub(replacement, text), found


def is_luhn(digits: str) -> bool:
    """True if the last digit is the check digit of the others: every second digit from the right doubled.

    >>> is_luhn("4111111111111111"), is_luhn("4111111111111112")
    (True, False)
    """
    doubled = [sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2]]
    return (sum(doubled) + sum(map(int, digits[-1::-2]))) % 10 == 0


def _is_card(match: re.Match) -> bool:
    digits = re.sub(r"\D", "", match[0])
    return bool(CARD_PREFIXES.match(digits)) and is_luhn(digits)


def is_iban(text: str) -> bool:
    """True if country and check digits, moved to the end and read as a number with A = 10, leave 1 when divided by 97.

    >>> is_iban("GB82 WEST 1234 5698 7654 32"), is_iban("GB83 WEST 1234 5698 7654 32")
    (True, False)
    """
    letters = text.replace(" ", "")
    moved = letters[4:] + letters[:4]
    return 15 <= len(letters) <= 34 and int("".join(str(int(letter, 36)) for letter in moved)) % 97 == 1


def _is_ipv4(match: re.Match) -> bool:
    try:
        address = ipaddress.IPv4Address(match[0])
    except ValueError:
        return False
    before = match.string[max(0, match.start() - 12) : match.start()]
    return not VERSION.search(before) and not any(address in network for network in UNROUTED)


def _is_ipv6(match: re.Match) -> bool:
    if not any(map(str.isdigit, match[0])) or len(match[0].replace(":", "")) < 4:
        return False  # a:: and b::c are more likely code
    try:
        address = ipaddress.IPv6Address(match[0])
    except ValueError:
        return False
    return not (address.is_loopback or address.is_link_local or address in ipaddress.ip_network("fc00::/7"))


def _is_phone(match: re.Match) -> bool:
    digits = sum(map(str.isdigit, match[0]))
    return not match[0].startswith("+") or FEWEST_DIGITS <= digits <= MOST_DIGITS


CHECKS: tuple[tuple[str, re.Pattern, Callable[[re.Match], bool]], ...] = (
    ("iban", IBAN, lambda match: is_iban(match[0])),
    ("card", CARD, _is_card),
    ("email", EMAIL, lambda match: True),
    ("ip", IPV4, _is_ipv4),
    ("ip", IPV6, _is_ipv6),
    ("phone", PHONE, _is_phone),
)
