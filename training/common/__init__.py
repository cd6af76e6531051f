"""The ground that every other room stands on. It imports only the two Hub packages.

Files of strangers, and their values:
    paths.py: `~` and $HOME in paths
    names.py: names that become parts of paths
    reading.py: text, JSON and YAML of bounded size and depth
    shapes.py: plain values checked against a shape
    schema.py: YAML checked against dataclasses, overrides, digests
    languages.py: codes and names of languages
    cards.py: the YAML of Hub cards
    telling.py, markdown.py: text of strangers in messages, spreadsheets and pages
    secrets.py: what is left out of files that others read
Files that are written:
    files.py: every file is whole or absent; hashes of files and texts; locks and permissions
    journal.py: append-only files of records, readable after any kill
    provenance.py: machine, versions and commit that numbers come from
Pictures:
    hub_code.py: modules of the Hub packages, without the packages
    images.py: one reader of pictures, ImageStore
    places.py: where pictures are: folders, .zip, .tar, tables
Models and services:
    revisions.py: a folder, or a repository at a revision
    models.py, adapters.py: models and adapters of others, found, checked and loaded
    classifiers.py: text classifiers that tell toxic texts
    endpoint.py, thoughts.py: an OpenAI-compatible endpoint, and the tidying of its answers
Processes:
    signals.py: signals, and the end of the parent process
    errors.py: user errors, in one line; which are the network's
    versions.py: installed and tested versions
"""
