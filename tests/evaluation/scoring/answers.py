"""Texts for property tests: arbitrary ones, and ones built from typical parts of answers."""

from hypothesis import strategies as st

PIECES = (
    "A", "B", "C", "D", "E", "a", "b", "(A)", "[B]", "Б", "В", "ب", "ج", "क", "ख", "খ", "ア", "Ｂ", "1", "2", "٢", "²",
    "yes", "no", "Yes", "No", "не", "да", "はい", "いいえ", "是", "不", "لا", "نعم", "हाँ", "नहीं", "না", "not", "none",
    "the red bus", "a dog", "bus", "answer", "The answer is", "答案是", "Réponse :", "उत्तर:", "option", "or", "and", "和",
    ".", ",", ":", ";", "!", "?", "'", '"', "\n", "\t", " ", "  ", "/", "&", "-", "**", "```json", "{", "}", '"choice"',
    '{"choice": "B"}', "<answer>", "</answer>", "<think>", "</think>", "\\boxed{", "[[A>B]]", "8", "9", "10", "1,000", ".5",
    "\u200d", "\u0301", "\x00", "\ud800", "ß", "İ", "ﷺ", "🙂",
)  # fmt: skip
# Lone surrogates are included: no tokenizer produces them, but a file may hold them.
anything = st.text(max_size=60) | st.text(st.characters(exclude_categories=()), max_size=20)
composed = st.lists(st.sampled_from(PIECES), max_size=10).map("".join)
spaced = st.lists(st.sampled_from(PIECES), max_size=10).map(" ".join)
texts = anything | composed | spaced
around = st.text(" \n\t", max_size=4)
