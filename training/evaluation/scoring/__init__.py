"""How answers are read and scored: pure functions, each with the rule's source and a version.

A parser gives an answer or None, never a guess. A score names its metric and parser as `name@version`,
and counts and lists what it could not read or judge.

plain.py, leads.py: texts as parsers compare them; words that announce, join, negate or refuse an answer
parsed.py: a parser with its version; accuracy with the unparsable answers apart
yes_no.py, yes_no_public.py: yes or no in ten languages; the public parsers
pope.py, mme.py: scores of yes and no
choices.py, choices_public.py: multiple choice in any language; the public parsers
mmbench.py, scienceqa.py, mmmu.py: scores of multiple choice; MMMU's open answers
vqa.py, short_answers.py: VQA accuracy; xGQA, MaXM, MTVQA, MaRVL, GQA
tokens.py, captions.py: captions cut into tokens; CIDEr, BLEU, ROUGE-L, chrF
reviews.py, mmvet.py, pairwise.py: judges' scores, grades and verdicts
refusals.py, toxicity.py: whether an answer refuses, in ten languages; whether it is toxic
fidelity.py, scripts.py: whether an answer is in the language asked for, or at least in its script
intervals.py: intervals, paired comparisons, correction for several of them
packages.py: optional packages, imported when first needed
hf/: the scores as metrics of the library evaluate, loaded by path without a network
"""
