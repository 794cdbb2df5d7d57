"""Personal data is masked, and what only looks like it stays. Strings and tokens of the first tests are those of
CS336's public tests.
"""

import ipaddress
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.web.private import KINDS, TOKENS, is_iban, is_luhn, mask

MAIL, PHONE, IP = TOKENS["email"], TOKENS["phone"], TOKENS["ip"]


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("Feel free to contact me at {test@gmail.com} if you have any questions.", 1),
        ("The instructors are {pl@fakedomain.ai} and {spl@fakedomain.ai}", 2),
        (
            "Some datasets use the string |||EMAIL_ADDRESS||| to represent masked PII. See {pl@fakedomain.ai}",
            1,
        ),
    ],
)
def test_email_as_in_cs336(text, count):
    plain, expected = re.sub("[{}]", "", text), re.sub("{.*?}", MAIL, text)
    assert mask(plain, ["email"]) == (expected, {"email": count})


@pytest.mark.parametrize("number", ["2831823829", "(283)-182-3829", "(283) 182 3829", "283-182-3829"])
def test_phone_as_in_cs336(number):
    text = "Feel free to contact me at {} if you have any questions."
    assert mask(text.format(number), ["phone"]) == (text.format(PHONE), {"phone": 1})


def test_ip_as_in_cs336():
    assert mask("You can access the server at 192.0.2.146.", ["ip"]) == (
        f"You can access the server at {IP}.",
        {"ip": 1},
    )


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("+49 30 1234567", "phone"),
        ("+1 (212) 555-0100", "phone"),
        ("1-212-555-0100", "phone"),
        ("2001:db8::8a2e:370:7334", "ip"),
        ("8.8.8.8", "ip"),
        ("4111 1111 1111 1111", "card"),
        ("378282246310005", "card"),
        ("5555-5555-5555-4444", "card"),
        ("GB82 WEST 1234 5698 7654 32", "iban"),
        ("DE89370400440532013000", "iban"),
        ("x.y+z%tag@mail.example.co.uk", "email"),
    ],
)
def test_other_forms(text, kind):
    assert mask(f"it is {text}, they said") == (f"it is {TOKENS[kind]}, they said", {kind: 1})


@pytest.mark.parametrize(
    "text",
    [
        "version 1.2.3.4 and v10.20.30.40",
        "Chrome/98.0.4758.102",
        "192.168.0.1, 10.0.0.7, 172.16.5.4 and 127.0.0.1 are at home everywhere",
        "fe80::1 and ::1 and fc00::12",
        "2024-01-15 10:30:45, 15.01.2024, 01/15/2024",
        "at 1700000000 seconds",
        "999.1.2.3 and 1.2.3.4.5",
        "std::vector<a::b> and dead:beef",
        "ISBN 978-3-16-148410-0",
        "3.1415926535 and 2831823829.50",
        "4111 1111 1111 1112",
        "GB83 WEST 1234 5698 7654 32",
        "me@localhost, @handle, a @ b",
        "1234567890123456",
    ],
)
def test_what_only_looks_like_it_stays(text):
    assert mask(text) == (text, {})


@given(st.text(st.sampled_from("0123456789.:-+() @abAB/|"), max_size=200))
def test_each_count_is_a_token(text):
    once, counts = mask(text)
    assert set(counts) <= set(KINDS)
    assert {kind: once.count(TOKENS[kind]) for kind in counts} == counts


@given(st.integers(0, 10**15))
def test_a_wrong_digit_is_never_a_card(number):
    digits = next(f"{number}{check}" for check in range(10) if is_luhn(f"{number}{check}"))
    for place in range(len(digits)):
        wrong = digits[:place] + str((int(digits[place]) + 1) % 10) + digits[place + 1 :]
        assert not is_luhn(wrong)


@given(st.text("0123456789", min_size=11, max_size=30))
def test_a_swapped_pair_is_never_an_iban(body):
    number = int("".join(str(int(letter, 36)) for letter in f"{body}DE00"))
    valid = f"DE{98 - number % 97:02d}{body}"
    assert is_iban(valid)
    if valid[4] != valid[5]:
        assert not is_iban(valid[:4] + valid[5] + valid[4] + valid[6:])


@given(st.ip_addresses(v=4))
def test_every_public_address_is_masked(address):
    _, counts = mask(f"see {address} there", ["ip"])
    if address.is_global:
        assert counts == {"ip": 1}
    if address in ipaddress.ip_network("10.0.0.0/8") or address.is_loopback:
        assert counts == {}


def test_time_is_linear():
    for text in (
        "a" * 200_000,
        "1" * 200_000,
        "1." * 100_000,
        "a@" * 100_000,
        "1:" * 100_000,
        "+1 " * 60_000,
    ):
        mask(text)
