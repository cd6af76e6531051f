"""Parsers and metrics: pure functions from answers to scores, each with the source and the version of its rule.

A parser returns what an answer says, or None if it cannot tell; it never guesses. A score names its metric and
parser as `name@version`, and counts and lists the unparsable and unjudged answers.

plain.py, leads.py: normalised texts; phrases that introduce, join, negate or refuse an answer
parsed.py: a parser with its version; accuracy with unparsable answers counted
yes_no.py, yes_no_public.py: our parser of yes and no in ten languages; the parsers of the benchmarks' own scripts
pope.py, mme.py: scores of yes-or-no benchmarks
choices.py, choices_public.py: our parser of multiple choice in any language; the parsers of the benchmarks' own scripts
mmbench.py, scienceqa.py, mmmu.py: scores of multiple choice; MMMU's open answers
vqa.py, short_answers.py: VQA accuracy; the rules of xGQA, MaXM, MTVQA, MaRVL and GQA
tokens.py, captions.py: tokenizers for captions; CIDEr, BLEU, ROUGE-L and chrF
reviews.py, mmvet.py, pairwise.py: scores from a judge's reviews, grades and verdicts
refusals.py, toxicity.py: whether an answer refuses, in ten languages; whether it is toxic
fidelity.py, scripts.py: whether an answer is in the requested language; a quick check of its script
intervals.py: confidence intervals, paired comparisons and Holm's correction
packages.py: optional packages, imported when first needed
hf/: the scores as metrics of the `evaluate` library, loaded by path without a network
"""
