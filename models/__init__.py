"""What is true of a model family, with neither torch nor an inference engine.

Imports nothing here: the runtime reads specs, images and prompts without loading any family.
`families.py` lists the architectures.
"""
