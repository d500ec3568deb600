"""How alike pictures are: embeddings, SegSim, what is left of the background; and what several values say together."""
