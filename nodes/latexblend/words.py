"""Finds a concept's noun in a prompt, by the tokens of the host's CLIP."""

from collections.abc import Sequence
from itertools import pairwise, zip_longest

import torch

from ...demo.model import VOCABULARY
from ..common.checks import BadInput, check_text
from ..common.types import BlendedConcept

ARTICLES = {"a", "an", "the", "my", "your", "his", "her", "its", "our", "their", "one", "this", "that"}
DEMO = "words"  # under which the demo model's tokens come, where each is a phrase
KNOWN = {"l", "g", "h", DEMO}  # encoders of SD 1.x, SD 2.x and SDXL
END_OF_WORD = "</w>"

Chunks = list[list[tuple | list]]  # of one encoder; tokens are (id or vector, weight), or the demo's phrases


def read(node: str, clip, text: str) -> dict[str, Chunks]:
    """Returns the chunks of each encoder."""
    if clip is None:
        raise BadInput(node, "clip", "it is empty.", "Wire the CLIP of an SD 1.x, SD 2.x or SDXL checkpoint.")
    check_text(node, "text", text)
    tokens = clip.tokenize(text)
    if not tokens.keys() <= KNOWN:
        fault = f"its encoders are {', '.join(tokens)}."
        raise BadInput(node, "clip", fault, "Wire the CLIP of an SD 1.x, SD 2.x or SDXL checkpoint.")
    return {name: [list(chunks)] if name == DEMO else [list(x) for x in chunks] for name, chunks in tokens.items()}


def write(chunks: dict[str, Chunks]) -> dict:
    """Converts the result of `read` back to what CLIP encodes."""
    return {name: own[0] if name == DEMO else own for name, own in chunks.items()}


def tokenizer_of(clip, encoder: str):
    """Returns the tokenizer of an encoder."""
    return getattr(clip.tokenizer, f"clip_{encoder}")


def embeddings_of(clip, encoder: str) -> torch.Tensor:
    """Returns the token embeddings of an encoder, (vocabulary, width)."""
    return getattr(clip.cond_stage_model, f"clip_{encoder}").transformer.get_input_embeddings().weight


def identity(clip, encoder: str, token) -> object:
    """Returns what distinguishes a token from others, whatever its weight."""
    if encoder == DEMO:
        return VOCABULARY[token[-1][0]] if not isinstance(token[-1][0], torch.Tensor) else None
    return None if isinstance(token[0], torch.Tensor) else int(token[0])


def spelling(clip, encoder: str, token) -> str:
    """Returns a token's letters, with END_OF_WORD where it ends one; nothing of an embedding."""
    own = identity(clip, encoder, token)
    if own is None:
        return END_OF_WORD
    return f"{own}{END_OF_WORD}" if encoder == DEMO else tokenizer_of(clip, encoder).inv_vocab[own]


def left_out(clip, encoder: str, chunks: Chunks) -> list[int]:
    """Returns the widths of embeddings that the encoder ignores, because its tokens have another one."""
    if encoder == DEMO:
        return []
    width = embeddings_of(clip, encoder).shape[-1]
    vectors = [token[0] for chunk in chunks for token in chunk if isinstance(token[0], torch.Tensor)]
    return [x.shape[-1] for x in vectors if x.shape[-1] != width]


def as_encoded(clip, encoder: str, chunks: Chunks) -> Chunks:
    """Returns the tokens without ignored embeddings: others move up, and pads follow.

    Weights stay where they are, as the host applies them to the positions of a chunk.
    """
    if not left_out(clip, encoder, chunks):
        return chunks
    kept = [[token[0] for token in chunk if not left_out(clip, encoder, [[token]])] for chunk in chunks]
    pad = tokenizer_of(clip, encoder).pad_token
    return [
        [(token, weight) for token, (_, weight) in zip_longest(own, chunk, fillvalue=pad)]
        for own, chunk in zip(kept, chunks, strict=True)
    ]


def bare(clip, encoder: str, chunk: list) -> list:
    """Returns a chunk without start, end and padding."""
    if encoder == DEMO:
        return [phrase for phrase in chunk if phrase[-1][0] != 0]
    tokenizer = tokenizer_of(clip, encoder)
    return chunk[1 : next(i for i, token in enumerate(chunk) if identity(clip, encoder, token) == tokenizer.end_token)]


def noun_ids(node: str, clip, noun: str) -> dict[str, list]:
    """Returns the noun's tokens for each encoder.

    Raises:
        BadInput: it has none, or more than fit in a chunk.
    """
    found = {}
    for encoder, chunks in read(node, clip, noun).items():
        found[encoder] = [identity(clip, encoder, token) for token in bare(clip, encoder, chunks[0])]
        if not found[encoder] or len(chunks) > 1 or None in found[encoder]:
            raise BadInput(
                node, "noun", f"'{noun}' is no word.", "Name the class of the object in a word or two, such as dog."
            )
    if len({len(ids) for ids in found.values()}) > 1:
        raise BadInput(node, "noun", f"the encoders cut '{noun}' differently.", "Use another word.")
    return found


def find(clip, encoder: str, chunks: Chunks, ids: list) -> list[tuple[int, int]]:
    """Returns chunk and index of the first token of each place where the noun is a word of its own."""
    places = []
    for c, chunk in enumerate(chunks):
        own = [identity(clip, encoder, token) for token in chunk]
        for i in range(len(own) - len(ids) + 1):
            at_start = i == 0 or spelling(clip, encoder, chunk[i - 1]).endswith((END_OF_WORD, "<|startoftext|>"))
            if own[i : i + len(ids)] == ids and at_start:
                places.append((c, i))
    return places


def cut_in_two(clip, encoder: str, chunks: Chunks, ids: list) -> int:
    """Counts the nouns that are split between one chunk and the next."""
    count = 0
    for one, following in pairwise(chunks):
        tail, head = bare(clip, encoder, one), bare(clip, encoder, following)
        places = find(clip, encoder, [tail + head], ids)
        count += sum(i < len(tail) < i + len(ids) for _, i in places)
    return count


def make_room(node: str, clip, encoder: str, chunk: list, index: int) -> None:
    """Inserts the word "a" before a token, and drops a pad from the chunk's end, in place.

    Raises:
        BadInput: the chunk has no pad.
    """
    if encoder == DEMO:  # whose word for nothing is its article
        empty = [(0, 1.0)]
        chunk.insert(index, empty)
        if chunk[-1] == empty:
            del chunk[-1]
        return
    end = next(
        i for i, token in enumerate(chunk) if identity(clip, encoder, token) == tokenizer_of(clip, encoder).end_token
    )
    if end == len(chunk) - 1:
        fault = f"before '{spelling(clip, encoder, chunk[index]).removesuffix(END_OF_WORD)}' there is no room: "
        fault += f"its part of the prompt is full ({len(chunk)} tokens)."
        raise BadInput(node, "text", fault, "Put 'a' before the noun yourself, or shorten the text.")
    (article,) = bare(clip, encoder, read(node, clip, "a")[encoder][0])
    chunk.insert(index, article)
    del chunk[-1]


def has_article(clip, encoder: str, chunk: list, index: int) -> bool:
    """Tells whether V* may replace the token before this one."""
    if index == 0:
        return False
    if encoder == DEMO:
        return chunk[index - 1] == [(0, 1.0)]
    return spelling(clip, encoder, chunk[index - 1]).removesuffix(END_OF_WORD) in ARTICLES


def place(
    node: str, clip, text: str, wanted: Sequence[BlendedConcept], slot: str
) -> tuple[dict[str, Chunks], list[int]]:
    """Makes room for V* before each concept's noun.

    Args:
        slot: "auto": V* takes an article's place, or that of an "a" that is put there; "replace": of whatever word is
            there; "insert": always of an "a" that is put there.

    Returns:
        the chunks; of each concept the first token of its slot, in all chunks joined.

    Raises:
        BadInput: of the concept's node or of the input text.
    """
    chunks = {name: as_encoded(clip, name, own) for name, own in read(node, clip, text).items()}
    placed = {}
    for encoder, own in chunks.items():
        length, starts = len(own[0]), []
        for concept in wanted:
            ids = noun_ids(node, clip, concept.learned.noun)[encoder]
            check_length(concept, len(ids))
            cut = cut_in_two(clip, encoder, own, ids)
            starts.append((*occurrence(concept, text, find(clip, encoder, own, ids), cut), len(ids)))
        order = sorted(range(len(starts)), key=lambda k: starts[k])
        for one, next_one in pairwise(order):
            if starts[one][0] == starts[next_one][0] and starts[one][1] + starts[one][2] > starts[next_one][1]:
                raise overlap(wanted[one], wanted[next_one])
        firsts = [0] * len(wanted)
        for k in reversed(order):  # from the end, so that what is inserted moves none still to come
            c, index, _ = starts[k]
            chunk = own[c]
            free = has_article(clip, encoder, chunk, index) or (
                slot == "replace" and (index > 1 or (encoder == DEMO and index > 0))
            )
            if slot == "insert" or not free:
                if slot == "replace":
                    fault = f"no word stands before '{wanted[k].learned.noun}'."
                    raise BadInput(node, "slot", fault, "Set it to auto, or put 'a' before the noun.")
                make_room(node, clip, encoder, chunk, index)
                index += 1
                for later in order[order.index(k) + 1 :]:
                    firsts[later] += starts[later][0] == c
            firsts[k] = c * length + index - 1
        for one, next_one in pairwise(order):
            if firsts[one] + starts[one][2] >= firsts[next_one]:
                raise overlap(wanted[one], wanted[next_one])
        placed[encoder] = firsts
    firsts, *others = placed.values()
    if any(other != firsts for other in others):
        if left_out_of(node, clip, text):
            fault = "only one of the two encoders takes an embedding in it, so that words after it have two places."
            raise BadInput(node, "text", fault, "Put the embedding behind the concepts' words, or use one for SDXL.")
        raise BadInput(node, "text", "the two encoders cut it into different tokens.", "Use plain words.")
    return chunks, firsts


def check_length(concept: BlendedConcept, tokens: int) -> None:
    """Refuses a concept whose noun has another number of tokens in this CLIP."""
    learned = concept.learned
    length = len(next(iter(learned.features.values()))[0])
    if length != 1 + tokens:
        fault = (
            f"'{learned.name}' has keys and values of {length} tokens, with '{learned.noun}' it should be {1 + tokens}."
        )
        raise BadInput(f"Blend Concept '{learned.name}'", "learned", fault, "Use a concept of this noun.")


def left_out_of(node: str, clip, text: str) -> list[str]:
    """Returns warnings about embeddings in a text that its encoders ignore."""
    widths = {name: left_out(clip, name, own) for name, own in read(node, clip, text).items()}
    return [
        f"Warning: an embedding in the text is left out, as in any prompt: it has {width} numbers a token, and this "
        f"CLIP's encoder {name} {embeddings_of(clip, name).shape[-1]}. It was made for another kind of checkpoint."
        for name, others in widths.items()
        for width in sorted(set(others))
    ]


def occurrence(concept: BlendedConcept, text: str, places: list[tuple[int, int]], cut: int) -> tuple[int, int]:
    """Returns the wanted one of the places where the noun is whole."""
    noun, count = concept.learned.noun, len(places)
    name = f"Blend Concept '{concept.learned.name}'"
    if cut and concept.occurrence > count:
        fault = f"'{noun}' stands where the text of Blend is cut: CLIP reads it in pieces of 75 tokens."
        raise BadInput(name, "learned", fault, "Shorten the text before it, or write the noun earlier.")
    if count == 0:
        fault = f"the text of Blend has no word '{noun}', with which it was learned: {text[:80]!r}."
        raise BadInput(name, "learned", fault, f"Write '{noun}' where it is to be, in the singular and alone.")
    if concept.occurrence > count:
        fault = f"it is {concept.occurrence}, but '{noun}' occurs {count} times in the text of Blend."
        raise BadInput(name, "occurrence", fault, f"Set it to {count} or less, or write '{noun}' again.")
    return places[concept.occurrence - 1]


def overlap(one: BlendedConcept, other: BlendedConcept) -> BadInput:
    """Returns the error for two concepts that take the same word."""
    names = f"'{one.learned.name}' and '{other.learned.name}'"
    fault = f"{names} take the same word of the text of Blend ('{one.learned.noun}', '{other.learned.noun}')."
    remedy = "Give them different occurrences, or put a word such as 'a' between their nouns."
    return BadInput(f"Blend Concept '{other.learned.name}'", "occurrence", fault, remedy)
