"""Turn rows and decisions into a dataset's folder for the Hub, and read finished datasets.

plan.py: section `layout` of a plan, and the dataset's licence
parts.py: the finished units of a build; parts of a dataset that are reused while their inputs are unchanged
shards.py: write rows into files of bounded size
texts.py: write the files of one language
messages.py, caption_requests.json, messages_config.py: write the config `messages`
layout.py: the step itself: write all parts in order
manifest_shape.py, manifest.py: the dataset's manifest.json
folder.py: read a finished dataset
export.py, export.md: convert a finished dataset to the formats of other trainers
"""
