"""Phrases of many languages around an answer: those that introduce, join, negate or refuse one.

This module normalises all phrases with `plain.plain` on import.
"""

from __future__ import annotations

import re

from .plain import at_boundary, plain

# "answer" and its synonyms. Longer forms are tried first.
_ANSWER = """
answer|final answer|correct answer|right answer|best answer|answer choice|correct choice|correct option
réponse|réponse finale|bonne réponse|réponse correcte
respuesta|respuesta correcta|respuesta final|opción correcta
ответ|правильный ответ|верный ответ|окончательный ответ|правильный вариант
答案|正确答案|正確答案|最终答案|最終答案|正确选项|正確選項|回答
答え|正解|解答|最終的な答え|正しい答え
उत्तर|सही उत्तर|अंतिम उत्तर|जवाब|सही जवाब|सही विकल्प
উত্তর|সঠিক উত্তর|চূড়ান্ত উত্তর|উত্তরটি|সঠিক বিকল্প|জবাব
جواب|درست جواب|صحیح جواب|حتمی جواب|درست آپشن
الإجابة|الإجابة الصحيحة|الإجابة النهائية|إجابة|الجواب|الجواب الصحيح|الخيار الصحيح
antwort|richtige antwort|antwoord|resposta|resposta correta|risposta|risposta corretta|jawaban|jawaban yang benar
cevap|doğru cevap|yanıt|đáp án|câu trả lời|odpowiedź|odpověď|odgovor|válasz|atsakymas|răspuns|відповідь|απάντηση
정답|답|대답|คำตอบ|پاسخ|پاسخ صحیح|תשובה|התשובה|התשובה הנכונה|సమాధానం|பதில்|jibu|sagot|svar
"""
# "option". It is weaker evidence, since an answer may discuss several options before it decides.
_OPTION = """
option|choice|letter|opción|вариант|буква|选项|選項|选择|選擇|选|選|選択肢|विकल्प|বিকল্প|বিকল্পটি|آپشن|انتخاب
الخيار|الحرف|option letter|lettre|letra|opção|opzione|pilihan|seçenek|보기|선택지|ตัวเลือก|גزینه|گزینہ
"""
# Words that may stand between the announcement and the answer.
_FILLER = """
is|are|was|would be|should be|must be|will be|the|option|choice|letter|of|that|est|la|le|lettre|es|el|opción|letra
это|вариант|буква|является|是|为|為|应该是|應該是|应为|選項|选项|は|が|होगा|है|विकल्प|হলো|হল|হচ্ছে|হবে|বিকল্প|ہے|آپشن|ہوگا
هي|هو|الخيار|الحرف|ist|die|der|das|é|è|a letra|adalah|은|는|คือ|là|jest
"""
# Words after a letter that show it to be a label, and not a word of the sentence.
_FOLLOWERS = """
because|since|as|for|which|that|is|was|would|seems|looks|due|based|given|in|on|from|with|matches|describes|shows
car|parce|puisque|est|porque|ya|es|pues|потому|так|это|является|верный|правильный
है|होगा|क्योंकि|हैं|হল|হলো|কারণ|হবে|ہے|کیونکہ|ہوگا|لأن|لأنه|لأنها|هي|هو|weil|ist|porque|é|karena|adalah|vì|là
です|だ|である|が|は|正确|正確|正しい|因为|因為|是|选项|選項|項
"""
_JOINERS = """
and|or|and/or|et|ou|y|e|o|u|и|или|和|或|或者|及|と|か|または|और|या|এবং|বা|ও|অথবা|اور|یا|و|أو|und|oder|&|/
"""
_NEGATIONS = """
not|no|never|neither|nor|cannot|without|pas|non|ne|aucun|aucune|ni|sin|nunca|tampoco|не|нет|ни|без
नहीं|नही|न|ना|মত নয়|না|নয়|নেই|নাই|نہیں|نہ|نا|لا|ليس|ليست|لم|لن|غير|ما|nicht|kein|keine|não|nie|niet
wrong|incorrect|false|untrue|faux|fausse|incorrecto|incorrecta|falso|falsa|неверно|неверный|неправильно|неправильный
गलत|ভুল|غلط|خطأ|خاطئ|خاطئة|falsch|errado|errada
"""
# Negations that are parts of a clause, in scripts without spaces.
_NEGATIONS_INSIDE = "不|没|沒|非|无|無|未|错|錯|ない|ません|ぬ|なし|n't"
_REFUSALS = """
cannot determine|can't determine|cannot be determined|can't be determined|unable to|i'm sorry|i am sorry|sorry
i cannot|i can't|i don't know|i do not know|not sure|not possible|impossible to|none of the|no option|not enough information
je ne peux pas|je ne sais pas|impossible de|désolé|aucune des|aucun des|je ne suis pas sûr
no puedo|no se puede|no lo sé|no sé|lo siento|ninguna de|ninguno de|no es posible|no estoy seguro
не могу|не знаю|невозможно|извините|ни один из|ни одно из|нельзя определить
无法|無法|不能确定|不能確定|不知道|不确定|不確定|抱歉|对不起|以上都不|都不是|没有足够|沒有足夠
わかりません|分かりません|判断できません|できません|申し訳|該当なし|いずれでもない|どれでもない
नहीं बता सकता|नहीं कह सकता|पता नहीं|नहीं पता|माफ़ करें|क्षमा|इनमें से कोई नहीं|असमर्थ
বলতে পারছি না|জানি না|দুঃখিত|কোনটিই নয়|সম্ভব নয়|নির্ধারণ করা যায় না
نہیں بتا سکتا|معلوم نہیں|نہیں کہہ سکتا|معذرت|ان میں سے کوئی نہیں|ممکن نہیں
لا أستطيع|لا يمكن|لا يمكنني|لا أعرف|لا أعلم|عذرا|آسف|لا شيء مما
"""


def forms_of(text: str) -> list[str]:
    """Return the phrases of a list, separated by "|" and line ends, as parsers compare them; longer ones first."""
    forms = {plain(form).strip() for line in text.splitlines() for form in line.split("|")}
    return sorted(forms - {""}, key=lambda form: (-len(form), form))


def occurrences(pattern: re.Pattern[str], text: str) -> list[tuple[int, int]]:
    """Return the spans of a pattern's matches in a text that are whole words."""
    spans = (match.span() for match in pattern.finditer(text))
    return [(b, e) for b, e in spans if at_boundary(text, b) and at_boundary(text, e)]


def _any_of(forms: list[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, forms)))


ANSWER, OPTION, REFUSAL = (_any_of(forms_of(text)) for text in (_ANSWER, _OPTION, _REFUSALS))
FOLLOWERS, JOINERS = frozenset(forms_of(_FOLLOWERS)), frozenset(forms_of(_JOINERS))
NEGATIONS = frozenset(forms_of(_NEGATIONS))
NEGATIONS_INSIDE = tuple(forms_of(_NEGATIONS_INSIDE))
FILLERS = forms_of(_FILLER)
