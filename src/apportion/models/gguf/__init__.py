"""Models as GGUF files: what a Hugging Face folder becomes there, and back.

source = open_source("folder or model.gguf")     # names, metadata, tokenizer; refused by name where unknown
source.weight("blk.0.ffn_up.weight")             # as the file will hold it, in float32
load_gguf("model.gguf", placement)               # a StagedModel of the decoded weights
"""
