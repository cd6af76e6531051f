"""Turn rows and decisions into a dataset's folder for the Hub, and read finished datasets.

plan.py: section `layout` of a plan, and the licence
parts.py: the units of a build; parts of a dataset that are kept while their inputs stay the same
shards.py: rows into files of bounded size
texts.py: the files of one language
messages.py, caption_requests.json, messages_config.py: the config `messages`
layout.py: the step: all parts in order
manifest_shape.py, manifest.py: the dataset's manifest.json
folder.py: a finished dataset, read
export.py: a finished dataset in the forms of other trainers
"""
