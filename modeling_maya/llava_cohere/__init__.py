"""Read, convert and write checkpoints of the original Maya (model type `llava_cohere`).

This is not Hub code: saved models do not carry it. This package imports the Hub code of modeling_maya and
processing_maya, and Hub code never imports this package; `modeling_maya/__init__.py` calls `loading.register`. In the order of the data flow:

- files.py: JSON files, and one-line errors about a user's files.
- headers.py: safetensors headers and shard indexes, both checked.
- tensors.py: tensors on disk, read, compared and written one at a time.
- config.py: translation between the original's config and Maya's, and between their tensor names.
- origin.py: the folder or repository to convert.
- tower.py: config and weights of the vision tower, which the original's checkpoint names but does not contain.
- loading.py: `from_pretrained` for the original's folders.
- lora.py: merges LoRA layers into their decoder.
- write.py: the class of a plan, its report, and the code that writes what is planned.
- to_maya.py: plans the conversion to a Maya.
- join.py: plans the join of a Maya's projector with its bases.
- to_original.py: plans the conversion of a Maya to the original's layout.
- to_llava.py: plans the export to transformers' own LLaVA.
- to_gguf.py: plans the export to GGUF, for llama.cpp, and writes its files.
- convert.py: the function `convert`. Begin here.
"""
