"""Yes or no in ten languages: en zh fr es ru hi ja ar bn ur. Unknown words are neither.

An answer is parsed if it announces yes or no ("The answer is no"), begins with a word for yes or no, or ends
with a clause that is only such a word. The result is None for an answer that says both, and for one whose first
words only look like an answer ("No idea", "No doubt"). Negated sentences ("There is no dog") are not interpreted.
"""

from __future__ import annotations

from typing import Literal

from .leads import ANSWER, JOINERS, REFUSAL, forms_of, occurrences
from .parsed import Parser
from .plain import at_boundary, clauses, plain, without_thought

YesNo = Literal["yes", "no"]

# Words that are an answer even if the sentence goes on without a comma.
_BEGINNING: dict[YesNo, str] = {
    "yes": "yes|yeah|yep|yup|oui|sí|да|हाँ|हां|जी हाँ|जी हां|হ্যাঁ|হ্যা|হাঁ|জি হ্যাঁ|জী হ্যাঁ|ہاں|جی ہاں|ہاں جی|نعم|أجل|بلى"
    "|是的|對的|对的",
    "no": "no|nope|nah|нет|नहीं|नही|जी नहीं|না|জি না|জী না|نہیں|جی نہیں|لا|いいえ|不是|没有|沒有",
}
# Words that are an answer only as a whole clause, since they have other meanings.
_ALONE: dict[YesNo, str] = {
    "yes": "y|yes sir|si|ouais|bien sûr que oui|claro que sí|हा|जी|জি|জী|জ্বি|হা|جی|是|对|對|有|有的|正确|正確|没错|沒錯|是啊"
    "|はい|ええ|うん|そうです|その通りです|あります|います|正しい|正しいです|はいそうです",
    "no": "n|non|mais non|ना|न|নাহ|নেই|নয়|نہ|نا|جی نہ|كلا|不|没|沒|无|無|否|不对|不對|不正确|不正確|不是的|错|錯|错误|錯誤"
    "|いえ|いや|ううん|ない|ないです|違います|ちがいます|ありません|いません|間違いです|正しくありません",
}
# Phrases that begin with a word for no but are not an answer.
_NO_ANSWER = """
no doubt|no idea|no clue|no problem|no worries|no question|no way to|no information|no answer|no image|no picture
no sé|no se|no lo sé|no lo se|no puedo|no estoy|no es posible|no hay forma|no hay manera|no hay suficiente|no tengo
no hay información|no hay duda|no está claro|no queda claro|no matter|no longer|no one
нет возможности|нет информации|нет данных|нет сомнений|нет ответа
नहीं पता|नहीं कह सकता|नहीं बता सकता|না জানি|نہیں معلوم|نہیں پتہ|نہیں کہہ سکتا
لا أعرف|لا أعلم|لا أدري|لا أستطيع|لا يمكن|لا يمكنني|لا شك|لا توجد معلومات|لا بأس
没有办法|沒有辦法|没有足够|沒有足夠|没有信息|没有疑问|没有问题|沒有問題|不是很清楚|不是很确定|不是很確定
"""


_BEGINNINGS = {form: answer for answer, forms in _BEGINNING.items() for form in forms_of(forms)}
_WHOLE = _BEGINNINGS | {
    form: answer for answer, forms in _ALONE.items() for form in forms_of(forms)
}
_NO_ANSWERS = forms_of(_NO_ANSWER)
_CONJUNCTIONS = sorted(JOINERS, key=len, reverse=True)
# Words that may stand between an announcement and the answer.
_COPULAS = forms_of("is|est|es|это|является|是|为|為|は|होगा|है|হলো|হল|হবে|ہے|هي|هو")
_POLITE_ENDS = forms_of("です|でした|है|ہے|হবে")


def parse_yes_no(response: str) -> YesNo | None:
    """Return the yes or no of an answer in any of the ten languages, None if it says neither or both."""
    parts = _joined(clauses(plain(without_thought(response))))
    if not parts:
        return None
    announced = {_verdict(rest) for rest in map(_announced, parts) if rest is not None} - {None}
    said = {_whole(part) for part in parts} - {None}
    first = _whole(parts[0]) or _beginning(parts[0])
    if announced:
        found = announced | ({first} - {None})
        return found.pop() if len(found) == 1 else None
    decided = first or _whole(parts[-1])
    return decided if said <= {decided} else None


def _joined(parts: list[str]) -> list[str]:
    """Return clauses, with an announcement that is its own clause ("Answer:") joined to the next one."""
    found: list[str] = []
    pending = ""
    for part in parts:
        rest = _announced(part)
        if rest is not None and rest in ("", *_COPULAS):
            pending = part
        else:
            found.append(f"{pending} {part}".strip())
            pending = ""
    return found


def _announced(part: str) -> str | None:
    """Return the text after the last announcement in a clause, None if there is none."""
    spans = occurrences(ANSWER, part)
    return part[spans[-1][1] :].strip() if spans else None


def _verdict(rest: str) -> YesNo | None:
    """Return the answer after an announcement, with or without a copula."""
    while True:
        found = _whole(rest) or _beginning(rest)
        copula = next(
            (c for c in _COPULAS if rest.startswith(c) and at_boundary(rest, len(c))), None
        )
        if found or copula is None:
            return found
        rest = rest[len(copula) :].strip()


def _whole(part: str) -> YesNo | None:
    """Return the answer that a whole clause is, polite endings ignored."""
    for end in _POLITE_ENDS:
        if part not in _WHOLE:
            part = part.removesuffix(end).rstrip()
    return _WHOLE.get(part)


def _beginning(part: str) -> YesNo | None:
    """Return the answer that begins a clause, None if the opposite answer is joined to it."""
    refused = any(begin == 0 for begin, _ in occurrences(REFUSAL, part))
    if refused or any(part.startswith(f) and at_boundary(part, len(f)) for f in _NO_ANSWERS):
        return None
    for form, answer in _BEGINNINGS.items():
        if part.startswith(form) and at_boundary(part, len(form)):
            rest = part[len(form) :].strip()
            joiner = next((j for j in _CONJUNCTIONS if rest.startswith(f"{j} ")), "")
            # Arabic writes "and" as a prefix of the next word.
            other = _WHOLE.get(rest.removeprefix(joiner).removeprefix("و").strip())
            return answer if other in (None, answer) else None
    return None


OURS = Parser("yes_no", 2, "this package: training/evaluation/scoring/yes_no.py", parse_yes_no)
