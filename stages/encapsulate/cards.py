"""Payment card numbers in a packet's payload: found as they are written, and overwritten but for their last digits.

A **group** is a run of digits with none beside it. A card number is one group, or several with a single space or dash between each two,
that has MIN_DIGITS to MAX_DIGITS digits in all, begins with a known issuer's and passes the Luhn test (ISO/IEC 7812-1, annex B). It may
begin and end at any group, so what stands before or behind it does not hide it; of several that begin at the same group the longest is
taken, and where two overlap both are masked. A longer group, as in hexadecimal dumps or long decimals, holds no card.

| begins with | issuer |
|---|---|
| 2200-2204, 2221-2720, 51-55 | Mir; Mastercard |
| 300-305, 3095, 36, 38, 39 | Diners Club |
| 34, 37 | American Express |
| 3528-3589 | JCB |
| 4 | Visa |
| 50, 56-58, 6 | Maestro, Discover, UnionPay, RuPay, InterPayment |
| 81, 82 | UnionPay, RuPay |

These are the ranges that the networks publish, as collected at en.wikipedia.org/wiki/Payment_card_number; how many digits each of them uses
is not asked, so that a new length leaks nothing. One number in ten passes the test by chance: what is no card is masked now and then.

Not seen: a number of which a part is in another packet, or cut off; written in another encoding than ASCII, compressed or encrypted. So
packets are masked before they are cut.
"""

from __future__ import annotations

from stages.encapsulate.masks import payload_start
from stages.jit import kernel
from stages.memory import load8, store8

MIN_DIGITS, MAX_DIGITS = 13, 19
_PREFIX_DIGITS = 4
_ZERO, _SPACE, _DASH = 48, 32, 45
_NO_CARD = 0


@kernel
def _is_digit(at: int) -> bool:
    return 0 <= load8(at) - _ZERO <= 9


@kernel
def is_issuer(prefix: int) -> bool:
    """`prefix`: the first four digits."""
    if prefix < 3000:
        return 2200 <= prefix <= 2204 or 2221 <= prefix <= 2720
    if prefix < 4000:
        known = prefix < 3060 or prefix == 3095 or prefix // 100 in (34, 37)
        return known or 3528 <= prefix <= 3589 or prefix >= 3600
    return prefix < 5900 or 6000 <= prefix < 7000 or 8100 <= prefix < 8300


@kernel
def _card_end(at: int, end: int) -> int:
    """Behind the longest card number that begins at `at`, where a group begins; _NO_CARD."""
    n, prefix, found = 0, 0, _NO_CARD
    even_doubled = odd_doubled = 0  # sums with every digit doubled whose number, from 0, is even, or odd
    while at < end:
        if not _is_digit(at):
            separated = load8(at) in (_SPACE, _DASH) and at + 1 < end and _is_digit(at + 1)
            if not separated:
                break
            at += 1
        digit = load8(at) - _ZERO
        doubled = 2 * digit if digit < 5 else 2 * digit - 9
        even_doubled += digit if n & 1 else doubled
        odd_doubled += doubled if n & 1 else digit
        n += 1
        at += 1
        if n > MAX_DIGITS:
            break
        if n <= _PREFIX_DIGITS:
            prefix = 10 * prefix + digit
            if n == _PREFIX_DIGITS and not is_issuer(prefix):
                break
        if n >= MIN_DIGITS and (at == end or not _is_digit(at)):
            total = odd_doubled if n & 1 else even_doubled  # the last digit is not doubled
            if total % 10 == 0:
                found = at
    return found


@kernel
def _without_last(at: int, n_digits: int) -> int:
    """Where the last `n_digits` digits before `at` begin; there are that many."""
    while n_digits > 0:
        at -= 1
        if _is_digit(at):
            n_digits -= 1
    return at


@kernel
def mask_cards(packet: int, caplen: int, kept: int, byte: int) -> int:
    """Overwrites the digits of card numbers, all but the last `kept` of each, 0 to MIN_DIGITS; returns how many numbers there are."""
    at, end = packet + payload_start(packet, caplen), packet + caplen
    n_cards, masked_to, was_digit = 0, at, False
    while at < end:
        is_digit = _is_digit(at)
        if is_digit:
            # Nothing behind `at` has been overwritten yet, so numbers that overlap are all found.
            card_end = _NO_CARD if was_digit else _card_end(at, end)
            if card_end != _NO_CARD:
                n_cards += 1
                masked_to = max(masked_to, _without_last(card_end, kept))
            if at < masked_to:
                store8(at, byte)
        was_digit = is_digit
        at += 1
    return n_cards
