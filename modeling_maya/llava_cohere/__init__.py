"""Checkpoints of the original Maya (`llava_cohere`): read as they are, converted, and written back.

Not Hub code: saved models do not bring this room along. It uses the Hub modules of both packages, and
they know nothing of it; `modeling_maya/__init__.py` calls `loading.register`. In the order of the flow:

- files.py: JSON files, and errors in one line.
- headers.py: headers of safetensors files, checked, and the index of shards.
- tensors.py: tensors on disk, one at a time: read, compared, written.
- config.py: the original's config and Maya's, one as the other; names of tensors.
- origin.py: the folder or repository that is converted.
- tower.py: the vision tower, which the original's config only names: its config, and its weights.
- loading.py: `from_pretrained` reads the original's folders.
- lora.py: LoRA layers merged into their decoder.
- write.py: what will be written, the report of it, and the writing.
- to_maya.py: plans the conversion to a Maya.
- to_original.py: plans the way back.
- to_llava.py: plans the export to transformers' own LLaVA.
- convert.py: `convert`, all of it. Begin here.
"""
