"""LaTexBlend (arXiv 2503.06956).

Each concept is trained once, alone, as the keys and values that its words have in the UNet's cross-attention; any of
them are then blended into one prompt.

A *slot* is the 1 + L tokens of a prompt that a concept takes: the identifier V* and the L tokens of its noun. A *layer*
is a cross-attention layer, by the host's name for it.
"""
