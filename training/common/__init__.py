"""Helpers that every other room shares.

This room imports only the two Hub packages, modeling_maya and processing_maya.

Untrusted files and values:
    paths.py: expands `~` and $HOME in paths
    names.py: checks names that become parts of paths
    reading.py: reads text, JSON and YAML of bounded size and depth
    shapes.py: checks plain values against a declared shape
    schema.py: checks YAML against dataclasses; applies `key=value` overrides; content hashes
    languages.py: codes and names of languages
    cards.py: the YAML front matter of Hub cards
    telling.py, markdown.py: make untrusted text safe in messages, spreadsheets, terminals and pages
    secrets.py: removes secrets from files that others will read
Writing files:
    files.py: atomic writes; hashes of files and texts; locks and permissions
    journal.py: append-only record files that survive a killed process
    provenance.py: describes the machine, versions and commit that produced a number
Images:
    hub_code.py: loads single modules of the Hub packages without importing the packages
    images.py: ImageStore, the one reader of images
    places.py: folders, .zip, .tar and parquet files as sources of images
Models and services:
    revisions.py: parses `repository@revision`
    models.py, adapters.py: find, check and load models and adapters of other people
    classifiers.py: runs text classifiers of toxicity, for datasets and for answers
    endpoint.py, thoughts.py: client of an OpenAI-compatible endpoint; removal of reasoning from its answers
Processes:
    signals.py: signal handling, and exit when the parent process ends
    errors.py: which exceptions are user or network errors, and their one-line message
    versions.py: installed and tested package versions
"""
