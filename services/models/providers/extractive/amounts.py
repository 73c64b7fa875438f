"""Finds the calculations that a question of quantity implies without naming an operation.

`How much do 3 licences cost?` is three times the price of a licence, `How many litres
does it pump in 4 hours?` four times what it pumps per hour, `What is the difference in
price between A and B?` the one less the other. The figures are in the documents, and
where these don't hold what it takes, the question is answered by quotes as any other.
"""

import re

from services.models.providers.extractive.arithmetic import Calculation
from services.models.providers.extractive.lexicon import SMALL_NUMBERS

_COST = r"(?:costs?|prices?|priced|fees?|charges?|charged|rent|pay|expensive)"
_UNIT = r"(?:second|minute|hour|day|night|week|month|quarter|year)"
_COUNT = rf"(?P<count>\d+(?:\.\d+)?|{'|'.join(SMALL_NUMBERS)})"
_ASKS = re.compile(rf"^(?:and |so |then )*(?:how much|how many|what)\b|\b{_COST}\b", re.IGNORECASE)
_MONEY = re.compile(rf"\bhow much (?!\w+ (?:does|do|is|are|can)\b)|\b{_COST}\b", re.IGNORECASE)
_SPAN = re.compile(
    rf"\b(?:(?:for|in|over|within|during|after) )?{_COUNT} (?P<unit>{_UNIT})s?\b", re.I
)
_ITEMS = re.compile(
    rf"(?<!\d )(?<![\w.-]){_COUNT} (?=(?:[a-z][\w-]* ){{0,4}}?[\w-]+s\b)", re.IGNORECASE
)
_DIFFERENCE = re.compile(
    rf"\bdifference (?:in|of) {_COST} between (?P<a>.+?) and (?P<b>.+?)[?.]*$"
    rf"|\b{_COST} difference between (?P<c>.+?) and (?P<d>.+?)[?.]*$"
    rf"|\bdifference between (?P<e>.+?) and (?P<f>.+?) {_COST}[?.]*$"
    rf"|\bhow much more (?:expensive is|(?:does|do)) (?P<g>.+?) (?:cost )?than (?P<h>.+?)[?.]*$",
    re.IGNORECASE,
)
_IN_ALL = r"(?:together|in total|altogether|combined)[?.]*$"
_TOGETHER = re.compile(
    rf"\b{_COST}\b.*\bof (?P<a>.+?) and (?P<b>.+?) {_IN_ALL}"
    rf"|\bdo(?:es)? (?P<c>.+?) and (?P<d>.+?) {_COST} {_IN_ALL}",
    re.IGNORECASE,
)


def find_amount(text: str) -> Calculation | None:
    """The calculation that `text` implies, with the figures to look up; None for none."""
    for pattern, operator in ((_DIFFERENCE, "-"), (_TOGETHER, "+")):
        if pair := pattern.search(text):
            first, second = (part for part in pair.groups() if part)
            return Calculation(
                f"{{0}} {operator} {{1}}",
                (f"price of {first}", f"price of {second}"),
                is_money=True,
                is_implied=True,
            )
    if not _ASKS.search(text):
        return None
    is_money = _MONEY.search(text) is not None
    counted = _SPAN.search(text) or (_ITEMS.search(text) if is_money else None)
    if counted is None:
        return None
    count = counted["count"].lower()
    unit = counted.groupdict().get("unit") or ""
    phrase = f"{text[: counted.start()]} {text[counted.end() :]}".strip(" ?.!")
    return Calculation(
        f"{SMALL_NUMBERS.get(count, count)} * {{0}}",
        (f"{phrase} price" if is_money else phrase,),
        per=unit.lower(),
        counted=count,
        is_money=is_money,
        is_implied=True,
    )
